"""`mcspex report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mcspex_cli.cli import console, options


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=options.PATH,
    metavar="PAGE.html",
    help="The page to write.",
)
@click.option("--truth", type=options.PATH, metavar="DIR", help="The targets' speech alone.")
@click.option(
    "--mixtures", type=options.PATH, metavar="DIR", help="What the estimates were extracted from."
)
@click.option(
    "--groups",
    type=options.PATH,
    metavar="CSV",
    help="Cases (id or name) and groups, which make sections; a column title names the cases.",
)
@click.option(
    "--group-by",
    metavar="COLUMN",
    help="The column of --groups to use.  [default: group, or the only one]",
)
@click.option(
    "--max-cases",
    type=click.IntRange(min=0),
    metavar="N",
    help="Show at most so many: a third best, a third worst, a third drawn at random. "
    "[default: 12; all with --no-embed]",
)
@click.option("--seed", default=0, show_default=True, help="For the cases drawn at random.")
@click.option(
    "--title", default="Target speaker extraction", show_default=True, help="The page's heading."
)
@click.option(
    "--embed/--no-embed",
    default=True,
    help="Put sounds and pictures into the page (default), or into PAGE_files/ beside it.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing page and its files.")
def report(
    runs: tuple[str, ...],
    output: Path,
    **settings: Any,
) -> None:
    """Make a web page of what systems extracted: players, spectrograms and scores, side by side.

    A RUN is a folder of estimates or one made by mcspex batch, or NAME=FOLDER to give it
    another name. Files are paired by name (a.target.wav with a.wav). The page needs no network.
    """
    from mcspex_cli.evaluation.page import PageSettings, read_runs, write_page

    page_settings = PageSettings(**settings)
    with console.progress(shown=True) as bar:
        task = bar.add_task("comparing", total=1.0)
        page = write_page(
            read_runs(runs), output, page_settings, lambda share: bar.update(task, completed=share)
        )
    for warning in page.warnings:
        console.warn(warning)
    size = console.size(output.stat().st_size)
    console.say(f"{output}  ({page.shown} of {page.cases} cases shown, {size})")
