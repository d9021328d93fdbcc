"""What training reads from folders: speech by speaker, noises, rooms; each kind in one tensor."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcspex_cli import audio, files
from mcspex_cli.errors import AudioError, ConfigError, McspexError
from mcspex_cli.training.acoustics import align_response, at_unit_rms, change_speed

_logger = logging.getLogger("mcspex")

Sound = TypeVar("Sound")

_MIN_HALF_S = 1.0
"""A speaker's only clip is cut in two, one half for the reference, if each is this long."""

_SILENCE_S = 1.0
"""Longer silence within a clip is cut to this."""

_FRAME_S = 0.1

_LIBRIMIX_TALKERS = ("s1", "s2", "s3")

_LIBRISPEECH = re.compile(r"(\d+)-(\d+)-\d+")
"""An utterance of LibriSpeech: speaker, chapter, number."""

_CROSSFADE_S = 0.05
"""Where a short noise file is repeated, its end fades out under its beginning over this time."""

_MOST_NAMED = 20
"""How many of the files that cannot be read are named."""

_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}


@dataclass(frozen=True)
class Utterance:
    """A sound file of one speaker."""

    path: Path
    speaker: str
    sentence: str
    """Utterances of equal sentences say the same: never mixed, never each other's reference."""


@dataclass(frozen=True)
class LibriMixture:
    """One mixture of a LibriMix set, with an utterance for each of its two or three talkers."""

    id: str
    path: Path
    talkers: tuple[Utterance, ...]


def list_utterances(folders: Sequence[Path]) -> list[Utterance]:
    """List the utterances under each folder, by path.

    A LibriMix set gives its talkers, LibriSpeech's `SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`
    its speakers under the same names; in any other tree a file's folder is its speaker and its
    stem its sentence.

    Raises:
        ConfigError: a folder is missing, holds no sound files, or LibriMix sets.
    """
    utterances: list[Utterance] = []
    speakers: dict[Path, str] = {}
    """By their folders, of which one may be named twice, or linked to."""
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder of speakers. Correct its name.")
        if is_librimix(folder):
            utterances += [clip for mixture in list_librimix(folder) for clip in mixture.talkers]
            continue
        paths = files.find(folder)
        if not paths:
            raise ConfigError(f"{folder}: has no sound files in it. Name a folder of speakers.")
        if sets := sorted(filter(is_librimix, {path.parent.parent for path in paths})):
            verb = "holds" if sets[0].is_relative_to(folder) else "belongs to"
            advice = "a LibriMix set. Name it, or the folders of speakers beside it:"
            if len(sets) > 1:
                advice = "several LibriMix sets. Name one of them, for example"
            raise ConfigError(f"{folder}: {verb} {advice} {sets[0]}.")
        doubles = [
            one for one, later in pairwise(paths) if one.with_suffix("") == later.with_suffix("")
        ]
        _warn_of_left_out(doubles, "a file of the same name takes its place")
        _warn_of_nested({path.parent for path in paths})
        for path in paths:
            chapter = path.parent
            match = _LIBRISPEECH.fullmatch(path.stem)
            is_librispeech = match and match.groups() == (chapter.parent.name, chapter.name)
            own = speakers.setdefault(chapter.resolve(), str(chapter))
            speaker = _speaker(path.stem) if is_librispeech else own
            utterances.append(Utterance(path, speaker, path.stem))
    return utterances


def is_librimix(folder: Path) -> bool:
    """Whether a folder is one set of a LibriMix tree, like `wav8k/min/train-100`."""
    return all((folder / name).is_dir() for name in ("mix_clean", "s1", "s2"))


def list_librimix(folder: Path) -> list[LibriMixture]:
    """List the mixtures of a LibriMix set of two or three talkers, by id.

    `../metadata/mixture_SET_mix_clean.csv` (as LibriMix's scripts write it) or
    `mixture_SET_mix_clean.csv` in the folder lists them; without it, the files of `mix_clean` do.

    Raises:
        ConfigError: the folder is not such a set, or is empty, a file is missing, or the metadata
            or a mixture's name cannot be read.
    """
    if not is_librimix(folder):
        raise ConfigError(
            f"{folder}: is not a LibriMix set, which has mix_clean, s1 and s2. For speakers in "
            'other folders, leave out mixing = "given".'
        )
    present = {path.stem: path for path in files.find(folder / "mix_clean")}
    listed: list[str] = []
    name = f"mixture_{folder.name}_mix_clean.csv"
    for table in (folder.parent / "metadata" / name, folder / name):
        if table.is_file() and not listed:
            listed = [row["mixture_ID"] for _, row in read_csv(table, ["mixture_ID"])]
            if others := len(present.keys() - set(listed)):
                _logger.warning(f"{table}: mixtures left out, as it does not list them: {others}.")
    mixtures = []
    for id_ in sorted(set(listed or present)):
        if id_ not in present:
            raise ConfigError(f"{folder}: mix_clean/{id_}.wav is missing. Generate the set again.")
        mixtures.append(LibriMixture(id_, present[id_], _talkers(folder, present[id_])))
    if not mixtures:
        raise ConfigError(f"{folder}: mix_clean is empty. Generate the set again.")
    return mixtures


