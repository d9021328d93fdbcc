"""What commands share: how they declare options, common options, and how models are opened.

A command is a function. The default of each of its parameters declares what that parameter is on
the command line: an option, an argument, or a group of several, of which an object is made.

```
@options.command()
def play(
    sound: Path = argument("FILE", type=PATH),
    loudly: bool = flag("Louder than usual."),
    engine_settings: EngineSettings = options.ENGINE,
) -> None:
    ...
```
"""

from __future__ import annotations

import logging
import math
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

import mcspex_cli
from mcspex_cli.cli import console
from mcspex_cli.errors import CheckpointError, ConfigError, McspexError
from mcspex_cli.extraction.runtime import (
    MOST_PASSES,
    PASSES,
    PRECISIONS,
    RUNTIMES,
    EngineSettings,
    has_quick_bfloat16,
    keep_memory,
)

if TYPE_CHECKING:
    from mcspex_cli import ExtractionOptions, Extractor
    from mcspex_cli.checkpoint.card import Card
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.checkpoint.hub import HubName

Value = TypeVar("Value")


class NamedPath(click.Path):
    """A path that is not empty: an empty one would mean the working folder.

    Nor may it begin with a ~ that the shell has not replaced: nobody wants a folder of that name.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty text and a ~ that stands for a home folder, and read any other."""
        if value == "":
            self.fail("the name is empty. Name a file or a folder.", param, ctx)
        home, slash, _ = str(value).partition("/")
        if home.startswith("~") and slash and not os.path.lexists(home):
            self.fail(
                f"{value}: the shell reads {home} as a home folder only at the beginning of a word "
                "and without quotes. Put a space before it, or write the whole path.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class _NewFolder(NamedPath):
    """The path of a folder to write to, which standard output cannot be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what means standard output elsewhere, and read any other path."""
        if value == "-":
            self.fail("a folder is needed, not standard output. Name one.", param, ctx)
        return super().convert(value, param, ctx)


# Whether a file can be read, the command says itself: of several mixtures, only that one fails.
PATH = NamedPath(path_type=Path, readable=False)
FOLDER = _NewFolder(path_type=Path, readable=False)
PATH_AS_TYPED = NamedPath(path_type=str, readable=False)
"""A text: `Path` would make "-" of "./-", and leave out a slash at the end."""


class _Text(click.types.StringParamType):
    """A text that is not empty: an empty one would mean the default."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty text, and take any other."""
        if value == "":
            self.fail("it is empty. Give a value, or leave the option out.", param, ctx)
        return super().convert(value, param, ctx)


TEXT = _Text()


class FiniteRange(click.FloatRange):
    """Finite numbers from `min` to `max`; NaN would pass, as it is neither below nor above."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse NaN and infinity, and read any other number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


# Declarations: functions that make click's decorator from the parameter's name, and groups. They
# are typed `Any`, as they are defaults of parameters of other types.


class Group(NamedTuple):
    """Several options of which one object is made.

    `make` is a class or function; the defaults of its parameters declare the options.
    """

    make: Callable[..., Any]


def group(make: Callable[..., Any]) -> Any:
    """Declare a group."""
    return Group(make)


def argument(metavar: str, **settings: Any) -> Any:
    """Declare an argument, with the settings of `click.Argument`."""
    return lambda name: click.argument(name, metavar=metavar, **settings)


def option(metavar: str | None, text: str, *names: str, **settings: Any) -> Any:
    """Declare an option.

    Args:
        metavar: what the help calls its value; None for the name of its type.
        text: its help.
        names: like "-o" and "--output"; without any it is called like its parameter.
        settings: of `click.Option`. A default is shown in the help.
    """
    settings = {"show_default": "default" in settings, **settings}
    return lambda name: click.option(
        name, *(names or [f"--{name.replace('_', '-')}"]), metavar=metavar, help=text, **settings
    )


def flag(text: str, *names: str) -> Any:
    """Declare an option without a value."""
    return option(None, text, *names, is_flag=True)


path = partial(option, type=PATH)
"""Declare an option that is a path."""

paths = partial(option, type=PATH, multiple=True)
"""Declare an option that is a path, and can be repeated."""


class TableOption(click.Option):
    """An option whose choices are the rows of a table that takes long to import.

    The table is only imported for the help of the command, and for another value than the default.
    `rows` gives it: what each choice means, by its name. In the help the names stand for {}, or
    without {} the rows come last. Without `strict` the command itself checks other values.
    """

    def __init__(
        self, *args: Any, rows: Callable[[], Mapping[str, str]], strict: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rows, self.strict, self._text = rows, strict, self.help or ""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Refuse a value that is not a row of the table."""
        if self.strict and value not in (None, self.default) and value not in self.rows():
            names = ", ".join(self.rows())
            raise click.BadParameter(f"{value!r} is none of {names}.", ctx, self)
        return super().type_cast_value(ctx, value)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Complete the help by the rows: by their names, or each with what it means."""
        rows = self.rows()
        meanings = ", ".join(f"{name} ({text})" for name, text in rows.items() if text)
        if "{}" in self._text:
            self.help = self._text.format(", ".join(rows))
        else:
            self.metavar = "|".join(rows)
            self.help = f"{self._text}: {meanings}." if meanings else f"{self._text}."
        return super().get_help_record(ctx)


def choice(rows: Callable[[], Mapping[str, str]], text: str, *names: str, **settings: Any) -> Any:
    """Declare an option that is a row of a table, see `TableOption`; its help ends in the rows.

    A dot before a row's name is left out.
    """

    def choices() -> dict[str, str]:
        return {name.lstrip("."): meaning for name, meaning in rows().items()}

    return option(None, text, *names, cls=TableOption, rows=choices, **settings)


def table(module: str, name: str) -> Callable[[], dict[str, str]]:
    """The `rows` of a `TableOption`, from a table like ("extraction.levels", "LEVELS").

    It is a mapping whose values may have a `help`, or a sequence.
    """

    def rows() -> dict[str, str]:
        values = getattr(import_module(f"mcspex_cli.{module}"), name)
        named = values if isinstance(values, Mapping) else dict.fromkeys(values)
        return {key: getattr(row, "help", "") for key, row in named.items()}

    return rows


def _declarations(command: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    for name, parameter in signature(command).parameters.items():
        if isinstance(parameter.default, Group):
            yield from _declarations(parameter.default.make)
        else:
            yield parameter.default(name)


def call(function: Callable[..., Value], values: Mapping[str, Any]) -> Value:
    """Call a function or class with the value for each parameter, or the object of its group."""
    defaults = {name: one.default for name, one in signature(function).parameters.items()}
    return function(
        **{
            name: call(default.make, values) if isinstance(default, Group) else values[name]
            for name, default in defaults.items()
        }
    )


def _open_log(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None and not ctx.resilient_parsing:
        if str(path) == "-":
            raise click.BadParameter("messages go to standard error anyway. Name a file.")
        console.logger.addHandler(console.LogFile(path))
        arguments = shlex.join(["mcspex", *ctx.meta.get("mcspex.arguments", ())])
        version, python = mcspex_cli.__version__, platform.python_version()
        console.log(logging.INFO, f"mcspex {version}, Python {python}: {arguments}")


def _check_stdout(_: click.Context, __: click.Parameter, is_wanted: bool) -> bool:
    """Refuse to print data to a standard output that is closed, before any work."""
    if is_wanted:
        console.stdout()
    return is_wanted


_LOG_FILE = click.option(
    "--log-file",
    type=PATH,
    metavar="FILE",
    expose_value=False,
    is_eager=True,  # so that the log records what is wrong with other options
    callback=_open_log,
    help="Append all messages to this file, with times.",
)


_QUIET = click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")


def command(
    parent: click.Group | None = None, name: str | None = None, *, has_quiet: bool = False
) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator that makes a command with the options of a function's parameters, and --log-file.

    The command is called like the function unless it has a `name`; it is part of the `parent`. It
    may have --quiet, which --json then implies: a program that reads JSON reads no messages.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def run(**values: Any) -> None:
            console.check_log_files(_paths(values))
            console.messages.quiet = has_quiet and (values["quiet"] or values.get("as_json", False))
            try:
                call(function, values)
            finally:
                console.messages.quiet = False

        decorated: Callable[..., None] = _LOG_FILE(run)
        decorated = _QUIET(decorated) if has_quiet else decorated
        for declare in reversed([*_declarations(function)]):
            decorated = declare(decorated)
        return (parent or click).command(name)(decorated)

    return decorate


def _paths(values: Mapping[str, Any]) -> Iterator[Path | str]:
    """Everything in a command line that may be a file or folder: arguments, and options for paths.

    The text of other options does not count: `--device cpu` leaves a file called cpu alone.
    """
    for parameter in click.get_current_context().command.params:
        if isinstance(parameter, click.Argument) or isinstance(parameter.type, click.Path):
            value = values.get(parameter.name or "")
            several = value if isinstance(value, tuple) else (value,)
            yield from (one for one in several if isinstance(one, str | Path))


# What several commands share.


def is_given(name: str) -> bool:
    """Whether the command line has the option whose parameter is called so."""
    source = click.get_current_context().get_parameter_source(name)
    return source == ParameterSource.COMMANDLINE


def check_needs(needs: Mapping[str, Sequence[str]]) -> None:
    """Refuse options of the command line that mean nothing without one of some others.

    `needs` has these others by the name of the option, each as its parameter is called.
    """
    context = click.get_current_context()
    flags = {each.name: max(each.opts, key=len) for each in context.command.params}
    for name, others in needs.items():
        if is_given(name) and not any(context.params.get(other) for other in others):
            listed = " or ".join(flags[other] for other in others)
            raise click.UsageError(f"{flags[name]} means nothing without {listed}. Add it.")


def complete_models(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """What a shell offers as a model: the names of those that are here, else folders.

    The item for folders has to be the first: at it, bash forgets those before.
    """
    from mcspex_cli.checkpoint.checkpoint import available

    try:
        names = {info.name for info in available()[0]}
    except (OSError, McspexError):  # no message in the middle of typing
        names = set()
    here = [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="dir"), *here]


MODEL = option(
    "NAME",
    "Folder, bundled name or org/name[@revision] on the Hugging Face Hub.",
    envvar="MCSPEX_MODEL",
    show_envvar=True,
    shell_complete=complete_models,
)
OFFLINE = flag("Do not use the network; use only what is on this disk.")
DEVICE = option("TEXT", "Where the network runs: cpu, cuda, cuda:1, ...", default="auto")
PRECISION = option(
    None,
    "Number format in which the network computes.",
    type=click.Choice(PRECISIONS),
    default="auto",
)
RUNTIME = option(
    None,
    "What runs the network; onnx needs ONNX Runtime, and prepares each model once.",
    type=click.Choice(RUNTIMES),
    default="auto",
)
PASSES_OPTION = option(
    None,
    "How many times the network runs over each window: 1 is the fastest, 3 nearly the best.",
    type=click.IntRange(1, MOST_PASSES),
    default=PASSES,
)
SEED = option(None, "Seed of the random draw.", type=click.IntRange(0), default=0)
JSON = option(None, "Print JSON to stdout.", "--json", is_flag=True, callback=_check_stdout)
GROUPS = path("CSV", "A table that says which group each case is in.")
GROUP_BY = option(
    "COLUMN", "The column of --groups to use.  [default: group, or the only one]", type=TEXT
)


def references(
    text: str = "A clip of the wanted voice alone, a folder of clips, or a profile. Repeatable.",
) -> Any:
    """Declare --ref, with the help that a command has for it."""
    return paths("FILE|DIR", text, "--ref")


def _engine(
    device: str = DEVICE, precision: str = PRECISION, runtime: str = RUNTIME
) -> EngineSettings:
    return EngineSettings(device, precision, runtime=runtime)


ENGINE = group(_engine)
"""`EngineSettings`: how the network is run; a command for mixtures also has `PASSES_OPTION`."""


_GAIN_DB = FiniteRange(-120, 40)
"""The limits of `extraction.job`, which takes too long to import for a help page."""


def _extraction(
    channel: str = option(
        "mix|0|1|..|all",
        "Channel of the mixture, from 0; mix is the mean of all, all extracts from each.",
        default="mix",
    ),
    track: str | None = option(
        "N|LANG",
        "Sound track of a video that has several: a number from 1, or eng, deu, ...",
        type=TEXT,
    ),
    damaged: str = option(
        None,
        "What to do with a damaged mixture: fail, or keep what can be read of it.",
        type=click.Choice(["fail", "keep"]),
        default="fail",
    ),
    level: str = choice(
        table("extraction.levels", "LEVELS"),
        "How loud the estimate is",
        strict=False,
        default="match",
    ),
    subtype: str = choice(
        table("audio", "SUBTYPES"), "Sample format of the output", default="PCM_16"
    ),
    absent: str = choice(
        table("extraction.job", "ABSENT"),
        "What to do where the voice is not in the mixture",
        default="keep",
    ),
    dry_db: float | None = option(
        "DB",
        "Add the mixture at this gain, such as -20, to keep some of the surroundings.",
        "--dry",
        type=_GAIN_DB,
    ),
    wet_db: float = option("DB", "Gain of the voice.", "--wet", type=_GAIN_DB, default=0.0),
) -> ExtractionOptions:
    values = locals()  # the options are called like the fields of `ExtractionOptions`
    from mcspex_cli import ExtractionOptions
    from mcspex_cli.extraction.levels import Level

    try:
        extraction = ExtractionOptions(**values)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    if dry_db is not None and not Level.parse(level).policy.matched:
        raise click.UsageError(f"--level {level} is far louder than the mixture; leave --dry out.")
    return extraction


EXTRACTION = group(_extraction)
"""`ExtractionOptions`: how mixtures are read and estimates are written."""


def check_subtype(outputs: Iterable[Path], subtype: str) -> None:
    """Refuse a --subtype of the command line that one of the outputs cannot have."""
    from mcspex_cli import audio

    for path in outputs if is_given("subtype") else ():
        audio.check_subtype(path, subtype)


def examples() -> Path:
    """The folder of short recordings: of the installed package, or of a checkout."""
    package = Path(mcspex_cli.__file__).parent
    installed = package / "examples"
    return installed if installed.is_dir() else package.parent / "examples"


def find_model(model: str | None, *, offline: bool) -> CheckpointInfo:
    """Find what --model names, or the default model; a download is shown."""
    from mcspex_cli.checkpoint.checkpoint import find_checkpoint

    return find_checkpoint(model, offline=offline, download=download)


def download(name: HubName) -> CheckpointInfo:
    """Download a model from the Hub and check that it loads; say its size and licence."""
    from mcspex_cli.checkpoint.checkpoint import load_checkpoint, pull

    received = 0
    with console.progress(str(name), None) as update:

        def show(count: int, total: int) -> None:
            nonlocal received
            received += count
            update(completed=received, total=total)

        info = pull(name, show)
    load_checkpoint(info)
    card = read_card(info)
    licence = card.licence if card and card.licence else "not stated: ask its author"
    size = f"{console.size(received)} downloaded" if received else "already downloaded"
    console.say(f"{info.label}  ({size}; licence: {licence})")
    return info


def read_card(info: CheckpointInfo) -> Card | None:
    """A model's card; one that cannot be read is a warning."""
    from mcspex_cli.checkpoint import card

    try:
        return card.read_card(info.folder)
    except (CheckpointError, ConfigError) as error:
        console.warn(str(error))
        return None


def load_extractor(info: CheckpointInfo, settings: EngineSettings, seconds: float) -> Extractor:
    """Load a model into the runtime that suits `seconds` of audio."""
    from mcspex_cli import Extractor
    from mcspex_cli.extraction.engine import open_engine

    keep_memory()
    engine = open_engine(info, settings, seconds)
    if engine.runtime.device == "cpu":
        warn_of_slow(engine.runtime.precision)
    return Extractor(info, engine)


def warn_of_slow(precision: str) -> None:
    """Warn of a precision that this CPU only emulates."""
    if precision == "float16" or (precision == "bfloat16" and not has_quick_bfloat16()):
        console.warn(f"{precision} is many times slower than float32 on this CPU. Choose float32.")
