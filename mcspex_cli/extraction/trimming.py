"""A reference cut to what was said in it; pure."""

from __future__ import annotations

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.speech import active, frame_levels_db, spans, steady

LONG_S = 10.0
"""A clip longer than this is cut to its speech; others lose long silence at their ends only."""

CAP_S = 60.0
"""Seconds of one clip that are embedded; more do not make a voice clearer."""

_PAUSE_S = 0.5
"""Pauses longer than this are cut out of a long clip."""

_END_S = 1.0
"""Silence longer than this is cut off the ends of a short one."""

_MARGIN_S = 0.1
"""Kept on both sides of speech, for what is quiet at the ends of words."""

_BURST_S = 0.05
"""Shorter sounds are no speech."""


def trim(samples: Samples, sample_rate_hz: int) -> Samples:
    """Cut a clip to its speech.

    Over 10 s long, its pauses over 0.5 s are cut out and the rest, up to 60 s, is joined;
    else silence over 1 s is cut off its ends. 0.1 s is kept around what stays. A clip
    without speech, or with nothing to cut, is given back as it is.

    Args:
        samples: [sample].
        sample_rate_hz: of the samples.

    Returns:
        [sample], no longer.
    """
    said = steady(active(frame_levels_db(samples, sample_rate_hz)), _BURST_S, _PAUSE_S)
    found = spans(said)
    if not found:
        return samples
    seconds = len(samples) / sample_rate_hz
    if seconds <= LONG_S:
        found = [_without_ends(found, seconds)]
    pieces = [_piece(samples, span, sample_rate_hz) for span in found]
    joined: Samples = np.concatenate(pieces)[: round(CAP_S * sample_rate_hz)]
    return joined


def only_speech(samples: Samples, sample_rate_hz: int) -> Samples:
    """The speech of a clip [sample], short pauses left out too."""
    said = steady(active(frame_levels_db(samples, sample_rate_hz)), _BURST_S, 0.2)
    pieces = [_piece(samples, span, sample_rate_hz, 0.0) for span in spans(said)]
    return np.concatenate(pieces) if pieces else samples[:0]


def _without_ends(found: list[tuple[float, float]], seconds: float) -> tuple[float, float]:
    """From the first speech to the last, or the clip's end where that is near."""
    start_s, end_s = found[0][0], found[-1][1]
    return (
        start_s if start_s > _END_S else 0.0,
        end_s if seconds - end_s > _END_S else seconds,
    )


def _piece(
    samples: Samples, span: tuple[float, float], sample_rate_hz: int, margin_s: float = _MARGIN_S
) -> Samples:
    """The samples of a span and what is kept around it."""
    start, end = span[0] - margin_s, span[1] + margin_s
    return samples[max(0, round(start * sample_rate_hz)) : round(end * sample_rate_hz)]