def _talkers(folder: Path, mixture: Path) -> tuple[Utterance, ...]:
    """The talkers of a mixture, by the utterances in its name."""
    roles = [role for role in _LIBRIMIX_TALKERS if (folder / role).is_dir()]
    utterances = mixture.stem.split("_")
    unknown = [name for name in utterances if not _LIBRISPEECH.fullmatch(name)]
    if unknown and (folder / "references").is_dir():
        raise ConfigError(
            f"{folder}: was made by mcspex simulate, and its names do not say who speaks. Name the "
            "folders of speakers from which it was made."
        )
    if unknown:
        raise ConfigError(
            f"{mixture}: LibriMix names a mixture by its utterances, each by the numbers of "
            "speaker, chapter and utterance, as in 84-121123-0000_174-50561-0000. "
            f"{unknown[0]!r} does not say who speaks. Rename the files, or mix with mcspex "
            "simulate."
        )
    if len(utterances) != len(roles):
        raise ConfigError(
            f"{mixture}: its name has {len(utterances)} utterances, but the set has the "
            f"{len(roles)} folders {', '.join(roles)}. Generate the set again."
        )
    clips = [folder / role / mixture.name for role in roles]
    for clip in clips:
        if not clip.is_file():
            raise ConfigError(f"{clip}: is missing. Generate the set again.")
    return tuple(
        Utterance(clip, _speaker(name), name) for clip, name in zip(clips, utterances, strict=True)
    )


def _speaker(utterance: str) -> str:
    """The speaker of a LibriSpeech utterance, by the name that all trees share."""
    return f"librispeech/{utterance.split('-', maxsplit=1)[0]}"


def read_enrolments(path: Path, folder: Path) -> dict[tuple[str, str], Path]:
    """Read SpeakerBeam's `map_mixture2enrollment`: a clip for each (mixture id, utterance id).

    Each line names them in this order, the clip like `s1/4077-13754-0004_5142-36377-0020`.

    Raises:
        ConfigError: the file cannot be read, or a line names no clip of the LibriMix set, or one
            of another speaker, or the target's own utterance, or a target has two clips.
    """
    enrolments: dict[tuple[str, str], Path] = {}
    for number, words in enumerate(map(str.split, files.read_text(path).splitlines()), 1):
        if not words:
            continue
        where = f"{path} line {number}"
        if len(words) != 3:
            raise ConfigError(f"{where}: must have three words: mixture, utterance and clip.")
        mixture, utterance, name = words
        clip, (role, _, talkers) = folder / f"{name}.wav", name.partition("/")
        spoken = dict(zip(_LIBRIMIX_TALKERS, talkers.split("_"), strict=False)).get(role)
        if spoken is None:
            raise ConfigError(f"{where}: {name} names no talker. Is the file for another set?")
        if not clip.is_file():
            raise ConfigError(f"{where}: {clip} does not exist. Is the file for another set?")
        if spoken == utterance or _speaker(spoken) != _speaker(utterance):
            raise ConfigError(f"{where}: {name} is not another utterance of the target speaker.")
        if enrolments.setdefault((mixture, utterance), clip) != clip:
            raise ConfigError(f"{where}: {mixture} {utterance} is there twice. Remove one.")
    return enrolments


