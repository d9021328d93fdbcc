"""How fast training is: audio seconds per second, GFLOP/s, and each part's share of a step.

    python -m benchmarks.training --size small --steps 5
    python -m benchmarks.training --config runs/mcspex/last/config.json --references 2

A step is forward, loss, backward and optimiser on random signals; drawing mixtures is not in it.
Seconds are of CPU time divided by the threads on a CPU, so that other programs disturb it less
(`--wall` takes the clock's, which GPUs need).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcspex_cli.checkpoint.checkpoint import read_config
from mcspex_cli.model.accelerated import accelerate
from mcspex_cli.model.config import SystemConfig, sized
from mcspex_cli.model.systems import System, build
from mcspex_cli.training.optimisation import Optimiser, si_sdr_db
from mcspex_cli.training.settings import OptimiserSettings

PARTS = ("encoder", "fusion", "speaker", "extractor", "masks", "decoder")


def main() -> None:
    """Measure what the command line asks for, the plain network beside the accelerated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--config", type=Path, help="a checkpoint's config.json, instead of --size")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--references", type=int, default=2, help="references in a batch")
    parser.add_argument("--segment-s", type=float, default=3.0)
    parser.add_argument("--reference-s", type=float, default=4.75)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = sized("mcspex", options.size, 16000, 745)
    if options.config:
        config = read_config(options.config.parent).system
    plain = build(config).train().to(options.device)
    print("network                    audio s/s  GFLOP/s  step s")
    networks = {
        "plain": (deepcopy(plain), options.batch),
        "accelerated": (accelerate(deepcopy(plain)), options.batch),
        "accelerated, compiled": (accelerate(deepcopy(plain), compiled=True), options.batch),
        "and shared references": (
            accelerate(deepcopy(plain), compiled=True),
            options.references,
        ),
    }
    steps = {
        name: step_of(system, config, references, options)
        for name, (system, references) in networks.items()
    }
    with FlopCounterMode(display=False) as counter:
        steps["plain"]()
    products = counter.get_total_flops()
    for step in steps.values():
        step()
    # In turn, so that what disturbs one disturbs all.
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.steps):
        for name, step in steps.items():
            seconds[name].append(timed(step, options))
    for name, values in seconds.items():
        median = sorted(values)[len(values) // 2]
        audio = options.batch * options.segment_s / median
        share = "" if "shared" in name else f"{products / median / 1e9:8.0f}"
        print(f"{name:26} {audio:9.1f} {share:8} {median:7.3f}", flush=True)
    shares(networks["and shared references"][0], steps["and shared references"], options)


def step_of(
    system: System, config: SystemConfig, references: int, options: argparse.Namespace
) -> Callable[[], None]:
    """A training step of `system`."""
    optimiser = Optimiser(system, OptimiserSettings())
    rate, device = config.sample_rate_hz, options.device
    mixture, target = 0.05 * torch.randn(2, options.batch, round(options.segment_s * rate))
    mixture, target = mixture.to(device), target.to(device)
    reference = 0.05 * torch.randn(references, round(options.reference_s * rate), device=device)
    half = options.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            estimates, logits = system(mixture, reference)
        loss = logits.float().logsumexp(-1).mean() - si_sdr_db(estimates.float(), target).mean()
        system.zero_grad()
        loss.backward()
        optimiser.step(1e-6)

    return step


def timed(work: Callable[[], None], options: argparse.Namespace) -> float:
    """Seconds that `work` takes."""
    clock = time.monotonic if options.wall else time.process_time
    began = clock()
    work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return (clock() - began) / (1 if options.wall else options.threads)


def shares(system: System, step: Callable[[], None], options: argparse.Namespace) -> None:
    """Print each part's share of a step's forward pass, which its backward follows closely."""
    spent = dict.fromkeys(PARTS, 0.0)

    def clocked(name: str, part: nn.Module) -> None:
        began: list[float] = []

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def begin(*_: object) -> None:
            began.append(time.process_time())

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def end(*_: object) -> None:
            spent[name] += time.process_time() - began.pop()

        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end)

    for name in PARTS:
        clocked(name, getattr(system, name))
    step()
    for name in spent:
        spent[name] = 0.0
    for _ in range(options.steps):
        step()
    total = sum(spent.values())
    print("forward: " + ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in spent.items()))


if __name__ == "__main__":
    main()
