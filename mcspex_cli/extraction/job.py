"""What goes into an extraction and comes out: options, files, jobs, results, and their checks."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import AudioError, CheckpointError, McspexError
from mcspex_cli.extraction.levels import Level
from mcspex_cli.extraction.presence import PresenceResult, Segment
from mcspex_cli.extraction.reference import Voice
from mcspex_cli.extraction.speech import FRAME_S


@dataclass(frozen=True)
class AbsentPolicy:
    """What is done where the target is not in the mixture; a row of `ABSENT`."""

    name: str
    help: str
    mutes: bool = False
    """Whether the estimate is silent where the target is absent."""
    fails: bool = False
    """Whether a mixture without the target is an error."""


ABSENT = {
    policy.name: policy
    for policy in (
        AbsentPolicy("keep", "leave the result as it is"),
        AbsentPolicy("mute", "make it silent", mutes=True),
        AbsentPolicy("fail", "end with exit code 5", fails=True),
    )
}
"""Every policy for a target that is absent, by its name."""

ABSENT_ACCEPTED = {name: policy for name, policy in ABSENT.items() if not policy.fails}
"""Those that accept it: the choices for live sound and in the page of `mcspex serve`."""

LOWEST_GAIN_DB, HIGHEST_GAIN_DB = -120, 40

_SAME_LENGTH_S, _SAME_CORRELATION = 0.2, 0.98
"""Two files have the same sound if their lengths differ by less, and they correlate by more."""


@dataclass(frozen=True)
class ExtractionOptions:
    """How mixtures are read and estimates are written.

    Raises:
        ValueError: a value is not possible; the message names it.
        TypeError: a value has the wrong type.
    """

    channel: str = "mix"
    """"mix", the number of a channel, or "all": each channel extracted for itself."""
    level: str = "match"
    """A policy of `levels.LEVELS`, such as "match", or one with a number, as in "lufs=-23"."""
    subtype: str = audio.DEFAULT_SUBTYPE
    """The sample format of the files, of `audio.SUBTYPES`."""
    absent: str = "keep"
    """What is done where the target is absent, of `ABSENT`."""
    wet_db: float = 0.0
    """The gain of the estimate."""
    dry_db: float | None = None
    """The gain of the mixture that is added to the estimate; None adds nothing."""
    track: str | None = None
    """The sound track of a file that has several: a number from 1, or a language ("eng")."""
    damaged: audio.Damaged = "fail"
    """Whether a damaged file is an error ("fail") or gives what can be read of it ("keep")."""

    def __post_init__(self) -> None:
        choices = {"absent": ABSENT, "subtype": audio.SUBTYPES, "damaged": get_args(audio.Damaged)}
        for name in ("channel", "track", "level", *choices):
            value = getattr(self, name)
            if name == "track" and value is None:
                continue
            if not isinstance(value, str):
                example = "1" if name in ("channel", "track") else getattr(type(self), name)
                raise TypeError(f'{name} is text, such as "{example}", not {value!r:.80}')
            if name in choices and value not in choices[name]:
                raise ValueError(f"{name} {value!r} is none of {', '.join(choices[name])}")
        Level.parse(self.level)
        if self.channel not in ("mix", "all") and not audio.is_channel_number(self.channel):
            raise ValueError(
                f"channel {self.channel!r:.80} is neither mix nor all nor a number from 0"
            )
        for gain_db in (self.wet_db, 0.0 if self.dry_db is None else self.dry_db):
            if not isinstance(gain_db, Real) or isinstance(gain_db, bool):
                raise TypeError(f"wet_db and dry_db are numbers of dB, not {gain_db!r:.80}")
            if not LOWEST_GAIN_DB <= gain_db <= HIGHEST_GAIN_DB:
                limits = f"from {LOWEST_GAIN_DB} to {HIGHEST_GAIN_DB} dB"
                raise ValueError(f"wet_db and dry_db are {limits}")


@dataclass(frozen=True, init=False)
class Outputs:
    """The files that one extraction writes; a string is taken for a path."""

    estimate: Path
    residual: Path | None
    """The mixture without the target."""
    activity: Path | None
    """When the target speaks, in a format of `ACTIVITY_FORMATS`."""
    speaker: str
    """What `activity` calls the target."""
    overwrite: bool
    """Whether files that exist are replaced."""

    def __init__(
        self,
        estimate: Path | str,
        residual: Path | str | None = None,
        activity: Path | str | None = None,
        speaker: str = "target",
        overwrite: bool = False,
    ) -> None:
        if not isinstance(speaker, str):
            raise TypeError(f"speaker is text, not {speaker!r:.80}")
        if not isinstance(overwrite, bool):  # "no" would mean yes
            raise TypeError(f"overwrite is True or False, not {overwrite!r:.80}")
        vars(self).update(
            estimate=Path(estimate),
            residual=None if residual is None else Path(residual),
            activity=None if activity is None else Path(activity),
            speaker=speaker,
            overwrite=overwrite,
        )

    def sounds(self) -> list[Path]:
        """The sound files: the estimate and, if it is asked for, the residual."""
        return [path for path in (self.estimate, self.residual) if path]

    def paths(self) -> list[Path]:
        """All files that are written."""
        return [path for path in (*self.sounds(), self.activity) if path]


def speaker_name(references: Sequence[str | Path], spans: Sequence[object]) -> str:
    """What activity files call the target: the name of the only --ref, if there is one."""
    is_only_one = len(references) == 1 and not spans
    return (Path(references[0]).stem if is_only_one else "") or "target"


@dataclass(frozen=True, init=False)
class Job:
    """One mixture, the voice of its target, and the files to write; strings are taken for paths."""

    mixture: Path
    voice: Voice | Callable[[], Voice]
    """The voice, or a function that is called when it is needed. If it raises an error, that is
    the job's result."""
    outputs: Outputs
    id: str
    """See `name`."""
    reader: audio.Reader | None = field(repr=False, compare=False)
    """The mixture, if it was opened before by `open`."""
    _folder: str = field(init=False, repr=False, compare=False)
    """The working folder that relative paths start from."""

    def __init__(
        self,
        mixture: Path | str,
        voice: Voice | Callable[[], Voice],
        outputs: Outputs | Path | str,
        id: str = "",
        reader: audio.Reader | None = None,
    ) -> None:
        if not isinstance(id, str):
            raise TypeError(f"id is text, not {id!r:.80}")
        if not callable(voice):
            check_voice(voice)
        outputs = outputs if isinstance(outputs, Outputs) else Outputs(outputs)
        vars(self).update(mixture=Path(mixture), voice=voice, outputs=outputs, id=id, reader=reader)
        vars(self).update(_folder=files.working_folder())

    @property
    def name(self) -> str:
        """What rows, and messages about outputs, call the mixture: its `id`, or else its path."""
        return self.id or str(self.mixture)

    def check_folder(self) -> None:
        """Refuse relative paths if the program has changed its working folder."""
        for path in (self.mixture, *self.outputs.paths()):
            if not path.is_absolute() and files.working_folder() != self._folder:
                raise McspexError(
                    f"{path}: was a path in {self._folder} when the Job was made, but the working "
                    "folder has changed. Use absolute paths."
                )

    def check_outputs(self, used_files: files.UsedFiles) -> None:
        """Refuse outputs that cannot be written, or harm a file in `used_files`; add them."""
        self.check_folder()
        outputs, paths = self.outputs, self.outputs.paths()
        for path in paths:
            is_activity = path is outputs.activity
            files.check_suffix(path, ACTIVITY_FORMATS if is_activity else audio.FORMATS)
        used_files.add(self.mixture, paths, self.name, overwrite=outputs.overwrite)

    def open(self, options: ExtractionOptions) -> audio.Reader:
        """Open the mixture, and check all that can be checked without a model.

        Raises:
            AudioError: as `open_mixture`.
            OutputError: an output cannot hold sound of its rate, or so many channels.
        """
        reader = open_mixture(self.mixture, options)
        channels = reader.info.channels if options.channel == "all" else 1
        for path in self.outputs.sounds():
            audio.check_format(path, options.subtype, reader.info.sample_rate_hz, channels)
        return reader


