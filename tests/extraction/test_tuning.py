"""What our programs ask of the C libraries beneath torch."""

from __future__ import annotations

import os

import pytest

from mcspex_cli.extraction.tuning import share_cores


def test_threads_sleep_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "2000"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")]
)
def test_what_a_user_says_about_threads_stays(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(os, "environ", {name: value})
    share_cores()
    assert os.environ == {name: value}
