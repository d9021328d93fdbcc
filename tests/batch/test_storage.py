"""Mixtures, references and outputs in object stores: in memory, and on an S3 server of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.batch import results, storage
from mcspex_cli.batch.journal import Journal, JournalWriter
from mcspex_cli.batch.manifest import Task
from mcspex_cli.batch.plan import BatchRequest, BatchSettings, plan_batch
from mcspex_cli.batch.workers import Worker
from mcspex_cli.batch.worklist import open_folder, open_work
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import OutputError
from mcspex_cli.evaluation.scoring import ScoreSettings
from tests.conftest import RATE_HZ, ROOT, buzz

NAMES = ("ann_1", "ann_2", "bob_1")


@pytest.fixture
def set_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three mixtures, their truths and two references; the working folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("mix", "refs", "truth"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(NAMES):
        truth = buzz(120 + 20 * number, 0.6, number)
        audio.write(f"truth/{name}.wav", truth, RATE_HZ)
        audio.write(f"mix/{name}.wav", truth + buzz(200, 0.6, 9), RATE_HZ)
    for number, name in enumerate(("ann", "bob")):
        audio.write(f"refs/{name}.wav", buzz(120 + 30 * number, 3 - 2 * number, 5), RATE_HZ)
    return tmp_path


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of an S3 server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto.server", reason="moto is not installed")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory://set", "s3://set"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty store."""
    root: str = request.param
    if root.startswith("memory"):
        yield root
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]
        return
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").mkdir("set")
    yield root
    fsspec.filesystem("s3").invalidate_cache()
    fsspec.filesystem("s3").rm("set", recursive=True)
    fsspec.filesystem("s3").clear_instance_cache()


def upload(store: str, *folders: str) -> None:
    files, _ = fsspec.url_to_fs(store)
    for folder in folders:
        for path in Path(folder).iterdir():
            files.pipe_file(f"{store}/{folder}/{path.name}", path.read_bytes())


def objects(store: str, folder: str) -> dict[str, bytes]:
    files, key = fsspec.url_to_fs(f"{store}/{folder}")
    files.invalidate_cache()
    return {name.rpartition("/")[2]: files.cat_file(name) for name in files.find(key)}


def batch(model: Path, *words: str) -> Result:
    asked = ["batch", *words, "--pattern", "{speaker}_{n}", "--model", str(model)]
    return CliRunner().invoke(main, [*asked, "--devices", "cpu", "--jobs", "1"])


def test_a_store_takes_the_place_of_folders(set_: Path, store: str, tiny_folder: Path) -> None:
    local = batch(tiny_folder, "mix", "--refs", "refs", "--truth", "truth", "-o", "out")
    assert local.exit_code == 0, local.output
    upload(store, "mix", "refs", "truth")
    asked = [f"{store}/mix", "--refs", f"{store}/refs", "--truth", f"{store}/truth"]
    asked += ["-o", f"{store}/out"]
    planned = batch(tiny_folder, *asked, "--dry-run")
    assert planned.stdout.count("not read") == 3
    assert f"{store}/mix/ann_1.wav" in planned.stdout
    (first, *_) = json.loads(batch(tiny_folder, *asked, "--dry-run", "--json").stdout)["jobs"]
    assert (first["mixture"], first["output"]) == (
        f"{store}/mix/ann_1.wav",
        f"{store}/out/audio/ann_1.wav",
    )
    assert "how long it takes is not known, because no length is known. Nothing" in planned.stderr
    done = batch(tiny_folder, *asked)
    assert done.exit_code == 0, done.output
    assert f"{store}/out: 3 of 3 files done" in done.stderr
    expected = {path.name: path.read_bytes() for path in Path("out/audio").iterdir()}
    assert objects(store, "out/audio") == expected
    report = json.loads(objects(store, "out")["report.json"])
    ours = json.loads(Path("out/report.json").read_text())
    assert report["scores"][0]["mixture"] == f"{store}/mix/ann_1.wav"
    assert report["summary"] == ours["summary"]
    page, our_page = objects(store, "out")["report.html"], Path("out/report.html").read_bytes()
    assert page.count(b"data:audio/flac") == our_page.count(b"data:audio/flac") == 9
    assert not Path("s3:").exists()
    before = objects(store, "out/journal")
    again = batch(tiny_folder, *asked)
    assert "3 of 3 files done, 3 of them before" in again.stderr
    assert objects(store, "out/journal") == before
    around = batch(
        *(tiny_folder, store, "--refs", f"{store}/refs", "-o", f"{store}/new", "--dry-run")
    )
    assert f"{store}/out: has the results of another batch, which are left out." in around.stderr
    assert {line.split()[0] for line in around.stdout.splitlines() if "ann_" in line} == {
        *("mix/ann_1", "mix/ann_2", "truth/ann_1", "truth/ann_2")
    }
    Path("lists").mkdir()
    Path("lists/plan.csv").write_text("mixture,truth\n../mix/ann_1.wav,../truth/ann_1.wav\n")
    upload(store, "lists")
    words = ("--manifest", f"{store}/lists/plan.csv", "--refs", f"{store}/refs", "-o", "listed")
    listed = batch(tiny_folder, *words, "--allow-unused")
    assert listed.exit_code == 0, listed.output
    here = batch(tiny_folder, *asked[:-1], "here")
    assert here.exit_code == 0, here.output
    assert Path("here/report.html").read_bytes().count(b"data:audio/flac") == 9
    assert {path.name: path.read_bytes() for path in Path("here/audio").iterdir()} == expected