def read_sexes(tables: Sequence[Path], speakers: Sequence[str]) -> list[str]:
    """Look up each speaker's sex, "male", "female" or "", in CSVs with columns speaker and sex.

    A speaker's name there is that of its folder. `m`, `F`, `male` and so on are understood.

    Raises:
        ConfigError: a file or a column is missing, or the tables know none of the speakers.
    """
    by_speaker: dict[str, str] = {}
    for path in tables:
        for _, row in read_csv(path, ("speaker", "sex")):
            by_speaker[row["speaker"]] = _SEXES.get(row["sex"].strip().lower(), "")
    sexes = [by_speaker.get(Path(name).name, "") for name in speakers]
    if not any(sexes):
        names = ", ".join(map(str, tables))
        raise ConfigError(
            f"{names}: no row names a speaker of the training data, such as "
            f"{Path(speakers[0]).name}. Add rows, or set [mixtures] same_sex = 0."
        )
    return sexes


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV, which has these columns, with their line numbers.

    Raises:
        ConfigError: it cannot be read, a column is missing or there twice, or a row has more or
            fewer columns than the first line.
    """
    text = files.read_text(path)
    headings, rows = files.parse_csv(path, text, lambda name: name == columns[0])
    for column in columns:
        if headings.count(column) != 1:
            problem = "is there twice" if column in headings else "is missing"
            raise ConfigError(f"{path}: column {column!r} {problem} in its first line.")
    for line, cells in rows:
        if isinstance(cells, str):
            raise ConfigError(f"{path} line {line}: {cells}")
        yield line, dict(zip(headings, cells, strict=True))


@dataclass(frozen=True)
class Speaker:
    """One talker's utterances, end to end in the corpus; the first follows the last again."""

    name: str
    start: int
    bounds: Sequence[int]
    """Where each utterance begins, from `start`; the last bound is the loop's length."""
    sentences: Sequence[str]
    """What each utterance says; never mixed with another that says the same."""

    def start_of(self, utterance: int) -> int:
        """Where an utterance begins; numbers beyond the last one go through the loop again."""
        loops, index = divmod(utterance, len(self.sentences))
        return loops * self.bounds[-1] + self.bounds[index]


@dataclass(frozen=True)
class Stretch:
    """A part of a speaker's loop: `length` samples from `start` (corpus) + `offset`."""

    speaker: Speaker
    offset: int
    length: int
    first: int
    """The utterance it begins in."""
    last: int
    """The utterance it ends in, numbered as in `Speaker.start_of`."""
    repeated: bool = False
    """Whether it starts over where it is too short; otherwise silence follows."""
    speed: float = 1.0
    """How much faster (and higher) than recorded it is played."""

    def sentences(self) -> set[str]:
        """What the utterances that it touches say."""
        names = self.speaker.sentences
        return {names[k % len(names)] for k in range(self.first, self.last + 1)}


class UtteranceIndex(NamedTuple):
    """An utterance in a corpus: its speaker's index, and its own among the speaker's."""

    speaker: int
    utterance: int


