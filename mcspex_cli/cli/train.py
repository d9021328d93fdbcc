"""`mcspex simulate` and `mcspex train`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli import files
from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import argument, flag, option, path
from mcspex_cli.errors import OutputError

if TYPE_CHECKING:
    from mcspex_cli.training.simulate import Rendering

_DEFAULT_COUNT = 100


@options.command()
def simulate(
    sources: tuple[Path, ...] = argument("[SPEAKERS...]", nargs=-1, type=options.PATH),
    recipe: Path | None = path(
        "CSV",
        "Instead of SPEAKERS: a table with the columns id, target, interferer, reference, snr_db, "
        "a mixture in each row.",
    ),
    output: Path = path(
        "DIR",
        "The folder to make: mix_clean/, s1/ (targets), s2/, references/, mixtures.csv; with noise "
        "also mix_both/ and noise/.",
        "-o",
        "--output",
        type=options.FOLDER,
        required=True,
    ),
    count: int | None = option(
        None,
        f"How many mixtures to draw.  [default: {_DEFAULT_COUNT}]",
        "-n",
        "--count",
        type=click.IntRange(1),
    ),
    seed: int | None = option(
        None, "Seed of the draw.  [default: 0]", "--seed", type=click.IntRange(0)
    ),
    mixtures: Path | None = path(
        "TOML",
        "Settings whose table [mixtures] says how often there is noise, a room, a third talker ...",
    ),
    enrolments: Path | None = path(
        "FILE", "The references for a LibriMix set: SpeakerBeam's map_mixture2enrollment."
    ),
    sample_rate_hz: int = option(
        None, "Sample rate in Hz.", "--rate", type=click.IntRange(4000, 192_000), default=8000
    ),
    overwrite: bool = flag("Replace an earlier set that is in DIR."),
) -> None:
    """Make mixtures of talkers, with references, to test a model on.

    The same seed makes the same mixtures. SPEAKERS are folders of SPEAKER/*.wav,
    LibriSpeech trees, or LibriMix sets (mix_clean/ s1/ s2/ and perhaps s3/). Unless -n is given,
    the mixtures of a LibriMix set are taken as they are, once for each talker as the target.
    """
    if bool(sources) == bool(recipe):
        raise click.UsageError("Name folders of speakers, or --recipe CSV.")
    for source in sources:
        files.check_exists(source)
    are_sets = False
    if not recipe and not count:
        from mcspex_cli.training.data import is_librimix

        are_sets = all(map(is_librimix, sources))
    if enrolments and not (are_sets and len(sources) == 1):
        raise click.UsageError("--enrolments is for one LibriMix set, without -n.")
    if (recipe or are_sets) and (count or mixtures or seed is not None):
        raise click.UsageError("-n, --seed and --mixtures are for mixtures that are drawn.")
    for named in (recipe, mixtures, enrolments):
        if named:
            files.check_exists(named)
    from mcspex_cli.training import simulate as simulation
    from mcspex_cli.training.data import Corpus
    from mcspex_cli.training.settings import MixtureSettings, TrainSettings

    if recipe or are_sets:
        recipes = simulation.read_recipes(recipe) if recipe else []
        for source in sources:
            recipes += simulation.librimix_recipes(source, enrolments)
        simulation.check_ids(recipes)
        paths = (path for r in recipes for path in (r.target, *r.interferers, r.reference))
        simulation.check_output(output, (path.parent for path in paths), overwrite=overwrite)
        count = len(recipes)
        renderings: Iterator[Rendering] = (
            simulation.render(each, sample_rate_hz) for each in recipes
        )
    else:
        simulation.check_output(output, sources, overwrite=overwrite)
        if any(output.resolve().is_relative_to(source.resolve()) for source in sources):
            raise OutputError(
                f"{output}: is in a folder of SPEAKERS, and would be taken for some of them. "
                "Choose another -o."
            )
        settings = TrainSettings.read_mixtures(mixtures) if mixtures else MixtureSettings()
        count = count or _DEFAULT_COUNT

        def draw(count: int) -> Iterator[Rendering]:  # reads the speech once it can be written
            corpus = Corpus.read(sources, sample_rate_hz)
            yield from simulation.draw_renderings(corpus, settings, count, seed or 0)

        renderings = draw(count)
    written = simulation.write_renderings(renderings, output, sample_rate_hz, overwrite=overwrite)
    for _ in console.track(written, "rendering", count):
        pass
    console.say(f"{output}: {console.count(count, 'mixture')} at {sample_rate_hz} Hz")


@options.command()
def train(
    config: Path = argument("CONFIG.toml", type=options.PATH),
    resume: bool = flag("Continue the run in the folder that [run] out names."),
    minutes: float | None = option(
        None,
        "End after this many minutes; the schedule is fitted to them.",
        type=options.FiniteRange(0, 1e9, min_open=True),
    ),
) -> None:
    """Train MC-SpEx or SpEx+ on the speech of many people.

    CONFIG.toml has all settings; examples/train.toml explains them. The trained model is in
    OUT/last and, with validation, in OUT/best: folders that --model takes.
    On several GPUs: torchrun --nproc-per-node N -m mcspex_cli train CONFIG.toml
    """
    from mcspex_cli.training.settings import TrainSettings

    settings = TrainSettings.read(config, minutes)
    from mcspex_cli.training.trainer import Trainer

    trainer = Trainer(settings, resume=resume)
    console.messages.quiet = not trainer.team.leads
    if trainer.team.leads and trainer.device.type == "cpu":
        options.warn_of_slow(settings.run.precision)
    corpus = trainer.sampler.corpus
    console.say(f"{len(corpus.speakers)} speakers, {corpus.seconds / 3600:.2f} h of speech")
    with (
        console.ending_gently(trainer.stopping.set, "SIGHUP"),
        console.progress("training") as update,
    ):
        for progress in trainer.run():
            update(completed=progress.share, description=f"step {progress.step}")
            checked_db = progress.validation_db
            console.say(
                f"step {progress.step}  loss {progress.loss:.2f}  "
                f"SI-SDRi {progress.si_sdr_i_db:.2f} dB  "
                f"speaker accuracy {100 * progress.accuracy:.0f} %  "
                f"{progress.audio_s_per_s:.0f} audio s/s  {trainer.left_s / 60:.0f} min left"
                + ("" if checked_db is None else f"  validation SI-SDRi {checked_db:.2f} dB")
            )
    if not trainer.finished:
        command = "mcspex train" if trainer.team.size == 1 else "torchrun ... -m mcspex_cli train"
        console.say(
            f"{trainer.out}: stopped after step {trainer.step}. "
            f"Continue with: {command} {shlex.quote(str(config))} --resume"
            + (f" --minutes {minutes:g}" if minutes else "")
        )
        click.get_current_context().exit(130)
    model, score = trainer.out / "last", ""
    if (trainer.out / "best").is_dir():
        model, score = trainer.out / "best", f" (validation SI-SDRi {trainer.best_db:.2f} dB)"
    console.say(
        f"{model}: the trained model{score}. Use it with: "
        f"mcspex extract MIXTURE --ref REFERENCE --model {shlex.quote(str(model))}"
    )
