"""A Hub of two users, and the real client for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from tests.hub import Hub

REPO = "ann/voices"
WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "sub/notes.txt": b"hello\n"}
ANN, BOB = "hf_ann", "hf_bob"


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """The Hub, with two users."""
    hub.tokens |= {ANN: "ann", BOB: "bob"}
    return hub


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
