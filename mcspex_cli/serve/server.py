"""The server of the page: who may use it, and what it answers.

Each open page has a session: its files, and what is done with them.
The name of a session is a secret of its page, so that nobody sees the files of another. Paths from
a page are looked up in tables and never opened. What comes from another site's page is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from urllib.parse import quote, urlsplit

import jinja2
import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcspex_cli import __version__
from mcspex_cli.errors import McspexError, OutputError
from mcspex_cli.extraction.job import ABSENT_ACCEPTED
from mcspex_cli.extraction.levels import LEVELS
from mcspex_cli.serve.extractions import ExtractionRequest, Recording, Upload, draw_part, read_peaks
from mcspex_cli.serve.sessions import OFFERED_FORMATS, Session, Sessions

_STATIC = {
    "page.css": "text/css",
    **dict.fromkeys(("page.js", "tracks.js", "wavesurfer.js", "regions.js"), "text/javascript"),
}
"""The files that every page may have, and what they are."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page may use what this server gives and nothing else."""

REFUSAL = "Refused: open the page at the address that mcspex serve printed."
NOTHING_HERE = "There is nothing here. Open the whole address that mcspex serve printed."

_MOST_SENT = 2**22
"""Bytes of a sound that are sent at once: a player holds no connection open while it does not
play, of which browsers have six."""

_BLOCK_BYTES = 2**18
"""Read at a time from a file that is sent."""

_LONGEST_REQUEST = 2**16
_BYTES = "application/octet-stream"

_STEP_S = 0.1
"""How often more peaks of a recording are looked for."""

_SWEEP_S = 10.0
"""How often sessions are looked at whose page may be gone."""


def guard(app: ASGIApp, *, only_local: bool) -> ASGIApp:
    """Refuse what `is_foreign`, and add `_HEADERS` to every answer.

    With `only_local` the server listens to this machine only. Then the host that a browser thinks
    it talks to must be this machine: another name that leads here is a trick (DNS rebinding).
    Elsewhere the secret in the address does the same.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if is_foreign(Request(scope).headers, only_local=only_local):
            refusal = PlainTextResponse(REFUSAL, 403, _HEADERS)
            return await refusal(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return await app(scope, receive, send_with_headers)

    return answer


def is_foreign(headers: Mapping[str, str], *, only_local: bool) -> bool:
    """Whether a page of another site asks, or one that reached this server by a trick."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        if only_local and not is_this_machine(urlsplit(f"//{host}").hostname or ""):
            return True
        if origin is not None and urlsplit(origin).netloc != host:
            return True
    except ValueError:  # not an address
        return True
    is_link = headers.get("sec-fetch-mode") == "navigate"
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link


