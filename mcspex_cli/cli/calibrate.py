"""`mcspex models calibrate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.downloads import find_model
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from mcspex_cli.training.calibration import Case


@click.command()
@click.argument("name")
@click.argument("sources", nargs=-1, required=True, type=options.PATH, metavar="SPEAKERS|CSV...")
@click.option(
    "-n",
    "count",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Mixtures to draw from SPEAKERS.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@options.as_json
@options.quiet
def calibrate(
    name: str, sources: tuple[Path, ...], count: int, seed: int, as_json: bool, quiet: bool
) -> None:
    """Measure what a model's presence score and wrong-speaker warning are to be told by.

    Mixtures are drawn from folders of SPEAKERS that the model has not been trained on, or are
    those of a recipe's CSV (see mcspex simulate). Each is asked for its target, and for somebody
    who is not in it. What is found is written into the config.json of NAME, a folder.

    \b
    mcspex models calibrate runs/best held-out-speakers/
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.checkpoint.configs import write_calibration
    from mcspex_cli.checkpoint.names import bundled
    from mcspex_cli.extraction.engine import open_engine
    from mcspex_cli.extraction.runtime import EngineSettings
    from mcspex_cli.training.calibration import Calibrator

    info = find_model(name, offline=True, quiet=quiet or as_json)
    if info.revision or name in bundled():
        whose = "the Hub's" if info.revision else "part of mcspex"
        raise CheckpointError(f"{info.label}: is {whose}. Copy {info.folder} and calibrate that.")
    engine = open_engine(replace(info, calibration=None), EngineSettings())  # it may be damaged
    calibrator = Calibrator(engine, _cases(sources, count, seed, engine.sample_rate_hz), seed)
    with console.progress(shown=not (quiet or as_json)) as bar:
        trials = list(bar.track(calibrator.trials(), total=2 * len(calibrator.cases)))
    made = asdict(calibrator.calibration(trials))
    write_calibration(info.folder, made)
    if as_json:
        console.data(made, indent=2)
    elif not quiet:
        _tell(info.label, made)


def _cases(sources: tuple[Path, ...], count: int, seed: int, sample_rate_hz: int) -> Iterator[Case]:
    """Given mixtures, then drawn ones."""
    from mcspex_cli.training.calibration import drawn_cases, given_cases
    from mcspex_cli.training.settings import MixtureSettings
    from mcspex_cli.training.simulate import draw_renderings, read_recipes

    for path in sources:
        if not path.is_dir():
            yield from given_cases(read_recipes(path), sample_rate_hz)
    if folders := [path for path in sources if path.is_dir()]:
        from mcspex_cli.training.data import Corpus

        corpus = Corpus.read(folders, sample_rate_hz)
        yield from drawn_cases(draw_renderings(corpus, MixtureSettings(), count, seed))


def _tell(label: str, made: dict[str, Any]) -> None:
    """Say how well presence can be told."""
    found = made["measured"]
    console.say(
        f"{label}: presence told by {found['mixtures']} mixtures of {found['speakers']} voices: "
        f"AUC {found['auc']:.3f}, equal error rate {100 * found['equal_error_rate']:.1f} % "
        f"at {made['threshold']:.2f}"
    )
    rates = found["misses_at_false_alarms"].items()
    rows = [[f"{100 * float(share):g} %", f"{100 * missed:.1f} %"] for share, missed in rates]
    console.table(["absent taken for present", "present missed"], rows)
