"""Remake the authors' demo page: python examples/demo_page.py CASES PAGE.html.

CASES has the sounds of that page, namesakes in mixtures/, truth/, spexplus/ and mcspex/, and
groups.csv with the columns id, group and title.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcspex_cli import McspexError
from mcspex_cli.evaluation.comparison import PageSettings, read_system
from mcspex_cli.evaluation.page import Page, write_page
from mcspex_cli.evaluation.report import read_groups


def main(cases: Path, output: Path) -> Page:
    """Write the page: SpEx+ beside MC-SpEx, by gender."""
    runs = [read_system(cases / "spexplus", "SpEx+"), read_system(cases / "mcspex", "MC-SpEx")]
    settings = PageSettings(
        truth=cases / "truth",
        mixtures=cases / "mixtures",
        groups=read_groups(cases / "groups.csv"),
        overwrite=True,
        title="MC-SpEx: multi-scale speaker extraction",
    )
    return write_page(runs, output, settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path, metavar="CASES")
    parser.add_argument("page", type=Path, metavar="PAGE.html")
    arguments = parser.parse_args()
    try:
        page = main(arguments.cases, arguments.page)
    except McspexError as error:
        parser.error(str(error))
    print(f"{page.path}: {page.shown} cases")
