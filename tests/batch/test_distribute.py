"""Work is distributed to processes that die: nothing is lost, only what kills them fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Event

import pytest

from mcspex_cli.batch.journal import Journal, JournalWriter
from mcspex_cli.batch.manifest import Task
from mcspex_cli.batch.plan import BatchPlan, BatchSettings
from mcspex_cli.batch.workers import DEATHS_PER_FILE, Outcome, distribute
from mcspex_cli.batch.worklist import Unit, WorkList
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import EngineError, McspexError
from mcspex_cli.extraction.runtime import EngineSettings

COUNT = 20


class Mortal:
    """Takes the place of a process: it does a task by writing its name, or dies of it."""

    deaths: tuple[type[Exception], ...] = (BrokenProcessPool,)

    def __init__(self, work: WorkList, deadly: Counter[str]) -> None:
        self._work, self._deadly = work, deadly
        self._writer = JournalWriter(work.plan.folder)

    def start(self) -> Future[list[Outcome] | McspexError]:
        return self.submit([], set())

    def submit(self, parcel: Sequence[Unit], done: set[str]) -> Future[list[Outcome] | McspexError]:
        future, outcomes = Future[list[Outcome] | McspexError](), list[Outcome]()
        for task in (task for unit in parcel for task in unit if task.id not in done):
            if self._deadly[task.id] > 0:
                self._deadly[task.id] -= 1
                future.set_exception(BrokenProcessPool("it was killed."))
                return future
            task.outputs(self._work.plan.folder)["audio"].write_text(task.id)
            self._writer.add_result(task, self._work.key, {"seconds": 1.0})
            outcomes.append(Outcome(task, {"seconds": 1.0}))
        future.set_result(outcomes)
        return future

    def stop(self) -> None: ...

    def end(self, *, now: bool) -> None: ...


def distributed(folder: Path, model: Path, deadly: Counter[str], size: int) -> list[Outcome]:
    (folder / "audio").mkdir()
    tasks = [Task(f"{n}", f"{n}.wav", output=f"{n}.wav", length_s=1.0) for n in range(COUNT)]
    engine = EngineSettings(batch=size)
    settings = BatchSettings(find_checkpoint(model), engine_settings=engine, devices=("cpu",))
    work = WorkList(BatchPlan(folder, tasks), Journal(folder), settings)
    return list(distribute(work, [Mortal(work, deadly) for _ in range(2)], Event()))


@pytest.mark.parametrize(
    ("size", "deadly", "failed"),
    [
        (1, {}, set()),
        (1, {"0": DEATHS_PER_FILE - 1, "7": DEATHS_PER_FILE - 1, "19": 1}, set()),
        (1, {"0": 1, "7": 99, "19": 99}, {"7", "19"}),
        (3, {"4": DEATHS_PER_FILE}, set()),  # the three of its unit are then tried one by one
        (3, {"4": 99, "18": 1}, {"4"}),
        (99, {"0": 99, "1": 99}, {"0", "1"}),
    ],
)
def test_only_what_members_die_of_again_and_again_fails(
    tmp_path: Path, tiny_folder: Path, size: int, deadly: dict[str, int], failed: set[str]
) -> None:
    outcomes = distributed(tmp_path, tiny_folder, Counter(deadly), size)
    assert Counter(outcome.task.id for outcome in outcomes) == Counter(map(str, range(COUNT)))
    reasons = {outcome.task.id: outcome.reason for outcome in outcomes if outcome.result is None}
    assert reasons.keys() == failed == Journal(tmp_path).failures.keys()
    for id_, reason in reasons.items():
        assert reason.startswith(
            f"{id_}.wav: {DEATHS_PER_FILE + (size > 1)} processes that worked on it were killed, "
        )


def test_members_that_die_of_everything_end_the_batch(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(EngineError, match=r"^12 processes in a row died before they finished a f"):
        distributed(tmp_path, tiny_folder, Counter(dict.fromkeys(map(str, range(COUNT)), 99)), 1)
