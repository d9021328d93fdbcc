"""A Hugging Face Hub in memory: real HTTP on 127.0.0.1, for the real client, faults on demand.

The client must run with HF_HUB_DISABLE_XET=1 to push to it: there is no Xet storage here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

EVIL = "../../evil"
"""A name that must not become a path."""

LARGE_NAMES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class Blob:
    """The bytes of a file with what the Hub says about them."""

    data: bytes
    large: bool

    @classmethod
    def of(cls, name: str, data: bytes) -> Blob:
        """As git LFS would keep it: weights and everything above 1 MB is large."""
        return cls(data, name.endswith(LARGE_NAMES) or len(data) > 1_000_000)

    @property
    def sha256(self) -> str:
        """What large files are named after."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git keeps of a large file."""
        head = "version https://git-lfs.github.com/spec/v1\noid sha256:"
        return f"{head}{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        """Git's sha1 of what git keeps."""
        kept = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        """What the client names its blob after."""
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """The commits of a model, and the branches and tags that point at them."""

    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def sha(self, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        return {**{sha: sha for sha in self.commits}, **self.tags, **self.branches}.get(revision)

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        """Let a branch hold exactly these files; give back the commit."""
        lines = [self.branches.get(branch, ""), *(f"{n} {files[n].oid}" for n in sorted(files))]
        sha = hashlib.sha1("\n".join(lines).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


@dataclass(frozen=True)
class Request:
    """What the client sent; the header names are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        """The token that was sent."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass
class Answer:
    """What the client gets."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(data: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json"})


def refusal(status: int, message: str, code: str = "") -> Answer:
    """An error as the Hub words it, with the code by which the client tells it."""
    answer = as_json({"error": message}, status)
    answer.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return answer


class RefusedError(Exception):
    """An answer that ends the work on a request."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.answer = refusal(status, message, code)


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


class Hub:
    """A server of models: `with Hub() as hub`, then `HfApi(endpoint=hub.url)`.

    A user may write below the own name, and reads private repositories there. File names are not
    checked: `add` one with "../" to have it listed.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, str] = {}  # token: user
        self.read_only: set[str] = set()  # tokens
        self.uploads: dict[str, bytes] = {}  # by sha256
        self.requests: list[Request] = []  # in order
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._server.open):  # that wait for a client's next request
            _hang_up(connection)
        self._server.server_close()
        if self.errors and error is None:
            raise self.errors[0]

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> str:
        """Commit files upon those that the main branch has; give back the commit."""
        model = self.repos.setdefault(repo, Repo(private))
        blobs = {name: Blob.of(name, data) for name, data in files.items()}
        return model.commit("main", {**model.commits.get(model.sha("main") or "", {}), **blobs})

    def tag(self, repo: str, name: str) -> None:
        """Name the main branch's commit."""
        self.repos[repo].tags[name] = self.repos[repo].branches["main"]

    def file(self, repo: str, name: str) -> bytes:
        """The bytes that a repository holds."""
        return self.repos[repo].commits[self.repos[repo].branches["main"]][name].data

    def fail(self, where: str, **what: Any) -> Fault:
        """Let requests whose path contains `where` go wrong; over when its `times` is set to 0."""
        self.faults.append(Fault(where, **what))
        return self.faults[-1]

    def requests_for(self, method: str, where: str = "") -> list[Request]:
        """The requests of a method whose path contains `where`, in order."""
        return [r for r in self.requests if r.method == method and where in r.path]

    def answer(self, request: Request, faults: list[Fault]) -> Answer:
        """The answer, with what goes wrong about it."""
        ends = next((f for f in faults if f.status), None)
        if ends:
            answer = refusal(ends.status, f"a fault: {ends.status}", ends.error)
        else:
            answer = self._routed(request)
        for fault in faults:
            fault.spoil(answer)
        return answer

    def _routed(self, request: Request) -> Answer:
        user = self.tokens.get(request.token)
        if request.token and user is None:
            return refusal(401, "Invalid credentials in Authorization header")
        for methods, pattern, route in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in methods.split():
                place = {k: unquote(v or "") for k, v in match.groupdict().items()}
                try:
                    return route(Call(self, request, user, **place))
                except RefusedError as error:
                    return error.answer
        return refusal(404, f"no such route: {request.method} {request.path}")


@dataclass
class Call:
    """A request with its user and what the path names."""

    hub: Hub
    request: Request
    user: str | None
    repo: str = ""
    revision: str = ""
    name: str = ""

    @property
    def owner(self) -> str:
        return self.repo.split("/", maxsplit=1)[0]

    def model(self) -> Repo:
        """The repository. To strangers, a private one is one that does not exist."""
        repo = self.hub.repos.get(self.repo)
        if repo is None or (repo.private and self.user != self.owner):
            if self.user:
                raise RefusedError(404, "Repository not found", "RepoNotFound")
            raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def commit(self) -> tuple[str, dict[str, Blob]]:
        """The commit that the path names, and its files."""
        repo = self.model()
        sha = repo.sha(self.revision or "main")
        if sha is None:
            raise RefusedError(404, f"Invalid rev id: {self.revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    def check_writable(self) -> None:
        """Refuse users that may not write to the repository."""
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
        if self.user != self.owner or self.request.token in self.hub.read_only:
            raise RefusedError(403, f"Forbidden: you must have write access to {self.repo}")


def create(call: Call) -> Answer:
    """A new repository with its first commit, as the Hub makes one with a .gitattributes."""
    fields = call.request.json()
    call.repo = name = f"{fields.get('organization') or call.user}/{fields['name']}"
    call.check_writable()
    facts = {"url": f"{call.hub.url}/{name}", "name": name}
    if name in call.hub.repos:
        return as_json({**facts, "error": "You already created this model repo"}, 409)
    repo = call.hub.repos[name] = Repo(private=fields.get("visibility") == "private")
    repo.commit("main", {".gitattributes": Blob.of(".gitattributes", b"")})
    return as_json(facts)


def info(call: Call) -> Answer:
    """`model_info`, the files' sizes and hashes only when asked for."""
    sha, files = call.commit()

    def details(name: str, blob: Blob) -> dict[str, Any]:
        grown = sum(f.grow for f in call.hub.faults if f.where in name and f.times > 0)
        size = len(blob.data) + grown
        lfs = {"sha256": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
        return {"size": size, "blobId": blob.oid} | ({"lfs": lfs} if blob.large else {})

    siblings = [
        {"rfilename": name, **(details(name, blob) if "blobs" in call.request.query else {})}
        for name, blob in files.items()
    ]
    date = "2026-01-01T00:00:00.000Z"
    return as_json(
        {
            **{"_id": "0" * 24, "id": call.repo, "modelId": call.repo, "author": call.owner},
            **{"sha": sha, "lastModified": date, "createdAt": date, "gated": False},
            **{"private": call.model().private, "disabled": False, "downloads": 0, "likes": 0},
            **{"tags": [], "siblings": siblings},
        }
    )


def resolve(call: Call) -> Answer:
    """A file's bytes, or those after the first ones, if `bytes=FIRST-` asks for them."""
    sha, files = call.commit()
    if call.name not in files:
        answer = refusal(404, "Entry not found", "EntryNotFound")
        answer.headers["X-Repo-Commit"] = sha
        return answer
    blob = files[call.name]
    size = len(blob.data)
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if blob.large:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(size)}
    if part := re.fullmatch(r"bytes=(\d+)-", call.request.headers.get("range", "")):
        headers["Content-Range"] = f"bytes {part[1]}-{size - 1}/{size}"
        return Answer(206, blob.data[int(part[1]) :], headers)
    return Answer(200, blob.data, headers)


def preupload(call: Call) -> Answer:
    """Which files go the large way, and what the branch has of them."""
    call.check_writable()
    _, files = call.commit()
    modes = []
    for file in call.request.json()["files"]:
        large = file["path"].endswith(LARGE_NAMES) or file["size"] > 1_000_000
        had = files.get(file["path"])
        mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
        modes.append({**mode, "shouldIgnore": False, **({"oid": had.etag} if had else {})})
    return as_json({"files": modes})


def batch(call: Call) -> Answer:
    """Where to put large files, "basic": one PUT each, then a check."""
    call.check_writable()
    objects = call.request.json()["objects"]
    for item in objects:
        if item["oid"] not in call.hub.uploads:
            put = {"href": f"{call.hub.url}/lfs/objects/{item['oid']}"}
            item["actions"] = {"upload": put, "verify": {"href": f"{call.hub.url}/lfs/ok"}}
    return as_json({"transfer": "basic", "objects": objects})


def put(call: Call) -> Answer:
    """A large file's bytes; the address is the permission, as with signed ones."""
    if hashlib.sha256(call.request.body).hexdigest() != call.name:
        return refusal(400, "The bytes are not those of the address")
    call.hub.uploads[call.name] = call.request.body
    return Answer()


def verify(call: Call) -> Answer:
    """Whether a large file arrived."""
    data = call.hub.uploads.get(call.request.json()["oid"])
    arrived = data is not None and len(data) == call.request.json()["size"]
    return as_json({}) if arrived else refusal(404, "Not uploaded")


def commit(call: Call) -> Answer:
    """A commit: lines of JSON, a header and then one per file."""
    call.check_writable()
    parent, had = call.commit()
    files = dict(had)
    for line in call.request.body.splitlines():
        key, value = (json.loads(line)[k] for k in ("key", "value"))
        if key == "header" and value.get("parentCommit", parent) != parent:
            return refusal(412, "A commit has happened since. Please refresh and try again.")
        if key == "file":
            data = base64.b64decode(value["content"])
            files[value["path"]] = Blob.of(value["path"], data)
        elif key == "lfsFile":
            files[value["path"]] = Blob(call.hub.uploads[value["oid"]], large=True)
    sha = call.model().commit(call.revision, files)
    url = f"{call.hub.url}/{call.repo}/commit/{sha}"
    return as_json({"success": True, "commitOid": sha, "commitUrl": url})


_REPO, _REVISION = "(?P<repo>[^/]+/[^/]+)", "(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[[Call], Answer]]] = [
    ("POST", "/api/validate-yaml", lambda _: as_json({"errors": [], "warnings": []})),
    ("POST", "/api/repos/create", create),
    ("GET", f"/api/models/{_REPO}", info),
    ("GET", f"/api/models/{_REPO}/revision/{_REVISION}", info),
    ("POST", f"/api/models/{_REPO}/preupload/{_REVISION}", preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REVISION}", commit),
    ("POST", f"/{_REPO}[.]git/info/lfs/objects/batch", batch),
    ("PUT", "/lfs/objects/(?P<name>[0-9a-f]{64})", put),
    ("POST", "/lfs/ok", verify),
    ("HEAD GET", f"/{_REPO}/resolve/{_REVISION}/(?P<name>.+)", resolve),
]


class _Server(ThreadingHTTPServer):
    """Threads that end, and connections that close, before the test does."""

    daemon_threads = False  # they are joined

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.open: set[socket.socket] = set()

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
