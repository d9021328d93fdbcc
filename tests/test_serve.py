"""`mcspex serve`: its page in a real browser, who may ask for what, and what is left behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.errors import OutputError
from tests.browser import Browser, contrasts, needs_browser, open_browser, set_scheme, set_size
from tests.conftest import EXAMPLES, ROOT
from tests.media import SoundTrack, make

uvicorn = pytest.importorskip("uvicorn", reason="mcspex[serve] is not installed")
pytest.importorskip("starlette", reason="mcspex[serve] is not installed")

REFUSAL = "Refused: open the page at the address that mcspex serve printed."
INTERVIEW = EXAMPLES / "interview.flac"
TIMEOUT_S = 60
MODEL = "spexplus-16k"  # a fifth of the work of the default model


@dataclass
class Server:
    """A server in a process of its own, and its temporary folder."""

    temporary: Path
    process: subprocess.Popen[str] = field(init=False)
    port: int = 0

    def start(self) -> Server:
        command = [sys.executable, "-m", "mcspex_cli", "serve", "--port", "0", "--no-browser"]
        if os.name == "posix":  # without a standard output, as a daemon may be started
            command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        self.process = subprocess.Popen(
            [*command, "--max-upload", "20M", "--model", MODEL],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        self.port = int(re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])  # type: ignore[index]
        return self

    def folders(self) -> list[Path]:
        """What it keeps: a folder for each open page."""
        return [path for each in self.temporary.glob(".mcspex*") for path in each.iterdir()]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The status, headers and body of an answer."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)) as to:
            to.request(method, path, body, names)
            answer = to.getresponse()
            return answer.status, answer.headers, answer.read()

    def folder(self, session: str) -> Path:
        """What it keeps for a page."""
        return next(self.temporary.glob(".mcspex*")) / session.removeprefix("/sessions/")

    def session(self) -> str:
        return f"/sessions/{json.loads(self.ask('POST', '/sessions')[2])['id']}"

    def put(self, path: str, name: str, body: bytes) -> Any:
        """Upload a file; the answer's JSON."""
        return json.loads(self.ask("PUT", f"{path}?name={quote(name)}", body)[2])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all; it comes after one that was killed, and ends as signals end it."""
    temporary = tmp_path_factory.mktemp("temporary")
    killed = Server(temporary).start()
    killed.ask("POST", "/sessions")
    assert len(killed.folders()) == 1
    killed.process.kill()
    killed.process.communicate()
    server = Server(temporary).start()
    assert server.folders() == []
    assert len(list(temporary.glob(".mcspex*"))) == 1
    yield server
    place = f"{server.session()}/recording?name=a.wav"
    with socket.create_connection(("127.0.0.1", server.port)) as unfinished:
        head = f"PUT {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"
        unfinished.sendall(head.encode())
        until(lambda: list(temporary.rglob("upload-*.wav")), "an upload that is not finished")
        for name in ("SIGHUP", "SIGINT", "SIGINT", "SIGTERM"):
            server.process.send_signal(getattr(signal, name, signal.SIGTERM))
        _, told = server.process.communicate(timeout=TIMEOUT_S)
    assert told == "ended; all files of the page are deleted.\n"
    assert server.process.returncode == 0
    assert list(temporary.iterdir()) == []


def until(check: Callable[[], Any], what: str) -> Any:
    """Wait until something is so."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if value := check():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {TIMEOUT_S} s: {what}")


# Who may ask


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:7860"},
        {"Host": "["},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
    ],
    ids=str,
)
def test_pages_of_other_sites_are_refused(server: Server, headers: dict[str, str]) -> None:
    path = server.session()
    for method, place in (("POST", "/sessions"), ("GET", f"{path}/"), ("POST", f"{path}/close")):
        status, answered, body = server.ask(method, place, **headers)
        assert (status, body.decode()) == (403, REFUSAL)
        assert not [name for name in answered if name.lower().startswith("access-control")]
    assert server.ask("POST", f"{path}/close")[0] == 204


def test_a_link_to_the_page_may_be_on_another_site(server: Server) -> None:
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    status, answered, _ = server.ask("GET", "/", **headers)
    assert status == 200
    assert "frame-ancestors 'none'" in answered["Content-Security-Policy"]
    assert "default-src 'none'" in answered["Content-Security-Policy"]


