"""`mcspex simulate` and `mcspex train`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options

if TYPE_CHECKING:
    from mcspex_cli.training.simulate import Rendering
    from mcspex_cli.training.trainer import Progress, Trainer

_DEFAULT_COUNT = 100


@click.command()
@click.argument("sources", nargs=-1, type=options.PATH, metavar="[SPEAKERS...]")
@click.option(
    "--recipe",
    type=options.PATH,
    metavar="CSV",
    help="Mix the rows of a table instead: columns id, target, interferer, reference, snr_db.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=options.PATH,
    metavar="DIR",
    help="Gets mix_clean/, s1/ (targets), s2/, references/, mixtures.csv; with noise, mix_both/.",
)
@click.option(
    "-n", "--count", type=click.IntRange(1), help=f"Mixtures to draw.  [default: {_DEFAULT_COUNT}]"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@click.option(
    "--mixtures",
    type=options.PATH,
    metavar="TOML",
    help="What to draw: noise, rooms, a third talker and so on, in its table [mixtures].",
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
    sources: tuple[Path, ...],
    recipe: Path | None,
    output: Path,
    count: int | None,
    seed: int,
    mixtures: Path | None,
    enrolments: Path | None,
    sample_rate_hz: int,
    overwrite: bool,
) -> None:
    """Make mixtures to test on: the same for the same seed, with references.

    SPEAKERS are folders of SPEAKER/*.wav|flac|ogg, LibriSpeech trees, or LibriMix sets
    (mix_clean/ s1/ s2/ and perhaps s3/). The mixtures of a LibriMix set are taken as they
    are, once for each talker as the target, unless -n is given.
    """
    given = _are_given(sources, recipe, count, mixtures, enrolments)
    from mcspex_cli.training.data import Corpus
    from mcspex_cli.training.settings import MixtureSettings, TrainSettings
    from mcspex_cli.training.simulate import (
        check_free,
        draw_renderings,
        librimix_recipes,
        read_recipes,
        render,
        write_renderings,
    )

    check_free(output, overwrite=overwrite)
    if given:
        recipes = read_recipes(recipe) if recipe else []
        recipes += [each for source in sources for each in librimix_recipes(source, enrolments)]
        count = len(recipes)
        renderings: Iterator[Rendering] = (render(each, sample_rate_hz) for each in recipes)
    else:
        settings = TrainSettings.read_mixtures(mixtures) if mixtures else MixtureSettings()
        count = count or _DEFAULT_COUNT
        corpus = Corpus.read(sources, sample_rate_hz)
        renderings = draw_renderings(corpus, settings, count, seed)
    written = write_renderings(renderings, output, sample_rate_hz, overwrite=overwrite)
    for _ in console.track(written, "rendering", count):
        pass
    console.say(f"{output}: {console.count(count, 'mixture')} at {sample_rate_hz} Hz")


def _are_given(
    sources: Sequence[Path],
    recipe: Path | None,
    count: int | None,
    mixtures: Path | None,
    enrolments: Path | None,
) -> bool:
    """Whether the mixtures are given, by a recipe or by LibriMix sets, rather than drawn."""
    if bool(sources) == bool(recipe):
        raise click.UsageError("Name folders of speakers, or --recipe CSV.")
    if enrolments and (recipe or count or len(sources) > 1):
        raise click.UsageError("--enrolments is for one LibriMix set, without -n.")
    if recipe and (count or mixtures):
        raise click.UsageError("-n and --mixtures are for mixtures that are drawn.")
    if recipe or count:
        return bool(recipe)
    from mcspex_cli.training.data import is_librimix

    given = all(is_librimix(source) for source in sources)
    if enrolments and not given:
        raise click.UsageError("--enrolments is for one LibriMix set, without -n.")
    if mixtures and given:
        raise click.UsageError("-n and --mixtures are for mixtures that are drawn.")
    return given


@click.command()
@click.argument("config", type=options.PATH, metavar="CONFIG.toml")
@click.option("--resume", is_flag=True, help="Continue the run that is in its out folder.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="End after this much training, the schedule sized to it.",
)
def train(config: Path, resume: bool, minutes: float | None) -> None:
    """Train MC-SpEx or SpEx+ on folders of speakers, LibriSpeech trees or LibriMix sets.

    The trained model is OUT/last and, with validation, OUT/best: folders that --model takes.
    On several GPUs: torchrun --nproc-per-node N -m mcspex_cli train CONFIG.toml
    """
    from mcspex_cli.training.settings import TrainSettings

    settings = TrainSettings.read(config, minutes)
    from mcspex_cli.training.trainer import Trainer

    trainer = Trainer(settings, resume=resume)
    corpus, leads = trainer.sampler.corpus, trainer.team.leads
    if leads:
        console.say(f"{len(corpus.speakers)} speakers, {corpus.seconds / 3600:.2f} h of speech")
    with console.ending_gently(trainer.stopping.set), console.progress(shown=leads) as bar:
        task = bar.add_task("training", total=1.0)
        for progress in trainer.run():
            bar.update(task, completed=progress.share, description=f"step {progress.step}")
            if leads:
                console.say(_progress_line(progress, trainer.left_s))
    if not trainer.finished:
        if leads:
            console.say(
                f"{trainer.out}: stopped after step {trainer.step}. "
                f"Continue with: mcspex train {shlex.quote(str(config))} --resume"
            )
        click.get_current_context().exit(130)
    if leads:
        console.say(_how_to_use(trainer))


def _progress_line(progress: Progress, left_s: float) -> str:
    """One report."""
    validation_db = progress.validation_db
    return (
        f"step {progress.step}  loss {progress.loss:.2f}  SI-SDRi {progress.si_sdr_i_db:.2f} dB  "
        f"speaker accuracy {100 * progress.accuracy:.0f} %  "
        f"{progress.audio_s_per_s:.0f} audio s/s  {left_s / 60:.0f} min left"
        + (f"  validation SI-SDRi {validation_db:.2f} dB" if validation_db is not None else "")
    )


def _how_to_use(trainer: Trainer) -> str:
    """Where the trained model is, and the command that uses it."""
    best = trainer.out / "best"
    model = best if best.is_dir() else trainer.out / "last"
    score = f" (validation SI-SDRi {trainer.best_db:.2f} dB)" if model == best else ""
    return (
        f"{model}: the trained model{score}. Use it with: "
        f"mcspex extract MIXTURE --ref REFERENCE --model {shlex.quote(str(model))}"
    )