@dataclass(eq=False)
class Corpus:
    """Every utterance as 16-bit samples in one tensor, with who says what where."""

    samples: Tensor
    speakers: Sequence[Speaker]
    sample_rate_hz: int
    mixtures: Sequence[tuple[UtteranceIndex, ...]] = ()
    """The talkers of each mixture of LibriMix sets, the target first: once for each talker who
    also says something else. Empty where mixtures are drawn."""

    @classmethod
    def read(cls, folders: Sequence[Path], sample_rate_hz: int, *, mixed: bool = False) -> Corpus:
        """Decode the clips under each folder (see `list_utterances`), once.

        A speaker with a single clip has it cut in two. Left out, with a warning, are silent clips
        and speakers whose only clip is too short for that; long silence within a clip, in which a
        mixture would have no target, is shortened. If `mixed` is set, the folders are
        LibriMix sets, and the corpus knows which talkers are mixed in them.

        Raises:
            ConfigError: too few speakers have two utterances, or all of it is silent.
            AudioError: a file cannot be read.
        """
        names = ", ".join(map(str, folders))
        mixtures = [each for folder in folders for each in list_librimix(folder)] if mixed else []
        in_mixtures = [clip for mixture in mixtures for clip in mixture.talkers]
        by_speaker: dict[str, dict[object, Utterance]] = {}
        for clip in in_mixtures or list_utterances(folders):
            # Of a sentence in several files the last is kept. Mixtures each need their own.
            by_speaker.setdefault(clip.speaker, {})[clip if mixed else clip.sentence] = clip
        pieces: list[npt.NDArray[np.int16]] = []
        speakers: list[Speaker] = []
        indices: dict[Path, UtteranceIndex] = {}
        short: list[Path] = []
        paths = [clip.path for own in by_speaker.values() for clip in own.values()]
        decode = partial(_decode, sample_rate_hz=sample_rate_hz, mixed=mixed)
        sound_of = dict(zip(paths, read_all(paths, decode), strict=True))
        silent = [path for path in paths if not mixed and _is_silent(sound_of[path])]
        left_out = set(silent)
        for name, own in by_speaker.items():
            clips = [clip for clip in own.values() if clip.path not in left_out]
            sounds, sentences = [sound_of[c.path] for c in clips], [c.sentence for c in clips]
            if len(sounds) < 2 and not mixed:
                if sum(map(len, sounds)) < 2 * _MIN_HALF_S * sample_rate_hz:
                    short += [clip.path for clip in clips]
                    continue
                sounds = np.array_split(sounds[0], 2)
                sentences = [f"{sentences[0]}/{half}" for half in (1, 2)]
            for number, clip in enumerate(clips):
                indices[clip.path] = UtteranceIndex(len(speakers), number)
            start = speakers[-1].start + speakers[-1].bounds[-1] if speakers else 0
            bounds = np.cumsum([0, *map(len, sounds)]).tolist()
            speakers.append(Speaker(name, start, bounds, sentences))
            pieces += sounds
        if silent and not (speakers or short):
            raise ConfigError(f"{names}: all of it is silent. Name other folders.")
        _warn_of_left_out(silent, "it is silent")
        least = f"{2 * _MIN_HALF_S:g} s"
        if len(speakers) < 2:
            raise ConfigError(
                f"{names}: two speakers or more are needed, with two files each or one of "
                f"{least}. Add speakers, each in a folder of its own."
            )
        _warn_of_left_out(short, f"it is its speaker's only file and shorter than {least}")
        orders = [
            (target, *talkers[:role], *talkers[role + 1 :])
            for talkers in ([indices[clip.path] for clip in m.talkers] for m in mixtures)
            for role, target in enumerate(talkers)
            if len(set(speakers[target.speaker].sentences)) > 1
        ]
        if mixed and not orders:
            raise ConfigError(
                f"{names}: no talker has a second utterance for a reference. Add some."
            )
        return cls(torch.from_numpy(np.concatenate(pieces)), speakers, sample_rate_hz, orders)

    @property
    def speakers_sha256(self) -> str:
        """A checksum of the speakers' names, in their order, which a classifier of them keeps."""
        names = [Path(speaker.name).name for speaker in self.speakers]
        return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def seconds(self) -> float:
        """Length of all the speech."""
        return len(self.samples) / self.sample_rate_hz

    def gather(self, stretches: Sequence[Stretch], length: int) -> Tensor:
        """The stretches' samples [stretch, sample] in -1..1, each at its speed."""
        gathered = torch.zeros(len(stretches), length, device=self.samples.device)
        for speed in sorted({stretch.speed for stretch in stretches}):
            rows = [row for row, stretch in enumerate(stretches) if stretch.speed == speed]
            numbers = [
                (s.speaker.start, s.speaker.bounds[-1], s.offset, s.length, int(s.repeated))
                for s in (stretches[row] for row in rows)
            ]
            columns = torch.tensor(numbers).to(self.samples.device, non_blocking=True).T
            start, loop, offset, span, repeated = columns.unsqueeze(-1)
            step = torch.arange(round(length * speed), device=self.samples.device)
            audible = repeated.bool() | (step < span)
            step = torch.where(repeated.bool(), step % span.clamp_min(1), step)
            recorded = self.samples[start + (offset + step) % loop].float() / 32768 * audible
            gathered[rows] = recorded if speed == 1 else change_speed(recorded, speed, length)
        return gathered

    @cached_property
    def spectrum(self) -> Tensor:
        """The long-term average power of speech [bin], 0 Hz to half the rate, mean 1."""
        frame = 1024
        starts = torch.linspace(0, max(0, len(self.samples) - frame), 2000).long()
        index = starts[:, None] + torch.arange(frame)
        frames = self.samples[(index % len(self.samples)).to(self.samples.device)].float()
        window = torch.hann_window(frame, device=frames.device)
        power = torch.fft.rfft(frames * window).abs().square().mean(0)
        return power / power.mean().clamp_min(1e-8)


def _warn_of_nested(folders: set[Path]) -> None:
    """Warn of a speaker's folder that is in another's: it may be the same person."""
    if nested := sorted(folder for folder in folders if not folders.isdisjoint(folder.parents)):
        others = f", and so do {len(nested) - 1} others" if len(nested) > 1 else ""
        _logger.warning(
            f"{nested[0]}: counts as a speaker of its own{others}, although a folder above it has "
            "sound files, too. If they are of one person, move them into one folder."
        )


