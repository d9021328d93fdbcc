"""What `mcspex extract` says of each file it has made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcspex_cli.cli import console

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.extraction.engine import Engine
    from mcspex_cli.extraction.jobs import Job
    from mcspex_cli.extraction.outputs import Extraction
    from mcspex_cli.extraction.reference import Voice


@dataclass(frozen=True)
class Wanted:
    """A loaded model and the one voice that it is to follow."""

    engine: Engine
    info: CheckpointInfo
    voice: Voice


@dataclass(frozen=True)
class Talk:
    """How much to say, and how."""

    as_json: bool
    quiet: bool
    verbose: bool


def tell(job: Job, done: Extraction, absent: str, wanted: Wanted, talk: Talk) -> None:
    """Report one finished mixture."""
    for line in _doubts(job, done, absent):
        console.warn(line)
    if talk.as_json:
        console.data(_as_row(job, done, wanted))
    elif not talk.quiet:
        facts = [
            f"{done.seconds:.1f} s in {done.elapsed_s:.1f} s",
            f"real-time factor {done.real_time_factor:.3f}",
        ]
        if done.presence.presence is not None:
            facts.append(f"presence {done.presence.presence:.2f}")
        others = [str(path) for path in job.outputs()[1:]]
        detail = _details(done, wanted) if talk.verbose else ""
        console.say("  ".join([str(done.output), f"({', '.join(facts)}{detail})", *others]))


def _doubts(job: Job, done: Extraction, absent: str) -> Iterator[str]:
    """What may be wrong with it."""
    result = done.presence
    if done.limited:
        yield f"{done.output}: turned down (gain {done.gain_db[0]:+.1f} dB) not to clip."
    if done.residual_gain_db < 0:
        yield f"{job.residual}: turned down by {-done.residual_gain_db:.1f} dB not to clip."
    if result.present is False:
        what = "silenced" if absent == "mute" else "somebody else's, or a remnant"
        yield (
            f"{done.output}: the voice is probably not in {job.mixture} "
            f"(presence {result.presence:.2f}); the result is {what}."
        )
    elif result.wrong_speaker:
        yield (
            f"{done.output}: may follow the wrong person: what is left sounds like the "
            "reference. Try a longer one, or listen to --residual."
        )
    elif done.silent:
        yield f"{done.output}: nothing of this voice was found, the result is silent."


def _details(done: Extraction, wanted: Wanted) -> str:
    """What --verbose adds."""
    gains = ", ".join(f"{gain:+.1f}" for gain in done.gain_db)
    by, info = wanted.engine.runtime, wanted.info
    return (
        f"; {info.label} (sha256 {info.sha256[:12]}) on {by.device}, {by.precision}, {by.name}, "
        f"gain {gains} dB, speaks {done.active_s:.1f} s"
    )


def _as_row(job: Job, done: Extraction, wanted: Wanted) -> dict[str, Any]:
    """What --json prints for one mixture."""
    result, by = done.presence, wanted.engine.runtime
    return {
        "mixture": job.name,
        "references": [
            source.replace(str(job.mixture), job.name) for source in wanted.voice.sources
        ],
        "reference_seconds": round(wanted.voice.seconds, 2),
        "output": str(done.output),
        "residual": str(job.residual) if job.residual else None,
        "activity": str(job.activity) if job.activity else None,
        "seconds": round(done.seconds, 3),
        "sample_rate_hz": done.sample_rate_hz,
        "elapsed_s": round(done.elapsed_s, 3),
        "real_time_factor": round(done.real_time_factor, 4),
        "gain_db": list(done.gain_db),
        "limited": done.limited,
        "residual_gain_db": done.residual_gain_db,
        "silent": done.silent,
        "presence": None if result.presence is None else round(result.presence, 4),
        "present": result.present,
        "wrong_speaker": result.wrong_speaker,
        "active_s": done.active_s,
        "segments": [segment.to_dict() for segment in result.segments],
        "device": by.device,
        "precision": by.precision,
        "runtime": by.name,
        "model": wanted.info.name,
        "model_revision": wanted.info.revision,
        "model_sha256": wanted.info.sha256,
    }
