"""What is installed: Python, torch, sound libraries, other programs, extras."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import mcspex_cli
from mcspex_cli.diagnosis.findings import FAILED, OK, WARNING, Finding, Trouble, in_words

_OLDEST, _NEWEST = (3, 10), (3, 13)
"""Versions of Python that the tests run on."""

_NEEDED = ("WAV", "FLAC")
"""Formats without which the main job does not work; others are a loss."""

_ASK = re.compile(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w.-]+)['\"]")
"""A package that an extra asks for, in a distribution's metadata."""

_FOR_DEVELOPERS = "test"


def check_mcspex() -> Finding:
    """Which mcspex this is, and whether what pip knows of is the same."""
    folder = Path(mcspex_cli.__file__).parent
    here = f"{mcspex_cli.__version__} in {folder}"
    installed = _distribution()
    if installed is None or installed.version == mcspex_cli.__version__:
        return Finding("mcspex", OK, here)
    detail = f"{here}, but pip knows of {installed.version}"
    return Finding("mcspex", WARNING, detail, "Install mcspex again, so that there is one.")


def check_python() -> Finding:
    """Whether this Python is one that is tested."""
    running = f"{platform.python_version()} ({sys.executable})"
    if _OLDEST <= sys.version_info[:2] <= _NEWEST:
        return Finding("Python", OK, running)
    span = " to ".join(f"{major}.{minor}" for major, minor in (_OLDEST, _NEWEST))
    return Finding("Python", WARNING, f"{running} is untested", f"Use Python {span}.")


def check_torch() -> Finding:
    """Whether torch is there, and what it makes of this CPU."""
    torch = _imported("torch", "Install it again: pip install --force-reinstall torch")
    from mcspex_cli.extraction.runtime import choose_precision, cores

    precision = choose_precision("auto", torch.device("cpu"))
    used = f"{torch.get_num_threads()} of {cores()} cores"
    return Finding("torch", OK, f"{torch.__version__}, {precision} on this CPU, {used}")


def check_cuda() -> Finding:
    """Whether torch reaches a GPU, really computing on each; if not, why."""
    torch = _imported("torch", "See torch.")
    if torch.cuda.is_available():
        names = []
        for number in range(torch.cuda.device_count()):
            names.append(torch.cuda.get_device_name(number))
            _compute(torch, f"cuda:{number}", names[-1])
        return Finding("CUDA", OK, ", ".join(names))
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if not torch.version.cuda and not torch.version.hip:
        detail = "not used: this torch is built for CPUs"
        if not driver:
            return Finding("CUDA", OK, f"{detail}, and there is no NVIDIA driver")
        remedy = "Install torch for CUDA: https://pytorch.org/get-started/locally"
        return Finding("CUDA", WARNING, f"{detail}, but there is an NVIDIA driver", remedy)
    if not driver:
        return Finding("CUDA", OK, "not used: there is no NVIDIA driver")
    detail = f"a driver is there, but no GPU for torch's CUDA {torch.version.cuda}"
    remedy = "Update the driver; see that nvidia-smi and CUDA_VISIBLE_DEVICES show a GPU."
    return Finding("CUDA", WARNING, detail, remedy)


def _compute(torch: Any, device: str, name: str) -> None:
    """Multiply something on a GPU: a torch that sees it may have no code for it."""
    try:
        square = torch.ones(8, 8, device=device)
        (square @ square).cpu()
    except RuntimeError as error:
        remedy = "Install a torch that is built for it; until then, use --device cpu."
        raise Trouble(f"{name} does not compute ({in_words(error)})", remedy) from error


def check_torchaudio() -> Finding:
    """Whether torchaudio imports, on which nothing here depends."""
    try:
        version = import_module("torchaudio").__version__
    except Exception as error:  # it loads torch's libraries, and may find others
        remedy = "Nothing in mcspex needs it. For others: the build that fits your torch."
        return Finding("torchaudio", WARNING, in_words(error), remedy)
    return Finding("torchaudio", OK, str(version))


def check_formats() -> Finding:
    """Which sound files are read and written, by doing so."""
    _imported("soundfile", "Install it again: pip install --force-reinstall soundfile")
    from mcspex_cli.diagnosis import formats
    from mcspex_cli.errors import AudioError

    troubles = {}
    for name in formats.FORMATS:
        try:
            formats.try_format(name)
        except AudioError as error:
            troubles[name] = str(error)
    good = ", ".join(name for name in formats.FORMATS if name not in troubles)
    detail = f"libsndfile {formats.library()} reads and writes {good or 'nothing'}"
    if not troubles:
        return Finding("sound files", OK, detail)
    status = FAILED if set(_NEEDED) & troubles.keys() else WARNING
    remedy = "Install it again: pip install --force-reinstall soundfile"
    return Finding("sound files", status, f"{detail}, not {', '.join(troubles)}", remedy)


def check_resampler() -> Finding:
    """Whether soxr takes a tone from one rate to another."""
    import numpy as np

    _imported("soxr", "Install it again: pip install --force-reinstall soxr")
    from mcspex_cli import audio

    tone = np.sin(2 * np.pi * 500 * np.arange(4800, dtype=np.float32) / 48_000)[None]
    made = np.concatenate(list(audio.Resampler(48_000, 8000, 1).run([tone])), axis=-1)
    if made.shape != (1, 800) or not 0.6 < made[:, 100:-100].std() < 0.8:
        remedy = "Install it again: pip install --force-reinstall soxr"
        raise Trouble("a resampled tone came out as another sound", remedy)
    return Finding("soxr", OK, metadata.version("soxr"))


def check_extras() -> Finding:
    """Which extras are installed, going by the package's own metadata."""
    absent = {name: lacking(packages) for name, packages in extras().items()}
    if not absent:
        return Finding("extras", OK, "unknown: pip has no list of them")
    here = [name for name, packages in absent.items() if not packages]
    not_here = [name for name, packages in absent.items() if packages]
    detail = f"{', '.join(here) or 'none'} installed"
    if not not_here:
        return Finding("extras", OK, detail)
    remedy = f"If wanted: pip install 'mcspex[{','.join(not_here)}]'"
    return Finding("extras", OK, f"{detail}; not installed: {', '.join(not_here)}", remedy)


def extras() -> dict[str, list[str]]:
    """The extras meant for users, with the packages that each asks for."""
    found: dict[str, list[str]] = {}
    installed = _distribution()
    for line in (installed.requires if installed else None) or ():
        asked = _ASK.match(line)
        if asked and asked[2] != _FOR_DEVELOPERS:
            found.setdefault(asked[2], []).append(asked[1])
    return found


def lacking(packages: list[str]) -> list[str]:
    """Those of some packages that are not installed."""
    absent = []
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            absent.append(package)
    return absent


def _distribution() -> metadata.Distribution | None:
    """What pip knows of mcspex; None where it was not installed."""
    try:
        return metadata.distribution("mcspex")
    except metadata.PackageNotFoundError:
        return None


def _imported(package: str, remedy: str) -> Any:
    """A package's module, or a trouble with its remedy."""
    try:
        return import_module(package)
    except Exception as error:  # missing libraries are OSErrors, others anything
        raise Trouble(f"does not import ({in_words(error)})", remedy) from error
