"""The C library's memory, for programs that are ours: a library leaves its host's alone."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, by <malloc.h>."""

_KEPT = 2**30
"""Bytes up to which what is freed is kept."""


def keep_memory() -> None:
    """Have glibc keep freed memory for the next tensor of that size; elsewhere do nothing.

    Giving megabytes back to the system and asking for them anew at every layer has made
    networks on a CPU two to three times as slow.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _KEPT)