def test_paths_and_names_lead_nowhere(server: Server) -> None:
    path = server.session()
    name = f"..\\../../{'a' * 300}<img src=x onerror=alert(1)>\n\u202e.wav"
    sound = (EXAMPLES / "mixture.flac").read_bytes()
    state = server.put(f"{path}/recording", name, sound)
    assert state["recording"]["name"].endswith("a<img src=x onerror=alert(1)>\\n\\u202e.wav")
    folder = server.folder(path)
    until((folder / "mixture.wav").exists, "decoded")
    assert {each.name for each in folder.iterdir()} == {"upload-1.wav", "mixture.wav"}
    for place in (
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/wavesurfer-LICENSE.txt",
        "/sessions/../../etc/passwd",
        f"{path}/sounds/..%2fupload-1.wav",
        f"{path}/sounds/upload-1.wav",
        f"{path}/pictures/%2fetc%2fpasswd?from=0&to=1",
        f"{path}/saved/upload-1.wav",
        f"{path[:-1]}/",
    ):
        assert server.ask("GET", place)[0] == 404, place
    whole = server.ask("GET", f"{path}/sounds/mixture", Range="bytes=0-")
    assert (whole[0], len(whole[2])) == (206, (folder / "mixture.wav").stat().st_size)
    status, headers, part = server.ask("GET", f"{path}/sounds/mixture", Range="bytes=8-11")
    assert (status, part, headers["Cache-Control"]) == (206, b"WAVE", "no-store")
    for wrong in ({"model": "/etc/passwd"}, {"model": "mcspex-16k", "device": "x"}, {"a": 1}):
        status, _, body = server.ask("POST", f"{path}/extraction", json.dumps(wrong))
        assert (status, "error" in json.loads(body)) == (400, True)
    for part in ("channel=all", "channel=mix&track=eng", "channel=x"):
        status, _, body = server.ask("POST", f"{path}/recording/part?{part}")
        assert (status, "bug" in json.loads(body)["error"]) == (400, False)
    fail = json.dumps({"model": MODEL, "absent": "fail", "spans": [[0, 1]]})
    status, _, body = server.ask("POST", f"{path}/extraction", fail)
    assert (status, json.loads(body)) == (400, {"error": "absent 'fail' is none of keep, mute."})
    for spans in ([[0, 1]] * 101, [[0, 999]] * 7):
        _, _, body = server.ask("POST", f"{path}/extraction", json.dumps({"spans": spans}))
        message = "too much is marked. Mark 100 parts or less, an hour in all."
        assert json.loads(body) == {"error": message}
    server.ask("POST", f"{path}/close")
    assert not folder.exists()


def test_what_is_too_large_is_refused_and_not_kept(server: Server) -> None:
    path = server.session()
    message = (
        "big.wav: is too large; a page may send 20 MB in all. "
        "Start mcspex serve with a larger --max-upload."
    )
    assert server.put(f"{path}/recording", "big.wav", bytes(21 * 2**20)) == {"error": message}
    chunks = (bytes(2**20) for _ in range(21))  # no length is announced
    _, _, body = server.ask("PUT", f"{path}/recording?name=big.wav", chunks)
    assert json.loads(body) == {"error": message}
    folder = server.folder(path)
    assert list(folder.iterdir()) == []
    server.put(f"{path}/recording", "a.flac", INTERVIEW.read_bytes())
    _, _, body = server.ask("GET", f"{path}/space?name=big.wav&size={20 * 2**20}")
    message = message.replace("Start", "Load the page again, which deletes what is there, or start")
    assert json.loads(body) == {"error": message}
    server.ask("POST", f"{path}/close")


def test_files_sent_at_once_share_the_limit(tmp_path: Path) -> None:
    from mcspex_cli.serve.extractions import Extractions
    from mcspex_cli.serve.sessions import Session

    session = Session(tmp_path, Extractions({}), 100)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(6):
            await asyncio.sleep(0)
            yield bytes(10)

    async def send() -> list[Any]:
        both = (session.receive(name, 0, body()) for name in ("a.wav", "b.wav"))
        return await asyncio.gather(*both, return_exceptions=True)

    refused, kept = sorted(asyncio.run(send()), key=lambda end: not isinstance(end, OutputError))
    assert "is too large" in str(refused)
    assert kept.path.stat().st_size == 60
    assert list(tmp_path.iterdir()) == [kept.path]


def test_an_upload_that_stalls_holds_up_no_other(server: Server) -> None:
    path, content = server.session(), INTERVIEW.read_bytes()
    folder = server.folder(path)
    with socket.create_connection(("127.0.0.1", server.port)) as stalled:
        head = f"PUT {path}/recording?name=a.flac HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        stalled.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:999])
        until(lambda: [each.stat().st_size for each in folder.iterdir()] == [999], "its beginning")
        assert server.put(f"{path}/recording", "b.flac", content)["recording"]["name"] == "b.flac"
    until(lambda: len(list(folder.glob("upload-*"))) == 1, "that what was cut off is removed")
    server.ask("POST", f"{path}/close")


def test_of_recordings_sent_at_once_one_is_kept(server: Server) -> None:
    path, content = server.session(), INTERVIEW.read_bytes()
    folder = server.folder(path)
    with ThreadPoolExecutor(12) as senders:
        names = [f"{number}.flac" for number in range(24)]
        list(senders.map(lambda name: server.put(f"{path}/recording", name, content), names))
    assert len(list(folder.glob("upload-*"))) == 1
    server.ask("POST", f"{path}/close")


