"""What lies on this disk, and the way to the Hub: caches, models, temporary files."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from functools import partial
from pathlib import Path

from mcspex_cli.diagnosis.findings import FAILED, OK, WARNING, Check, Finding, in_words, told
from mcspex_cli.errors import CheckpointError, HubError

_HUB_S = 3.0
"""Seconds for each step to the Hub."""

_STILL = "Models that are here still work."
_AGAIN = "Install mcspex again."

_ROOM = 200e6
"""Bytes that should be free."""


def check_cache() -> Finding:
    """Where downloaded models go: whether it can be written, what is there, what is free."""
    from mcspex_cli.checkpoint import hub
    from mcspex_cli.checkpoint.checkpoint import available

    place = hub.location()
    try:
        free = _check_writable(place)
    except OSError as error:
        detail = f"{place} cannot be written ({error.strerror}): no model can be downloaded"
        return Finding("model cache", WARNING, detail, "Let HF_HOME name a folder that can be.")
    found, damaged = available()
    ours = [info for info in found if info.revision]
    size = sum(info.weight_bytes for info in ours)
    held = f"{len(ours)} downloaded, {size / 1e6:.1f} MB"
    detail = f"{place}: {held}; {free / 1e9:.1f} GB free"
    if damaged:
        what, remedy = told(damaged[0])
        return Finding("model cache", WARNING, f"{detail}; {what}", remedy)
    if free < _ROOM:
        return Finding("model cache", WARNING, detail, "Free some space, or set HF_HOME.")
    return Finding("model cache", OK, detail)


def check_prepared() -> Finding:
    """Where what is prepared for other runtimes goes."""
    from mcspex_cli.extraction import onnx

    place = onnx.cache()
    try:
        _check_writable(place)
    except OSError as error:
        detail = f"{place} cannot be written ({error.strerror}): onnx has no graphs"
        remedy = "Let MCSPEX_CACHE name a folder that can be."
        return Finding("graph cache", WARNING, detail, remedy)
    return Finding("graph cache", OK, str(place))


def check_temporary() -> Finding:
    """Whether temporary files can be made where they should."""
    asked = os.environ.get("TMPDIR")
    try:
        place = Path(tempfile.gettempdir())
        free = _check_writable(place)
    except OSError as error:
        detail = f"no folder for temporary files ({error.strerror})"
        return Finding(
            "temporary files", FAILED, detail, "Let TMPDIR name one, or free some space."
        )
    detail = f"{place}, {free / 1e9:.1f} GB free"
    if asked and Path(asked).resolve() != place.resolve():
        remedy = "Let TMPDIR name a folder that can be."
        return Finding(
            "temporary files", WARNING, f"{detail}; TMPDIR={asked} cannot be written", remedy
        )
    if free < _ROOM:
        return Finding("temporary files", WARNING, detail, "Free some space, or set TMPDIR.")
    return Finding("temporary files", OK, detail)


def check_hub(*, offline: bool) -> Finding:
    """Whether the Hugging Face Hub answers."""
    from mcspex_cli.checkpoint import hub

    if offline or hub.is_offline():
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        return Finding("Hub", OK, f"not asked: {why}. Models that are here work")
    answers: list[Finding] = []

    def ask() -> None:
        """Note what comes of it."""
        try:
            answers.append(Finding("Hub", OK, f"{hub.reach(_HUB_S)} answers"))
        except HubError as error:
            detail, remedy = told(error)
            advice = f"{_STILL} {remedy.partition(';')[0].rstrip('.')}."
            answers.append(Finding("Hub", WARNING, detail.removeprefix("the Hub: "), advice))
        except Exception as error:  # which in a thread would be a traceback
            answers.append(Finding("Hub", WARNING, in_words(error), _STILL))

    # A thread that may be left behind: no timeout of the client's holds for a name's look-up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_S + 1)
    return answers[0] if answers else Finding("Hub", WARNING, "no answer in time", _STILL)


def check_models() -> list[tuple[str, Check]]:
    """A check of each bundled model's checksum."""
    from mcspex_cli.checkpoint.checkpoint import bundled

    found = bundled().items()
    lacking = partial(Finding, "models", FAILED, "no bundled model is here", _AGAIN)
    return [(name, partial(_check_model, name, folder)) for name, folder in found] or [
        ("models", lacking)
    ]


def _check_model(name: str, folder: Path) -> Finding:
    """Compare a bundled model's weights with the checksum in its config."""
    from mcspex_cli.checkpoint.checkpoint import find_checkpoint, verify

    try:
        verdict = verify(find_checkpoint(folder), offline=True)
    except CheckpointError as error:
        return Finding(name, FAILED, told(error)[0], _AGAIN)
    if verdict.problems:
        return Finding(name, FAILED, verdict.problems[0].partition(". ")[0], _AGAIN)
    size = verdict.info.weight_bytes / 1e6
    return Finding(name, OK, f"bundled, {size:.1f} MB, checksum good")


def _check_writable(folder: Path) -> int:
    """Write a byte where a folder is, or would be made; the bytes free there.

    Raises:
        OSError: it cannot be written.
    """
    there = next(above for above in (folder, *folder.parents) if above.exists())
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(b"0")
        file.flush()
    return shutil.disk_usage(there).free
