"""One run shared by the processes that torchrun starts; a team of one without it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.runtime import choose_device
from mcspex_cli.model.layers import BatchNorm, zeroed
from mcspex_cli.model.systems import System


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Team:
        """Meet the others, if torchrun started this process.

        "auto" and "cuda" then mean a GPU for each.

        Raises:
            EngineError: there is no such device, or one GPU is named for all.
        """
        if not (distributed.is_available() and distributed.is_torchelastic_launched()):
            return cls(0, 1, choose_device(device))
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            device = f"cuda:{distributed.get_node_local_rank()}"
        elif device.startswith("cuda:"):
            raise EngineError(f'device {device!r} is one GPU for all processes. Use "cuda".')
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if not distributed.is_initialized():
            # Clocks and counts are agreed on the CPU, so that no GPU waits for them; an hour,
            # because the first meeting waits for the slowest to decode its corpus.
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(hours=1))
        return cls(distributed.get_rank(), distributed.get_world_size(), chosen)

    def leave(self) -> None:
        """Part from the others; nobody may hold what `share` gave any more.

        What still does when the interpreter ends takes threads with it, and now and then aborts.
        """
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
            gc.collect()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, system: System) -> nn.Module:
        """Have the team's gradients averaged and its batches normalised as one."""
        if self.size == 1:
            return system
        for module in system.modules():
            if isinstance(module, BatchNorm):
                module.__class__ = TeamBatchNorm  # the same weights and names
        places = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(system, device_ids=places)

    def highest(self, values: Sequence[float]) -> list[float]:
        """Each value's maximum over the team, so that all take the same turn."""
        return self._reduce(values, "MAX")

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the team."""
        return [total / self.size for total in self._reduce(values, "SUM")]

    def _reduce(self, values: Sequence[float], operation: str) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))
        reduced: list[float] = tensor.tolist()
        return reduced


class TeamBatchNorm(BatchNorm):
    """Batch normalisation over the whole team's batch, on any device.

    `torch.nn.SyncBatchNorm` is for GPUs only. Shape: [batch, channel, frame], kept.
    """

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise `features` by the mean and variance of all processes' valid features."""
        if not self.training:
            return super().forward(features)
        values = zeroed(features.float(), valid)
        frames = features[:, 0].numel() if valid is None else valid.sum()
        counts = values.new_ones(values.shape[1]) * frames
        moments = torch.stack((values.sum((0, 2)), values.square().sum((0, 2)), counts))
        total: Tensor = _Sum.apply(moments)  # type: ignore[no-untyped-call]
        count = total[2]
        mean, square = total[0] / count, total[1] / count
        variance = (square - mean.square()).clamp_min(0)
        if self.running_mean is not None and self.running_var is not None:  # as nn.BatchNorm1d
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = (features - mean[:, None]) * scale[:, None] + self.bias[:, None]
        return normalised.to(features.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the team; every process's loss depends on it, so gradients are summed too."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(None, gradient)