def test_of_extractions_begun_at_once_one_is_done(server: Server) -> None:
    path = server.session()
    server.put(f"{path}/recording", "a.flac", INTERVIEW.read_bytes())
    until(lambda: json.loads(server.ask("GET", f"{path}/")[2])["recording"]["decoded"], "decoded")
    body = json.dumps({"spans": [[0, 3]], "model": MODEL})
    with ThreadPoolExecutor(12) as senders:
        ends = senders.map(lambda _: server.ask("POST", f"{path}/extraction", body)[0], range(12))
        assert sorted(ends) == [200] + 11 * [400]
    server.ask("DELETE", f"{path}/extraction")
    server.ask("POST", f"{path}/close")


TOO_LONG = (
    "long.flac: is too long. Decoded, it takes more than the 20 MB that a recording may take. "
    "Start mcspex serve with a larger --max-upload."
)


def test_a_small_file_of_long_sound_is_refused(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "long.flac"
    audio.write(file, np.zeros(10 * 2**20 + 1, np.float32), 8000)
    assert file.stat().st_size < 2**20
    path = server.session()
    assert server.put(f"{path}/recording", "long.flac", file.read_bytes()) == {"error": TOO_LONG}
    folder = server.folder(path)
    assert list(folder.iterdir()) == []
    server.ask("POST", f"{path}/close")


@pytest.mark.parametrize(
    ("max_bytes", "is_current", "error"),
    [(10**9, False, "cancelled."), (200_000, True, TOO_LONG.replace("20 MB", "0 MB"))],
    ids=["another recording takes its place", "its header announces less than there is"],
)
def test_a_recording_that_is_not_decoded_to_its_end_leaves_no_sound(
    tmp_path: Path, max_bytes: int, is_current: bool, error: str
) -> None:
    from mcspex_cli.extraction.job import ExtractionOptions
    from mcspex_cli.serve.extractions import Recording, Upload

    path = Path(shutil.copy(INTERVIEW, tmp_path / "upload-1.flac"))
    reader = audio.Reader(path)
    reader.info = replace(reader.info, frames=1)
    recording = Recording(Upload("long.flac", path), reader, ExtractionOptions(), max_bytes)
    recording.decode(lambda: is_current)
    assert (recording.is_decoded, recording.error) == (True, error)
    assert list(tmp_path.iterdir()) == [path]


def test_a_recording_beyond_full_scale_is_played_quieter(server: Server, tmp_path: Path) -> None:
    loud = 4 * audio.read(INTERVIEW, 8000) / np.abs(audio.read(INTERVIEW, 8000)).max()
    audio.write(tmp_path / "loud.wav", loud, 8000, "FLOAT")
    path = server.session()
    server.put(f"{path}/recording", "loud.wav", (tmp_path / "loud.wav").read_bytes())
    recording = until(
        lambda: (
            (now := json.loads(server.ask("GET", f"{path}/")[2])["recording"])["decoded"] and now
        ),
        "decoded",
    )
    assert recording["warnings"] == [
        "loud.wav: goes beyond full scale, so that you hear it 12.0 dB quieter here."
    ]
    (tmp_path / "played.wav").write_bytes(server.ask("GET", f"{path}/sounds/mixture")[2])
    assert np.abs(audio.read(tmp_path / "played.wav", 8000) - loud / 4).max() < 2**-14
    server.ask("POST", f"{path}/close")


def test_a_file_that_is_deleted_on_its_way_arrives_all_the_same(tmp_path: Path) -> None:
    from mcspex_cli.serve.server import send_file

    async def receive() -> Any:
        await asyncio.sleep(TIMEOUT_S)

    def sent(part: str) -> tuple[int, bytes]:
        path.write_bytes(bytes(range(200)))
        response, messages = send_file(path, {}, part), []
        path.unlink()

        async def send(message: Any) -> None:
            messages.append(message)

        asyncio.run(response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send))
        return messages[0]["status"], b"".join(one.get("body", b"") for one in messages[1:])

    path, whole = tmp_path / "voice.wav", bytes(range(200))
    assert sent("") == sent("bytes=junk") == (200, whole)
    assert sent("bytes=150-") == sent("bytes=150-999") == (206, whole[150:])
    assert sent("bytes=3-5") == (206, b"\3\4\5")
    assert sent("bytes=200-") == sent("bytes=5-3") == (416, b"")
    with pytest.raises(FileNotFoundError):
        send_file(path, {})


