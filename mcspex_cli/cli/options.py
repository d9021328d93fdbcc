"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def model(command: Command) -> Command:
    """--model."""
    return click.option(
        "--model", metavar="NAME|FOLDER", help="Bundled model's name, or a folder."
    )(command)


def precision(command: Command) -> Command:
    """--precision."""
    return click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Number format of the network.",
    )(command)


def writing(command: Command) -> Command:
    """--channel, --level, --subtype: how mixtures are read and estimates written."""
    for option in (
        click.option(
            "--subtype",
            type=click.Choice(["PCM_16", "PCM_24", "FLOAT"]),
            default="PCM_16",
            show_default=True,
            help="Sample format of the output.",
        ),
        click.option(
            "--level",
            type=click.Choice(["match", "peak", "raw"]),
            default="match",
            show_default=True,
            help="As loud as in the mixture, -1 dBFS, or the network's own.",
        ),
        click.option(
            "--channel",
            default="mix",
            show_default=True,
            metavar="mix|0|1|..|all",
            help="Channel of the mixture; all keeps them apart.",
        ),
    ):
        command = option(command)
    return command


def as_json(command: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON to stdout.")(
        command
    )
