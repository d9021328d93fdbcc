"""The Hub of the tests is one that huggingface_hub's own client cannot tell from the real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, close_session, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import EVIL, Hub

REPO = "ann/voices"
WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "sub/notes.txt": b"hello\n"}
ANN, BOB = "hf_ann", "hf_bob"

the_client_warns = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""Of its own way to put a large file."""


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


@pytest.mark.parametrize("name", FILES)
def test_files_arrive_as_they_are(hub: Hub, tmp_path: Path, name: str) -> None:
    sha = hub.add(REPO, FILES)
    path = get(hub, tmp_path, name)
    assert path.read_bytes() == FILES[name] == hub.file(REPO, name)
    assert path.is_relative_to(tmp_path / "models--ann--voices" / "snapshots" / sha)
    assert [r.method for r in hub.requests] == ["HEAD", "GET"]
    assert all(r.token is None for r in hub.requests)


def test_the_info_lists_sizes_and_hashes(hub: Hub) -> None:
    sha = hub.add(REPO, FILES)
    info = api(hub).model_info(REPO, files_metadata=True)
    assert info.sha == sha
    found = {s.rfilename: s for s in info.siblings or []}
    assert {name: s.size for name, s in found.items()} == {n: len(d) for n, d in FILES.items()}
    lfs = found["model.safetensors"].lfs
    assert lfs
    assert lfs.sha256 == hub.repos[REPO].commits[sha]["model.safetensors"].sha256
    assert found["config.json"].lfs is None
    assert found["config.json"].blob_id == hub.repos[REPO].commits[sha]["config.json"].oid


def test_a_branch_a_tag_and_a_commit_are_revisions(hub: Hub, tmp_path: Path) -> None:
    old = hub.add(REPO, {"config.json": b"old"})
    hub.tag(REPO, "v1")
    new = hub.add(REPO, {"config.json": b"new"})
    assert old != new
    hub.add(REPO, {"config.json": b"apart"}, revision="try/this")
    for revision, said in {
        "main": b"new",
        "v1": b"old",
        old: b"old",
        new: b"new",
        "try/this": b"apart",
    }.items():
        assert get(hub, tmp_path, "config.json", revision=revision).read_bytes() == said
        assert api(hub).model_info(REPO, revision=revision).sha == hub.repos[REPO].sha(revision)
    refs = api(hub).list_repo_refs(REPO)
    assert {b.name for b in refs.branches} == {"main", "try/this"}
    assert [(t.name, t.target_commit) for t in refs.tags] == [("v1", old)]


def test_what_is_cached_at_a_commit_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    sha = hub.add(REPO, FILES)
    get(hub, tmp_path, "config.json", revision=sha)
    hub.requests.clear()
    get(hub, tmp_path, "config.json", revision=sha)
    assert not hub.requests


def test_a_download_resumes_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    large = WEIGHTS * 24  # the client keeps whole pieces of 10 MiB: half of this is one
    hub.add(REPO, {"model.safetensors": large})
    hub.fail("model.safetensors", cut=True, times=1)
    assert get(hub, tmp_path, "model.safetensors").read_bytes() == large
    first, second = hub.asked("GET", "model.safetensors")
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={constants.DOWNLOAD_CHUNK_SIZE}-"


def test_a_private_repository_is_there_for_those_who_may(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES, private=True)
    for token, status in ((False, 401), (BOB, 404)):
        for attempt in (
            lambda t=token: get(hub, tmp_path, "config.json", token=t),
            lambda t=token: api(hub, t).model_info(REPO),
        ):
            with pytest.raises(RepositoryNotFoundError) as caught:
                attempt()
            assert not isinstance(caught.value, GatedRepoError)
            assert caught.value.response.status_code == status
    hub.grants.add(("bob", REPO))
    for token in (ANN, BOB):
        assert api(hub, token).model_info(REPO).private
        cache = tmp_path / token
        assert get(hub, cache, "config.json", token=token).read_bytes() == FILES["config.json"]
        assert hub.requests[-1].token == token


