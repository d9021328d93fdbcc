"""`mcspex bench`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.downloads import find_model
from mcspex_cli.errors import McspexError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.names import CheckpointInfo
    from mcspex_cli.evaluation.speed import Comparison
    from mcspex_cli.extraction.benchmark import Case, Measurement

HEADINGS = (
    *("runtime", "precision", "device", "audio", "load", "first"),
    *("RTF", "audio s/s", "memory", "SI-SDR dB"),
)


@click.command()
@options.model
@click.option("--size", type=click.Choice(["base", "small"]), help="Instead: random weights.")
@click.option(
    "--system",
    type=click.Choice(["mcspex", "spexplus"]),
    help="Which network of that --size.  [default: mcspex]",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("float32", "auto"),
    show_default=True,
    metavar="NAME,...",
    callback=lambda _, __, texts: _known(texts, "PRECISIONS"),
    help="Number formats to compare: auto, float32, bfloat16, float16. Repeatable.",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="NAME,...",
    callback=lambda _, __, texts: _known(texts, "RUNTIMES"),
    help="What runs the network: runtimes to compare. Repeatable.",
)
@click.option(
    "--seconds",
    "lengths",
    multiple=True,
    default=("10",),
    show_default=True,
    metavar="S,...",
    callback=lambda _, __, texts: _lengths(texts),
    help="Lengths of mixtures, from 1 on. Repeatable.",
)
@click.option(
    "--repeat", type=click.IntRange(1), default=3, show_default=True, help="Timed extractions."
)
@click.option(
    "--threads", type=click.IntRange(1), help="On a CPU.  [default: the runtime's choice]"
)
@options.as_json
@options.quiet
def bench(threads: int | None, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Measure how quick a model is on this machine, and how much memory it takes.

    Every combination of runtime, precision and length has a process of its own and extracts
    one of two synthetic voices. What comes to the same as one before is not measured again.

    \b
    load       from the process's start to a model that is ready
    first      to embed the reference and extract for the first time
    RTF        real-time factor, median of --repeat: under 1 is faster than real time
    audio s/s  seconds of audio done in a second
    memory     the process's peak, of which torch itself is some 250 MiB; on CUDA, the GPU's
    SI-SDR     of the estimate against torch's in float32, which has none

    \b
    mcspex bench
    mcspex bench --precision float32,bfloat16 --seconds 5,60 --threads 1
    mcspex bench --size base --system spexplus
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.evaluation import speed
    from mcspex_cli.extraction.benchmark import describe_machine

    shown = not (quiet or as_json)
    with _model(asked, quiet=not shown) as info:
        machine = describe_machine(threads or 0)
        if shown:
            console.text(f"{machine}\n{info.label}\n")
        made = _run(_cases(info, asked, threads or 0), shown=shown)
    if as_json:
        facts = {"machine": machine, "model": info.name, "model_sha256": info.sha256}
        console.data({**facts, **speed.as_json(made)}, indent=2)
    elif made.rows:
        console.table(HEADINGS, [_row(*row) for row in made.rows])
    _conclude(made)


def _known(texts: Sequence[str], names: str) -> tuple[str, ...]:
    """The parts of lists with commas, all of them names that the runtimes' module lists."""
    from mcspex_cli.extraction import runtime

    known = getattr(runtime, names)
    parts = [part.strip() for text in texts for part in text.split(",")]
    if unknown := [part for part in parts if part not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}.")
    return tuple(dict.fromkeys(parts))


def _lengths(texts: Sequence[str]) -> tuple[float, ...]:
    """The parts of lists with commas, as seconds."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    try:
        lengths = tuple(dict.fromkeys(float(part) for part in parts))
    except ValueError as error:
        raise click.BadParameter(f"{','.join(parts)!r} is not numbers like 5,60.") from error
    if not all(1 <= length < math.inf for length in lengths):
        raise click.BadParameter("a mixture has one second or more.")
    return lengths


@contextmanager
def _model(asked: dict[str, Any], *, quiet: bool) -> Iterator[CheckpointInfo]:
    """The model asked for, or while this lasts one with random weights."""
    size, system = asked["size"], asked["system"]
    if size is None:
        if system:
            raise click.UsageError("--system is for random weights; add --size.")
        yield find_model(asked["model"], offline=asked["offline"], quiet=quiet)
        return
    source = click.get_current_context().get_parameter_source("model")
    if source == click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--size is instead of --model: not both.")
    from mcspex_cli.extraction.benchmark import random_checkpoint

    with TemporaryDirectory() as folder:
        yield random_checkpoint(Path(folder), system or "mcspex", size)


def _cases(info: CheckpointInfo, asked: dict[str, Any], threads: int) -> list[Case]:
    """Every combination of what is asked for, lengths first."""
    from mcspex_cli.extraction.benchmark import Case
    from mcspex_cli.extraction.runtime import EngineSettings

    combinations = product(asked["lengths"], asked["runtimes"], asked["precisions"])
    return [
        Case(
            info,
            EngineSettings(
                device=asked["device"], precision=precision, threads=threads, runtime=runtime
            ),
            seconds,
            asked["repeat"],
        )
        for seconds, runtime, precision in combinations
    ]


def _run(cases: Sequence[Case], *, shown: bool) -> Comparison:
    """Measure every case, with the progress if `shown`, and say at once what fails."""
    from mcspex_cli.evaluation.speed import compare

    with console.progress(shown=shown) as bar:
        task = bar.add_task("starting", total=len(cases))
        begun = count(0)

        def begin(case: Case) -> None:
            """Show what is measured."""
            bar.update(task, description=_label(case), completed=next(begun))

        def fail(case: Case, error: McspexError) -> None:
            """Say it, unless it is all there is to say in the end."""
            if len(cases) > 1:
                console.error(f"{_label(case)}: {error}")

        return compare(cases, begin, fail)


def _label(case: Case) -> str:
    """What is measured, in words."""
    return f"{case.settings.runtime} {case.settings.precision}, {case.seconds:g} s"


def _row(done: Measurement, near_db: float | None) -> list[str]:
    """A measurement for people."""
    return [
        *(done.runtime, done.precision, done.device, f"{done.seconds:g} s"),
        *(f"{done.load_s:.2f} s", f"{done.first_s:.2f} s"),
        *(f"{done.real_time_factor:.4f}", f"{1 / done.real_time_factor:.1f}"),
        "-" if done.peak_mib is None else f"{done.peak_mib:.0f} MiB",
        "-" if near_db is None else f"{near_db:.1f}",
    ]


def _conclude(made: Comparison) -> None:
    """End as the failures ask for.

    Raises:
        McspexError: nothing could be measured.
        PartialFailure: some of it could not.
    """
    failed, total = len(made.failures), len(made.failures) + len(made.rows)
    if failed and total == 1:
        raise made.failures[0][1]
    if failed:
        kind = PartialFailure if made.rows else McspexError
        raise kind(f"{failed} of {total} measurements failed, see above.")
