"""`mcspex simulate` and `mcspex train`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options

if TYPE_CHECKING:
    from mcspex_cli.training.trainer import Progress, Trainer


@click.command()
@click.option(
    "--recipe",
    required=True,
    type=options.PATH,
    metavar="CSV",
    help="Columns id, target, interferer, reference, snr_db.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=options.PATH,
    metavar="DIR",
    help="Gets mix_clean/, s1/ (targets), s2/ and references/.",
)
@click.option(
    "--rate",
    "sample_rate_hz",
    type=click.IntRange(4000, 192_000),
    default=8000,
    show_default=True,
    help="Sample rate in Hz.",
)
@click.option("--overwrite", is_flag=True, help="Write into a folder that is not empty.")
def simulate(recipe: Path, output: Path, sample_rate_hz: int, overwrite: bool) -> None:
    """Render a recipe's mixtures, the same on every machine."""
    from mcspex_cli.training.recipes import read_recipes, write_renderings

    recipes = read_recipes(recipe)
    with console.progress(shown=True) as bar:
        task = bar.add_task("rendering", total=len(recipes))
        for _ in write_renderings(recipes, output, sample_rate_hz, overwrite=overwrite):
            bar.advance(task)
    console.say(f"{output}: {len(recipes)} mixtures at {sample_rate_hz} Hz")


@click.command()
@click.argument("config", type=options.PATH, metavar="CONFIG.toml")
@click.option("--resume", is_flag=True, help="Go on with the run that is in its out folder.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="End after this much training, the schedule sized to it.",
)
def train(config: Path, resume: bool, minutes: float | None) -> None:
    """Train MC-SpEx or SpEx+ on folders of SPEAKER/*.wav|flac|ogg.

    The checkpoint is OUT/best (by validation) and OUT/last: folders that --model takes.
    """
    from dataclasses import replace

    from mcspex_cli.training.settings import TrainSettings

    settings = TrainSettings.read(config)
    if minutes:
        settings = replace(settings, optimiser=replace(settings.optimiser, minutes=minutes))
    from mcspex_cli.training.trainer import Trainer

    trainer = Trainer(settings, resume=resume)
    corpus = trainer.sampler.corpus
    console.say(f"{len(corpus.speakers)} speakers, {corpus.seconds / 3600:.2f} h of speech")
    with _stopped_by_signals(trainer):
        for progress in trainer.run():
            console.say(_line(progress))
    if not trainer.finished:
        console.say(f"{trainer.out}: stopped after step {trainer.step}. Go on with --resume.")
        click.get_current_context().exit(130)
    console.say(f"{trainer.out}: done")


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """Have the first Ctrl-C (or SIGTERM) end the run after its step, a second one at once."""

    def stop(number: int, _: object) -> None:
        """Ask the trainer to end, and give the signal its old meaning back."""
        trainer.stopping = True
        signal.signal(number, before[number])

    before = {int(n): signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(progress: Progress) -> str:
    """One report."""
    scored = progress.validation_db
    left_s = progress.elapsed_s * (1 / progress.share - 1)
    return (
        f"step {progress.step}  loss {progress.loss:.2f}  SI-SDR {progress.si_sdr_db:.2f} dB  "
        f"speaker accuracy {100 * progress.accuracy:.0f} %  "
        f"{progress.audio_s_per_s:.0f} audio s/s  {left_s / 60:.0f} min left"
        + (f"  validation SI-SDRi {scored:.2f} dB" if scored is not None else "")
    )