def _warn_of_left_out(paths: Sequence[Path], reason: str) -> None:
    if paths:
        rest = len(paths) - 1
        others = {0: "", 1: " So is 1 other file."}.get(rest, f" So are {rest} other files.")
        _logger.warning(f"{paths[0]}: is left out, as {reason}.{others}")


def _decode(path: Path, sample_rate_hz: int, *, mixed: bool) -> npt.NDArray[np.int16]:
    sound = audio.read(path, sample_rate_hz)
    if not len(sound):
        raise AudioError(f"{path}: is too short to train on. Remove it from the folder.")
    return as_int16(sound) if mixed else _shorten_silence(as_int16(sound), sample_rate_hz)


def _is_silent(sound: npt.NDArray[np.int16]) -> bool:
    return bool(_levels_db(sound[None])[0] < audio.SILENCE_DB)


def _shorten_silence(sound: npt.NDArray[np.int16], sample_rate_hz: int) -> npt.NDArray[np.int16]:
    """A sound [sample] without what follows the first second of each silence in it."""
    frame = round(_FRAME_S * sample_rate_hz)
    count = len(sound) // frame
    frames, rest = sound[: count * frame].reshape(count, frame), sound[count * frame :]
    index = np.arange(count)
    is_silent = _levels_db(frames) < audio.SILENCE_DB
    last_audible = np.maximum.accumulate(np.where(is_silent, -1, index))
    kept = index - last_audible <= round(_SILENCE_S / _FRAME_S)
    return np.concatenate([frames[kept].ravel(), rest])


