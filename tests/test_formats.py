"""Formats tried in memory."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from mcspex_cli import formats
from mcspex_cli.errors import AudioError


@pytest.mark.parametrize("name", ["WAV", "FLAC", "OGG"])
def test_what_this_program_writes_comes_back(name: str) -> None:
    formats.try_format(name)


def test_the_librarys_version_is_soundfiles() -> None:
    assert formats.library() == soundfile.__libsndfile_version__


def test_a_format_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.FORMATS, "FLAC", ("FLAC", "VORBIS"))  # which FLAC cannot hold
    with pytest.raises(AudioError, match=r"^FLAC: .*Install soundfile again\.$"):
        formats.try_format("FLAC")


def test_another_sound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "read", lambda _: (np.zeros(1600), 16_000))
    with pytest.raises(AudioError, match="another sound"):
        formats.try_format("WAV")
