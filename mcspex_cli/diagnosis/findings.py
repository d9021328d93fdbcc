"""What a check finds, and how one that breaks becomes a finding too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mcspex_cli.errors import McspexError

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True)
class Finding:
    """One thing that works here, or does not."""

    name: str
    status: str
    """OK, WARNING (something lacks, the main job works) or FAILED."""
    detail: str
    remedy: str = ""
    """What to do now; empty if nothing is."""


Check = Callable[[], Finding]


class Trouble(McspexError):  # noqa: N818
    """A check's own bad news: `detail`, and the remedy after it."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail}. {remedy}")
        self.detail, self.remedy = detail, remedy


def examine(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Run named checks one after the other; none that breaks stops the rest."""
    for name, check in checks:
        yield guarded(name, check)


def guarded(name: str, check: Check) -> Finding:
    """Run a check; whatever it raises becomes a failed finding of this name.

    What libraries warn of meanwhile is not shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except McspexError as error:
        return Finding(name, FAILED, *told(error))
    except (Exception, SystemExit) as error:  # a broken library may raise anything
        return Finding(name, FAILED, in_words(error), "Install mcspex again, or report this.")


def told(error: McspexError) -> tuple[str, str]:
    """An error's message as what is the matter, and what to do."""
    detail, _, remedy = str(error).partition(". ")
    return detail.removesuffix("."), remedy


def in_words(error: BaseException) -> str:
    """An exception's kind and the first line of what it says."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
