"""`mcspex simulate` and `mcspex train`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options

if TYPE_CHECKING:
    from mcspex_cli.training.journal import Progress
    from mcspex_cli.training.simulate import Rendering
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
    help="Gets mix_clean/, s1/ (targets), s2/, references/, mixtures.csv; with noise, mix_both/.",
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
def simulate(
    output: Path, overwrite: bool, sample_rate_hz: int, recipe: Path | None, **drawn: Any
) -> None:
    """Make mixtures to test on: the same for the same seed, with references.

    SPEAKERS are folders of SPEAKER/*.wav|flac|ogg, LibriSpeech trees, or LibriMix sets
    (mix_clean/ s1/ s2/), whose own mixtures are taken, each talker a target, unless -n is given.
    """
    given = _check_usage(recipe, **drawn)
    from mcspex_cli.training.simulate import check_free, write_renderings

    check_free(output, overwrite=overwrite)
    count, renderings = (
        _rendered(sample_rate_hz, recipe, **drawn) if given else _drawn(sample_rate_hz, **drawn)
    )
    with console.progress(shown=True) as bar:
        task = bar.add_task("rendering", total=count)
        for _ in write_renderings(renderings, output, sample_rate_hz, overwrite=overwrite):
            bar.advance(task)
    console.say(f"{output}: {count} mixtures at {sample_rate_hz} Hz")


def _check_usage(
    recipe: Path | None,
    sources: tuple[Path, ...],
    count: int | None,
    mixtures: Path | None,
    enrolments: Path | None,
    **_: Any,
) -> bool:
    """Whether the mixtures are given, by a recipe or by LibriMix sets, rather than drawn."""
    from mcspex_cli.training.data import is_librimix

    if bool(sources) == bool(recipe):
        raise click.UsageError("Name folders of speakers, or --recipe CSV.")
    sets = not count and not recipe and all(is_librimix(source) for source in sources)
    if enrolments and not (sets and len(sources) == 1):
        raise click.UsageError("--enrolments is for one LibriMix set, without -n.")
    if (mixtures and (sets or recipe)) or (count and recipe):
        raise click.UsageError("-n and --mixtures are for mixtures that are drawn.")
    return sets or bool(recipe)


def _rendered(
    sample_rate_hz: int,
    recipe: Path | None,
    sources: tuple[Path, ...],
    enrolments: Path | None,
    **_: Any,
) -> tuple[int, Iterator[Rendering]]:
    """How many given mixtures there are, and they."""
    from mcspex_cli.training.simulate import librimix_recipes, read_recipes, render

    recipes = read_recipes(recipe) if recipe else []
    recipes += [each for source in sources for each in librimix_recipes(source, enrolments)]
    return len(recipes), (render(each, sample_rate_hz) for each in recipes)


def _drawn(
    sample_rate_hz: int,
    sources: tuple[Path, ...],
    count: int | None,
    seed: int,
    mixtures: Path | None,
    **_: Any,
) -> tuple[int, Iterator[Rendering]]:
    """How many mixtures are to be drawn, and they."""
    from mcspex_cli.training.settings import MixtureSettings, TrainSettings

    settings = TrainSettings.read_mixtures(mixtures) if mixtures else MixtureSettings()
    from mcspex_cli.training.data import Corpus
    from mcspex_cli.training.simulate import draw_renderings

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

    The checkpoint is OUT/last and, with validation, OUT/best: folders that --model takes.
    On several GPUs: torchrun --nproc-per-node N -m mcspex_cli train CONFIG.toml
    """
    from mcspex_cli.training.settings import TrainSettings

    settings = TrainSettings.read(config, minutes)
    from mcspex_cli.training.trainer import Trainer

    trainer = Trainer(settings, resume=resume)
    corpus = trainer.sampler.corpus
    if trainer.team.leads:
        console.say(f"{len(corpus.speakers)} speakers, {corpus.seconds / 3600:.2f} h of speech")
    with console.ending_gently(trainer.stopping.set):
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


def _line(progress: Progress) -> str:
    """One report."""
    scored = progress.validation_db
    return (
        f"step {progress.step}  loss {progress.loss:.2f}  SI-SDRi {progress.si_sdr_i_db:.2f} dB  "
        f"speaker accuracy {100 * progress.accuracy:.0f} %  "
        f"{progress.audio_s_per_s:.0f} audio s/s  {progress.left_s / 60:.0f} min left"
        + (f"  validation SI-SDRi {scored:.2f} dB" if scored is not None else "")
    )