def is_this_machine(host: str) -> bool:
    """Whether a host name or address is this machine's own for itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Endpoint = Callable[[Session, Request], Awaitable[Response | None] | Response | None]
"""Answers a request of a page, in a thread unless it is a coroutine. If it returns nothing, the
answer is the state of the session."""


class Pages:
    """Answers to the requests of pages; see `make_app`."""

    def __init__(self, sessions: Sessions, example: Path, *, only_local: bool) -> None:
        self._sessions, self._example, self._only_local = sessions, example, only_local
        self._folder = resources.files("mcspex_cli.serve") / "static"
        self._page = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined
        ).from_string((self._folder / "page.html").read_text("utf-8"))

    def routes(self) -> list[Route]:
        """What is answered, and by which function."""
        of_sessions: list[tuple[str, str, Endpoint]] = [
            ("GET", "/", self._state),
            ("GET", "/space", self._check_space),
            ("PUT", "/recording", self._receive_recording),
            ("POST", "/example", self._use_example),
            ("POST", "/recording/part", self._choose_part),
            ("PUT", "/references", self._receive_reference),
            ("DELETE", "/references/{key}", self._remove_reference),
            ("POST", "/extraction", self._extract),
            ("DELETE", "/extraction", self._cancel),
            ("GET", "/sounds/{name}", self._sound),
            ("GET", "/peaks/{name}", self._peaks),
            ("GET", "/pictures/{name}", self._picture),
            ("GET", "/saved/{name}", self._save),
            ("POST", "/close", self._close),
        ]
        return [
            Route("/", self._show, methods=["GET"]),
            Route("/static/{name}", self._static, methods=["GET"]),
            Route("/sessions", self._open, methods=["POST"]),
            *(
                Route("/sessions/{id}" + path, self._of_session(answer), methods=[method])
                for method, path, answer in of_sessions
            ),
        ]

    def _of_session(self, answer: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that gets its session, and whose errors are told in one line."""

        async def endpoint(request: Request) -> Response:
            session = self._sessions.pages.get(request.path_params["id"])
            if session is None:
                return _refuse(
                    "This page was closed, could not be reached for too long, or mcspex serve was "
                    "started again. Load the page again.",
                    404,
                )
            try:
                if inspect.iscoroutinefunction(answer):
                    response = await answer(session, request)
                else:
                    response = await run_in_threadpool(answer, session, request)
                return response or JSONResponse(session.to_dict())
            except ClientDisconnect:
                return Response(status_code=400)
            except McspexError as error:
                return _refuse(session.reword(str(error)), 400)
            except OSError:  # closed, or begun anew, while it was answered
                return _refuse("There is no such file any more.", 404)

        return endpoint

    async def _show(self, _: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        page = self._page.render(
            nonce=nonce,
            local=self._only_local,
            version=__version__,
            models=list(self._sessions.extractions.models),
            levels=[row.example or (row.name, row.help) for row in LEVELS.values()],
            formats=[suffix.lstrip(".") for suffix in OFFERED_FORMATS],
            absent=ABSENT_ACCEPTED.values(),
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY.format(nonce=nonce)})

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            return _refuse("There is no such file.", 404)
        return Response((self._folder / name).read_bytes(), media_type=_STATIC[name])

    async def _open(self, _: Request) -> Response:
        try:
            return JSONResponse({"id": self._sessions.open().id})
        except OutputError as error:
            return _refuse(f"{error} Then start mcspex serve again.", 500)
        except McspexError as error:
            return _refuse(str(error), 503)

    async def _state(self, session: Session, request: Request) -> None:
        """Answer with the state."""

    def _check_space(self, session: Session, request: Request) -> None:
        size = int(_number(request.query_params, "size"))
        session.check_space(request.query_params.get("name", ""), size)

    async def _receive_recording(self, session: Session, request: Request) -> None:
        await run_in_threadpool(session.receive_recording, await _upload(session, request))

    async def _use_example(self, session: Session, _: Request) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield self._example.read_bytes()

        upload = await session.receive(self._example.name, 0, body())
        await run_in_threadpool(session.receive_recording, upload)

    async def _receive_reference(self, session: Session, request: Request) -> None:
        await run_in_threadpool(session.receive_reference, await _upload(session, request))

    async def _extract(self, session: Session, request: Request) -> Response | None:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_REQUEST:
                return _refuse("This request is too long. Mark fewer parts.", 413)
        try:
            options = msgspec.json.decode(body, type=ExtractionRequest)
        except msgspec.MsgspecError as error:
            return _refuse(f"This request means nothing ({error}).", 400)
        await run_in_threadpool(session.extract, options)
        return None

    def _choose_part(self, session: Session, request: Request) -> None:
        if session.recording is None:
            raise FileNotFoundError
        query, upload = request.query_params, session.recording.upload
        session.receive_recording(upload, query.get("channel", "mix"), query.get("track", ""))

    def _remove_reference(self, session: Session, request: Request) -> None:
        session.remove_reference(request.path_params["key"])

    def _cancel(self, session: Session, _: Request) -> None:
        if extraction := session.extraction:
            extraction.cancel()

    def _sound(self, session: Session, request: Request) -> Response:
        path = session.sound(request.path_params["name"])
        return send_file(path, {"Content-Type": "audio/wav"}, request.headers.get("range", ""))

    def _peaks(self, session: Session, request: Request) -> Response:
        name = request.path_params["name"]
        if name == "mixture" and session.recording:
            return StreamingResponse(_stream_peaks(session.recording), media_type=_BYTES)
        return Response(read_peaks(session.sound(name)), media_type=_BYTES)

    def _picture(self, session: Session, request: Request) -> Response:
        path, mixture = session.sound(request.path_params["name"]), session.sound("mixture")
        start_s, end_s = (_number(request.query_params, name) for name in ("from", "to"))
        return Response(draw_part(path, mixture, start_s, end_s), media_type="image/png")

    def _save(self, session: Session, request: Request) -> Response:
        path, name = session.export(request.path_params["name"])
        disposition = f"attachment; filename*=utf-8''{quote(name)}"
        return send_file(path, {"Content-Type": _BYTES, "Content-Disposition": disposition})

    def _close(self, session: Session, _: Request) -> Response:
        self._sessions.close(session)
        return Response(status_code=204)


