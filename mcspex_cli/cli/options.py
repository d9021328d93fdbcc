"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.runtime import PRECISIONS, RUNTIMES

if TYPE_CHECKING:
    from mcspex_cli.extraction.job import ExtractionOptions

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings")


class NamedPath(click.Path):
    """A path that has a name: an empty one would mean the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty text, and read any other."""
        if value == "":
            self.fail("the name is empty. Name a file or a folder.", param, ctx)
        return super().convert(value, param, ctx)


PATH = NamedPath(path_type=Path)


class TableOption(click.Option):
    """An option whose choices are the rows of a table that takes long to import.

    The table is only imported for the help of the command, and for another value than the default.

    Args:
        args: As of `click.Option`.
        rows: Gives what each choice means, by its name.
        strict: Whether other values are refused; else the command checks them.
        kwargs: As of `click.Option`.
    """

    def __init__(
        self, *args: Any, rows: Callable[[], dict[str, str]], strict: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rows, self.strict, self._text = rows, strict, self.help

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Refuse what is no row of the table."""
        if self.strict and value not in (None, self.default) and value not in self.rows():
            names = ", ".join(self.rows())
            raise click.BadParameter(f"{value!r} is none of {names}.", ctx, self)
        return super().type_cast_value(ctx, value)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Complete the help by the rows: each by its name, with what it means."""
        rows = self.rows()
        self.metavar = "|".join(rows)
        meanings = ", ".join(f"{name} ({text})" for name, text in rows.items() if text)
        self.help = f"{self._text}: {meanings}." if meanings else f"{self._text}."
        return super().get_help_record(ctx)


def _levels() -> dict[str, str]:
    from mcspex_cli.extraction.levels import LEVELS

    return {row.name: row.help for row in LEVELS.values()}


def _absent() -> dict[str, str]:
    from mcspex_cli.extraction.job import ABSENT

    return {row.name: row.help for row in ABSENT.values()}


def _subtypes() -> dict[str, str]:
    from mcspex_cli.audio import SUBTYPES

    return dict.fromkeys(SUBTYPES, "")


def output_formats() -> dict[str, str]:
    """The formats of sound files that can be written, by their suffix without the dot."""
    from mcspex_cli.audio import FORMATS

    return {suffix[1:]: "" for suffix in FORMATS}


def activity_formats() -> dict[str, str]:
    """The formats of activity files, by their suffix without the dot."""
    from mcspex_cli.extraction.presence import ACTIVITY_FORMATS

    return {suffix[1:]: "" for suffix in ACTIVITY_FORMATS}


def as_suffix(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """A callback that turns the name of a format into its suffix."""
    return f".{name}" if name else None


def complete_models(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """What a shell offers as a model: those that are here by name, else folders.

    The item for folders has to be the first: at it, bash forgets those before.
    """
    from mcspex_cli.checkpoint.checkpoint import available

    try:
        names = {info.name for info in available()[0]}
    except (OSError, McspexError):  # what is wrong is not told in the middle of typing
        names = set()
    here = [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="dir"), *here]


def complete_folders(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """What a shell offers where only folders will do."""
    return [CompletionItem(incomplete, type="dir")]


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several options, in the order in which the help shows them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


offline = click.option(
    "--offline", is_flag=True, help="Do not use the network; use only what is on this disk."
)

model = _together(
    click.option(
        "--model",
        envvar="MCSPEX_MODEL",
        show_envvar=True,
        metavar="NAME",
        shell_complete=complete_models,
        help="Folder, bundled name or org/name[@revision] on the Hugging Face Hub.",
    ),
    offline,
)

device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")

precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Number format of the network.",
)

runtime = click.option(
    "--runtime",
    type=click.Choice(["auto", *RUNTIMES]),
    default="auto",
    show_default=True,
    help="What runs the network; onnx needs mcspex[onnx] and prepares a model once.",
)

writing = _together(
    click.option(
        "--channel",
        default="mix",
        show_default=True,
        metavar="mix|0|1|..|all",
        help="Channel of the mixture; all keeps them apart.",
    ),
    click.option(
        "--track",
        metavar="N|LANG",
        help="Sound track of a video that has several: a number from 1, or eng, deu, ...",
    ),
    click.option(
        "--damaged",
        type=click.Choice(["fail", "keep"]),
        default="fail",
        show_default=True,
        help="What to do with a damaged mixture: fail, or keep what can be read of it.",
    ),
    click.option(
        "--level",
        cls=TableOption,
        rows=_levels,
        strict=False,
        default="match",
        show_default=True,
        help="How loud the estimate is to be",
    ),
    click.option(
        "--subtype",
        cls=TableOption,
        rows=_subtypes,
        default="PCM_16",
        show_default=True,
        help="Sample format of the output",
    ),
)
"""How files are read and written."""

treating = _together(
    click.option(
        "--absent",
        cls=TableOption,
        rows=_absent,
        default="keep",
        show_default=True,
        help="What to do where the voice is not in the mixture",
    ),
    click.option(
        "--dry",
        "dry_db",
        type=click.FloatRange(-120, 40),
        metavar="DB",
        help="Add the mixture with this gain, -20 say, so that the voice has its surroundings.",
    ),
    click.option(
        "--wet",
        "wet_db",
        type=click.FloatRange(-120, 40),
        default=0.0,
        show_default=True,
        metavar="DB",
        help="Gain of the voice.",
    ),
)
"""What is made of an estimate before it is written."""

running = _together(model, device, precision, runtime)
"""Which network, and how it is computed."""


def reference(
    text: str = "A clip of the wanted voice alone, a folder of clips, or a profile. Repeatable.",
) -> Callable[[Command], Command]:
    """--ref, with the help that a command has for it."""
    return click.option(
        "--ref", "references", multiple=True, type=PATH, metavar="FILE|DIR", help=text
    )


def references_by_name(folder: str, pattern: str) -> Callable[[Command], Command]:
    """--refs and --pattern, with the help that a command has for them."""
    return _together(
        click.option("--refs", "reference_folder", type=PATH, metavar="DIR|SCP", help=folder),
        click.option("--pattern", metavar="TEXT", help=pattern),
    )


grouping = _together(
    click.option("--groups", type=PATH, metavar="CSV", help="A table of cases and their groups."),
    click.option(
        "--group-by",
        metavar="COLUMN",
        help="The column of --groups to use.  [default: group, or the only one]",
    ),
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print data as JSON to stdout.")

quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")

batch_size = click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    metavar="auto|N",
    callback=lambda _, __, text: _batch_size(text),
    help="Windows computed at once; auto: 1 on a CPU, 16 on a GPU, fewer if memory is short.",
)
"""As a number, 0 for auto."""

shard = click.option(
    "--shard",
    metavar="I/N",
    callback=lambda _, __, text: _shard(text),
    help="Do the I-th of N parts of equal duration.  [default: SLURM_ARRAY_TASK_ID's]",
)
"""As (I, N)."""


def filled(settings: Callable[..., Settings], values: Mapping[str, Any]) -> Settings:
    """A dataclass of settings, its fields filled from the options of their names."""
    return settings(**{name: values[name] for name in signature(settings).parameters})


def extraction_options(values: Mapping[str, Any]) -> ExtractionOptions:
    """What `writing` and `treating` ask for.

    Raises:
        click.UsageError: a value means nothing.
    """
    from mcspex_cli.extraction.job import ExtractionOptions

    if values["level"] == "raw" and values["dry_db"] is not None:
        raise click.UsageError("--level raw is far louder than the mixture; leave --dry out.")
    try:
        return filled(ExtractionOptions, values)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def _batch_size(text: str) -> int:
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise click.BadParameter(f"{text!r} is neither auto nor a number from 1.")
    return 0 if text == "auto" else int(text)


def _shard(text: str | None) -> tuple[int, int]:
    """--shard as (I, N); without one, Slurm's place in its array, or all."""
    if text is None:
        return _slurm_shard(os.environ)
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N, like 2/8.")


def _slurm_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """This task's place among those of its Slurm array, counted from 1."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 1, 1
    defaults = {"ID": "0", "MIN": "0", "STEP": "1", "COUNT": "1"}
    texts = [environment.get(f"SLURM_ARRAY_TASK_{name}", text) for name, text in defaults.items()]
    if not all(text.isdecimal() for text in texts):
        raise click.BadParameter(f"SLURM_ARRAY_TASK_ID {texts[0]!r} is no number; name I/N.")
    task, first, step, count = map(int, texts)
    index = (task - first) // step + 1
    if not 1 <= index <= count:
        raise click.BadParameter(f"Slurm's array has gaps (task {task} of {count}); name I/N.")
    return index, count
