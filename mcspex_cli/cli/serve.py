"""`mcspex serve`: the page in a browser."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model
from mcspex_cli.errors import McspexError

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Address:
    """Where the server listens, and how its page is reached."""

    listener: socket.socket
    token: str
    """A secret that the page's address has; none where only this machine is listened to."""

    @property
    def url(self) -> str:
        """The page's address."""
        host, port = self.listener.getsockname()[:2]
        if host in ("0.0.0.0", "::"):
            host = _own_address()
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/" + (f"{self.token}/" if self.token else "")


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port of the page; 0 takes any that is free.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. With another one than this machine's own, others can use it too.",
)
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
@click.option(
    "--max-upload",
    "max_bytes",
    callback=lambda _, __, text: _size(text),
    metavar="SIZE",
    default="2G",
    show_default=True,
    help="How much a page may send in all.",
)
@options.model
def serve(
    port: int, host: str, no_browser: bool, max_bytes: int, model: str | None, offline: bool
) -> None:
    """Extract voices in a browser, on this machine.

    The page shows the recording, in which you mark where the person speaks alone. Nothing leaves
    this machine, and all files are deleted when the page is closed or the command ends.

    \b
    mcspex serve
    mcspex serve --host 0.0.0.0 --port 8000 --no-browser
    """  # noqa: D301 (click needs the character itself)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise McspexError(f"serve needs {error.name}. Run: pip install 'mcspex[serve]'") from error
    from mcspex_cli.extraction.runtime import keep_memory

    address = _listen(host, port)
    models = _models(find_model(model, offline=offline))
    keep_memory()
    _serve(address, models, max_bytes, opened=not no_browser and _has_display())


def _size(text: str) -> int:
    """A number of bytes, such as 500M or 2G."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([KMGT]?)B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not size:
        raise click.BadParameter(f"{text!r} is no size. Write it like 500M or 2G.")
    return size


def _models(first: CheckpointInfo) -> dict[str, CheckpointInfo]:
    """What the page offers: one model first, then the others that are on this disk."""
    from mcspex_cli.checkpoint.checkpoint import available

    return {info.label: info for info in (first, *available()[0])}


def _listen(host: str, port: int) -> Address:
    """Take the port.

    Raises:
        McspexError: it is taken or not permitted, or the host is not an address of this machine.
    """
    from mcspex_cli.serve.server import is_this_machine

    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(place[:2], family=family)
    except socket.gaierror as error:
        raise McspexError(f"--host {host}: {error.strerror}. Give 127.0.0.1 or 0.0.0.0.") from error
    except UnicodeError as error:
        raise McspexError(f"--host {host}: is no address. Give 127.0.0.1 or 0.0.0.0.") from error
    except OSError as error:
        raise McspexError(
            f"cannot listen on port {port} of {host}: {os.strerror(error.errno or 0)}. "
            "Choose another port, as in --port 7861, or end the program that uses it."
        ) from error
    token = "" if is_this_machine(str(place[0])) else secrets.token_urlsafe(16)
    return Address(listener, token)


def _serve(
    address: Address, models: dict[str, CheckpointInfo], max_bytes: int, *, opened: bool
) -> None:
    """Answer until Ctrl-C, then delete all files."""
    import uvicorn

    from mcspex_cli.serve.extractions import Extractions
    from mcspex_cli.serve.server import make_app
    from mcspex_cli.serve.sessions import Sessions

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if opened:
                import webbrowser

                webbrowser.open(address.url)

    sessions = Sessions(Extractions(models), max_bytes)
    try:
        sessions.extractions.warm_up()
        app = make_app(sessions, _example(), address.token)
        if address.token:
            console.warn(
                "other computers can reach this page, and what they send is not encrypted. "
                "Give its address only to people whom you trust."
            )
        console.say(f"{address.url}  (Ctrl-C ends it and deletes all its files)")
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        Server(config).run(sockets=[address.listener])
    except KeyboardInterrupt:
        pass  # how it is meant to end
    finally:
        sessions.close_all()
    console.say("ended; all files of the page are deleted.")


def _example() -> Path:
    """The recording to try the page with: of the installed package, or of a checkout."""
    package = Path(__file__).parents[1]
    places = (package / "examples", package.parent / "examples")
    return next(place for place in places if place.is_dir()) / "interview.flac"


def _has_display() -> bool:
    """Whether a browser has a window: one in the terminal cannot show the page."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def _own_address() -> str:
    """This machine's address for others; the one that it would send from, without sending."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