def make_app(sessions: Sessions, example: Path, token: str = "") -> Starlette:
    """The server as an application.

    The `example` is a recording to try the page with. The `token` is a secret that all addresses
    begin with; there is none where only this machine is listened to.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_S)
                await run_in_threadpool(sessions.close_silent)

        task = asyncio.create_task(sweep())
        yield
        task.cancel()

    only_local = not token
    routes: list[BaseRoute] = [*Pages(sessions, example, only_local=only_local).routes()]
    if token:
        routes = [Mount(f"/{token}", routes=routes)]
    return Starlette(
        routes=routes,
        middleware=[Middleware(guard, only_local=only_local)],
        exception_handlers={404: lambda *_: PlainTextResponse(NOTHING_HERE, 404)},
        lifespan=lifespan,
    )


async def _upload(session: Session, request: Request) -> Upload:
    """Store what a request brings, under the name that its address has as data."""
    size = request.headers.get("content-length", "0")
    name = request.query_params.get("name", "")
    return await session.receive(name, int(size) if size.isdecimal() else 0, request.stream())


def send_file(path: Path, headers: dict[str, str], part: str = "") -> Response:
    """Answer with a file that may be deleted while it is sent, since it is opened at once.

    With `part`, a request's header "Range", one part of `_MOST_SENT` bytes at most is sent.

    Raises:
        OSError: the file is not there any more.
    """
    file = path.open("rb")
    size = os.fstat(file.fileno()).st_size
    status, first, end = 200, 0, size
    headers = {**headers, "Accept-Ranges": "bytes"}
    if match := re.fullmatch(r"bytes=(\d{1,15})-(\d{0,15})", part):
        first = int(match[1])
        end = min(int(match[2] or size) + 1, first + _MOST_SENT, size)
        if first >= end:
            file.close()
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        status, headers["Content-Range"] = 206, f"bytes {first}-{end - 1}/{size}"
    file.seek(first)

    def blocks() -> Iterator[bytes]:
        with file:
            for start in range(first, end, _BLOCK_BYTES):
                yield file.read(min(_BLOCK_BYTES, end - start))

    return StreamingResponse(blocks(), status, {**headers, "Content-Length": str(end - first)})


async def _stream_peaks(recording: Recording) -> AsyncIterator[bytes]:
    """The peaks of a recording, also those that are not there yet."""
    sent = 0
    while True:
        is_last = recording.is_decoded
        piece = bytes(recording.peaks[sent:])
        if piece:
            yield piece
        sent += len(piece)
        if is_last:
            return
        await asyncio.sleep(_STEP_S)


def _number(query: Mapping[str, str], name: str) -> float:
    """A time or size in a query; 0 if it is not a number."""
    try:
        return min(max(0.0, float(query.get(name, ""))), 1e15)
    except ValueError:
        return 0.0


def _refuse(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status)
