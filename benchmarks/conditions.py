"""What can be wrong with a recording: the conditions that limits.py measures, table by table.

A plan is drawn once, with everything in it: three more talkers, noise, a room. A condition takes
from it what it is about and leaves the rest out, so that voices, cuts, noise and room are the
same in all conditions, and only what a table varies is not.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import soundfile

from mcspex_cli.audio import Samples
from mcspex_cli.training.data import Corpus, draw_stretch
from mcspex_cli.training.mixtures import MixtureSampler, Plan, Surroundings
from mcspex_cli.training.settings import MixtureSettings

LEVEL_DB = -25.0
REFERENCE_S = 5.0
NEAR_M = 0.5

EVERYTHING = MixtureSettings(
    segment_s=5.0,
    snr_db=(-2.5, 2.5),
    level_db=(LEVEL_DB, LEVEL_DB),
    third_talker=1.0,
    noise=1.0,
    room=1.0,
    t60_s=(0.2, 0.8),
    reference_noise=1.0,
    reference_room=1.0,
)
"""What plans are drawn with; its longest T60 is also how long all rooms' responses are."""

Change = Callable[[Plan], Plan]
"""A plan with everything in it to one with what a condition is about."""


Treatment = Callable[[Samples, int], Samples]
"""A recording [sample] and its rate in Hz to what becomes of it, equally long."""


def as_it_is(recording: Samples, sample_rate_hz: int) -> Samples:  # noqa: ARG001
    """No treatment."""
    return recording


def telephone(recording: Samples, sample_rate_hz: int) -> Samples:
    """What is left of 300 to 3400 Hz, with edges of 100 Hz."""
    hertz = np.fft.rfftfreq(len(recording), 1 / sample_rate_hz)
    kept = np.clip((hertz - 200) / 100, 0, 1) * np.clip((3500 - hertz) / 100, 0, 1)
    left = np.fft.irfft(np.fft.rfft(recording) * kept, n=len(recording))
    return np.asarray(left, np.float32)


def at_level(level_db: float) -> Treatment:
    """A 16-bit file with this RMS level, dB of full scale; what goes beyond is clipped."""

    def treat(recording: Samples, sample_rate_hz: int) -> Samples:  # noqa: ARG001
        rms = np.sqrt(np.mean(np.square(recording)))
        return _in_16_bits(recording * np.float32(10 ** (level_db / 20) / rms))

    return treat


def clipped(over_db: float) -> Treatment:
    """A 16-bit file whose peak would have been so far over full scale."""

    def treat(recording: Samples, sample_rate_hz: int) -> Samples:  # noqa: ARG001
        return _in_16_bits(recording * np.float32(10 ** (over_db / 20) / np.abs(recording).max()))

    return treat


def coded(container: str, subtype: str, level: float | None = None) -> Treatment:
    """Through libsndfile's encoder and back; `level` is its 0 (best) to 1 (smallest)."""
    options = {} if level is None else {"compression_level": level}
    if container == "MP3":
        options["bitrate_mode"] = "CONSTANT"  # type: ignore[assignment]

    def treat(recording: Samples, sample_rate_hz: int) -> Samples:
        file = io.BytesIO()
        soundfile.write(
            file, recording, sample_rate_hz, format=container, subtype=subtype, **options
        )
        file.seek(0)
        decoded: Samples = soundfile.read(file, dtype="float32")[0][: len(recording)]
        return decoded

    return treat


def _in_16_bits(recording: Samples) -> Samples:
    """Clipped and rounded."""
    return np.asarray(np.clip(np.rint(recording * 32768), -32768, 32767) / 32768, np.float32)


def talkers(plan: Plan, count: int) -> Plan:
    """The target and `count - 1` others, nothing around them; fewer where there are fewer."""
    return replace(
        plan,
        interferers=plan.interferers[: count - 1],
        snr_db=plan.snr_db[: count - 1],
        around=Surroundings(),
        around_reference=Surroundings(),
    )