def test_an_extraction_can_be_cancelled_while_it_listens(tiny_folder: Path, tmp_path: Path) -> None:
    from mcspex_cli import Extractor
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.extraction.job import ExtractionOptions
    from mcspex_cli.serve.extractions import Extraction, ExtractionRequest, Recording, Upload

    extractor = Extractor.load(tiny_folder, device="cpu")
    mixture, clip = Upload("a", INTERVIEW), Upload("b", EXAMPLES / "reference.flac")
    for spans, clips in (((), [clip]), (((0.0, 3.0),), [])):
        recording = Recording(mixture, audio.Reader(INTERVIEW), ExtractionOptions(), 10**9)
        request = ExtractionRequest(spans)
        options = recording.options
        one = Extraction(request, options, recording, clips, extractor.model, tmp_path)

        def load(_: CheckpointInfo, __: str, one: Extraction = one) -> Extractor:
            one.cancel()
            return extractor

        one.run(load)
        assert (one.state, one.step, one.voice) == ("cancelled", "listening", None)


def test_bad_files_have_the_messages_of_extract(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no sound " * 99)
    (tmp_path / "empty.mp3").touch()
    audio.write(tmp_path / "short.wav", np.full(800, 0.1, np.float32), 8000)
    (tmp_path / "other.safetensors").write_bytes(b"12345678" * 9)
    path, reference = server.session(), str(EXAMPLES / "reference.flac")
    for name in ("text.wav", "empty.mp3", "short.wav", "other.safetensors"):
        file = tmp_path / name
        words = [str(file), "--ref", reference]
        kind = "recording"
        if name == "other.safetensors":
            words, kind = [str(INTERVIEW), "--ref", str(file)], "references"
        told = CliRunner().invoke(main, ["extract", *words, "-o", str(tmp_path / "o.wav")]).stderr
        answer = server.put(f"{path}/{kind}", name, file.read_bytes())
        assert f"error: {answer['error']}\n" == told.replace(f"{tmp_path}/", "")
    server.ask("POST", f"{path}/close")


def test_the_second_sound_track_of_a_video_that_begins_late(server: Server, tmp_path: Path) -> None:
    sound = audio.read(INTERVIEW, 16_000)[: 5 * 16_000]
    tracks = SoundTrack(sound[::-1], 16_000), SoundTrack(sound, 16_000, start_s=2.0)
    film, path = make(tmp_path / "film.mkv", *tracks, picture_s=7), server.session()

    def state() -> Any:
        return json.loads(server.ask("GET", f"{path}/")[2])

    recording = server.put(f"{path}/recording", "film.mkv", film.read_bytes())["recording"]
    assert (len(recording["tracks"]), recording["track"]) == (2, 1)
    assert server.ask("POST", f"{path}/recording/part?channel=mix&track=2")[0] == 200
    until(lambda: state()["recording"]["decoded"], "decoded")
    request = {"model": MODEL, "spans": [[0.1, 3.3]]}
    assert server.ask("POST", f"{path}/extraction", json.dumps(request))[0] == 200
    extraction = until(
        lambda: (now := state()["extraction"])["state"] in ("done", "failed") and now, "extracted"
    )
    assert (extraction["state"], extraction["error"]) == ("done", "")
    assert extraction["result"]["start_s"] == pytest.approx(2.0, abs=0.1)
    assert extraction["result"]["segments"][0][0] == 0.0
    subtitles = server.ask("GET", f"{path}/saved/voice.srt")[2].decode()
    assert subtitles.startswith("1\n00:00:02,")
    server.ask("POST", f"{path}/close")


def test_warnings_are_there_once_and_in_the_words_of_the_page(server: Server) -> None:
    path, content = server.session(), INTERVIEW.read_bytes()
    server.put(f"{path}/recording", "cut.flac", content[: len(content) // 3])

    def state(key: str) -> Any:
        return json.loads(server.ask("GET", f"{path}/")[2])[key]

    until(lambda: state("recording")["decoded"], "decoded")
    damaged = state("recording")["warnings"]
    assert len(damaged) == 1
    request = {"model": MODEL, "spans": [[0.1, 3.3]], "level": "peak"}
    assert server.ask("POST", f"{path}/extraction", json.dumps(request))[0] == 200
    result = until(lambda: state("extraction")["result"], "extracted")
    assert result["warnings"] == [
        *damaged,
        "the voice and everybody else do not add up to the recording: their levels were changed.",
    ]
    server.ask("POST", f"{path}/close")


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        pytest.param(
            "::", marks=pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="without IPv6")
        ),
    ],
)
def test_elsewhere_the_address_has_a_secret(tmp_path: Path, host: str) -> None:
    from mcspex_cli.cli.serve import listen
    from mcspex_cli.serve.extractions import Extractions
    from mcspex_cli.serve.server import make_app
    from mcspex_cli.serve.sessions import MOST_SESSIONS, Sessions

    address = listen(host, 0)
    where = urlsplit(address.url)
    assert re.fullmatch(r"/[\w-]{22}/", where.path)
    sessions = Sessions(Extractions({}), 1)
    app = make_app(sessions, INTERVIEW, address.token)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=running.run, args=([address.listener],))
    thread.start()
    try:
        until(lambda: running.started, "started")
        own = Server(tmp_path, port=where.port or 0)
        for path, status in (("/", 404), ("/static/page.js", 404), (where.path, 200)):
            assert own.ask("GET", path, Host="studio.example")[0] == status
        status, _, body = own.ask("POST", "/sessions")
        told = b"There is nothing here. Open the whole address that mcspex serve printed."
        assert (status, body) == (404, told)
        assert own.ask("POST", f"{where.path}sessions")[0] == 200
        assert own.ask("POST", f"{where.path}sessions", Origin="http://evil.example")[0] == 403
        statuses = [own.ask("POST", f"{where.path}sessions")[0] for _ in range(MOST_SESSIONS - 1)]
        assert statuses == [200] * (MOST_SESSIONS - 1)
        status, _, body = own.ask("POST", f"{where.path}sessions")
        message = "20 pages are open already. Close one, then load this page again."
        assert (status, json.loads(body)) == (503, {"error": message})
        for session in tuple(sessions.pages.values()):
            sessions.close(session)
        shutil.rmtree(sessions.folder)
        status, _, body = own.ask("POST", f"{where.path}sessions")
        assert (status, str(sessions.folder) in json.loads(body)["error"]) == (500, True)
    finally:
        running.should_exit = True
        thread.join()
        sessions.close_all()
    assert not sessions.folder.exists()


