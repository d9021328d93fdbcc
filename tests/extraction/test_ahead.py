"""Another thread's work: in order, no further than asked, over when nobody wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from mcspex_cli.extraction.ahead import ahead


def counting(made: list[int], count: int = 50) -> Iterator[int]:
    """Numbers, each noted in `made` when it is made."""
    for number in range(count):
        made.append(number)
        yield number


@pytest.mark.parametrize("depth", [1, 4, 100])
def test_items_come_in_order(depth: int) -> None:
    assert list(ahead(counting([]), depth)) == list(range(50))
    assert list(ahead([], depth)) == []
    assert list(ahead([[], None, ([], None)], depth)) == [[], None, ([], None)]


@pytest.mark.parametrize("depth", [1, 4])
def test_it_runs_ahead_as_far_as_told_and_one_in_hand(depth: int) -> None:
    made: list[int] = []
    with closing(ahead(counting(made), depth)) as items:
        for number in items:
            deadline = time.monotonic() + 5
            while len(made) < min(50, number + 2 + depth) and time.monotonic() < deadline:
                time.sleep(0.001)
            if number == 5:
                time.sleep(0.05)  # long enough to go too far
            assert len(made) == min(50, number + 2 + depth)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_the_maker_raised_comes_after_what_it_made(error: BaseException) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    taken = []
    with pytest.raises(type(error)) as caught:
        for number in ahead(broken(), 4):
            taken.append(number)
    assert caught.value is error
    assert taken == [1, 2]


def test_the_maker_works_in_another_thread() -> None:
    def names() -> Iterator[int]:
        yield threading.get_ident()

    assert list(ahead(names(), 1)) != [threading.get_ident()]


@pytest.mark.parametrize("taken", [1, 3, 50])
def test_closing_it_ends_its_thread(taken: int) -> None:
    before, made = set(threading.enumerate()), []
    items = ahead(counting(made), 2)
    for _ in range(taken):
        next(items)
    items.close()
    assert set(threading.enumerate()) == before
    assert len(made) <= taken + 3


def test_an_error_of_the_taker_ends_its_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), closing(ahead(counting([]), 2)) as items:
        for number in items:
            _ = 1 / (3 - number)
    assert set(threading.enumerate()) == before