def two(plan: Plan) -> Plan:
    """Two talkers, nothing around them."""
    return talkers(plan, 2)


def several(count: int) -> Change:
    """More talkers than two."""
    return lambda plan: talkers(plan, count)


@dataclass(frozen=True)
class Condition:
    """One row of a table."""

    name: str
    change: Change = two
    reference_s: float = REFERENCE_S
    treat: Treatment = as_it_is
    """What happens to the mixture; to the target as well, if it is a filter."""
    treat_reference: Treatment = as_it_is
    is_filter: bool = False
    talkers: int = 2
    """Left out where the speakers are too few for it."""


def draw_plans(corpus: Corpus, count: int, seed: int) -> list[Plan]:
    """Plans with everything in them, each from a seed of its own."""
    sampler, longest = MixtureSampler(corpus, EVERYTHING), 60 * corpus.sample_rate_hz
    plans = []
    for row in range(count):
        rng = np.random.default_rng((seed, 1 + row))
        plan = sampler.plan_mixture(rng, longest)
        plans.append(_with_one_more(plan, corpus, sampler.length, rng))
    return plans


def _with_one_more(plan: Plan, corpus: Corpus, length: int, rng: np.random.Generator) -> Plan:
    """A plan with a fourth talker, if there is anybody left who says something else."""
    talkers = (plan.target, *plan.interferers)
    sentences = set().union(*(stretch.sentences() for stretch in talkers))
    snr_db = (*plan.snr_db, rng.uniform(*EVERYTHING.snr_db))
    for who in rng.permutation(len(corpus.speakers)):
        stretch = draw_stretch(corpus.speakers[who], length, 1.0, rng)
        new = stretch.speaker not in [talker.speaker for talker in talkers]
        if new and not sentences & stretch.sentences():
            return replace(plan, interferers=(*plan.interferers, stretch), snr_db=snr_db)
    return plan


def at_snr(snr_db: float) -> Change:
    """Two talkers, the target so much louder than the other."""
    return lambda plan: replace(two(plan), snr_db=(snr_db,))


def in_noise(noise_db: float) -> Change:
    """Two talkers, so far above noise of the kind drawn."""
    return lambda plan: replace(
        two(plan), around=replace(plan.around, room=None, noise_db=noise_db)
    )


def in_room(t60_s: float, distance_m: float | None = None) -> Change:
    """Two talkers in the room drawn, with this T60, at this or the drawn distance."""
    return lambda plan: replace(two(plan), around=_in_room(plan.around, t60_s, distance_m))


def same_seat(t60_s: float) -> Change:
    """Two talkers in the room drawn, and the reference recorded where the target is."""

    def change(plan: Plan) -> Plan:
        plan = in_room(t60_s)(plan)  # whose first talker is the target
        return replace(plan, around_reference=plan.around)

    return change


def overlapping(share: float) -> Change:
    """Two talkers, of whom one begins and the other ends; both speak for `share` of the time."""

    def change(plan: Plan) -> Plan:
        spans = (0.0, (1 + share) / 2), ((1 - share) / 2, 1.0)
        target, other = spans if plan.around.seed % 2 else spans[::-1]
        return replace(two(plan), target_speaks=target, interferers_speak=other)

    return change


def noisy_reference(noise_db: float) -> Change:
    """Two talkers, and the reference so far above noise."""
    return lambda plan: replace(
        two(plan), around_reference=replace(plan.around_reference, room=None, noise_db=noise_db)
    )


def reverberant_reference(t60_s: float) -> Change:
    """Two talkers, and the reference from a room."""
    return lambda plan: replace(two(plan), around_reference=_in_room(plan.around_reference, t60_s))


def without_target(change: Change) -> Change:
    """The same condition, but the target says nothing."""
    return lambda plan: replace(change(plan), present=False)