def test_only_what_changed_in_a_store_is_done_again(
    set_: Path, store: str, tiny_folder: Path
) -> None:
    upload(store, "mix", "refs")
    Path("plan.csv").write_text(
        "mixture,reference\n"
        + "".join(f"{store}/mix/{name}.wav,{store}/refs/{name[:3]}.wav\n" for name in NAMES)
    )
    asked = ["batch", "--manifest", "plan.csv", "-o", f"{store}/out", "--model", str(tiny_folder)]
    asked += ["--devices", "cpu", "--jobs", "1"]
    files, _ = fsspec.url_to_fs(store)
    files.pipe_file(f"{store}/mix/bob_1.wav", b"no sound")
    failed = CliRunner().invoke(main, asked)
    assert failed.exit_code == 3, failed.output
    assert f"error: {store}/mix/bob_1.wav: " in failed.stderr
    assert set(objects(store, "out/audio")) == {"ann_1.wav", "ann_2.wav"}
    assert objects(store, "out")["failed.jsonl"].count(b"\n") == 1
    upload(store, "mix")
    files.rm_file(f"{store}/out/audio/ann_2.wav")
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert "3 of 3 files done" in done.stderr
    assert len(objects(store, "out/audio")) == 3


@pytest.mark.parametrize("store", ["s3://set"], indirect=True)
def test_the_next_run_removes_the_copies_of_a_killed_one(
    set_: Path, store: str, exported: Path
) -> None:
    upload(store, "mix", "refs")
    temporary = set_ / "temporary"
    temporary.mkdir()
    words = [sys.executable, "-m", "mcspex_cli", "batch", f"{store}/mix", "--refs", f"{store}/refs"]
    words += ["--pattern", "{speaker}_{n}", "-o", f"{store}/out", "--model", str(exported)]
    words += ["--devices", "cpu"]
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as killed:
        while not any(temporary.rglob("*.wav")):
            assert killed.poll() is None
            time.sleep(0.001)
        killed.kill()
    assert any(temporary.rglob("*.wav"))
    subprocess.run(words, env=env, check=True)
    assert not list(temporary.iterdir())


