"""C libraries beneath torch, tuned in programs that are ours: a library leaves its host alone."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, by <malloc.h>."""

_KEPT = 2**30
"""Bytes up to which what is freed is kept."""

_SPINS = "2000"
"""How often a thread looks for work before it sleeps; GCC's OpenMP would 300,000 times."""


def share_cores() -> None:
    """Have threads that wait for each other sleep soon; to be called before torch is imported.

    One that does not sleep takes its core from the one it waits for, as soon as another
    program wants a core too: two such programs at once have been eighty times as slow.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def keep_memory() -> None:
    """Have glibc keep freed memory for the next tensor of that size; elsewhere do nothing.

    Giving megabytes back to the system and asking for them anew at every layer has made
    networks on a CPU two to three times as slow.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _KEPT)
