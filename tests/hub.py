"""A Hugging Face Hub in memory: real HTTP on 127.0.0.1, for the real client, faults on demand."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub_answers import answered
from tests.hub_store import Answer, Blob, Repo, Request, Store, refused

EVIL = "../../evil"
"""A name that must not become a path."""


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `where`, so many `times`."""

    where: str
    method: str = ""  # any; cut and flip are of GET alone
    times: float = math.inf
    wait_s: float = 0  # before the answer
    status: int = 0  # instead of the answer
    error: str = ""  # its X-Error-Code: RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo
    body: bytes | None = None  # instead of the answer's
    fields: dict[str, Any] = field(default_factory=dict)  # instead of those in a JSON answer
    headers: dict[str, str] = field(default_factory=dict)  # instead of, or besides, the answer's
    cut: bool = False  # close the connection half-way
    flip: bool = False  # another last byte than the hashes say
    grow: int = 0  # bytes that HEAD and listings claim beyond those that GET delivers

    def meets(self, request: Request) -> bool:
        """Whether it is this request that goes wrong, and one time less is left."""
        method = self.method or ("GET" if self.cut or self.flip else "HEAD" if self.grow else "")
        if self.times < 1 or self.where not in request.path or method not in ("", request.method):
            return False
        self.times -= 1
        return True

    def spoil(self, answer: Answer) -> None:
        """Make an answer wrong."""
        if self.body is not None:
            answer.body = self.body
        if self.fields:
            answer.body = json.dumps({**json.loads(answer.body), **self.fields}).encode()
        if self.flip and answer.body:
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
        if self.grow:
            size = str(len(answer.body) + self.grow)
            answer.headers |= {"Content-Length": size}
            answer.headers |= {"X-Linked-Size": size} if "X-Linked-Size" in answer.headers else {}
        answer.headers |= self.headers


class Hub(Store):
    """A server of models: `with Hub() as hub`, then `HfApi(endpoint=hub.url)`.

    The client must run with HF_HUB_DISABLE_XET=1 to push to it: there is no Xet storage here.
    File names are not checked: `add` one with "../" to have it listed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []  # what was asked, in order
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []  # the server's own; raised when it stops
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()
        if self.errors and error is None:
            raise self.errors[0]

    def add(
        self,
        repo: str,
        files: dict[str, bytes],
        *,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commit files upon those that the branch has (none if it is new); give back the sha."""
        found = self.repos.setdefault(repo, Repo(private, gated))
        blobs = {name: Blob.of(name, data) for name, data in files.items()}
        return found.commit(revision, {**found.commits.get(found.sha(revision) or "", {}), **blobs})

    def tag(self, repo: str, name: str, revision: str = "main") -> None:
        """Name a commit."""
        sha = self.repos[repo].sha(revision)
        assert sha
        self.repos[repo].tags[name] = sha

    def file(self, repo: str, name: str, revision: str = "main") -> bytes:
        """The bytes that a repository holds."""
        return self.repos[repo].commits[self.repos[repo].sha(revision) or ""][name].data

    def fail(self, where: str, **what: Any) -> Fault:
        """Let requests whose path contains `where` go wrong; over when its `times` is set to 0."""
        self.faults.append(Fault(where, **what))
        return self.faults[-1]

    def asked(self, method: str, where: str = "") -> list[Request]:
        """The requests of a method whose path contains `where`, in order."""
        return [r for r in self.requests if r.method == method and where in r.path]

    def grown(self, name: str) -> int:
        """How many bytes more than it has a file is said to have."""
        return sum(f.grow for f in self.faults if f.where in name and f.times > 0)

    def answer(self, request: Request, faults: list[Fault]) -> Answer:
        """The answer, with what goes wrong about it."""
        ends = next((f for f in faults if f.status), None)
        if ends:
            answer = refused(ends.status, f"a fault: {ends.status}", ends.error)
        else:
            answer = answered(self, request)
        for fault in faults:
            fault.spoil(answer)
        return answer


class _Server(ThreadingHTTPServer):
    """Threads that end, and connections that close, before the test does."""

    daemon_threads = False  # they are joined

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.open: set[socket.socket] = set()

    def hang_up(self) -> None:
        """Wake those that wait for a client's next request."""
        for connection in list(self.open):
            _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the server's own errors; a client may leave whenever it likes."""
        error = sys.exc_info()[1]
        if error and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)


def _hang_up(connection: socket.socket) -> None:
    """End a connection from any thread; its own thread closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        hub, split = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(split.query, keep_blank_values=True)
        request = Request(self.command, split.path, query, headers, self._body(headers))
        with hub.lock:
            hub.requests.append(request)
            faults = [fault for fault in hub.faults if fault.meets(request)]
        if hub.closing.wait(sum(f.wait_s for f in faults)):
            self.close_connection = True
            return
        with hub.lock:
            answer = hub.answer(request, faults)
        self._send(answer, cut=any(f.cut for f in faults))

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: Answer, *, cut: bool) -> None:
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            _hang_up(self.connection)