def test_a_truth_that_cannot_be_scored_costs_only_its_own_row(
    set_: Path, store: str, tiny_folder: Path
) -> None:
    upload(store, "mix", "refs", "truth")
    files, _ = fsspec.url_to_fs(store)
    files.pipe_file(f"{store}/truth/ann_2.wav", b"no sound")
    asked = [f"{store}/mix", "--refs", f"{store}/refs", "--truth", f"{store}/truth", "-o", "out"]
    assert batch(tiny_folder, *asked).exit_code == 3
    places = (Path(f"{store}/{folder}") for folder in ("mix", "refs", "truth"))
    mixtures, references, truth = places
    request = BatchRequest(
        Path("out"), [mixtures], None, (), references, "{speaker}_{n}", truth=truth
    )
    with open_work(plan_batch(request), BatchSettings(find_checkpoint(tiny_folder))) as work:
        files.rm_file(f"{store}/truth/ann_1.wav")  # after it was seen
        results.score(work, ScoreSettings(), lambda _: None)
        report, _ = results.write(work, ScoreSettings(), [])
    assert [row["status"] for row in report.rows] == ["unreadable", "unreadable", "ok"]
    for row in report.rows[:2]:
        assert row["note"].startswith(f"{store}/truth/{row['name']}.wav: ")


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_interrupt_ends_a_run_that_waits_for_a_store(set_: Path, exported: Path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    begun, wav = threading.Semaphore(0), Path("mix/ann_1.wav").read_bytes()

    class Stalling(BaseHTTPRequestHandler):
        """Lists a file, gives it to who asks for its length, and later stalls in the middle."""

        def do_GET(self) -> None:
            is_file = self.path.endswith(".wav")
            data = wav if is_file else b'<a href="ann_1.wav">ann_1.wav</a>'
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav" if is_file else "text/html")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:1000] if is_file else data)
            if is_file:
                begun.release()
                time.sleep(60)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mixture = f"http://127.0.0.1:{server.server_port}/mix/ann_1.wav"
    words = [sys.executable, "-m", "mcspex_cli", "batch", mixture, "--ref", "refs/ann.wav"]
    words += ["-o", "out", "--model", str(exported), "--devices", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not Path("out/journal").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        while begun.acquire(blocking=False):
            pass
        assert begun.acquire(timeout=60)  # the copy that the extraction waits for
        for _ in range(2):
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    server.shutdown()
    server.server_close()
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("error: interrupted")


@pytest.mark.parametrize("store", ["memory://set"], indirect=True)
@pytest.mark.parametrize(("mixtures", "references"), [("{0}/mix", "refs"), ("mix", "{0}/refs")])
def test_a_full_disk_for_copies_is_said(
    set_: Path,
    store: str,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixtures: str,
    references: str,
) -> None:
    upload(store, "mix", "refs")
    disk = set_ / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.call(command, stderr=subprocess.DEVNULL):
        pytest.skip("cannot mount a disk here")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        words = [mixtures.format(store), "--refs", references.format(store), "-o", "out"]
        done = batch(tiny_folder, *words)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {disk}: is full, and objects are copied there. Free some space, or set TMPDIR to "
        "a folder on another disk. 3 files left; then run the same command again.\n"
    )


@pytest.mark.parametrize("store", ["s3://set"], indirect=True)
def test_the_folder_that_a_console_has_made_is_empty(set_: Path, store: str) -> None:
    files, key = fsspec.url_to_fs(store)
    files.pipe_file(f"{key}/out/", b"")
    open_folder(storage.to_path(f"{store}/out"), overwrite=False)
    files.pipe_file(f"{key}/other/a.txt", b"")
    with pytest.raises(OutputError, match="/other: is not empty and not the folder of a batch"):
        open_folder(storage.to_path(f"{store}/other"), overwrite=False)


@pytest.mark.parametrize("url", ["s3://", "s3:", "gs:/", "file://"])
def test_a_url_without_a_bucket_is_refused(set_: Path, tiny_folder: Path, url: str) -> None:
    for words in (("mix", "-o", url), (url, "-o", "out")):
        done = batch(tiny_folder, *words, "--refs", "refs")
        scheme = url.partition(":")[0]
        assert done.stderr == f"error: {scheme}://: names no bucket or folder. Add its name.\n"
        assert done.exit_code == 1
    assert sorted(path.name for path in Path().iterdir()) == ["mix", "refs", "truth"]


def test_what_is_not_in_a_store_is_said_by_its_url() -> None:
    for words, url in (
        (["memory://none"], "none"),
        (["--manifest", "memory://none.csv"], "none.csv"),
    ):
        done = CliRunner().invoke(main, ["batch", *words, "--refs", ".", "-o", "out"])
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
        assert done.stderr.startswith(f"error: memory://{url}: no such file or folder")


@pytest.mark.parametrize("store", ["memory://set"], indirect=True)
def test_an_upload_that_fails_costs_only_its_own_file(
    set_: Path, store: str, tiny_folder: Path
) -> None:
    rows = [f"mix/{name}.wav,refs/{name[:3]}.wav,{name[:3]}/{name}.wav\n" for name in NAMES]
    Path("plan.csv").write_text("mixture,reference,output\n" + "".join(rows))
    asked = ["batch", "--manifest", "plan.csv", "-o", f"{store}/out", "--model", str(tiny_folder)]
    asked += ["--devices", "cpu", "--jobs", "1"]
    files, _ = fsspec.url_to_fs(store)
    files.pipe_file(f"{store}/out/journal/0.jsonl", b"")
    files.pipe_file(f"{store}/out/audio/bob", b"in the way")
    failed = CliRunner().invoke(main, asked)
    assert failed.exit_code == 3, failed.output
    assert f"error: {store}/out/audio/bob/bob_1.wav: " in failed.stderr
    (line,) = objects(store, "out")["failed.jsonl"].splitlines()
    assert json.loads(line)["mixture"] == str(Path("mix/bob_1.wav").resolve())
    assert {"ann_1.wav", "ann_2.wav"} < set(objects(store, "out/audio"))
    files.rm_file(f"{store}/out/audio/bob")
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert "3 of 3 files done, 2 of them before" in done.stderr


@pytest.mark.parametrize("store", ["memory://set"], indirect=True)
def test_a_store_that_takes_no_journal_ends_the_batch(
    set_: Path, store: str, tiny_folder: Path
) -> None:
    paths = [Path(f"mix/{name}.wav") for name in NAMES]
    request = BatchRequest(Path(f"{store}/out"), paths, references=(Path("refs/ann.wav"),))
    worker = Worker(
        request.output, BatchSettings(find_checkpoint(tiny_folder), devices=("cpu",)), "cpu"
    )
    fsspec.url_to_fs(store)[0].pipe_file(f"{store}/out/journal", b"in the way")
    units = [(task,) for task in plan_batch(request).tasks]
    with pytest.raises(OutputError, match=rf"^{store}/out/journal/"):
        next(worker.extract(units, set(), lambda: False))
    assert set(objects(store, "out/audio")) == {"ann_1.wav"}


def test_a_reference_that_is_known_from_before_has_its_url_in_warnings(
    set_: Path, store: str, tiny_folder: Path
) -> None:
    upload(store, "mix", "refs")
    clip = Path(f"{store}/refs/bob.wav")
    mixtures = [Path(f"{store}/mix/{name}.wav") for name in NAMES]
    request = BatchRequest(Path(f"{store}/out"), mixtures, references=(clip,))
    settings = BatchSettings(find_checkpoint(tiny_folder), devices=("cpu",))
    worker = Worker(request.output, settings, "cpu")
    for task in plan_batch(request).tasks:
        (outcome,) = worker.extract([(task,)], set(), lambda: False)
        assert outcome.warnings
        assert all(text.startswith(f"{store}/refs/bob.wav: ") for text in outcome.warnings)


def test_what_is_not_in_a_store_is_one_line(set_: Path, store: str, tiny_folder: Path) -> None:
    upload(store, "refs")
    done = batch(tiny_folder, f"{store}/nix", "--refs", f"{store}/refs", "-o", f"{store}/out")
    message = f"error: {store}/nix: no such file or folder. Check the name.\n"
    assert (done.exit_code, done.stderr) == (1, message)


@pytest.mark.parametrize("store", ["s3://set"], indirect=True)
def test_a_bucket_that_is_not_there_is_refused_before_the_work(
    set_: Path, store: str, tiny_folder: Path
) -> None:
    done = batch(tiny_folder, "mix", "--refs", "refs", "-o", "s3://nix/out", "-v")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: s3://nix/out/journal/settings.lock: no such file or ")


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [("gs", " Run in a checkout of mcspex: pip install '.[gs]'"), ("abfs", "")],
)
def test_a_store_that_nothing_here_can_reach_says_what_to_install(
    set_: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, advice: str
) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, scheme, {
        "class": "no_such_package.Store", "err": "Please install no_such_package",
    })  # fmt: skip
    done = batch(tiny_folder, f"{scheme}://nix/mix", "--refs", "refs", "-o", "out")
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {scheme}://nix/mix: needs another package (Please install no_such_package)."
        f"{advice}\n"
    )


