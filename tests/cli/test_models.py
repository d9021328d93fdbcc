"""`mcspex models`, and --model wherever it is: by the real client, from a real server."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants, file_download

from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint import convert as conversion
from mcspex_cli.checkpoint import hub as cache
from mcspex_cli.checkpoint.checkpoint import (
    DEFAULT_MODEL,
    bundled,
    find_checkpoint,
    load_checkpoint,
)
from mcspex_cli.extraction import onnx
from mcspex_cli.extraction.profile import read_profile
from tests.checkpoint.published import Sizes, published
from tests.hub import EVIL, Hub

REPO = "ann/voices"
CARD = b"---\nlicense: mit\nlibrary_name: mcspex\ntags: [speech]\n---\n# Voices\n"
FILES = ("config.json", "model.safetensors", "README.md")


def run(*words: object, text: str | None = None, **env: str) -> click.testing.Result:
    return CliRunner().invoke(main, [str(w) for w in words], input=text, env=env)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def files(tiny_folder: Path) -> dict[str, bytes]:
    """The tiny checkpoint's files, with a card."""
    return {**files_of(tiny_folder), "README.md": CARD}


@pytest.fixture
def commit(hub: Hub, files: dict[str, bytes]) -> str:
    """The tiny checkpoint on the Hub, amid what is not to be taken."""
    others = {"pytorch_model.bin": b"pickle", "modeling.py": b"import os", "a/config.json": b"{}"}
    return hub.add(REPO, {**files, **others})


