"""`mcspex doctor`: what is installed, what is on this disk, and the main job done once.

A check that breaks becomes a failed finding; none stops the rest.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mcspex_cli
from mcspex_cli.cli import console, options
from mcspex_cli.errors import (
    CheckpointError,
    EngineError,
    HubError,
    McspexError,
    install_extra,
    is_lack_of_memory,
    line,
)

if TYPE_CHECKING:
    from importlib.metadata import Distribution

OK, NOTE, WARNING, FAILED = "ok", "note", "warning", "failed"

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
"""The oldest and the newest Python that the tests run on."""

_HUB_TIMEOUT_S = 3.0
"""Seconds for each step to the Hub."""

_ROOM_BYTES = 200e6
"""How much of a disk should be free."""

_MIN_SI_SDR_I_DB = 5.0
"""By how much the self-test has to improve SI-SDR; the default model does twice that."""

_EXTRA = re.compile(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w.-]+)['\"]")
"""A package that an extra asks for, in a distribution's metadata."""

_REPAIR = "Install mcspex again."
_CHOOSE = "Correct MCSPEX_MODEL, or unset it."
_OFFLINE_USE = "Models that are on this disk still work."


@dataclass(frozen=True)
class Finding:
    """One thing that works here, or does not."""

    name: str
    status: str
    """OK, NOTE (something optional is missing), WARNING (the main job works) or FAILED."""
    detail: str
    remedy: str = ""
    """What to do now; empty if nothing is."""


Check = Callable[[], tuple[str, ...]]
"""Returns a finding without its name: status, detail and perhaps a remedy."""


@options.command()
def doctor(offline: bool = options.OFFLINE, as_json: bool = options.JSON) -> None:
    """Say what works on this machine, and how to repair what does not.

    It checks Python, torch, CUDA, sound formats, extras, caches, the Hub and the checksums of the
    bundled models, and extracts a voice from a short recording. The exit code is 0 if extraction
    works, even with warnings, and 1 if it does not.
    """
    began, findings = time.monotonic(), []
    for finding in check_up(offline=offline):
        findings.append(finding)
        if not as_json:
            show(finding)
    warned, failed = (sum(f.status == each for f in findings) for each in (WARNING, FAILED))
    if as_json:
        console.data({"works": not failed, "findings": [asdict(f) for f in findings]}, indent=2)
    else:
        verdict = "mcspex does not work here" if failed else "mcspex works here"
        time_text = console.duration(time.monotonic() - began)
        summary = f"{console.count(warned, 'warning')}, {failed} failed; {time_text}"
        console.text(f"\n{verdict} ({summary})\n")
    click.get_current_context().exit(1 if failed else 0)


def show(finding: Finding) -> None:
    """Print a finding: status, name, detail, and the remedy below."""
    detail, remedy = (line(t, console.LONGEST_MESSAGE) for t in (finding.detail, finding.remedy))
    word = click.style(f"{finding.status:9}", fg=console.COLOURS[finding.status])
    below = f"\n{'':26}{remedy}" if remedy else ""
    console.coloured(f"{word}{line(finding.name):17}{detail}{below}")
    level = {FAILED: logging.ERROR, WARNING: logging.WARNING}.get(finding.status, logging.INFO)
    console.log(level, f"{finding.name}: {finding.detail}. {finding.remedy}".rstrip())


def check_up(*, offline: bool = False) -> Iterator[Finding]:
    """Look at everything that mcspex needs here, or can use; the last finding is the self-test."""
    checks: dict[str, Check] = {
        "mcspex": check_mcspex,
        "Python": check_python,
        "torch": check_torch,
        "CUDA": check_cuda,
        "torchaudio": check_torchaudio,
        "sound files": check_sound_files,
        "FFmpeg": check_ffmpeg,
        "soxr": check_resampler,
        "extras": check_extras,
        "temporary files": check_temporary,
        "model cache": check_cache,
        "graph cache": check_graphs,
        "Hub": partial(check_hub, offline=offline),
        "bundled models": check_bundled,
    }
    if chosen := os.environ.get("MCSPEX_MODEL"):
        checks["MCSPEX_MODEL"] = partial(check_chosen_model, chosen)
    checks["self-test"] = run_self_test
    return (guard(name, check) for name, check in checks.items())


