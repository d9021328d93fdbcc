"""Where sound files end by their own account: chunks, pages, packets and frames.

A file that is shorter than that was cut off; one that is longer may have another file after it.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

UNKNOWN_LENGTH = 0x7FFFF000
"""Chunk lengths from here on are what programs write that do not know them (to a pipe)."""

_FILE_SIZE = re.compile(
    rb"^(?:FLV.*filesize\0(.{8})|\x30\x26\xb2\x75.*"
    rb"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\0\xc0\x0c\x20\x53\x65.{24}(.{8}))",
    re.DOTALL,
)
"""Where Flash and Windows Media files say how long they are."""

_VOC = b"Creative Voice File\x1a"


@dataclass(frozen=True)
class Ending:
    """How a file ends."""

    missing: str = ""
    """What is missing at its end; empty if nothing is."""
    following: int = 0
    """Bytes of another file that follows the first in this one, as `cat a.mp4 b.mp4` makes it."""


def find_ending(stream: BinaryIO) -> Ending:
    """Compare a file's length with what its outermost structure says."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(2**13)
    if head[:4] == b"OggS":
        stream.seek(max(0, size - 2**16))  # a page is under 64 KiB
        tail = stream.read(2**16)
        page = tail[tail.rfind(b"OggS") :]
        is_last = len(page) > 27 and page[5] & 4
        is_whole = is_last and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return Ending("" if is_whole else "its last Ogg page is missing")
    if head[:1] == head[188:189] == b"G":  # MPEG-TS
        return Ending("its last packet is not whole" if size % 188 else "")
    end = _announced_end(stream, head, size)
    if end > size:
        return Ending(f"{end - size:,} bytes are missing at its end")
    stream.seek(end)
    following = stream.read(8)
    is_file = following[:4] == head[:4] or following[4:] == b"ftyp"
    return Ending(following=size - end if is_file and head[8:12] != b"AVI " else 0)


def _announced_end(stream: BinaryIO, head: bytes, size: int) -> int:
    """Where a file that begins with `head` ends; its `size` if it does not say."""
    if file_size := _FILE_SIZE.match(head):  # Flash's is a floating-point number
        flash, windows = file_size.groups(bytes(8))
        return max(int(struct.unpack(">d", flash)[0]), int.from_bytes(windows, "little")) or size
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        length = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return 8 + length + length % 2 if 0 < length < UNKNOWN_LENGTH else size
    if head[:4] == b"caff":
        return _end_of_chunks(stream, head, size, 8)
    if head[:20] == _VOC:
        return _end_of_chunks(stream, head, size, int.from_bytes(head[20:22], "little"))
    if head[4:8] in (b"ftyp", b"wide", b"moov", b"skip"):
        return _end_of_chunks(stream, head, size, 0)
    return size


def _end_of_chunks(stream: BinaryIO, head: bytes, size: int, at: int) -> int:
    """Where the last of the chunks ends that begin `at` (CAF, VOC, MP4)."""
    while at < size:
        stream.seek(at)
        chunk = stream.read(16)
        if at > 8 and (chunk[:8] == head[:8] or chunk[4:8] == b"ftyp"):  # another file
            return at
        if head[:4] == b"caff":
            length = int.from_bytes(chunk[4:12], "big") + 12
        elif head[:20] == _VOC:
            if not chunk[0]:  # the end
                return at + 1
            length = int.from_bytes(chunk[1:4], "little") + 4
        else:
            length = int.from_bytes(chunk[:4], "big")
            length = int.from_bytes(chunk[8:16], "big") if length == 1 else length
        if not any(chunk[:4]) or not 5 <= length < 2**62:  # up to the end, or nonsense
            return size
        at += length
    return at


def count_mp3_frames(stream: BinaryIO) -> int:
    """How many frames an MP3 has by its own header (Xing, Info or VBRI); 0 where there is none."""
    stream.seek(0)
    head = stream.read(2**12)
    if head[:3] == b"ID3":
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 127
        stream.seek(10 + size)
        head = stream.read(2**12)
    header = re.search(rb"(?:(?:Xing|Info)\0\0\0[\x01-\x0f]|VBRI.{10})(.{4})", head, re.DOTALL)
    if not header or (header[0][:4] != b"VBRI" and not header[0][7] & 1):
        return 0
    return int.from_bytes(header[1], "big")


def mpeg_frame_bytes(header: bytes) -> int:
    """How long a frame of MP3 or MP2 is by its header; 0 where that is not the header of one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # version 3 is MPEG 1
    kilobits = {
        (3, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
        (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0),
    }.get((version, layer), (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0))[
        header[2] >> 4
    ]
    rate_hz = (44_100, 48_000, 32_000, 0)[header[2] >> 2 & 3] // {3: 1, 2: 2}.get(version, 4)
    if layer not in (2, 3) or not rate_hz or not kilobits:
        return 0
    samples = 1152 if (version, layer) == (3, 3) or layer == 2 else 576
    return samples // 8 * 1000 * kilobits // rate_hz + (header[2] >> 1 & 1)