# The command


def test_a_wrong_start_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["serve", "--no-browser", *words])
        return done.exit_code, done.stderr.splitlines()[-1]

    code, line = run("--port", str(server.port))
    assert (code, line) == (
        1,
        f"error: cannot listen on port {server.port} of 127.0.0.1: Address already in use. "
        "Choose another port, as in --port 7861, or end the program that uses it.",
    )
    code, line = run("--max-upload", "many")
    assert code == 2
    assert line.endswith("'many' is not a size. Write it like 500M or 2G.")
    for host in ("no such host", "a..b", "192.0.2.1"):
        code, line = run("--host", host)
        assert code == 1
        assert line.startswith(f"error: --host {host}: ")
        assert line.endswith("Give 127.0.0.1 or 0.0.0.0.")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run() == (
        1,
        "error: serve needs uvicorn. Run in a checkout of mcspex: pip install '.[serve]'",
    )


# The page


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("profile")
    with open_browser(profile, browser="ALL", performance="ALL") as browser:
        yield browser


@dataclass
class Page:
    """The page in a tab of the browser."""

    browser: Browser

    def __call__(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def run(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *values)

    def drop(self, selector: str, *paths: Path) -> None:
        """Drop files from the desktop."""
        element = self(selector)
        self.run("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", element)
        box = element.rect
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        place = {"x": box["x"] + 40, "y": box["y"] - self.run("scrollY") + 40}
        for kind in ("dragEnter", "dragOver", "drop"):
            values = {"type": kind, **place, "data": data}
            self.browser.execute_cdp_cmd("Input.dispatchDragEvent", values)

    def wait_for(self, selector: str, state: str = "is_displayed") -> Any:
        """An element once it is to be seen."""

        def look() -> Any:
            elements = self.browser.find_elements("css selector", selector)
            return elements[0] if elements and getattr(elements[0], state)() else None

        return until(look, f"{selector} {state}: {self('#problem').text}")

    def mark(self, start_s: float, end_s: float) -> None:
        """Drag over the waveform."""
        from selenium.webdriver import ActionChains

        self.wait_for("#mixture .play", "is_enabled")
        wave = self("#mixture .wave")
        until(lambda: wave.get_attribute("aria-valuemax"), "the waveform is drawn")
        width, seconds = wave.size["width"], float(wave.get_attribute("aria-valuemax"))
        start, end = (round(width * s / seconds) for s in (start_s, end_s))
        actions = ActionChains(self.browser, duration=50)
        actions.move_to_element_with_offset(wave, start - width // 2, 0).click_and_hold()
        actions.move_by_offset(10, 0).move_by_offset(end - start - 10, 0).release().perform()

    def result(self) -> None:
        """Extract, and wait for the result."""
        self.wait_for("#extract", "is_enabled").click()
        self.wait_for("#pictures figure:nth-child(3)")


@pytest.fixture
def page(server: Server, browser: Browser) -> Page:
    """The page, freshly loaded, 1400 pixels wide."""
    set_size(browser, 1400)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"http://127.0.0.1:{server.port}/")
    return Page(browser)


_WAVE_COLOUR = """(() => {
  const wave = document.querySelector("#track-voice .wave > *");
  const canvas = wave.shadowRoot.querySelector("canvas");
  return [...canvas.getContext("2d").getImageData(9, canvas.height / 2, 1, 1).data].slice(0, 3);
})()"""


def check(server: Server, page: Page) -> None:
    """Everything is from this server, fits the window, can be read, and has a name."""
    browser = page.browser
    home = f"http://127.0.0.1:{server.port}/"
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == home  # and not of the browser's own pages
    ]
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith((home, "data:", "blob:"))] == []
    page("summary").click()
    for width in (420, 1400):
        set_size(browser, width)
        assert page.run("document.documentElement.scrollWidth") <= width
    for scheme, voice in (("light", [15, 118, 110]), ("dark", [79, 209, 184])):
        set_scheme(browser, scheme)
        assert [pair for pair in contrasts(browser) if pair[0] < 4.5] == []
        until(lambda: page.run(_WAVE_COLOUR) == voice, "the waveform has the colours of the scheme")  # noqa: B023
    button = "getComputedStyle(document.querySelector('.play')).backgroundColor"
    colour = page.run(button)
    set_scheme(browser, "dark", "active")
    assert page.run(button) == colour  # without it, its symbol cannot be seen
    page.run("document.querySelector('#name').textContent = 'שיחה 5'")
    assert page("#length").location["x"] > page("#name").location["x"]
    nameless = "[...document.querySelectorAll('button, a, [role=slider], canvas')].filter("
    nameless += "(e) => !(e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    assert page.run(nameless) == []
    assert browser.get_log("browser") == []