def guard(name: str, check: Check) -> Finding:
    """Run a check; whatever it raises becomes a failed finding. Libraries' warnings are hidden."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Finding(name, *check())
    except McspexError as error:
        return Finding(name, FAILED, *_parts(error))
    except (Exception, SystemExit) as error:  # a broken library may raise anything
        remedy = "Install mcspex again, or report this."
        if is_lack_of_memory(error):
            remedy = "Close other programs, or use a machine with more memory."
        return Finding(name, FAILED, in_words(error), remedy)


def _parts(error: McspexError) -> tuple[str, str]:
    """An error's message as what is wrong, and what to do."""
    detail, _, remedy = str(error).partition(". ")
    return detail.removesuffix("."), remedy


def in_words(error: BaseException) -> str:
    """An exception's kind and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _distribution(package: str = "mcspex") -> Distribution | None:
    """What pip knows of a package; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None


def _import(package: str) -> Any:
    """Import a package; if that fails, an error says how to install it."""
    try:
        return import_module(package)
    except Exception as error:  # missing libraries are OSErrors, others anything
        if is_lack_of_memory(error):
            raise
        raise McspexError(f"does not import ({in_words(error)}). {_reinstall(package)}") from error


def _reinstall(package: str) -> str:
    return f"Install it again: pip install --force-reinstall {package}"


