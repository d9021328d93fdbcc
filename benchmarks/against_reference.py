"""How much quicker mcspex is than SpEx+ as its published code runs it: the same weights, here.

    python -m benchmarks.against_reference
    python -m benchmarks.against_reference --seconds 5 --rounds 20 --threads 1 --json

The reference is tests/checkpoint/published.py: float32, layer by layer, a whole file at once,
each mixture with its reference. Ours has its weights, converted, and embeds the reference for
each mixture too. Every contestant has a process of its own, and they take turns, so that
whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.extraction import describe_machine
from benchmarks.voices import scene
from mcspex_cli import si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint, save_checkpoint
from mcspex_cli.checkpoint.convert import convert
from mcspex_cli.extraction.engine import open_engine, to_level
from mcspex_cli.extraction.runtime import EngineSettings, keep_memory, share_cores
from tests.checkpoint.published import Published, Sizes, published

RATE_HZ = 8000
SPAWN = get_context("spawn")
REFERENCE = "SpEx+ base, as published"
TURN_S = 1.0
"""How long a contestant goes on extracting in its turn, once at least; its median counts."""
REST_S = 0.3
"""Between turns, until the threads of the one before have gone to sleep."""

Extract = Callable[[Samples, Samples], Samples]
"""A mixture and a reference, both [sample], to an estimate."""


@dataclass(frozen=True)
class Theirs:
    """The published network with the weights of a file."""

    sizes: Sizes
    weights: Path

    def open(self, threads: int) -> Extract:
        """Make it ready."""
        torch.set_num_threads(threads)
        network = Published(self.sizes).eval()
        network.load_state_dict(torch.load(self.weights))

        def extract(mixture: Samples, reference: Samples) -> Samples:
            """Run it as its authors do."""
            with torch.no_grad():
                signals = torch.from_numpy(mixture)[None], torch.from_numpy(reference)[None]
                estimates, _ = network(*signals, torch.tensor([len(reference)]))
                estimate: Samples = estimates[0][0].numpy()
            return estimate

        return extract


@dataclass(frozen=True)
class Ours:
    """A model in a precision."""

    info: CheckpointInfo
    precision: str

    def open(self, threads: int) -> Extract:
        """Make it ready as the commands do, but with each window computed once, as theirs is."""
        keep_memory()
        settings = EngineSettings("cpu", self.precision, threads=threads, passes=1)
        engine = open_engine(self.info, settings)
        # The runtime's own `embed` computes it anew each time.
        return lambda mixture, reference: engine.extract(
            mixture, engine.runtime.embed(reference[None])[0]
        )


def serve(contestant: Theirs | Ours, threads: int, line: Connection) -> None:
    """Extract from the mixtures of the lengths that come; send estimates and times."""
    extract = contestant.open(threads)
    for seconds in iter(line.recv, None):
        # At the level that our engine brings everything to, so that both networks get the same.
        mixture, reference = (sound * to_level(sound) for sound in scene(seconds, RATE_HZ))
        times = [0.0]
        while sum(times) < TURN_S:
            began = time.perf_counter()
            estimate = extract(mixture, reference)
            times.append(time.perf_counter() - began)
        line.send((median(times[1:]), estimate))


@contextmanager
def contest(contestants: dict[str, Theirs | Ours], threads: int) -> Iterator[dict[str, Connection]]:
    """A line to a process for each contestant."""
    lines, started = {}, []
    try:
        for name, contestant in contestants.items():
            if isinstance(contestant, Ours):
                share_cores()  # in those that are started from now on, as our commands do
            lines[name], end = SPAWN.Pipe()
            arguments = contestant, threads, end
            process = SPAWN.Process(target=serve, args=arguments, daemon=True)
            process.start()
            started.append(process)
        yield lines
    finally:
        for process in started:
            process.kill()
            process.join()


def compare(lines: dict[str, Connection], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Have all take turns; a row for each contestant. What comes first is not timed."""
    times: dict[str, list[float]] = {name: [] for name in lines}
    estimates: dict[str, Samples] = {}
    for turn in range(rounds + 1):
        for name, line in lines.items():
            time.sleep(REST_S)
            line.send(seconds)
            elapsed_s, estimates[name] = line.recv()
            times[name] += [elapsed_s] if turn else []
    rows = []
    for name, own in times.items():
        ratios = [theirs / ours for theirs, ours in zip(times[REFERENCE], own, strict=True)]
        same = name.startswith("SpEx+") and name != REFERENCE
        rows.append(
            {
                "name": name,
                "seconds": seconds,
                "real_time_factor": median(own) / seconds,
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "si_sdr_db": si_sdr(estimates[name], estimates[REFERENCE]) if same else None,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'':26}{'audio':>7}{'RTF':>9}{'times as fast':>22}{'SI-SDR':>10}")
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        near = "-" if row["si_sdr_db"] is None else f"{row['si_sdr_db']:.1f} dB"
        audio = f"{row['seconds']:g} s"
        print(f"{row['name']:26}{audio:>7}{row['real_time_factor']:9.4f}{ratio:>22}{near:>10}")


def prepare(folder: Path, sizes: Sizes) -> dict[str, Theirs | Ours]:
    """Random weights as published, the same made ours, and the bundled small model."""
    torch.manual_seed(0)
    torch.save(published(sizes).state_dict(), folder / "best.pt.tar")
    save_checkpoint(folder / "ours", convert(folder / "best.pt.tar").system, {}, half=False)
    ours, small = find_checkpoint(folder / "ours"), find_checkpoint("mcspex-16k")
    return {
        REFERENCE: Theirs(sizes, folder / "best.pt.tar"),
        "SpEx+ base, float32": Ours(ours, "float32"),
        "SpEx+ base, bfloat16": Ours(ours, "bfloat16"),
        "MC-SpEx small, float32": Ours(small, "float32"),
        "MC-SpEx small, bfloat16": Ours(small, "bfloat16"),
    }


def main(sizes: Sizes = Sizes()) -> None:  # noqa: B008 (it is frozen)
    """Compare, as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 60])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        contest(prepare(Path(folder), sizes), arguments.threads) as lines,
    ):
        rows = [row for s in arguments.seconds for row in compare(lines, s, arguments.rounds)]
    machine = describe_machine(arguments.threads)
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
    else:
        print(machine)
        show(rows)


if __name__ == "__main__":
    main()
