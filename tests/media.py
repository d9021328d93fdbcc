"""Videos and other containers for tests, made with PyAV."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np

from mcspex_cli import audio

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
"""FFmpeg's names of numbers of channels."""


@dataclass(frozen=True)
class SoundTrack:
    """A sound track: `samples` [sample] or [channel, sample], and how it is encoded."""

    samples: audio.Samples
    rate_hz: int
    codec: str = "aac"
    start_s: float = 0.0
    language: str = ""
    options: dict[str, str] = field(default_factory=dict)
    gap: tuple[float, float] = (0.0, 0.0)
    """From when on, in seconds, and by how much the time stamps are later."""


def make(
    path: Path,
    *tracks: SoundTrack,
    picture_s: float = 0.0,
    options: dict[str, str] | None = None,
    pipe_format: str | None = None,
) -> Path:
    """Write a container; its kind is that of the suffix, its picture, if any, a grey square.

    With a `pipe_format` it is written as to a pipe, so that its header is never completed.
    """
    with (
        path.open("wb") as file,
        av.open(
            SimpleNamespace(write=file.write) if pipe_format else str(path),
            "w",
            format=pipe_format,
            options=options or {},
        ) as container,
    ):
        video = None
        if picture_s:
            video = container.add_stream("mpeg4", rate=5)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
        streams = []
        for track in tracks:
            stream = container.add_stream(track.codec, rate=track.rate_hz, options=track.options)
            stream.layout = LAYOUTS[len(np.atleast_2d(track.samples))]
            if track.language:
                stream.metadata["language"] = track.language
            streams.append(stream)
        packets = []
        for number in range(round(5 * picture_s)):
            assert video is not None
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            packets += video.encode(frame)
        for track, stream in zip(tracks, streams, strict=True):
            packets += encode(track, stream)
        if video is not None:
            packets += video.encode(None)
        packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
        for packet in packets:
            container.mux(packet)
    return path


def encode(track: SoundTrack, stream: av.AudioStream) -> list[av.Packet]:
    """The packets of a track."""
    samples = np.atleast_2d(track.samples)
    target = stream.codec_context.format
    resampler = av.AudioResampler(format=target, layout=stream.layout, rate=track.rate_hz)
    packets, size = [], 1024
    for start in range(0, samples.shape[1], size):
        block = np.ascontiguousarray(samples[:, start : start + size], dtype=np.float32)
        packed = block.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=stream.layout.name)
        frame.sample_rate, frame.time_base = track.rate_hz, Fraction(1, track.rate_hz)
        late_s = track.start_s + (track.gap[1] if start / track.rate_hz >= track.gap[0] else 0)
        frame.pts = start + round(late_s * track.rate_hz)
        for part in resampler.resample(frame):
            packets += stream.encode(part)
    return [*packets, *stream.encode(None)]