def test_a_store_in_use_is_refused_unless_told(store: str) -> None:
    folder = Path(f"{store}/out")
    open_folder(folder, overwrite=False, is_dry_run=True)
    assert Journal(folder).results == {}
    fsspec.url_to_fs(store)[0].pipe_file(f"{store}/out/notes.txt", b"mine")
    with pytest.raises(OutputError, match=r"://set/out: is not empty and not the folder of a"):
        open_folder(folder, overwrite=False)
    JournalWriter(folder).add_failure(a_task(), "s", "no.")
    open_folder(folder, overwrite=False)
    assert Journal(folder).failure(a_task(), "s") == "no."


def test_a_journal_in_a_store_has_objects_of_a_bounded_size(store: str) -> None:
    folder = Path(f"{store}/out")
    writer = JournalWriter(folder)
    for _ in range(40):
        writer.add_failure(a_task(), "s", "x" * 4000)
    sizes = [len(data) for data in objects(store, "out/journal").values()]
    assert len(sizes) == 3
    assert max(sizes) < 75_000
    assert len(Journal(folder).failures["a"]) == 40


def a_task() -> Task:
    return Task("a", "a.wav")


SECRET = "s3://key:se/cr@et@set/mix"


@pytest.mark.parametrize(
    "words",
    [
        (SECRET, "--refs", "refs", "-o", "out"),
        ("mix", "--refs", SECRET, "-o", "out"),
        ("mix", "--refs", "refs", "-o", SECRET),
        ("--manifest", "plan.csv", "-o", "out"),
    ],
)
def test_a_password_in_a_url_is_refused_and_told_nowhere(
    set_: Path, words: tuple[str, ...], tiny_folder: Path
) -> None:
    Path("plan.csv").write_text(f"mixture,reference\nmix/ann_1.wav,{SECRET}/ann.wav\n")
    done = CliRunner().invoke(main, ["batch", *words, "--model", str(tiny_folder)])
    assert done.exit_code == 1
    assert "s3://...: has a password, which reports would show. Put it where" in done.stderr
    assert "et@set" not in done.output
    assert not Path("out").exists()