def _levels_db(frames: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    """The level [frame] of each of `frames` [frame, sample], in dB of full scale."""
    power = np.square(frames, dtype=np.float32).mean(axis=1, dtype=np.float64)
    return 10 * np.log10(np.maximum(power, 1e-30) / 32768**2)


def draw_stretch(speaker: Speaker, length: int, speed: float, rng: np.random.Generator) -> Stretch:
    """Draw `length` samples at most of a speaker, for a mixture.

    One utterance, if there are two or more, is left untouched, for the reference.
    """
    count, loop = len(speaker.sentences), speaker.bounds[-1]
    first = int(rng.integers(count))
    start, end = speaker.bounds[first], speaker.bounds[first + 1]
    needed = round(length * speed)
    # Late in the utterance only if what follows can still fill the segment.
    untouched = speaker.start_of(first + max(1, count - 1))
    latest = max(start, min(end - 1, untouched - needed))
    offset = int(rng.integers(start, latest + 1))
    stop = min(offset + needed, untouched)
    last = first
    while speaker.start_of(last + 1) < stop:
        last += 1
    return Stretch(speaker, offset % loop, stop - offset, first, last, speed=speed)


def draw_reference(target: Stretch, length: int, rng: np.random.Generator) -> Stretch:
    """Draw a stretch of the target's other utterances, none saying what the target says.

    From a random place in the first half of what there is, for `length` samples; it starts
    over where it is too short. As fast as the target.

    Raises:
        ConfigError: the speaker says nothing else.
    """
    speaker, spoken = target.speaker, target.sentences()
    count = len(speaker.sentences)
    runs: list[list[int]] = []
    for utterance in range(target.last + 1, target.first + count):
        if speaker.sentences[utterance % count] in spoken:
            continue
        if runs and runs[-1][-1] == utterance - 1:
            runs[-1].append(utterance)
        else:
            runs.append([utterance])
    if not runs:
        raise ConfigError(
            f"{speaker.name}: has no second utterance to take a reference from. Add one, or leave "
            "this speaker out."
        )
    run = runs[int(rng.integers(len(runs)))]
    start, stop = speaker.start_of(run[0]), speaker.start_of(run[-1] + 1)
    start += int(rng.integers((stop - start) // 2 + 1))
    stop = min(start + round(length * target.speed), stop)
    touched = [k for k in run if speaker.start_of(k + 1) > start and speaker.start_of(k) < stop]
    return Stretch(speaker, start, stop - start, touched[0], touched[-1], True, target.speed)


@dataclass(frozen=True)
class NoiseStretch:
    """A stretch of a noise file: which file, and the sample that it begins at."""

    file: int
    start: int


class NoiseFiles:
    """Recorded noises as 16-bit samples in one tensor, from which stretches are drawn.

    Raises:
        ConfigError: the folder has no sound files, or one is silent.
        AudioError: one cannot be read.
    """

    def __init__(self, folder: Path, sample_rate_hz: int, device: torch.device) -> None:
        self.names, sounds = _read_folder(folder, sample_rate_hz, "noise_folder")
        self.lengths = [len(sound) for sound in sounds]
        self.starts = np.cumsum([0, *self.lengths])[:-1].tolist()
        self.samples = torch.from_numpy(np.concatenate([as_int16(s) for s in sounds])).to(device)
        self.crossfade = round(_CROSSFADE_S * sample_rate_hz)

    def draw(self, length: int, rng: np.random.Generator) -> NoiseStretch:
        """Draw a file, and a place in it from which `length` samples are left if it has them."""
        file = int(rng.integers(len(self.names)))
        spare = self.lengths[file] - length
        return NoiseStretch(file, int(rng.integers(spare + 1 if spare > 0 else self.lengths[file])))

    def gather(self, stretches: Sequence[NoiseStretch], length: int) -> Tensor:
        """The stretches [stretch, sample], RMS 1.

        A file that ends too early starts over, its end fading out under its beginning.
        """
        device = self.samples.device
        numbers = [(self.starts[s.file], self.lengths[s.file], s.start) for s in stretches]
        start, whole, offset = torch.tensor(numbers).to(device).T.unsqueeze(-1)
        fade = (whole // 2).clamp(1, self.crossfade)
        repeated = offset + length > whole
        period = torch.where(repeated, whole - fade, whole)
        step = offset + torch.arange(length, device=device)
        position = step % period
        gathered = self.samples[start + position].float()
        angle = (position / fade).clamp(max=1) * (torch.pi / 2)
        ending = self.samples[start + (position + period).clamp(max=whole - 1)].float()
        crossfaded = gathered * angle.sin() + ending * angle.cos()
        return at_unit_rms(torch.where(repeated & (step >= period), crossfaded, gathered))


class RoomFiles:
    """Recorded room responses, each from its direct sound on, by the folder that they are in."""

    def __init__(self, folder: Path, sample_rate_hz: int, device: torch.device) -> None:
        self.names, sounds = _read_folder(folder, sample_rate_hz, "room_folder")
        responses = [align_response(torch.from_numpy(s), sample_rate_hz) for s in sounds]
        self.responses = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True).to(device)
        folders = [Path(name).parent for name in self.names]
        self.neighbours = [
            [other for other, folder in enumerate(folders) if folder == own] for own in folders
        ]
        """For each response, those of the same folder, itself among them."""

    def draw(self, talkers: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw a response for each talker, from one folder; different ones if it has as many."""
        room = self.neighbours[int(rng.integers(len(self.names)))]
        return tuple(map(int, rng.choice(room, talkers, replace=len(room) < talkers)))


def as_int16(sound: audio.Samples) -> npt.NDArray[np.int16]:
    """Samples as 16-bit ones; a sound that goes beyond -1..1 is turned down."""
    scale = 32768 / float(np.abs(sound).max(initial=1.0))
    return np.clip(np.rint(sound * scale), -32768, 32767).astype(np.int16)


def read_all(paths: Sequence[Path], read: Callable[[Path], Sound]) -> list[Sound]:
    """What `read` gives for each file, several of them at a time.

    Raises:
        McspexError: that of `read`; if several files cannot be read, their errors are logged first.
    """

    def attempt(path: Path) -> Sound | McspexError:
        try:
            return read(path)
        except McspexError as error:
            return error

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(attempt, paths))
    errors = [result for result in results if isinstance(result, McspexError)]
    if len(errors) == 1:
        raise errors[0]
    for error in errors[:_MOST_NAMED]:
        _logger.error(error)
    if errors:
        rest = f"; the first {_MOST_NAMED} are named above" if len(errors) > _MOST_NAMED else ""
        raise AudioError(f"{len(errors)} files cannot be used{rest}. Repair or remove them.")
    return [result for result in results if not isinstance(result, McspexError)]


def _read_folder(
    folder: Path, sample_rate_hz: int, key: str
) -> tuple[list[str], list[audio.Samples]]:
    """The sound files under a folder: their paths in it, and their samples."""
    sources = files.find(folder) if folder.is_dir() else []
    if not sources:
        problem = "no sound files in it" if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"{folder}: {problem}. Correct [mixtures] {key}.")

    def read(path: Path) -> audio.Samples:
        sound = audio.read(path, sample_rate_hz)
        if len(sound) < 2 or not sound.any():
            raise ConfigError(f"{path}: is silent. Remove it from [mixtures] {key}.")
        return sound

    return [path.relative_to(folder).as_posix() for path in sources], read_all(sources, read)
