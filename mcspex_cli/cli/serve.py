"""`mcspex serve`: the page in a browser."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import sys
from typing import NamedTuple

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import flag, option
from mcspex_cli.errors import McspexError, install_extra

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _size(_: click.Context, __: click.Parameter, text: str) -> int:
    """A number of bytes, such as 500M or 2G."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([KMGT]?)B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not size:
        raise click.BadParameter(f"{text!r} is not a size. Write it like 500M or 2G.")
    return size


@options.command()
def serve(
    port: int = option(
        None,
        "Port of the page; 0 takes any that is free.",
        type=click.IntRange(0, 65535),
        default=7860,
    ),
    host: str = option(
        None,
        "Address to listen on. With 0.0.0.0, other computers can use the page, too.",
        default="127.0.0.1",
        type=options.TEXT,
    ),
    no_browser: bool = flag("Do not open the page in a browser."),
    max_bytes: int = option(
        "SIZE",
        "How much a page may upload in all.",
        "--max-upload",
        callback=_size,
        default="2G",
    ),
    model: str | None = options.MODEL,
    offline: bool = options.OFFLINE,
) -> None:
    """Extract voices in a browser, on this machine.

    The page shows the recording, in which you mark where the person speaks alone. Nothing leaves
    this machine, and all files are deleted when the page is closed or the command ends.

    \b
    mcspex serve
    mcspex serve --host 0.0.0.0 --port 8000 --no-browser
    """  # noqa: D301 (click needs the character itself)
    try:
        import starlette  # noqa: F401 (the page's server needs it)
        import uvicorn
    except ImportError as error:
        raise McspexError(f"serve needs {error.name}. {install_extra('serve')}") from error
    import webbrowser

    from mcspex_cli.checkpoint.checkpoint import available
    from mcspex_cli.extraction.runtime import keep_memory
    from mcspex_cli.serve.extractions import Extractions
    from mcspex_cli.serve.server import make_app
    from mcspex_cli.serve.sessions import Sessions

    address = listen(host, port)
    first = options.find_model(model, offline=offline)
    models = {info.label: info for info in (first, *available()[0])}
    keep_memory()
    # A browser in the terminal cannot show the page.
    has_display = sys.platform in ("win32", "darwin") or {"DISPLAY", "WAYLAND_DISPLAY"} & {
        *os.environ
    }

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if has_display and not no_browser:
                webbrowser.open(address.url)

        def handle_exit(self, *_: object) -> None:
            """End soon, however often that is asked for: ending by force shows tracebacks.

            So does an upload that is cut off now, which is not a failure.
            """
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            self.should_exit = True

    sessions = Sessions(Extractions(models), max_bytes)
    try:
        sessions.extractions.warm_up()
        if address.token:
            console.warn(
                "other computers can reach this page, and what they send is not encrypted. "
                "Give its address only to people whom you trust."
            )
        console.say(f"{address.url}  (Ctrl-C ends it and deletes all its files)")
        config = uvicorn.Config(
            make_app(sessions, options.examples() / "interview.flac", address.token),
            http="h11",
            ws="none",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            use_colors=False,  # asked for colours, it would fail without a standard output
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        console.on_interrupts(server.handle_exit)  # also before uvicorn answers them
        server.run(sockets=[address.listener])
    except KeyboardInterrupt:
        pass  # how it is meant to end
    finally:
        sessions.close_all()
    console.say("ended; all files of the page are deleted.")


class Address(NamedTuple):
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


def listen(host: str, port: int) -> Address:
    """Take the port.

    Raises:
        McspexError: it is taken or not permitted, or the host is not an address of this machine.
    """
    import secrets

    from mcspex_cli.serve.server import is_this_machine

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With :: also listen on IPv4: the address that is printed for it is one (`_own_address`).
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not an address"
        raise McspexError(f"--host {host}: {reason}. Give 127.0.0.1 or 0.0.0.0.") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise McspexError(
                f"--host {host}: is not an address of this machine. Give 127.0.0.1 or 0.0.0.0."
            ) from error
        raise McspexError(
            f"cannot listen on port {port} of {host}: {os.strerror(error.errno or 0)}. "
            "Choose another port, as in --port 7861, or end the program that uses it."
        ) from error
    token = "" if is_this_machine(str(address[0])) else secrets.token_urlsafe(16)
    return Address(listener, token)


def _own_address() -> str:
    """Where others reach this machine: the address that it would send from. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