def test_a_gated_repository_shows_its_files_but_does_not_give_them(
    hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, FILES, gated=True)
    for token, status in ((False, 401), (BOB, 403)):
        assert api(hub, token).model_info(REPO).gated == "manual"
        with pytest.raises(GatedRepoError) as caught:
            get(hub, tmp_path, "config.json", token=token)
        assert caught.value.response.status_code == status
    hub.grants.add(("bob", REPO))
    assert get(hub, tmp_path, "config.json", token=BOB).read_bytes() == FILES["config.json"]


def test_an_unknown_token_is_said_to_be_one(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    for attempt in (
        lambda: get(hub, tmp_path, "config.json", token="hf_old"),
        lambda: api(hub, "hf_old").model_info(REPO),
        lambda: api(hub, "hf_old").whoami(),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            attempt()
        assert type(caught.value) is HfHubHTTPError
        assert caught.value.response.status_code == 401


def test_what_is_not_there_has_its_own_error(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    with pytest.raises(RevisionNotFoundError):
        get(hub, tmp_path, "config.json", revision="v9")
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info(REPO, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        get(hub, tmp_path, "nothing.json")
    with pytest.raises(RepositoryNotFoundError):
        api(hub, ANN).model_info("ann/nothing")


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


def test_checksums_tell_good_from_bad(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail("model.safetensors", flip=True)
    for name in FILES:
        get(hub, tmp_path, name)  # the client does not compare what it downloads
    found = api(hub).verify_repo_checksums(REPO, cache_dir=tmp_path)
    assert [m["path"] for m in found.mismatches] == ["model.safetensors"]
    hub.faults.clear()
    for path in tmp_path.rglob("model.safetensors"):
        path.resolve().unlink()
    get(hub, tmp_path, "model.safetensors")
    found = api(hub).verify_repo_checksums(REPO, cache_dir=tmp_path)
    assert (found.checked_count, found.mismatches) == (3, [])


def test_a_wrong_size_is_noticed(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail("model.safetensors", grow=10)
    siblings = api(hub).model_info(REPO, files_metadata=True).siblings or []
    assert {s.rfilename: s.size for s in siblings}["model.safetensors"] == len(WEIGHTS) + 10
    with pytest.raises(OSError, match="should be of size 1048586 but has size 1048576"):
        get(hub, tmp_path, "model.safetensors")


def test_a_fault_goes_by_the_times_it_has(hub: Hub) -> None:
    hub.add(REPO, FILES)
    hub.fail("/api/models/", status=429, headers={"Retry-After": "1"}, times=1)
    hub.fail("/api/models/", status=403, error="GatedRepo", times=1)
    with pytest.raises(HfHubHTTPError) as caught:
        api(hub).model_info(REPO)
    assert caught.value.response.headers["retry-after"] == "1"
    hub.faults[1].times = 1
    with pytest.raises(GatedRepoError):
        api(hub).model_info(REPO)
    api(hub).model_info(REPO)


def test_evil_names_are_served_as_they_are(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, {EVIL: b"x", "config.json": b"{}"})
    assert EVIL in api(hub).list_repo_files(REPO)
    with pytest.raises(ValueError, match="path segment"):
        get(hub, tmp_path / "cache", EVIL)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_answer_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as hub:
        hub.add(REPO, FILES)
        hub.fail("/api/models/", wait_s=60)
        with pytest.raises(httpx2.ReadTimeout):
            api(hub).model_info(REPO, timeout=0.2)
        start = time.monotonic()
    assert time.monotonic() - start < 5
    close_session()


def test_a_server_that_is_gone_refuses(tmp_path: Path) -> None:
    with Hub() as hub:
        pass
    with pytest.raises(httpx2.ConnectError):
        api(hub).model_info(REPO)
    close_session()
