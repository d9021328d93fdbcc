"""The Hub of the tests takes what huggingface_hub's own client pushes, from those who may."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from tests.checkpoint.conftest import ANN, BOB, FILES, REPO, api, get
from tests.hub import Hub

the_client_warns = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""Of its own way to put a large file."""


@the_client_warns
def test_a_pushed_folder_comes_back(hub: Hub, tmp_path: Path) -> None:
    big = bytes(range(255)) * 8192
    source = {"README.md": b"---\nlicense: cc0-1.0\n---\n", "model.safetensors": big}
    for name, data in source.items():
        (tmp_path / "from").mkdir(exist_ok=True)
        (tmp_path / "from" / name).write_bytes(data)
    client = api(hub, ANN)
    assert client.create_repo(REPO).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="already created"):
        client.create_repo(REPO)
    assert client.create_repo(REPO, exist_ok=True).repo_id == REPO
    done = client.upload_folder(repo_id=REPO, folder_path=tmp_path / "from", commit_message="One")
    assert done.oid == client.model_info(REPO).sha
    for name, data in source.items():
        assert get(hub, tmp_path / "cache", name).read_bytes() == data
    assert [r.body for r in hub.asked("PUT")] == [big]
    hub.requests.clear()
    again = client.upload_folder(repo_id=REPO, folder_path=tmp_path / "from", commit_message="One")
    assert again.oid == done.oid
    assert not hub.asked("PUT")
    assert not hub.asked("POST", "/commit/")


@the_client_warns
def test_a_commit_needs_the_right_and_the_parent(hub: Hub) -> None:
    head = hub.add(REPO, FILES)

    def push(token: str | bool, parent: str | None = None) -> str:
        new = CommitOperationAdd("model.safetensors", b"new")
        client = api(hub, token)
        done = client.create_commit(REPO, [new], commit_message="New", parent_commit=parent)
        return done.oid

    with pytest.raises(RepositoryNotFoundError, match="401"):
        push(token=False)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        push(BOB)
    with pytest.raises(HfHubHTTPError, match="412"):
        push(ANN, "0" * 40)
    assert hub.repos[REPO].branches["main"] == head
    assert hub.file(REPO, "model.safetensors", push(ANN, head)) == b"new"
    hub.read_only.add(ANN)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        push(ANN)
    with pytest.raises(HfHubHTTPError, match="don't have the rights"):
        api(hub, BOB).create_repo("ann/other")
    assert api(hub, ANN).whoami()["auth"]["accessToken"]["role"] == "read"


def test_branches_and_tags_are_made(hub: Hub) -> None:
    sha = hub.add(REPO, FILES)
    client = api(hub, ANN)
    client.create_branch(REPO, branch="b")
    client.create_tag(REPO, tag="v1", revision="b")
    assert (hub.repos[REPO].branches["b"], hub.repos[REPO].tags["v1"]) == (sha, sha)
    with pytest.raises(HfHubHTTPError, match="409"):
        client.create_tag(REPO, tag="v1")
