"""A Hub of two users, and the real client for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session, constants, hf_hub_download

from tests.hub import Hub

REPO = "ann/voices"
WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "sub/notes.txt": b"hello\n"}
ANN, BOB = "hf_ann", "hf_bob"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that knows two users; the client pushes over plain HTTP."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as hub:
        hub.tokens.update({ANN: "ann", BOB: "bob"})
        yield hub
        close_session()


def get(
    hub: Hub, cache: Path, name: str, token: str | bool = False, revision: str = "main"
) -> Path:
    """Download a file as the client does."""
    return Path(
        hf_hub_download(
            REPO, name, revision=revision, endpoint=hub.url, cache_dir=cache, token=token
        )
    )


def api(hub: Hub, token: str | bool = False) -> HfApi:
    """A client of this Hub, by default one without a token."""
    return HfApi(endpoint=hub.url, token=token)