@needs_browser
def test_an_interview_from_dropping_it_to_saving_the_voice(
    server: Server, page: Page, tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains

    browser = page.browser
    (tmp_path / "dropped").mkdir()
    interview = tmp_path / "dropped" / "interview.flac"
    audio.write(interview, audio.read(INTERVIEW, 16_000)[: 8 * 16_000], 16_000)
    page.drop("#drop", interview)
    page.mark(0.05, 3.3)
    assert re.search(r"0:00\.\d – 0:03\.\d", page("#chips li").text)
    page.result()
    assert page("#verdict").text.startswith("The person is there and speaks for 0:")
    pictures = page.run("[...document.images].map((each) => [each.alt, each.src])")
    assert [alt.split(",")[0] for alt, _ in pictures] == [
        f"Spectrogram of: {label}" for label in ("Recording", "The voice", "Everybody else")
    ]
    until(lambda: page.run("[...document.images].every((i) => i.naturalWidth > 0)"), "pictures")

    # Playing; the next track goes on where the one before was.
    at = "document.querySelector('#track-%s audio').currentTime"
    page("#track-voice .play").click()
    until(lambda: page.run(at % "voice") > 0.5, "the voice plays")
    page("#track-others .play").click()
    until(lambda: page.run(at % "others") > 0.6, "the others play")
    assert page.run("document.querySelector('#track-voice audio').paused")
    assert page("#track-others .play").get_attribute("aria-pressed") == "true"
    page("#track-others .play").click()
    page.run("arguments[0].focus()", page("#track-voice .wave"))
    ActionChains(browser).send_keys(" ").perform()
    until(lambda: not page.run("document.querySelector('#track-voice audio').paused"), "the voice")
    ActionChains(browser).send_keys(" ").perform()

    # Saving.
    behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    endings = ("voice.wav", "others.flac", "voice.srt", "safetensors")
    for link in ("voice.wav", "others.flac", "voice.srt", "voice.safetensors"):
        page(f"[data-save='{link}']").click()
    files = [tmp_path / f"interview.{ending}" for ending in endings]
    until(lambda: all(file.exists() for file in files), "downloads")
    mixture = audio.probe(interview)
    for file in files[:2]:
        info = audio.probe(file)
        assert (info.frames, info.sample_rate_hz) == (mixture.frames, mixture.sample_rate_hz)
    rate_hz = mixture.sample_rate_hz
    voice, others, whole = (audio.read(path, rate_hz) for path in (*files[:2], interview))
    assert np.abs(voice + others - whole).max() < 1e-3
    assert files[2].read_text().startswith("1\n00:00:0")

    # The saved voice is as good as the mark.
    page("#chips button[aria-label^='Remove']").click()
    assert not page("#extract").is_enabled()
    page.drop("#voice", files[3])
    until(lambda: "interview.safetensors" in page("#chips").text, "the saved voice")
    first = page.run("document.images[0].src")
    page.run("document.querySelector('#person').value = 'W'.repeat(100)")
    page("#extract").click()
    until(lambda: page.run("document.images[0]?.src") not in (None, first), "another result")
    assert page("#verdict").text.startswith("The person is there")

    check(server, page)


@needs_browser
def test_bad_input_is_told_and_changes_nothing(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "<b>broken<b>.wav"
    broken.write_bytes(b"RIFF" + bytes(100))
    page.drop("#drop", broken)
    assert page.wait_for("#problem").text.startswith("<b>broken<b>.wav: ")
    assert page("#drop").is_displayed()
    page("#example").click()
    page.wait_for("#extract", "is_enabled")
    assert not page("#problem").is_displayed()
    large = tmp_path / "large.wav"
    large.touch()
    os.truncate(large, 3 * 2**30)  # which would take long to send
    page.drop("#voice", broken, tmp_path, large, INTERVIEW)
    until(lambda: "interview.flac" in page("#chips").text, "the reference")
    problem = until(lambda: page("#problem").text, "it is told")
    assert re.fullmatch(
        r"<b>broken<b>.wav: .+ \S+: could not be sent. .+ large.wav: is too large; .+", problem
    )
    page("#extract").click()
    message = "interview.flac: is its own reference (interview.flac). Give another clip of the "
    message += "voice alone, or mark where it speaks alone."
    until(lambda: page("#problem").text == message, message)
    page("#from").send_keys("0:19")
    page("#to").send_keys("1:00\n")
    until(lambda: "is no part of the recording" in page("#problem").text, "a wrong mark")
    page.run(
        "(open => { XMLHttpRequest.prototype.open = function (method) { "
        "open.call(this, method, '/'); }; })(XMLHttpRequest.prototype.open)"
    )  # as if the server ended meanwhile: it answers, but not in JSON
    page.drop("#voice", INTERVIEW)
    message = "interview.flac: could not be sent."
    until(lambda: page("#problem").text.startswith(message), message)


@needs_browser
def test_keys_mark_also_after_a_click_on_play_and_in_capitals(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page("#example").click()
    page.wait_for("#extract", "is_enabled")
    page("#chips button[aria-label^='Remove']").click()
    page("#mixture .play").click()
    at = "document.querySelector('#mixture audio').currentTime"
    ActionChains(page.browser).send_keys("i").perform()
    until(lambda: page("#from").get_attribute("value"), "the beginning is noted")
    until(lambda: page.run(at) > 1, "it plays")
    ActionChains(page.browser).send_keys("O").perform()
    until(lambda: "0:00." in page("#chips").text, "the part is marked")


@needs_browser
@pytest.mark.parametrize(("suffix", "codec"), [("opus", "libopus"), ("mp3", "libmp3lame")])
def test_a_recording_that_is_longer_than_announced_is_drawn_whole(
    page: Page, tmp_path: Path, suffix: str, codec: str
) -> None:
    part, joined = tmp_path / f"part.{suffix}", tmp_path / f"joined.{suffix}"
    make(part, SoundTrack(audio.read(INTERVIEW, 16_000)[: 5 * 16_000], 16_000, codec))
    joined.write_bytes(part.read_bytes() * 2)
    page.drop("#drop", joined)
    page.wait_for("#mixture .play", "is_enabled")
    until(lambda: page("#length").text == "0:10", "the true length")
    page("#from").send_keys("0:05.2")
    page("#to").send_keys("0:09.5\n")
    until(lambda: "0:05.2 – 0:09.5" in page("#chips").text, "a part of the second half")
    length_s = float(page("#mixture .wave").get_attribute("aria-valuemax"))
    assert length_s == pytest.approx(10, abs=0.3)


@needs_browser
def test_a_double_click_does_no_more_than_a_click(page: Page) -> None:
    from selenium.webdriver import ActionChains

    def double_click(selector: str) -> None:
        ActionChains(page.browser).double_click(page(selector)).perform()

    double_click("#example")
    page.wait_for("#extract", "is_enabled")
    page("#from").send_keys("0:10")
    page("#to").send_keys("0:12")
    double_click("#times button")
    until(lambda: "0:10.0 – 0:12.0" in page("#chips").text, "the part is marked")
    assert not page("#problem").is_displayed()
    double_click("#extract")
    page.wait_for("#work")
    time.sleep(0.5)  # in which a second request would be refused
    assert not page("#problem").is_displayed()
    page("#cancel").click()
    page.wait_for("#extract")


@needs_browser
def test_every_failure_is_told_and_another_channel_keeps_the_marks(
    page: Page, tmp_path: Path
) -> None:
    silent, stereo = tmp_path / "silent.wav", tmp_path / "stereo.wav"
    audio.write(silent, np.zeros(16_000, np.float32), 16_000)
    interview = audio.read(INTERVIEW, 16_000)
    audio.write(stereo, np.stack([interview, interview[::-1]]), 16_000)
    page.drop("#drop", stereo)
    page.wait_for("#mixture .play", "is_enabled")
    page("#reference").send_keys(str(silent))
    until(lambda: "silent.wav" in page("#chips").text, "the reference")
    for _ in range(5):
        page.wait_for("#extract", "is_enabled").click()
        until(lambda: page("#problem").text.startswith("silent.wav: is silent"), "it is told")
    page("#from").send_keys("0:01")
    page("#to").send_keys("0:05\n")
    page("summary").click()
    page("#channel option[value='1']").click()
    page.wait_for("#mixture .play", "is_enabled")
    until(lambda: page.run("document.querySelectorAll('#mixture .play:enabled').length"), "read")
    assert "0:01.0 – 0:05.0" in page("#chips").text


@needs_browser
def test_a_page_out_of_reach_says_so_until_it_is_in_reach_again(page: Page, tmp_path: Path) -> None:
    def set_network(*, works: bool) -> None:
        values = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        settings = {"offline": not works, **values}
        page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", settings)

    page.browser.execute_cdp_cmd("Network.enable", {})
    long = tmp_path / "long.flac"
    audio.write(long, np.tile(audio.read(INTERVIEW, 8000), 30), 8000)
    page.drop("#drop", long)
    page.mark(0.0, 30.0)
    page.wait_for("#extract", "is_enabled").click()
    page.wait_for("#work")
    set_network(works=False)
    message = "The program behind this page cannot be reached. Check the network."
    until(lambda: page("#problem").text.startswith(message), message)
    set_size(page.browser, 1400, 300)
    page.run("scrollTo(0, 9999)")
    down = page.run("scrollY")
    time.sleep(1)  # in which the page asks again
    assert page.run("scrollY") == down > 100
    set_network(works=True)
    until(lambda: not page("#problem").is_displayed(), "no message any more")
    page("#cancel").click()
    page.wait_for("#extract")


@needs_browser
def test_what_a_broken_network_kept_back_comes_when_it_is_back(page: Page) -> None:
    from selenium.webdriver.support import expected_conditions

    def block(*urls: str) -> None:
        page.browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(urls)})

    page.browser.execute_cdp_cmd("Network.enable", {})
    reference, out_of_reach = EXAMPLES / "reference.flac", "The program behind this page"
    block("*/sessions")
    page.browser.refresh()
    page.wait_for("#problem")
    page("#file").send_keys(str(EXAMPLES / "mixture.flac"))
    until(lambda: page("#problem").text.startswith(out_of_reach), "no session")
    block("*/peaks/mixture")
    page.browser.refresh()
    page("#file").send_keys(str(EXAMPLES / "mixture.flac"))
    until(lambda: page("#problem").text.startswith(out_of_reach), "no waveform")
    page("#reference").send_keys(str(reference))
    block("*/peaks/others")
    page.wait_for("#extract", "is_enabled").click()
    until(lambda: page("#result").is_displayed(), "a part of the result")
    until(lambda: page("#problem").text.startswith(out_of_reach), "no waveform of the others")
    block("*/sounds/others*")
    page.wait_for("#pictures figure:nth-child(3)")
    page("#track-others .play").click()
    until(lambda: "Everybody else: cannot be played." in page("#problem").text, "no sound")
    block("*/saved/*")
    page("[data-save='voice.wav']").click()
    until(lambda: page("#problem").text.startswith(out_of_reach), "nothing to save")
    block()
    page("#track-others .play").click()
    until(lambda: page.run("document.querySelector('#track-others audio').currentTime") > 0.5, "it")
    page("#file").send_keys(str(INTERVIEW))  # which would delete the result
    asked = until(lambda: expected_conditions.alert_is_present()(page.browser), "a question")
    assert asked.text == "The voice from this recording is not saved. Go on without it?"
    asked.dismiss()
    assert page("#result").is_displayed()


@needs_browser
def test_two_pages_wait_for_each_other_and_can_cancel(
    server: Server, page: Page, tmp_path: Path
) -> None:
    browser = page.browser
    long = tmp_path / "long.flac"
    audio.write(long, np.tile(audio.read(INTERVIEW, 8000), 30), 8000)
    first = browser.current_window_handle
    page.drop("#drop", long)
    page.mark(0.0, 30.0)
    page.wait_for("#extract", "is_enabled")
    page.run("arguments[0].focus()", page("#chips button"))
    page.run("document.querySelector('#extract').click()")
    until(lambda: page("#work-text").text.startswith("Extracting: "), "the first is at work")
    assert page("[role=status]").text == "Extracting:"  # percents would be read out all the time
    assert page.run("document.activeElement.closest('#chips') !== null")  # it was not made anew

    browser.switch_to.new_window("tab")
    browser.get(f"http://127.0.0.1:{server.port}/")
    page("#example").click()
    page.wait_for("#extract", "is_enabled").click()
    waiting = "Waiting: one extraction comes first"
    until(lambda: page("#work-text").text == waiting, "the second waits")
    until(lambda: len(server.folders()) == 2, "each page has a folder, and no other is left")
    second = browser.current_window_handle
    browser.switch_to.window(first)
    page("#cancel").click()
    until(lambda: page("#work-text").text in ("Cancelling…", ""), "it is told")
    page.wait_for("#extract")
    assert not page("#result").is_displayed()
    browser.switch_to.window(second)
    until(lambda: page("#work-text").text.startswith("Extracting: "), "the second is at work")

    browser.execute_script("window.onbeforeunload = null")
    browser.close()
    browser.switch_to.window(first)
    until(lambda: len(server.folders()) == 1, "what belonged to the closed page is deleted")