def edited(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    """The files, with other values in config.json's system or beside it."""
    config = json.loads(files["config.json"])
    for key, value in changes.items():
        (config["system"] if key in config["system"] else config)[key] = value
    return {**files, "config.json": json.dumps(config).encode()}


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """What a process of its own needs to ask our Hub."""
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    return {**os.environ, **ours, "HF_HUB_DISABLE_XET": "1"}


def mcspex(*words: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcspex_cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


# --- pull -----------------------------------------------------------------------------------


def test_pull_takes_three_files_and_says_what_came(
    hub: Hub, commit: str, files: dict[str, bytes]
) -> None:
    done = run("models", "pull", REPO)
    assert done.exit_code == 0, done.output
    size = sum(map(len, files.values())) / 1e3
    line = f"{REPO}@{commit[:12]}  ({size:.1f} kB downloaded; licence: mit)\n"
    assert (done.stdout, done.stderr) == ("", line)
    snapshot = cache.cached(cache.HubName(REPO))
    assert snapshot
    assert snapshot.revision == commit
    assert files_of(snapshot.folder) == files
    assert {r.path.rpartition("/")[2] for r in hub.requests_for("GET", "/resolve/")} == set(FILES)


def test_pull_again_downloads_and_writes_nothing(hub: Hub, commit: str) -> None:
    run("models", "pull", REPO)
    snapshot = cache.cached(cache.HubName(REPO))
    assert snapshot

    def inodes() -> dict[str, int]:
        return {path.name: path.lstat().st_ino for path in snapshot.repository.rglob("*")}

    before = inodes()
    hub.requests.clear()
    done = run("models", "pull", REPO)
    assert inodes() == before
    assert done.stderr == f"{REPO}@{commit[:12]}  (already downloaded; licence: mit)\n"
    assert not hub.requests_for("GET", "/resolve/")


@pytest.mark.parametrize("form", ["--revision", "@"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(
    hub: Hub, commit: str, files: dict[str, bytes], form: str
) -> None:
    hub.tag(REPO, "v1")
    later = hub.add(REPO, {"README.md": CARD + b"More.\n"})
    assert later != commit
    for revision, meant in {"v1": commit, commit: commit, "main": later}.items():
        words = [f"{REPO}@{revision}"] if form == "@" else [REPO, "--revision", revision]
        done = run("models", "pull", *words)
        assert done.stderr.startswith(f"{REPO}@{meant[:12]}  ("), done.stderr
        assert find_checkpoint(f"{REPO}@{revision}", offline=True).revision == meant


def test_a_token_opens_a_private_model(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files, private=True)
    hub.tokens["hf_secret"] = "ann"
    done = run("models", "pull", REPO)
    assert (done.exit_code, done.stderr) == (
        1,
        f"error: {REPO}: no such folder, and no such model on the Hub. Check the name; if it is "
        "private, log in with `hf auth login` or set HF_TOKEN.\n",
    )
    assert run("models", "pull", REPO, HF_TOKEN="hf_secret").exit_code == 0


FAULTS = {
    "404": (
        {"where": "/api/models/", "status": 404, "error": "RepoNotFound"},
        "no such folder, and no such model on the Hub",
    ),
    "401": (
        {"where": "/api/models/", "status": 401},
        "log in with `hf auth login` or set HF_TOKEN",
    ),
    "403": ({"where": "/api/models/", "status": 403}, "you may not read it (403)"),
    "gated": (
        {"where": "/api/models/", "status": 403, "error": "GatedRepo"},
        "gated. Ask for access at http://127.0.0.1:",
    ),
    "429": (
        {"where": "/api/models/", "status": 429, "headers": {"Retry-After": "37"}},
        "gets too many requests from here (429). Try again in 37 s.",
    ),
    "500": (
        {"where": "/api/models/", "status": 500},
        "the Hub has a problem (500). Try again later.",
    ),
    "slow": ({"where": "/api/models/", "wait_s": 3.0}, "cannot reach http://127.0.0.1:"),
    "no Hub": ({"where": "/api/models/", "body": b"<html>Sign in</html>"}, "as the Hub does"),
    "503 before a file": (
        {"where": "model.safetensors", "method": "HEAD", "status": 503},
        "the Hub has a problem (503). Try again later.",
    ),
    "wrong size": ({"where": "model.safetensors", "grow": 10}, "another size than announced"),
    "wrong hash": (
        {"where": "model.safetensors", "flip": True},
        "model.safetensors arrived damaged twice",
    ),
    "wrong commit": ({"where": "/api/models/", "fields": {"sha": EVIL}}, "as the Hub does"),
}


def test_a_token_that_cannot_be_one_is_named(hub: Hub, commit: str) -> None:
    done = run("models", "pull", REPO, HF_TOKEN="hf_s\u00e9cret")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "your token, or HF_ENDPOINT, has a character that it cannot have" in done.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_of_a_server_is_one_line_and_loses_nothing(
    hub: Hub, commit: str, files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    what, words = FAULTS[name]
    fault = hub.fail(**what)
    before = set(tmp_path.rglob("*"))
    done = run("models", "pull", REPO)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {REPO}: ")
    assert (words in done.stderr, done.stderr.count("\n")) == (True, 1), done.stderr
    home = tmp_path / "home"
    assert all(p.is_relative_to(home) for p in set(tmp_path.rglob("*")) - before)
    assert cache.cached(cache.HubName(REPO)) is None
    fault.times = 0
    assert run("models", "pull", REPO).exit_code == 0
    snapshot = cache.cached(cache.HubName(REPO))
    assert snapshot
    assert files_of(snapshot.folder) == files


def test_a_download_that_breaks_goes_on_where_it_broke(
    hub: Hub, commit: str, files: dict[str, bytes]
) -> None:
    hub.fail("model.safetensors", cut=True, times=1)
    done = run("models", "pull", REPO)
    assert (done.exit_code, done.stderr.count("\n")) == (0, 1), done.stderr
    first, second = (r.headers.get("range") for r in hub.requests_for("GET", "model.safetensors"))
    assert first is None
    assert second == f"bytes={len(files['model.safetensors']) // 2 // 2**14 * 2**14}-"


def test_what_comes_by_xet_is_counted_once(
    hub: Hub, commit: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")

    def get(url: str, file: Any, *, expected_size: int, tqdm_class: Any, **settings: Any) -> None:
        """Report as the client does for a download by Xet."""
        rates = {"total_bytes_completion_rate": 1.0, "total_transfer_bytes_completion_rate": 1.0}
        with reporting.XetDownloadProgressReporter(
            reconstruction_desc="", total=expected_size, log_level=20, tqdm_class=tqdm_class
        ) as reporter:
            for done in (expected_size // 2, expected_size):
                counts = ("total_bytes", "total_bytes_completed", "total_transfer_bytes_completed")
                reporter.update_progress(SimpleNamespace(**dict.fromkeys(counts, done), **rates))
        http_get(url, file, expected_size=expected_size, **settings)

    http_get = file_download.http_get
    monkeypatch.setattr(file_download, "http_get", get)
    done = run("models", "pull", REPO)
    size = sum(map(len, files.values())) / 1e3
    assert f"({size:.1f} kB downloaded; licence: mit)" in done.stderr


def test_file_names_of_a_server_do_not_leave_the_cache(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(REPO, {**files, EVIL: b"evil", "../config.json": b"evil", "/etc/evil": b"evil"})
    assert run("models", "pull", REPO).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"home"}
    assert not any("evil" in p.name for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("evil", ["../../../../evil", "/EVIL"])
@pytest.mark.parametrize(
    ("name", "status"),
    [("ETag", 0), ("X-Linked-Etag", 0), ("X-Repo-Commit", 0), ("X-Repo-Commit", 404)],
)
def test_a_server_cannot_name_a_path(
    hub: Hub, commit: str, tmp_path: Path, evil: str, name: str, status: int
) -> None:
    evil = evil.replace("/EVIL", str(tmp_path / "evil"))
    missing = {"status": status, "error": "EntryNotFound"} if status else {}
    hub.fail("/resolve/", method="HEAD", headers={name: evil}, **missing)
    done = run("models", "pull", REPO)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert {p.name for p in tmp_path.iterdir()} <= {"home"}
    assert not list(tmp_path.rglob("*evil*"))


def test_an_evil_answer_to_a_second_question_is_refused_too(
    hub: Hub, commit: str, tmp_path: Path
) -> None:
    hub.fail("config.json", method="HEAD", wait_s=3.0, times=1)  # so that the client asks again
    hub.fail("config.json", method="HEAD", headers={"ETag": "../../../../evil"})
    assert run("models", "pull", REPO).exit_code == 1
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    "fields",
    [
        {"siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]},
        {"sha": 5},
        {"id": None},
    ],
)
def test_odd_answers_are_one_line(hub: Hub, commit: str, fields: dict[str, object]) -> None:
    hub.fail("/api/models/", fields=fields)
    done = run("models", "pull", REPO)
    assert (done.exit_code, done.stderr.count("\n")) in {(1, 1), (0, 1)}
    assert done.exit_code == 1 or fields == {"id": None}
    assert not hub.requests_for("GET", "model.safetensors") or done.exit_code == 0


def test_more_than_was_listed_is_not_kept(hub: Hub, commit: str, tmp_path: Path) -> None:
    hub.fail("/resolve/", method="GET", body=bytes(10**6))
    done = run("models", "pull", REPO)
    assert "config.json is larger than the Hub listed." in done.stderr
    left = [p.name for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == ["CACHEDIR.TAG"]


def test_first_pulls_at_once_all_succeed(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    env = environment(hub, tmp_path / "home")
    command = [sys.executable, "-m", "mcspex_cli", "models", "pull", REPO]
    running = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    assert run("models", "verify", REPO).exit_code == 0


def test_a_pull_that_was_killed_is_taken_up_again(
    hub: Hub, commit: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    env = environment(hub, tmp_path / "home")
    fault = hub.fail("model.safetensors", method="GET", wait_s=30.0)
    command = [sys.executable, "-m", "mcspex_cli", "models", "pull", REPO]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as running:
        while not hub.requests_for("GET", "model.safetensors"):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    fault.times = 0
    assert json.loads(run("models", "list", "--json").stdout)[-1]["source"] == "bundled"
    before = len(hub.requests_for("GET", "config.json"))
    done = run("models", "pull", REPO)
    assert done.exit_code == 0, done.stderr
    assert len(hub.requests_for("GET", "config.json")) == before  # it had come whole
    done = run("models", "verify", REPO)
    assert "good, compared with its config and the Hub" in done.stdout


ODD = b'{"model_type": "bert"}'


@pytest.mark.parametrize(
    ("changes", "contents", "message"),
    [
        ({"filters": 10**9}, {}, "filters is 1000000000. Expected `int` <= 4096."),
        ({"format": 2}, {}, "config.json: has format 2, and this mcspex reads 1. Update mcspex"),
        ({"sha256": "0" * 64}, {}, "its config.json belongs to other weights (sha256)"),
        ({}, {"config.json": ODD}, "config.json: belongs to another program."),
        ({}, {"config.json": b"{"}, "config.json: damaged. Tell its author."),
        ({}, {"config.json": b" " * 2**21}, "config.json has 2,097,152 bytes, too many for a mod"),
        ({}, {"model.safetensors": bytes(10**6)}, "its weights have 1,000,000 bytes, but the netw"),
        ({}, {"model.safetensors": None}, "not an mcspex model, because it has no model.safetens"),
        (
            {},
            {"model.safetensors": None, "best.pt": b"pickle"},
            "has only pickled weights, which can run code. Download them yourself, then mcspex mod",
        ),
    ],
)
def test_what_is_no_model_of_ours_is_refused_before_the_weights_are_asked_for(
    hub: Hub, files: dict[str, bytes], changes: dict[str, object],
    contents: dict[str, bytes | None], message: str,
) -> None:  # fmt: skip
    content = {**edited(files, **changes), **contents}
    hub.add(REPO, {name: data for name, data in content.items() if data is not None})
    done = run("models", "pull", REPO)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {REPO}: ")
    assert message in done.stderr
    assert not hub.requests_for("GET", "model.safetensors")


def test_a_model_without_a_card_says_so(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, {k: v for k, v in files.items() if k != "README.md"})
    assert "licence: not stated: ask its author" in run("models", "pull", REPO).stderr
    assert run("models", "show", REPO).stdout.endswith("\nIt has no card.\n")


def test_weights_that_do_not_fit_their_config_are_named_at_once(
    hub: Hub, files: dict[str, bytes], scene: Path
) -> None:
    hub.add(REPO, edited(files, speakers=5))
    for done in (run("models", "pull", REPO), extract(scene, "--model", REPO)):
        assert done.exit_code == 1
        assert "classifier.bias, classifier.weight have another shape" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (DEFAULT_MODEL, "comes with mcspex, so there is nothing to download"),
        ("ann", "ann is not of the form org/name[@revision]"),
        ("ann/voices@../evil", "ann/voices@../evil is not of the form"),
        ("ann/voices.git", "ann/voices.git is not of the form"),
        (f"ann/{'v' * 96}", "is not of the form"),
        ("ann/voices@no/such", "has no revision no/such. Leave it out, or name another."),
        ("bob/voices", "bob/voices: no such folder, and no such model on the Hub."),
    ],
)
def test_names_that_cannot_be_pulled(hub: Hub, commit: str, name: str, message: str) -> None:
    done = run("models", "pull", name)
    assert done.exit_code in {1, 2}
    assert message in done.stderr


def test_a_disk_that_fills_up_is_said(hub: Hub, commit: str, tmp_path: Path) -> None:
    command = f"ulimit -f 32; exec {sys.executable} -m mcspex_cli models pull {REPO}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/home/hub")
    assert "larger than the disk or its limit allows" in done.stderr
    again = run("models", "pull", REPO)
    assert again.exit_code == 0, again.stderr


def test_a_cache_that_cannot_be_made_is_said(hub: Hub, commit: str, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    done = run("models", "pull", REPO)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"error: {tmp_path}/home" in done.stderr


# --- --model, with and without a network -------------------------------------------------------


def extract(scene: Path, *words: object, **env: str) -> click.testing.Result:
    clip = ("extract", scene / "mixture.wav", "--ref", scene / "reference.wav", "--device", "cpu")
    return run(*clip, "--overwrite", "--json", *words, **env)


def test_a_model_of_the_hub_is_downloaded_once_and_then_used_without_a_request(
    hub: Hub, commit: str, scene: Path
) -> None:
    first = extract(scene, "--model", REPO)
    assert first.exit_code == 0, first.output
    output = json.loads(first.stdout)
    assert (output["model"], output["model_revision"]) == (REPO, commit)
    hub.requests.clear()
    estimate = (scene / "mixture.target.wav").read_bytes()
    for words in ((), ("--offline",)):
        assert extract(scene, "--model", REPO, *words).exit_code == 0
        assert (scene / "mixture.target.wav").read_bytes() == estimate
    assert not hub.requests


def test_a_model_does_not_change_until_it_is_pulled(
    hub: Hub, commit: str, files: dict[str, bytes]
) -> None:
    assert find_checkpoint(REPO).revision == commit
    later = hub.add(REPO, {"README.md": CARD + b"More.\n"})
    assert find_checkpoint(REPO).revision == commit
    run("models", "pull", REPO)
    assert find_checkpoint(REPO).revision == later
    assert find_checkpoint(f"{REPO}@{commit}", offline=True).revision == commit


def test_a_folder_comes_before_a_bundled_name_and_that_before_the_hub(
    hub: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(DEFAULT_MODEL).source == "bundled"
    for name in (DEFAULT_MODEL, REPO):
        shutil.copytree(tiny_folder, tmp_path / name)
        assert find_checkpoint(name).source == "folder"
    assert find_checkpoint().source == "bundled"  # the default, whatever lies here
    assert not hub.requests


def test_a_folder_without_a_model_hides_none(
    hub: Hub, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (DEFAULT_MODEL, REPO):
        (tmp_path / name).mkdir(parents=True)
    assert find_checkpoint(DEFAULT_MODEL).source == "bundled"
    assert find_checkpoint(REPO).source == "hub"
    (tmp_path / "empty").mkdir()
    assert "empty: not a model, because it has no config" in run("models", "show", "empty").stderr
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for command in ("show", "path"):  # which asks the Hub, and which does not
        done = run("models", command, "runs/mine")
        assert done.stderr.startswith("error: runs/mine: this folder has no config.json, and ")


def test_an_empty_name_is_none(scene: Path) -> None:
    done = extract(scene, "--model", "")
    assert done.exit_code == 1
    assert "error: '': no such model. Bundled: " in done.stderr


def test_mcspex_model_sets_the_default(hub: Hub, commit: str, scene: Path) -> None:
    done = extract(scene, MCSPEX_MODEL=REPO)
    assert json.loads(done.stdout)["model"] == REPO
    done = extract(scene, "--model", DEFAULT_MODEL, MCSPEX_MODEL="nobody")
    assert json.loads(done.stdout)["model"] == DEFAULT_MODEL


def test_a_batch_pins_the_commit(hub: Hub, commit: str, scene: Path) -> None:
    (scene / "mixtures").mkdir()
    shutil.move(scene / "mixture.wav", scene / "mixtures" / "one.wav")
    words = ("batch", scene / "mixtures", "--ref", scene / "reference.wav", "--devices", "cpu")
    done = run(*words, "--model", REPO, "-o", scene / "out")
    assert done.exit_code == 0, done.output
    record = json.loads((scene / "out" / "run.json").read_text())
    assert (record["model"], record["model_revision"]) == (REPO, commit)


def test_offline_answers_at_once(hub: Hub, scene: Path) -> None:
    began = time.perf_counter()
    done = extract(scene, "--model", REPO, "--offline")
    assert time.perf_counter() - began < 3
    assert (done.exit_code, done.stderr) == (
        1,
        f"error: {REPO}: there is no such folder, and it has not been downloaded. "
        f"Once you are online: mcspex models pull {REPO}\n",
    )
    assert not hub.requests


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_there_is_one_line_soon(
    tmp_path: Path, hub: Hub, *, offline: bool
) -> None:
    env = {**environment(hub, tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    began = time.perf_counter()
    done = mcspex("models", "pull", REPO, env={**env, "HF_HUB_OFFLINE": str(int(offline))})
    assert time.perf_counter() - began < 10
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    words = "HF_HUB_OFFLINE is set," if offline else "cannot reach http://127.0.0.1:9 ("
    assert words in done.stderr


def test_certificates_that_cannot_be_used_are_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    (tmp_path / "text.pem").touch()
    for name in ("text.pem", "none.pem"):
        done = run("models", "pull", REPO, SSL_CERT_FILE=str(tmp_path / name))
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "cannot reach https://127.0.0.1:9 (" in done.stderr
        assert "). Let SSL_CERT_FILE name" in done.stderr


@pytest.mark.parametrize(
    "setting", ["HF_HUB_ETAG_TIMEOUT=abc", "HF_HUB_DOWNLOAD_TIMEOUT=1.5", "HF_ENDPOINT=http://["]
)
def test_settings_that_the_client_cannot_read_are_one_line(
    tmp_path: Path, hub: Hub, setting: str
) -> None:
    name, _, value = setting.partition("=")
    env = {**environment(hub, tmp_path / "home"), name: value}
    for words in (("models", "pull", REPO), ("models", "list")):
        done = mcspex(*words, env=env)
        assert (done.returncode, done.stderr.count("\n")) == (int("pull" in words), 1)
        assert name in done.stderr
        assert "Correct it, or unset it." in done.stderr
    assert DEFAULT_MODEL in done.stdout


# --- list, show, path, verify, rm ---------------------------------------------------------------


@pytest.fixture
def pulled(hub: Hub, commit: str) -> Iterator[Path]:
    """The folder of the downloaded model, the Hub's requests forgotten."""
    assert run("models", "pull", REPO).exit_code == 0
    hub.requests.clear()
    yield find_checkpoint(REPO, offline=True).folder


def test_list_has_what_works_without_a_network(hub: Hub, commit: str, pulled: Path) -> None:
    other = hub.add("else/where", {"config.json": b"{}", "model.safetensors": b"not ours"})
    from huggingface_hub import hf_hub_download

    for file in ("config.json", "model.safetensors"):
        hf_hub_download("else/where", file, revision=other)
    hub.requests.clear()
    done = run("models", "list")
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert rows[0] == "model system rate size from"
    assert f"{DEFAULT_MODEL} MC-SpEx 16 kHz 23.8 MB bundled, the default" in rows
    size = (pulled / "model.safetensors").stat().st_size / 1e3
    assert f"{REPO} MC-SpEx 8 kHz {size:.1f} kB the Hub, main, {commit[:12]}" in rows
    assert len(rows) == 2 + len(bundled())
    listed = json.loads(run("models", "list", "--json").stdout)[-1]
    chosen = run("models", "list", MCSPEX_MODEL="spexplus-16k").stdout
    assert re.findall(r"(\S+) .+ the default", chosen) == ["spexplus-16k"]
    assert (listed["name"], listed["revision"], listed["refs"]) == (REPO, commit, ["main"])
    assert listed["folder"] == str(pulled)
    assert not hub.requests


def test_list_is_fast_and_needs_no_torch(hub: Hub, pulled: Path, tmp_path: Path) -> None:
    env = environment(hub, tmp_path / "home")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert REPO in mcspex("models", "list", env=env).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - used.ru_utime < 0.6  # about 0.2 s of a processor
    code = (
        "import sys\nfrom mcspex_cli.__main__ import main\n"
        "try: main(['models', 'list'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)


def test_show_says_what_a_model_is(hub: Hub, commit: str, pulled: Path) -> None:
    output = run("models", "show", DEFAULT_MODEL).stdout
    for words in (
        "MC-SpEx, 11.9 M weights, 23.8 MB",
        "licence  cc-by-4.0",
        "LibriSpeech",
        "16 kHz",
    ):
        assert words in output
    assert "\nnumbers  312 clean mixtures of two unseen talkers: SI-SDRi (dB) " in output
    assert f"\n{'':9}200 mixtures with noise and half of them with rooms: SI-SDRi (dB) " in output
    assert re.search(r"MC-SpEx, 0\.0\d+ M weights", run("models", "show", REPO).stdout)
    data = json.loads(run("models", "show", REPO, "--json").stdout)
    assert (data["licence"], data["revision"], data["card"]) == ("mit", commit, "# Voices")
    assert data["config"]["system"] == "mcspex"
    assert not hub.requests


def test_show_gets_what_is_not_here(hub: Hub, commit: str) -> None:
    done = run("models", "show", REPO)
    assert done.exit_code == 0
    assert "# Voices" in done.stdout
    assert run("models", "show", "bob/none", "--offline").exit_code == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"---\nlicense: [\n---\n# x\n", "the metadata at its top is not valid YAML. Correct it."),
        (b"\xff\xfe", "is not text in UTF-8. Save it again as UTF-8."),
    ],
)
def test_a_card_that_cannot_be_read_is_named(folder: Path, text: bytes, problem: str) -> None:
    (folder / "README.md").write_bytes(text)
    line = f"{folder}/README.md: {problem}\n"
    done = run("models", "show", folder)
    assert (done.exit_code, done.stderr) == (0, f"warning: {line}")
    done = run("models", "push", folder, REPO, "--yes")
    assert (done.exit_code, done.stderr) == (1, f"error: {line}")


def test_what_others_write_does_not_steer_the_terminal(hub: Hub, files: dict[str, bytes]) -> None:
    card = CARD.replace(b"mit", b'"\\e[31mmit\\nerror: evil"') + b"\x1b]0;evil\x07"
    hub.add(REPO, {**edited(files, sample_rate_hz="\x1b[2J"), "README.md": card})
    assert run("models", "pull", REPO).exit_code == 1
    hub.add(REPO, {**files, "README.md": card})
    for done in (run("models", "pull", REPO), run("models", "show", REPO), run("models", "list")):
        assert done.exit_code == 0
        assert "\x1b" not in done.output
        assert "\x07" not in done.output
        assert not any(line.startswith("error: evil") for line in done.output.splitlines())
    done = run("models", "pull", REPO)


def test_a_calibration_that_extract_refuses_is_not_called_good(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    for name, data in edited(files, calibration="x").items():
        (tmp_path / name).write_bytes(data)
    done = run("models", "verify", tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{tmp_path.name}: its calibration is malformed. Calibrate it again." in done.stderr


def test_path_is_for_scripts(hub: Hub, pulled: Path) -> None:
    assert run("models", "path", REPO).stdout == f"{pulled.resolve()}\n"
    assert run("models", "path", DEFAULT_MODEL).stdout == f"{bundled()[DEFAULT_MODEL].resolve()}\n"
    assert run("models", "path", "bob/none").exit_code == 1
    assert not hub.requests


def spoil(path: Path) -> None:
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)


def test_a_damaged_cache_is_found_when_used_and_when_verified_and_mended_by_pull(
    hub: Hub, commit: str, pulled: Path, scene: Path
) -> None:
    good = (pulled / "model.safetensors").read_bytes()
    assert run("models", "verify").exit_code == 0
    spoil(pulled / "model.safetensors")
    remedy = f"Get it again: mcspex models pull {REPO} --revision {commit}"
    done = extract(scene, "--model", REPO)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"sha256 is not the one in config.json. {remedy}" in done.stderr
    for words in ((), ("--offline",)):
        done = run("models", "verify", *words)
        assert done.exit_code == 1
        assert f"{REPO}@{commit[:12]}: model.safetensors: its sha256 is not the one" in done.stderr
        assert f"1 of {1 + len(bundled())} models damaged or missing, see above" in done.stderr
        assert f"{DEFAULT_MODEL}: good, compared with its config\n" in done.stdout
    assert run("models", "pull", REPO).exit_code == 0
    assert (pulled / "model.safetensors").read_bytes() == good
    done = run("models", "verify", REPO)
    assert done.stdout == f"{REPO}@{commit[:12]}: good, compared with its config and the Hub\n"


@pytest.mark.parametrize("file", ["config.json", "README.md"])
def test_verify_knows_a_changed_text_from_the_hub(hub: Hub, pulled: Path, file: str) -> None:
    path = pulled / file
    text = path.read_text()
    path.resolve().write_text(text.replace("a test", "a tset").replace("Voices", "Voicse"))
    assert path.read_text() != text
    done = run("models", "verify", REPO)
    assert done.exit_code == 1
    assert f"{file}: differs from the Hub's. Get it again" in done.stderr
    run("models", "pull", REPO)
    assert path.read_text() == text


def test_verify_says_when_the_hub_could_not_be_asked(hub: Hub, pulled: Path) -> None:
    hub.fail("/api/models/", status=403)
    done = run("models", "verify", REPO)
    assert done.exit_code == 0
    assert "warning: not compared with the Hub. ann/voices@" in done.stderr
    assert "good, compared with its config\n" in done.stdout


@pytest.mark.parametrize("how", ["config", "blob", "weights"])
def test_a_broken_cache_is_said_by_list_and_verify_and_can_be_removed(
    hub: Hub, commit: str, pulled: Path, how: str
) -> None:
    path = pulled / ("config.json" if how == "config" else "model.safetensors")
    if how == "config":
        path.resolve().write_text('{"format": 1,')
    else:
        (path.resolve() if how == "blob" else path).unlink()
    done = run("models", "list")
    assert done.exit_code == 0
    assert f"warning: {REPO}@{commit[:12]}: " in done.stderr
    assert REPO not in done.stdout
    done = run("models", "verify")
    assert done.exit_code == 1
    assert f"Get it again: mcspex models pull {REPO} --revision {commit}" in done.stderr
    assert run("models", "rm", REPO, "--yes").exit_code == 0
    assert not pulled.parents[1].exists()
    assert run("models", "verify").exit_code == 0


def test_a_hostile_cache_hides_no_model(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    nested = b"[" * 100_000
    rate = edited(files, sample_rate_hz=10**400)["config.json"]
    for number, config in enumerate((nested, rate, b"\xff", b"")):
        folder = tmp_path / f"home/hub/models--ann--v{number}/snapshots/{number:040}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes(config)
        (folder / "model.safetensors").write_bytes(b"x")
        (folder.parents[1] / "refs").mkdir()
        (folder.parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    done = run("models", "list")
    assert (done.exit_code, done.stderr.count("\n")) == (0, 4)
    assert DEFAULT_MODEL in done.stdout
    assert "has not been downloaded" in run("models", "path", "ann/v0").stderr


def test_a_cache_that_cannot_be_read_hides_no_bundled_model(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / ("x" * 300)  # root may enter any folder, but no file has such a name
    done = mcspex("models", "list", env=environment(hub, home))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert DEFAULT_MODEL in done.stdout
    assert mcspex("models", "path", DEFAULT_MODEL, env=environment(hub, home)).returncode == 0


def test_rm_knows_repositories_of_one_commit_apart(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    assert hub.add("ann/one", files) == hub.add("bob/two", files)
    for name in ("ann/one", "bob/two"):
        run("models", "pull", name)
    assert run("models", "rm", "bob/two", "--yes").exit_code == 0
    assert cache.cached(cache.HubName("ann/one"))
    assert not cache.cached(cache.HubName("bob/two"))


def test_rm_leaves_no_weights_in_the_store_that_repositories_share(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*, incomplete_path: Path, **_: Any) -> None:
        """Bring what the client would get from the Xet storage, which is not here."""
        incomplete_path.write_bytes(files["model.safetensors"])

    hub.add(REPO, files)
    headers = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.url}/xet"}
    hub.fail("model.safetensors", method="HEAD", headers=headers)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(file_download, "xet_get", get)
    assert run("models", "pull", REPO).exit_code == 0
    done = run("models", "rm", REPO, "-y")
    assert f"{sum(map(len, files.values())) / 1e3:.1f} kB freed" in done.stderr
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in left) < 1000


def test_rm_of_a_commit_keeps_what_others_use(
    hub: Hub, commit: str, pulled: Path, files: dict[str, bytes]
) -> None:
    later = hub.add(REPO, {"README.md": CARD + b"More.\n"})
    run("models", "pull", REPO)
    for wrong in (f"{REPO}@", f"{REPO}@{commit[:6]}", f"{REPO}@none"):
        assert run("models", "rm", wrong, "--yes").exit_code == 1
    assert run("models", "rm", f"{REPO}@{commit}", "--yes").exit_code == 0
    assert not pulled.exists()
    info = find_checkpoint(REPO, offline=True)
    assert info.revision == later
    assert (info.folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_rm_asks_and_deletes_downloads_only(
    commit: str, pulled: Path, files: dict[str, bytes]
) -> None:
    done = run("models", "rm", REPO, text="n\n")
    assert (done.exit_code, pulled.is_dir()) == (1, True)
    assert str(pulled) in done.stderr
    done = run("models", "rm", f"{REPO}@{commit[:7]}", text="y\n")
    assert (done.exit_code, pulled.is_dir()) == (0, False)
    freed = sum(map(len, files.values())) / 1e3
    assert f"deleted, {freed:.1f} kB freed" in done.stderr
    for name in (REPO, DEFAULT_MODEL, "nobody"):
        done = run("models", "rm", name, "--yes")
        assert f"{name}: has not been downloaded." in done.stderr
    assert bundled()[DEFAULT_MODEL].is_dir()


# --- push -----------------------------------------------------------------------------------


uploading = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""The Hub's client calls its own HTTP library in an old way."""


@pytest.fixture
def account(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Our Hub, with a token of Ann's set."""
    hub.tokens["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    return hub


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, without a card."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


@uploading
def test_a_bundled_model_is_pushed_and_comes_back_byte_for_byte(account: Hub) -> None:
    done = run("models", "push", DEFAULT_MODEL, REPO, text="y\n")
    assert done.exit_code == 0, done.output
    assert "model.safetensors      23.8 MB\n" in done.stderr
    assert "Upload to ann/voices? [y/N]" in done.stderr
    assert done.stdout.startswith(f"{account.url}/{REPO}/commit/")
    assert run("models", "pull", REPO).exit_code == 0
    assert files_of(find_checkpoint(REPO).folder) == files_of(bundled()[DEFAULT_MODEL])
    commits = len(account.repos[REPO].commits)
    assert run("models", "push", DEFAULT_MODEL, REPO, "--yes").exit_code == 0  # again: no harm
    assert len(account.repos[REPO].commits) <= commits + 1


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_nothing_is_sent_before_a_yes(account: Hub, words: list[str]) -> None:
    done = run("models", "push", DEFAULT_MODEL, REPO, *words, text="n\n")
    assert done.exit_code == (0 if words else 1)
    assert not account.requests


@uploading
def test_a_trained_folder_gets_a_card(account: Hub, folder: Path) -> None:
    done = run("models", "push", folder, REPO, "--yes")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"{folder}: has no README.md. To have one made, give --license ID" in done.stderr
    words = ("--license", "cc-by-4.0", "--data", "LibriSpeech (CC BY 4.0)", "--data", "AN4 (BSD)")
    done = run("models", "push", folder, REPO, *words, "--dry-run")
    assert "- LibriSpeech (CC BY 4.0)\n- AN4 (BSD)\n" in done.stderr
    assert not (folder / "README.md").exists()
    assert run("models", "push", folder, REPO, *words, "--yes", "--private").exit_code == 0
    assert account.repos[REPO].private
    assert run("models", "pull", REPO).stderr.endswith("licence: cc-by-4.0)\n")
    from huggingface_hub import ModelCard

    data = ModelCard.load(find_checkpoint(REPO).folder / "README.md").data
    assert (data.library_name, data.license) == ("mcspex", "cc-by-4.0")
    assert "target-speaker-extraction" in data.tags


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# x\n", "lacks license, library_name, tags. Add them."),
        ("---\nlibrary_name: mcspex\ntags: [a]\n---\n", "lacks license. Add them."),
        (
            "---\nlibrary_name: diffusers\nlicense: mit\ntags: [a]\n---\n",
            "lacks library_name: mcspex. Add them.",
        ),
    ],
)
def test_a_card_without_facts_is_not_pushed(
    account: Hub, folder: Path, card: str, message: str
) -> None:
    (folder / "README.md").write_text(card)
    done = run("models", "push", folder, REPO, "--yes")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not account.requests


def test_a_damaged_model_is_not_pushed(account: Hub, folder: Path) -> None:
    spoil(folder / "model.safetensors")
    done = run("models", "push", folder, REPO, "--yes")
    assert "its sha256 is not the one in config.json. Copy the model again." in done.stderr
    assert not account.requests


@pytest.mark.parametrize("token", [None, "hf_bob", "hf_reader", "hf_wrong"])
def test_without_leave_to_write_there_is_one_line(
    hub: Hub, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens |= {"hf_bob": "bob", "hf_reader": "ann"}
    hub.read_only.add("hf_reader")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = run("models", "push", DEFAULT_MODEL, REPO, "--yes")
    assert done.exit_code == 1
    refused = "the Hub rejects your token (401)" if token == "hf_wrong" else "you may not write"
    assert done.stderr.splitlines()[-1].startswith(f"error: {REPO}: {refused}")
    assert "Traceback" not in done.stderr


def test_a_public_repository_does_not_become_private(account: Hub, files: dict[str, bytes]) -> None:
    before = account.add(REPO, files)
    done = run("models", "push", DEFAULT_MODEL, REPO, "--private", "--yes")
    assert done.exit_code == 1
    assert (
        f"error: {REPO}: exists and is public. Make it private on the Hub, or use another name."
        in done.stderr
    )
    assert account.repos[REPO].branches == {"main": before}


def test_a_branch_that_is_not_there_makes_no_repository(account: Hub) -> None:
    done = run("models", "push", DEFAULT_MODEL, f"{REPO}@none", "--yes")
    assert done.exit_code == 1
    assert REPO not in account.repos


@uploading
def test_a_licence_is_added_to_a_card_that_has_none(account: Hub, folder: Path) -> None:
    card = "---\nlibrary_name: mcspex\ntags: [a]\n---\n# Mine\n"
    (folder / "README.md").write_text(card)
    done = run("models", "push", folder, REPO, "--license", "mit", "--data", "x", "--yes")
    assert "README.md: already states this. Edit it, and leave out --data." in (done.stderr)
    assert run("models", "push", folder, REPO, "--license", "mit", "--yes").exit_code == 0
    assert (folder / "README.md").read_text() == card
    assert run("models", "pull", REPO).stderr.endswith("licence: mit)\n")
    assert b"# Mine" in account.file(REPO, "README.md")


@uploading
def test_an_upload_that_breaks_is_one_line(account: Hub) -> None:
    account.fail("/lfs/objects/", method="PUT", status=403)
    done = run("models", "push", DEFAULT_MODEL, REPO, "--yes")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {REPO}: you may not write there (403)")
    assert list(account.repos[REPO].commits.popitem()[1]) == [".gitattributes"]


def test_push_wants_a_name(account: Hub) -> None:
    done = run("models", "push", DEFAULT_MODEL, "voices", "--yes")
    assert done.exit_code == 2
    assert "voices is not of the form org/name[@branch]." in done.stderr


# --- convert -----------------------------------------------------------------------------------


SIZES = Sizes(N=64, X=3, R=2, B=64, H=96, reference=64, widths=(64, 96, 96))


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """A checkpoint as SpEx+'s authors write them, with its mdl.json."""
    state = published(SIZES).state_dict()
    content = {"epoch": 9, "model_state_dict": state, "optim_state_dict": {}}
    (tmp_path / "theirs").mkdir()
    torch.save(content, tmp_path / "theirs" / "best.pt.tar")
    letters = {letter: getattr(SIZES, letter) for letter in "LNXRBHP"}
    text = json.dumps({**letters, "norm": "gLN", "num_spks": 1, "non_linear": "relu"})
    (tmp_path / "theirs" / "mdl.json").write_text(text)
    return tmp_path / "theirs" / "best.pt.tar"


def test_a_published_checkpoint_becomes_a_model(best: Path, scene: Path) -> None:
    folder = scene / "spexplus"
    done = run("models", "convert", best, "-o", folder, "--license", "mit")
    assert (done.exit_code, done.stderr) == (
        0,
        "Taken to work at 8000 Hz, which weights do not show.\n"
        f"{folder}  (SpEx+, from the layers of gemengtju/SpEx_Plus)\n",
    )
    assert extract(scene, "--model", folder).exit_code == 0
    output = run("models", "show", folder).stdout
    for words in ("SpEx+, 0.", "licence  mit", "Converted from `best.pt.tar` (sha256", "8 kHz"):
        assert words in output
    full = (folder / "model.safetensors").stat().st_size
    done = run("models", "convert", best, "-o", folder, "--half")
    assert f"{folder}: has a model. Name another folder, or add --overwrite." in done.stderr
    run("models", "convert", best, "-o", folder, "--half", "--overwrite", "--sample-rate", "16000")
    assert (folder / "model.safetensors").stat().st_size < 0.7 * full
    assert find_checkpoint(folder).config.sample_rate_hz == 16000


@pytest.mark.parametrize(
    "content",
    [
        {"README.md": "precious"},
        {"model.safetensors": "a voice profile"},
        {"config.json": '{"model_type": "bert"}', "model.safetensors": "of BERT"},
        {"config.json": "", "README.md": "precious"},
        {"thesis.tex": "precious"},
    ],
    ids=["card", "profile", "another program", "damaged", "no model"],
)
def test_convert_and_export_replace_nothing_but_a_model(
    best: Path, tmp_path: Path, content: dict[str, str]
) -> None:
    (tmp_path / "out").mkdir()
    for name, text in content.items():
        (tmp_path / "out" / name).write_text(text)
    for words in (
        ("convert", best),
        ("convert", DEFAULT_MODEL, "--sample-rate", 16000),
        ("export", DEFAULT_MODEL),
    ):
        done = run("models", *words, "-o", tmp_path / "out", "--overwrite")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        reason = "is (there, and not part of an mcspex|not empty, and not a) model. Name another f"
        assert re.search(reason, done.stderr)
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == content


@pytest.mark.parametrize(
    ("module", "step", "words"),
    [(conversion, "resample", ["convert", "--sample-rate", 16000]), (onnx, "export", ["export"])],
)
def test_convert_and_export_replace_no_model_that_appears_meanwhile(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    step: str,
    words: list[object],
) -> None:
    folder = tmp_path / "out"
    monkeypatch.setattr(module, step, lambda *_: shutil.copytree(tiny_folder, folder))
    done = run("models", *words, tiny_folder, "-o", folder)
    assert f"{folder}: has a model. Name another folder, or add --overwrite." in done.stderr
    assert files_of(folder) == files_of(tiny_folder)


def test_convert_keeps_its_source_and_the_current_folder(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    for words, message in (
        ((best, "-o", best), "is a file. Name a folder."),
        ((best, "-o", best.parent, "--overwrite"), "is not empty, and not a model."),
        ((best, "-o", "."), ".: is the current folder, or a folder above it."),
        ((model, "-o", model, "--sample-rate", 16000, "--overwrite"), f"{model} is in it."),
    ):
        done = run("models", "convert", *words)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert message in done.stderr
    assert files_of(model) == files_of(tiny_folder)


@pytest.mark.skipif(os.name != "posix", reason="names are text here")
def test_models_whose_names_are_no_text_work(tiny_folder: Path, scene: Path) -> None:
    old, new = (scene / os.fsdecode(name) for name in (b"\xff", b"\xfe"))
    shutil.copytree(tiny_folder, old)
    voice = scene / "voice.safetensors"
    words = ("models", "convert", old, "--sample-rate", 16000, "-o", new)
    done = mcspex(*words, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    done = run("enroll", scene / "reference.wav", "--model", new, "-o", voice)
    assert done.exit_code == 0, done.output
    assert find_checkpoint(new).provenance["resampled_from"]["model"] == "\\udcff"
    assert (new / "README.md").read_text("utf-8").count("# \\udcfe\n") == 1
    assert read_profile(voice).models[0].name == "\\udcfe"


def test_a_model_is_taken_to_another_rate(tmp_path: Path, scene: Path) -> None:
    folder = tmp_path / "mcspex-32k"
    done = run("models", "convert", DEFAULT_MODEL, "--sample-rate", 32000, "-o", folder)
    assert (done.exit_code, done.stderr) == (0, f"{folder}  ({DEFAULT_MODEL} at 32000 Hz)\n")
    info, origin = find_checkpoint(folder), find_checkpoint()
    assert (info.config.sample_rate_hz, info.calibration) == (32000, origin.calibration)
    assert info.provenance["resampled_from"]["sha256"] == origin.sha256
    shown = run("models", "show", folder).stdout
    for words in ("32 kHz", "licence  cc-by-4.0", "from 16000 Hz to 32000 Hz", "LibriSpeech"):
        assert words in shown
    assert extract(scene, "--model", folder).exit_code == 0
    done = run("models", "convert", DEFAULT_MODEL, "--sample-rate", 11025, "-o", tmp_path / "no")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "Use a multiple of 16000 Hz." in done.stderr
    done = run("models", "convert", DEFAULT_MODEL, "-o", tmp_path / "no")
    assert done.exit_code == 2
    assert f"{DEFAULT_MODEL} is not a file. For a model, give --sample-rate" in done.stderr
    assert not (tmp_path / "no").exists()


def test_half_keeps_what_it_cannot_hold(best: Path, tmp_path: Path) -> None:
    state = published(SIZES).state_dict()
    state["proj.weight"] *= 1e6
    torch.save(state, best)
    run("models", "convert", best, "-o", tmp_path / "out", "--half")
    weights = load_checkpoint(tmp_path / "out").fusion.mixture.project.weight
    torch.testing.assert_close(weights, state["proj.weight"])


@pytest.mark.parametrize("beside", [True, False])
def test_a_json_of_a_causal_network_is_refused(best: Path, tmp_path: Path, beside: bool) -> None:
    path = best.parent / "mdl.json"
    words: tuple[object, ...] = ()
    if not beside:
        path = path.rename(tmp_path / "other.json")
        words = ("--config", path)
    path.write_text(path.read_text().replace("}", ', "causal": true}'))
    done = run("models", "convert", best, "-o", tmp_path / "out", *words)
    assert (done.exit_code, done.stderr) == (
        1,
        f"error: {path}: causal is true; mcspex has SpEx+ with false only.\n",
    )
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"not a checkpoint")
    os.mkfifo(tmp_path / "pipe.pt")
    for path, words, code in (
        (tmp_path / "best.pt", "not a PyTorch checkpoint", 1),
        (tmp_path / "pipe.pt", "is not a regular file", 1),
        (tmp_path / "none.pt", "none.pt is not a file. For a model, give", 2),
    ):
        done = run("models", "convert", path, "-o", tmp_path / "out")
        assert done.exit_code == code
        assert words in done.stderr
    assert not (tmp_path / "out").exists()
