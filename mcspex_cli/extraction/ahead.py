"""Work done ahead of its need, in another thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

_PATIENCE_S = 0.05
"""How often a thread that cannot go on looks whether it is still wanted."""


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Give `items`, made by a thread that is up to `depth` of them ahead.

    What is raised in making an item is raised here. Closing this ends the thread.
    """
    queue: Queue[tuple[list[T], BaseException | None]] = Queue(depth)
    unwanted = Event()

    def put(item: list[T], error: BaseException | None) -> None:
        """Wait for room, as long as somebody wants the item."""
        while not unwanted.is_set():
            try:
                queue.put((item, error), timeout=_PATIENCE_S)
            except Full:
                continue
            return

    def make() -> None:
        """Make every item; an empty list says that there are no more."""
        try:
            for item in items:
                put([item], None)
                if unwanted.is_set():
                    break
            put([], None)
        except BaseException as error:
            put([], error)

    thread = Thread(target=make, daemon=True)
    thread.start()
    try:
        while (made := queue.get()) != ([], None):
            if made[1] is not None:
                raise made[1]
            yield made[0][0]
    finally:
        unwanted.set()
        thread.join()
