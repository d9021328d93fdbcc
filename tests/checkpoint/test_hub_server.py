"""The Hub of the tests is one that huggingface_hub's own client cannot tell from the real."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    close_session,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.checkpoint.conftest import ANN, BOB, FILES, REPO, WEIGHTS, api, get
from tests.hub import EVIL, Hub


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
    large = WEIGHTS * 3
    hub.add(REPO, {"model.safetensors": large})
    hub.fail("model.safetensors", cut=True, times=1)
    assert get(hub, tmp_path, "model.safetensors").read_bytes() == large
    first, second = hub.asked("GET", "model.safetensors")
    assert "range" not in first.headers
    pieces = len(large) // 2 // constants.DOWNLOAD_CHUNK_SIZE  # the client keeps whole ones
    assert second.headers["range"] == f"bytes={pieces * constants.DOWNLOAD_CHUNK_SIZE}-"


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


def test_evil_headers_are_sent_as_they_are(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    fault = hub.fail("/resolve/", headers={"ETag": f'"{EVIL}"', "X-Linked-Etag": f'"{EVIL}"'})
    for name in FILES:
        url = hf_hub_url(REPO, name, endpoint=hub.url)
        assert get_hf_file_metadata(url, token=False).etag == EVIL
    fault.headers = {"X-Repo-Commit": EVIL}
    with pytest.raises(ValueError, match="Invalid pointer path"):
        get(hub, tmp_path / "cache", "config.json")
    hub.faults = []
    hub.fail("/api/models/", fields={"sha": EVIL})
    assert api(hub).model_info(REPO).sha == EVIL


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