def _in_room(around: Surroundings, t60_s: float, distance_m: float | None = None) -> Surroundings:
    """Surroundings with nothing but their room, its talkers perhaps nearer to the microphone."""
    assert around.room
    room = replace(around.room, t60_s=t60_s)
    if distance_m:
        microphone, mouths = np.array(room.microphone), np.array(room.talkers)
        away = mouths - microphone
        away *= distance_m / np.linalg.norm(away, axis=1, keepdims=True)
        room = replace(room, talkers=tuple(map(tuple, (microphone + away).tolist())))
    return Surroundings(room=room)


BASELINE = Condition("two talkers, nothing else")

TABLES: dict[str, list[Condition]] = {
    "talkers": [
        Condition("three talkers", several(3), talkers=3),
        Condition("four talkers", several(4), talkers=4),
    ],
    "snr": [Condition(f"target at {db} dB", at_snr(db)) for db in (-10, -5, 0, 5, 10)],
    "overlap": [
        Condition(f"{100 * share:.0f} % overlap", overlapping(share))
        for share in (0.75, 0.5, 0.25, 0.0)
    ],
    "reference": [Condition(f"reference of {s:g} s", reference_s=s) for s in (0.5, 1, 2, 3, 10)],
    "reference-quality": [
        Condition("reference in noise, 10 dB", noisy_reference(10)),
        Condition("reference in a room, T60 0.4 s", reverberant_reference(0.4)),
        Condition("reference by telephone", treat_reference=telephone),
    ],
    "noise": [Condition(f"noise at {db} dB", in_noise(db)) for db in (20, 15, 10, 5, 0)],
    "room": [
        *(Condition(f"T60 {s:g} s", in_room(s)) for s in (0.2, 0.4, 0.6, 0.8)),
        *(
            Condition(f"T60 {s:g} s, talkers {NEAR_M:g} m away", in_room(s, NEAR_M))
            for s in (0.4, 0.8)
        ),
        Condition("T60 0.4 s, reference from there", same_seat(0.4)),
    ],
    "telephone": [
        Condition("mixture by telephone", treat=telephone, is_filter=True),
        Condition(
            "mixture and reference by telephone",
            treat=telephone,
            treat_reference=telephone,
            is_filter=True,
        ),
    ],
    "level": [
        *(Condition(f"at {db} dBFS", treat=at_level(db)) for db in (-50, -40, -30, -20, -12, -6)),
        Condition("clipped, 10 dB over", treat=clipped(10)),
        *(
            Condition(f"reference at {db} dBFS", treat_reference=at_level(db))
            for db in (-50, -40, -6)
        ),
    ],
    "codec": [
        Condition("MP3, 32 kbit/s", treat=coded("MP3", "MPEG_LAYER_III", 0.5)),
        Condition("Opus, 32 kbit/s", treat=coded("OGG", "OPUS", 0.9)),
        Condition("Opus, 16 kbit/s", treat=coded("OGG", "OPUS", 0.96)),
        Condition("GSM, 13 kbit/s", treat=coded("WAV", "GSM610")),
    ],
}
"""Each table's rows beneath its first, which is BASELINE."""

ABSENCE = [
    BASELINE,
    Condition("noise at 10 dB", in_noise(10)),
    Condition("three talkers", several(3), talkers=3),
    Condition("T60 0.4 s", in_room(0.4)),
    Condition("reference of 2 s", reference_s=2.0),
]
"""Conditions in which targets who are there and who are not are told apart."""


def fits(condition: Condition, plans: list[Plan]) -> bool:
    """Whether every plan has talkers enough."""
    return all(1 + len(plan.interferers) >= condition.talkers for plan in plans)


def table_rows(name: str, plans: list[Plan]) -> list[Condition]:
    """The rows of a table, the first included, for which there are talkers enough."""
    return [BASELINE, *(condition for condition in TABLES[name] if fits(condition, plans))]
