"""Muon for the matrices of 1x1 convolutions, AdamW for all other parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mcspex_cli.model.systems import System
from mcspex_cli.training.settings import OptimiserSettings

MOMENTUM = 0.95
"""Of Muon, in Nesterov's form. Source: Jordan et al., 2024, as the coefficients below."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x³ and x⁵ in the polynomial whose iterations bring all singular values near 1."""

ITERATIONS = 5

LEAST_SIDE = 9
"""Matrices with a side shorter than this are AdamW's."""


class Optimiser:
    """Both optimisers as one, with one factor for their two rates.

    Muon makes each matrix's update orthogonal: every direction in it counts alike. With
    `muon_rate` 0, AdamW has all parameters.

    Its state is `{"adam": ..., "momenta": [...]}`, both in the order of the system's parameters.
    """

    def __init__(self, system: System, settings: OptimiserSettings) -> None:
        self.settings = settings
        weights = {
            module.weight
            for module in system.modules()
            if isinstance(module, nn.Conv1d)
            and module.kernel_size == (1,)
            and min(module.weight.shape[:2]) >= LEAST_SIDE
        }
        chosen = weights if settings.muon_rate else set()
        self.matrices: list[Tensor] = [p for p in system.parameters() if p in chosen]
        self.adam = torch.optim.AdamW(
            [p for p in system.parameters() if p not in chosen],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.shapes: dict[tuple[int, ...], list[int]] = {}
        for k, matrix in enumerate(self.matrices):
            self.shapes.setdefault(tuple(matrix.shape[:2]), []).append(k)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for matrix in self.matrices:
            matrix.grad = None
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Descend, at both rates times `factor`."""
        settings = self.settings
        for group in self.adam.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.adam.step()
        if not self.matrices:
            return
        rate = settings.muon_rate * factor
        slopes = [p.grad for p in self.matrices if p.grad is not None]
        torch._foreach_lerp_(self.momenta, slopes, 1 - MOMENTUM)
        updates = torch._foreach_lerp(slopes, self.momenta, MOMENTUM)
        torch._foreach_mul_(self.matrices, 1 - rate * settings.weight_decay)
        for (rows, columns), places in self.shapes.items():
            directions = orthogonalise(torch.stack([updates[k].squeeze(-1) for k in places]))
            scale = rate * max(1.0, rows / columns) ** 0.5
            matrices = [self.matrices[k] for k in places]
            torch._foreach_add_(matrices, list(directions.unsqueeze(-1)), alpha=-scale)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of other parameters.
        """
        self.adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of `matrices` [matrix, row, column] to between 0.7 and 1.2.

    In the matrices' own precision: bfloat16 is a hundredth as fast as float32 on CPUs without
    instructions for it.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.transpose(1, 2)).transpose(1, 2)
    first, third, fifth = COEFFICIENTS
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
        x = torch.baddbmm(x, polynomial, x, beta=first)
    return x