def test_a_url_of_this_disk_is_a_path(set_: Path) -> None:
    Path("mix").rename("the mix")
    here = f"file://{set_}"
    Path("plan.csv").write_text(f"mixture,reference\n{here}/the%20mix/ann_1.wav,refs/ann.wav\n")
    clip = (Path(f"{here}/refs/ann.wav"),)
    by_folder = BatchRequest(Path(f"{here}/out"), [Path(f"{here}/the%20mix")], references=clip)
    by_list = BatchRequest(Path("out"), manifest=Path(f"{here}/plan.csv"))
    for plan, folder in ((plan_batch(by_folder), set_ / "out"), (plan_batch(by_list), Path("out"))):
        assert plan.folder == folder
        assert (plan.tasks[0].id, plan.tasks[0].mixture) == ("ann_1", f"{set_}/the mix/ann_1.wav")


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3:/bucket/key.wav", "s3://bucket/key.wav"),
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        ("mix/a.wav", None),
        ("/a/b:/c.wav", None),
        ("C:/music/a.wav", None),
        ("local", None),
        ("file", None),
        ("sftp://host:22/a@b:c.wav", "sftp://host:22/a@b:c.wav"),
    ],
)
def test_a_url_is_told_from_a_path(path: str, url: str | None) -> None:
    assert storage.url(storage.to_path(path)) == url
    assert url or storage.to_path(path) == Path(path)