def write_activity(job: Job, presence: PresenceResult) -> None:
    """Write when the target speaks, if the job has a file for that, as its suffix says."""
    if path := job.outputs.activity:
        text = ACTIVITY_FORMATS[path.suffix.lower()](job, presence)
        with files.whole(path) as unfinished:
            # File names may hold bytes that are not text.
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def _json(job: Job, presence: PresenceResult) -> str:
    document = {
        "mixture": job.name,
        "speaker": job.outputs.speaker,
        "presence": None if presence.presence is None else round(presence.presence, 4),
        "present": presence.present,
        "frame_s": FRAME_S,
        "active_s": presence.active_s,
        "spans": [{"start_s": start_s, "end_s": end_s} for start_s, end_s in presence.spans],
        "segments": [segment.to_dict() for segment in presence.segments],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rttm(job: Job, presence: PresenceResult) -> str:
    """NIST's Rich Transcription Time Marked: a line for each span. Its names have no spaces."""
    names = job.id or job.mixture.stem, job.outputs.speaker
    file, speaker = ("_".join(name.split()) or "_" for name in names)
    return "".join(
        f"SPEAKER {file} 1 {start_s:.3f} {end_s - start_s:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
        for start_s, end_s in presence.spans
    )


def _srt(job: Job, presence: PresenceResult) -> str:
    """SubRip: a numbered block for each span, its text the speaker's name on one line."""
    speaker = " ".join(job.outputs.speaker.split())
    return "\n".join(
        f"{number}\n{_timestamp(start_s)} --> {_timestamp(end_s)}\n{speaker}\n"
        for number, (start_s, end_s) in enumerate(presence.spans, 1)
    )


def _timestamp(seconds: float) -> str:
    """A time in SubRip: 00:01:02,345."""
    left, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, seconds_left = divmod(left, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds_left:02},{thousandths:03}"


ACTIVITY_FORMATS: dict[str, Callable[[Job, PresenceResult], str]] = {
    ".json": _json,
    ".rttm": _rttm,
    ".srt": _srt,
}
"""What writes each format of activity files, by the suffix. A new format is one more row."""


def open_mixture(path: Path, options: ExtractionOptions) -> audio.Reader:
    """A reader of a file as the options say; its header is read and checked.

    Raises:
        AudioError: it cannot be read, is too short, or has no such channel or track.
    """
    reader = audio.Reader(
        path,
        None,
        options.channel,
        track=options.track,
        damaged=options.damaged,
        advice=audio.MIXTURE_ADVICE,
        shortest_s=audio.MIN_SIGNAL_S,
    )
    reader.check()
    return reader


_DIGITS = {"reference_seconds": 2, "start_s": 3, "seconds": 6, "elapsed_s": 4}
_DIGITS |= {"real_time_factor": 4, "presence": 4, "similarity": 4, "speech_left": 4}
"""How many digits `Result.to_dict` keeps."""


LEVELS_CHANGED = "estimate and residual do not add up to the mixture: their levels were changed."
"""A warning of each result whose level policy, or limit, changes what `--residual` promises."""


@dataclass(frozen=True, eq=False)
class Result:
    """What came of one mixture."""

    mixture: str
    references: tuple[str, ...]
    """Clips, spans and profiles that the voice was made of."""
    reference_seconds: float
    outputs: Outputs | None
    """None for `Extractor.extract`, which writes nothing."""
    start_s: float
    """Where the sound begins in its container; times count from the container's beginning."""
    seconds: float
    sample_rate_hz: int
    elapsed_s: float
    """Seconds of work on it: its share, by length, of the time of the batches of windows that it
    is in, and then the time to judge and write it. Several files are worked on at once, so that
    their times may add up to more than all of them take."""
    gain_db: tuple[float, ...]
    """The gain that the network's estimate got, for each channel."""
    limited: bool
    """Whether that gain is lower than the level policy asks for, so that nothing clips."""
    residual_gain_db: float
    """The gain that the residual got: 0, or less so that it does not clip."""
    silent: bool
    """Whether even the highest sample of the estimate is below `audio.SILENCE_DB`."""
    presence: float | None
    """How likely, 0 to 1, the target is in the mixture; None if the model cannot tell."""
    present: bool | None
    wrong_speaker: bool | None
    """Whether the estimate may follow another person."""
    similarity: float | None
    """How similar the estimate is to the reference, -1 to 1; None if the model cannot tell."""
    speech_left: float | None
    """The share, 0 to 1, of the mixture's speech in which the estimate is heard too."""
    active_s: float
    """How long the target speaks."""
    segments: tuple[Segment, ...]
    warnings: tuple[str, ...]
    """What may be wrong with it, a line each."""
    device: str
    precision: str
    runtime: str
    passes: int
    model: str
    model_revision: str | None
    model_sha256: str
    estimate: Samples | Any = field(default=None, repr=False)
    """[sample], or [channel, sample] for "all"; None for files. (`Any` spares users of
    `Extractor.extract` a check that a type checker would ask for.)"""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio."""
        return self.elapsed_s / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON has it: a row of `extract --json`, and of a batch's report."""
        outputs = self.outputs
        row = {
            "mixture": self.mixture,
            "output": outputs and outputs.estimate,
            "residual": outputs and outputs.residual,
            "activity": outputs and outputs.activity,
            "real_time_factor": self.real_time_factor,
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "segments": [segment.to_dict() for segment in self.segments],
        }
        del row["outputs"], row["estimate"]
        for name, value in row.items():
            if isinstance(value, Path):
                row[name] = str(value)
            elif isinstance(value, tuple):
                row[name] = list(value)
            elif name in _DIGITS and value is not None:
                row[name] = round(value, _DIGITS[name])
        return row


def check_jobs(jobs: Sequence[Job], references: Sequence[Path]) -> None:
    """Refuse jobs that would harm files of one another, or have one of these as their mixture."""
    used_files = files.UsedFiles([*references, *(job.mixture for job in jobs)])
    for job in jobs:
        job.check_outputs(used_files)
        check_distinct(job.mixture, references)


def check_sources(job: Job, voice: Voice, mixture_s: float) -> None:
    """Refuse a voice if one of its clips is an output of the job, or the mixture of `mixture_s`."""
    # A span is no file, and Path.is_file would raise if its name is too long for one.
    sources = [Path(voice.folder, one) for one in voice.sources]
    clips = [one for one in sources if os.path.isfile(one)]  # noqa: PTH113
    files.check_no_input(job.outputs.paths(), files.identities(*clips))
    near = [one for one in voice.qualities if abs(one.seconds - mixture_s) < _SAME_LENGTH_S]
    check_distinct(job.mixture, clips, [Path(voice.folder, one.path) for one in near])


def check_distinct(
    mixture: Path, references: Iterable[Path], as_long: Collection[Path] = ()
) -> None:
    """Refuse a mixture that is its own reference, in this or another file.

    The sound of references that are `as_long` as the mixture is compared with it, for it may be the
    same in another format. A reference that cannot be read is refused where it is enrolled.
    """
    for reference in references:
        same = False
        with suppress(OSError, McspexError):
            same = mixture.samefile(reference) or filecmp.cmp(mixture, reference, shallow=False)
            same = same or (reference in as_long and _sounds_same(mixture, reference))
        if same:
            raise AudioError(
                f"{mixture}: is its own reference ({reference}). Give another clip of the voice "
                "alone, or a span in which it speaks alone."
            )


def _sounds_same(one: Path, other: Path) -> bool:
    """Whether two files have the same sound, as copies in different formats do."""
    signals = []
    for path in (one, other):
        blocks = audio.without_rumble(islice(audio.Reader(path, 8000), 6), 8000)  # of 10 s each
        samples = np.concatenate(list(blocks), axis=-1)[0].astype(np.float64)
        signals.append(samples / max(float(np.sqrt(np.sum(samples**2))), 1e-9))
    size = 2 * max(map(len, signals))  # coders move the sound by some milliseconds
    one_spectrum, other_spectrum = (np.fft.rfft(signal, size) for signal in signals)
    correlations = np.abs(np.fft.irfft(one_spectrum * np.conj(other_spectrum)))  # or inverted
    return bool(correlations.max() > _SAME_CORRELATION)


def check_absent(absent: str, model: CheckpointInfo, calibration: object) -> None:
    """Refuse a policy of `ABSENT` that needs presence, for a model without a calibration."""
    if absent != "keep" and calibration is None:
        raise CheckpointError(
            f"{model.label}: cannot tell whether a voice is there. Use --absent keep, or calibrate "
            f"it: mcspex models calibrate {model.argument} SPEAKERS"
        )


def check_voice(voice: object) -> Voice:
    """Refuse an object that is not a `Voice`."""
    if not isinstance(voice, Voice):
        raise TypeError(f"a voice is what Extractor.enroll gives, not {voice!r:.80}")
    return voice


def check_embedding(name: str, voice: Voice, model: CheckpointInfo) -> None:
    """Refuse a voice of another model, or a damaged one; the message begins with `name`."""
    embedding = np.asarray(voice.embedding)
    is_own = voice.model_sha256 in ("", model.sha256)
    is_whole = embedding.shape == (model.config.embedding,) and embedding.dtype.kind == "f"
    if not (is_own and is_whole and np.isfinite(embedding).all()):
        sources = f" ({', '.join(voice.sources)})" if voice.sources else ""
        raise McspexError(
            f"{name}: the voice{sources} is not one of this model, or is damaged. "
            "Enroll it with the model that extracts it."
        )
