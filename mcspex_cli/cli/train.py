"""`mcspex simulate` and `mcspex train`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options

if TYPE_CHECKING:
    from mcspex_cli.training.journal import Progress
    from mcspex_cli.training.renderings import Rendering
    from mcspex_cli.training.trainer import Trainer


@click.command()
@click.argument("sources", nargs=-1, type=options.PATH, metavar="[SPEAKERS...]")
@click.option(
    "--recipe",
    type=options.PATH,
    metavar="CSV",
    help="Render this instead: columns id, target, interferer, reference, snr_db.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=options.PATH,
    metavar="DIR",
    help="Gets mix_clean/, s1/ (targets), s2/, references/ and mixtures.csv.",
)
@click.option("-n", "--count", type=click.IntRange(1), help="Mixtures to draw.  [default: 100]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@click.option(
    "--mixtures",
    type=options.PATH,
    metavar="TOML",
    help="What to draw: noise, rooms, a third talker, ... in its table [mixtures].",
)
@click.option(
    "--enrolments",
    type=options.PATH,
    metavar="FILE",
    help="SpeakerBeam's map_mixture2enrollment, for a LibriMix set.",
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
def simulate(output: Path, sample_rate_hz: int, overwrite: bool, **choice: Any) -> None:
    """Make mixtures to test on: the same for the same seed, with references.

    SPEAKERS are folders of SPEAKER/*.wav|flac|ogg, LibriSpeech trees, or LibriMix sets
    (mix_clean/ s1/ s2/), whose own mixtures are taken, each talker a target, unless -n is given.
    """
    from mcspex_cli.training.renderings import check_free, write_renderings

    check_free(output, overwrite=overwrite)
    count, renderings = _renderings(sample_rate_hz=sample_rate_hz, **choice)
    with console.progress(shown=True) as bar:
        task = bar.add_task("rendering", total=count)
        for _ in write_renderings(renderings, output, sample_rate_hz, overwrite=overwrite):
            bar.advance(task)
    console.say(f"{output}: {count} mixtures at {sample_rate_hz} Hz")


def _renderings(
    sources: tuple[Path, ...],
    recipe: Path | None,
    count: int | None,
    seed: int,
    mixtures: Path | None,
    enrolments: Path | None,
    sample_rate_hz: int,
) -> tuple[int, Iterator[Rendering]]:
    """How many mixtures the options ask for, and them."""
    from mcspex_cli.training.corpora import is_librimix
    from mcspex_cli.training.corpus import Corpus
    from mcspex_cli.training.plans import MixtureSettings
    from mcspex_cli.training.recipes import librimix_recipes, read_recipes
    from mcspex_cli.training.renderings import draw_renderings, render
    from mcspex_cli.training.settings import TrainSettings

    if bool(sources) == bool(recipe):
        raise click.UsageError("Name folders of speakers, or --recipe CSV.")
    given = not count and bool(sources) and all(is_librimix(source) for source in sources)
    if enrolments and not (given and len(sources) == 1):
        raise click.UsageError("--enrolments is for one LibriMix set, without -n.")
    if recipe or given:
        if mixtures or (recipe and count):
            raise click.UsageError("-n and --mixtures are for mixtures that are drawn.")
        recipes = read_recipes(recipe) if recipe else []
        recipes += [each for source in sources for each in librimix_recipes(source, enrolments)]
        return len(recipes), (render(each, sample_rate_hz) for each in recipes)
    settings = TrainSettings.read_mixtures(mixtures) if mixtures else MixtureSettings()
    corpus = Corpus.read(sources, sample_rate_hz)
    return count or 100, draw_renderings(corpus, settings, count or 100, seed)


@click.command()
@click.argument("config", type=options.PATH, metavar="CONFIG.toml")
@click.option("--resume", is_flag=True, help="Go on with the run that is in its out folder.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="End after this much training, the schedule sized to it.",
)
def train(config: Path, resume: bool, minutes: float | None) -> None:
    """Train MC-SpEx or SpEx+ on folders of speakers, LibriSpeech trees or LibriMix sets.

    The checkpoint is OUT/best (by validation) and OUT/last: folders that --model takes.
    On several GPUs: torchrun --nproc-per-node N -m mcspex_cli train CONFIG.toml
    """
    from dataclasses import replace

    from mcspex_cli.training.settings import TrainSettings

    settings = TrainSettings.read(config)
    if minutes:
        settings = replace(settings, optimiser=replace(settings.optimiser, minutes=minutes))
    from mcspex_cli.training.trainer import Trainer

    trainer = Trainer(settings, resume=resume)
    corpus = trainer.sampler.corpus
    if trainer.team.leads:
        console.say(f"{len(corpus.speakers)} speakers, {corpus.seconds / 3600:.2f} h of speech")
    with _stopped_by_signals(trainer):
        _follow(trainer)
    if not trainer.finished:
        if trainer.team.leads:
            console.say(f"{trainer.out}: stopped after step {trainer.step}. Go on with --resume.")
        click.get_current_context().exit(130)


def _follow(trainer: Trainer) -> None:
    """Run it, saying how it goes; only the leader of several processes speaks."""
    with console.progress(shown=trainer.team.leads) as bar:
        task = bar.add_task("training", total=1.0)
        for progress in trainer.run():
            bar.update(task, completed=progress.share, description=f"step {progress.step}")
            if trainer.team.leads:
                console.say(_line(progress))
    if trainer.finished and trainer.team.leads:
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
    return (
        f"step {progress.step}  loss {progress.loss:.2f}  SI-SDRi {progress.si_sdr_i_db:.2f} dB  "
        f"speaker accuracy {100 * progress.accuracy:.0f} %  "
        f"{progress.audio_s_per_s:.0f} audio s/s  {progress.left_s / 60:.0f} min left"
        + (f"  validation SI-SDRi {scored:.2f} dB" if scored is not None else "")
    )
