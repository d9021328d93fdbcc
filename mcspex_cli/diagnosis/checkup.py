"""All checks, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from mcspex_cli.diagnosis import selftest, software, storage
from mcspex_cli.diagnosis.findings import FAILED, OK, Check, Finding, examine, guarded, in_words


def check_up(*, offline: bool = False) -> Iterator[Finding]:
    """Look at everything that mcspex needs here, or can use; the last finding is the self-test.

    Args:
        offline: do not ask the Hub.

    Yields:
        A finding as soon as it is made; a check that breaks is a failed one.
    """
    checks: list[tuple[str, Check]] = [
        ("mcspex", software.check_mcspex),
        ("Python", software.check_python),
        ("torch", software.check_torch),
        ("CUDA", software.check_cuda),
        ("torchaudio", software.check_torchaudio),
        ("sound files", software.check_formats),
        ("soxr", software.check_resampler),
        ("extras", software.check_extras),
        ("temporary files", storage.check_temporary),
        ("model cache", storage.check_cache),
        ("graph cache", storage.check_prepared),
        ("Hub", partial(storage.check_hub, offline=offline)),
    ]
    yield from examine(checks)
    try:
        yield from examine(storage.check_models())
    except OSError as error:
        yield Finding("models", FAILED, in_words(error), "Install mcspex again.")
    yield guarded("self-test", selftest.run)


def works(findings: Iterable[Finding]) -> bool:
    """Whether the main job works here: the self-test passed, and nothing failed."""
    made = list(findings)
    passed = any(finding.name == "self-test" and finding.status == OK for finding in made)
    return passed and all(finding.status != FAILED for finding in made)