def _room(folder: Path, lost: str, setting: str) -> tuple[str, ...]:
    """Whether a folder, or the one in which it would be made, can be written and has room.

    `lost` says what does not work if it cannot; the environment variable `setting` names another.
    """
    try:
        there = next(above for above in (folder, *folder.parents) if above.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        detail = f"{folder} cannot be written ({error.strerror}): {lost}"
        return WARNING, detail, f"Set {setting} to a folder that can be written."
    detail = f"{folder}, {free / 1e9:.1f} GB free"
    if free < _ROOM_BYTES:
        return WARNING, detail, f"Free some space, or set {setting}."
    return OK, detail


def check_mcspex() -> tuple[str, ...]:
    """Which mcspex this is, and whether pip knows of the same and of the packages that it needs."""
    here = f"{mcspex_cli.__version__} in {Path(mcspex_cli.__file__).parent}"
    installed = _distribution()
    if installed is None:
        return OK, here
    if installed.version != mcspex_cli.__version__:
        detail = f"{here}, but pip knows of {installed.version}"
        return WARNING, detail, "Install mcspex again, so that there is only one."
    absent, unfit = _lacking(installed.requires or ())
    if absent or unfit:
        return FAILED if absent else WARNING, f"{here}; {', '.join(absent + unfit)}", _REPAIR
    return OK, here


def _lacking(requirements: Iterable[str]) -> tuple[list[str], list[str]]:
    """Which of the packages that mcspex needs are not installed, and which have an unfit version.

    Those of extras are not looked at.
    """
    from packaging.requirements import Requirement

    absent, unfit = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        package = _distribution(requirement.name)
        if package is None:
            absent.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(package.version, prereleases=True):
            unfit.append(f"{requirement.name} {package.version} is not {requirement.specifier}")
    return absent, unfit


def check_python() -> tuple[str, ...]:
    """Whether this Python is one that is tested."""
    running = f"{platform.python_version()} ({sys.executable})"
    if _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        return OK, running
    span = " to ".join(f"{major}.{minor}" for major, minor in (_OLDEST_PYTHON, _NEWEST_PYTHON))
    return WARNING, f"{running} is untested", f"Use Python {span}."


def check_torch() -> tuple[str, ...]:
    """Whether torch is installed, and how it computes on this CPU."""
    torch = _import("torch")
    from mcspex_cli.extraction.runtime import choose_precision, cores

    precision = choose_precision("auto", torch.device("cpu"))
    used = f"{torch.get_num_threads()} of {cores()} cores"
    return OK, f"{torch.__version__}, {precision} on this CPU, {used}"


def check_cuda() -> tuple[str, ...]:
    """Whether torch computes on each GPU; if it sees none, why."""
    torch = _import("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        for number, name in enumerate(names):
            try:  # a torch that sees a GPU may have no code for it
                square = torch.ones(8, 8, device=f"cuda:{number}")
                (square @ square).cpu()
            except RuntimeError as error:
                remedy = "Install a torch that is built for it; until then, use --device cpu."
                return FAILED, f"{name} does not compute ({in_words(error)})", remedy
        return OK, ", ".join(names)
    if not shutil.which("nvidia-smi") and not Path("/proc/driver/nvidia/version").exists():
        return OK, "not used: there is no NVIDIA driver"
    if not torch.version.cuda and not torch.version.hip:
        detail = "not used: this torch is built for CPUs, but there is an NVIDIA driver"
        return WARNING, detail, "Install torch for CUDA: https://pytorch.org/get-started/locally"
    detail = f"there is a driver, but no GPU for torch's CUDA {torch.version.cuda}"
    remedy = "Update the driver; check that nvidia-smi and CUDA_VISIBLE_DEVICES show a GPU."
    return WARNING, detail, remedy


def check_torchaudio() -> tuple[str, ...]:
    """Whether torchaudio imports, which only training uses."""
    try:
        return OK, str(import_module("torchaudio").__version__)
    except Exception as error:  # it loads torch's libraries, and may not find them
        without = "Training changes the speed of speech in a simpler way"
        remedy = "If you train, install the build that fits your torch."
        return NOTE, f"does not import ({in_words(error)}). {without}", remedy


def check_sound_files() -> tuple[str, ...]:
    """Whether libsndfile knows each output format."""
    soundfile = _import("soundfile")
    from mcspex_cli.audio import FORMATS

    unknown = [
        f"{form.container} of {subtype}"
        for form in FORMATS.values()
        for subtype in form.subtypes
        if not soundfile.check_format(form.container, subtype)
    ]
    if unknown:
        return FAILED, f"libsndfile cannot write {', '.join(unknown)}", _reinstall("soundfile")
    version = soundfile.__libsndfile_version__
    return OK, f"libsndfile {version} reads and writes {', '.join(FORMATS)}"


def check_ffmpeg() -> tuple[str, ...]:
    """Whether PyAV brings an FFmpeg that decodes what videos and telephones have."""
    av = _import("av")
    absent = {"aac", "mp3", "opus", "vorbis", "amrnb", "wmav2"} - av.codecs_available
    if absent:
        detail = f"PyAV {av.__version__} does not decode {', '.join(sorted(absent))}"
        return WARNING, detail, _reinstall("av")
    return OK, f"in PyAV {av.__version__}: videos, M4A, MP3 and more are read"


def check_resampler() -> tuple[str, ...]:
    """Whether soxr imports, which changes sample rates."""
    return OK, str(_import("soxr").__version__)


def check_extras() -> tuple[str, ...]:
    """Which of the extras meant for users are installed, going by the package's own metadata."""
    extras: dict[str, list[str]] = {}
    installed = _distribution()
    for requirement in (installed.requires if installed else None) or ():
        match = _EXTRA.match(requirement)
        if match and match[2] != "test":
            extras.setdefault(match[2], []).append(match[1])
    if not extras:
        return OK, "unknown: pip has no list of them"
    absent = [name for name, packages in extras.items() if not all(map(_distribution, packages))]
    detail = f"{', '.join(name for name in extras if name not in absent) or 'none'} installed"
    if not absent:
        return OK, detail
    remedy = f"If you want them: {install_extra(','.join(absent))}"
    return OK, f"{detail}; not installed: {', '.join(absent)}", remedy


def check_temporary() -> tuple[str, ...]:
    """Whether temporary files can be made, and have room."""
    lost = "no temporary files can be made"
    try:
        return _room(Path(tempfile.gettempdir()), lost, "TMPDIR")
    except FileNotFoundError as error:
        return FAILED, f"{lost} ({error.strerror})", "Set TMPDIR to a folder that can be written."


def check_cache() -> tuple[str, ...]:
    """Where downloaded models go: whether it can be written, what is in it, what is free."""
    from mcspex_cli.checkpoint import checkpoint, hub

    status, detail, *remedy = _room(hub.location(), "no model can be downloaded", "HF_HOME")
    if status != OK:
        return status, detail, *remedy
    models, damaged = checkpoint.available()
    sizes = [info.weight_bytes for info in models if info.revision]
    detail += f"; {len(sizes)} downloaded, {sum(sizes) / 1e6:.1f} MB"
    if damaged:
        problem, *remedy = _parts(damaged[0])
        return WARNING, f"{detail}; {problem}", *remedy
    return OK, detail


def check_graphs() -> tuple[str, ...]:
    """Where graphs for ONNX Runtime go."""
    from mcspex_cli.extraction import onnx

    try:
        folder = onnx.cache()
    except EngineError as error:
        return WARNING, *_parts(error)
    return _room(folder, "ONNX graphs cannot be kept", "MCSPEX_CACHE")


def check_hub(*, offline: bool) -> tuple[str, ...]:
    """Whether the Hugging Face Hub answers."""
    from mcspex_cli.checkpoint import hub

    if offline or hub.client_settings().HF_HUB_OFFLINE:
        reason = "--offline" if offline else "HF_HUB_OFFLINE is set"
        return OK, f"not asked: {reason}. Models on this disk work"
    answers: list[tuple[str, ...]] = []

    def ask() -> None:
        try:
            answers.append((OK, f"{hub.reach(_HUB_TIMEOUT_S)} answers"))
        except McspexError as error:
            detail, remedy = _parts(error)
            advice = f"{_OFFLINE_USE} {re.split('[.;]', remedy)[0]}."
            answers.append((WARNING, detail.removeprefix("the Hub: "), advice))

    # A thread that may be left behind: no timeout of the client's holds for a name's look-up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_TIMEOUT_S + 1)
    return answers[0] if answers else (WARNING, "no answer in time", _OFFLINE_USE)


def check_bundled() -> tuple[str, ...]:
    """Compare each bundled model's weights with the checksum in its config."""
    from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL, bundled, find_checkpoint, verify

    if DEFAULT_MODEL not in bundled():
        return FAILED, f"{DEFAULT_MODEL} is not installed", _REPAIR
    size = 0
    for folder in bundled().values():
        try:
            info = find_checkpoint(folder)
            problem = verify(info)
        except CheckpointError as error:
            problem = str(error)
        if problem:
            return FAILED, problem.partition(". ")[0], _REPAIR
        size += info.weight_bytes
    return OK, f"{', '.join(bundled())}, {size / 1e6:.1f} MB, checksums good"


def check_chosen_model(name: str) -> tuple[str, ...]:
    """Whether the model that MCSPEX_MODEL names works, which commands use without --model."""
    from mcspex_cli.checkpoint.checkpoint import find_checkpoint, verify

    try:
        info = find_checkpoint(name, offline=True)
        if problem := verify(info):
            return FAILED, f"{info.label}: {problem.partition('. ')[0]}", _CHOOSE
        return OK, f"{info.label} is used without --model"
    except HubError:
        return NOTE, f"{name} will be downloaded", f"Do it now: mcspex models pull {name}"
    except CheckpointError as error:
        return FAILED, _parts(error)[0], _CHOOSE


def run_self_test() -> tuple[str, ...]:
    """Extract a voice from a short recording, as `mcspex extract` does, and measure the result."""
    from mcspex_cli import Extractor, audio, si_sdr

    began, folder = time.monotonic(), options.examples()
    if not folder.is_dir():
        return FAILED, "its recordings are missing", _REPAIR
    mixture, truth = folder / "mixture.flac", folder / "truth.flac"
    try:
        extractor = Extractor.load()
    except CheckpointError as error:
        return FAILED, _parts(error)[0], _REPAIR
    with tempfile.TemporaryDirectory(prefix="mcspex-doctor-") as scratch:
        estimate = Path(scratch) / "estimate.wav"
        voice = extractor.enroll(folder / "reference.flac")
        result = extractor.extract_file(mixture, voice, estimate)
        rate_hz = audio.probe(truth).sample_rate_hz
        target = audio.read(truth, rate_hz)
        before_db, after_db = (
            si_sdr(audio.read(path, rate_hz), target) for path in (mixture, estimate)
        )
    runtime = f"{result.runtime}, {result.precision} on {result.device}"
    detail = f"SI-SDR {before_db:.1f} dB before, {after_db:.1f} dB after ({runtime})"
    if not after_db - before_db >= _MIN_SI_SDR_I_DB:
        remedy = "Try --precision float32 and --device cpu with extract; install mcspex again."
        return FAILED, f"the voice was not extracted: {detail}", remedy
    seconds, elapsed_s = len(target) / rate_hz, time.monotonic() - began
    return OK, f"{detail}, {seconds:.1f} s extracted in {elapsed_s:.1f} s"
