"""What goes wrong between this machine and the Hub, in one line each."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mcspex_cli.errors import HubError, McspexError, OutputError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

    from mcspex_cli.checkpoint.cache import HubName

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_ODD = (ValueError, TypeError, LookupError, AttributeError)
"""What an answer raises that is none of the Hub's."""

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explained(name: HubName, *, writing: bool = False) -> Iterator[None]:
    """Turn whatever the Hub's client raises in the block into one error of ours.

    Raises:
        HubError: the Hub, or the way to it, is the matter.
        OutputError: this disk is.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as client_log

    verbosity = client_log.get_verbosity()
    client_log.set_verbosity(logging.ERROR)  # each failure is told once, and by us
    try:
        yield
    except (OSError, ImportError, HTTPError, *_ODD) as error:
        raise _explain(name, error, writing=writing) from error
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        raise _explain(name, error.__cause__, writing=writing) from error  # an upload's
    finally:
        client_log.set_verbosity(verbosity)


@contextmanager
def broken_off() -> Iterator[list[Exception]]:
    """Catch a connection's end within the block; the list then has it."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    broken: list[Exception] = []
    try:
        yield broken
    except HfHubHTTPError:
        raise  # an answer
    except HTTPError as error:
        broken.append(error)


def _explain(name: HubName, error: BaseException, *, writing: bool) -> McspexError:
    """Our error for one of the client's."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        return _explain(name, error.__cause__, writing=writing)
    if isinstance(error, errors.HfHubHTTPError):
        return HubError(f"{name}: {_refusal(name, error, writing=writing)}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return OutputError(
            f"{name}: the disk is full at {constants.HF_HUB_CACHE}. Free some space, or let "
            "HF_HOME name another disk; what has come is kept."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return OutputError(f"{error.filename}: {error.strerror}. HF_HOME can name another folder.")
    return HubError(f"{name}: {_failure(error, writing=writing)}")


def _failure(error: BaseException, *, writing: bool) -> str:
    """What is wrong when there was no answer, or none that the Hub would give."""
    from huggingface_hub import errors

    reason = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the Hub is not asked. Unset it."
    if isinstance(error, UnicodeError):
        return f"HF_TOKEN or HF_ENDPOINT cannot be sent as it is ({reason}). Set it anew."
    if isinstance(error, ValueError) and writing:
        return f"the Hub does not take it ({reason}). Mend that."
    if isinstance(error, OSError | ImportError) or not isinstance(error, _ODD):
        return (
            f"cannot reach {endpoint()} ({reason}). "
            "Check the connection; models that are here need none."
        )
    return f"{endpoint()} does not answer as the Hub does. Check HF_ENDPOINT, proxy and firewall."


def endpoint() -> str:
    """The Hub's address, without a password."""
    from huggingface_hub import constants

    return re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)


def _refusal(name: HubName, error: HfHubHTTPError, *, writing: bool) -> str:
    """What an answer with an error's status means to the one who asked."""
    from huggingface_hub import errors, get_token

    status = error.response.status_code
    wait = error.response.headers.get("Retry-After", "")
    when = f"in {wait} s" if wait.isdecimal() else "later"
    hidden = isinstance(error, errors.RepositoryNotFoundError)
    meanings = {
        f"gated. Ask for access at {endpoint()}/{name.repo}, then {_LOG_IN}.": isinstance(
            error, errors.GatedRepoError
        ),
        f"no revision {name.revision or 'main'}. Leave it out, or name another.": isinstance(
            error, errors.RevisionNotFoundError
        ),
        "the token that is set is refused (401). Take it back, or set another.": (
            status == 401 and not hidden and get_token() is not None
        ),
        f"no leave to write there ({status}). With a token that may write, {_LOG_IN}.": (
            writing and status in {401, 403, 404}
        ),
        f"no such folder, nor model on the Hub. Check the name; if it is private, {_LOG_IN}.": (
            hidden
        ),
        f"not allowed to read it ({status}). Check your access, and {_LOG_IN}.": (
            status in {401, 403}
        ),
        f"too many requests from here (429). Try again {when}.": status == 429,
        f"the Hub has a problem of its own ({status}). Try again later.": status >= 500,
    }
    other = f"the Hub refused ({status}). Check the name and the revision."
    return next((meaning for meaning, applies in meanings.items() if applies), other)
