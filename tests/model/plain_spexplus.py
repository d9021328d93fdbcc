"""SpEx+ restated plainly from its paper, as one class, to check the assembled system against.

Sizes are free; layers are named by what the paper calls them. Nothing here is optimised: the
embedding is repeated over time and concatenated, references may be padded, norms are spelled out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def global_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean = x.mean((1, 2), keepdim=True)
    variance = ((x - mean) ** 2).mean((1, 2), keepdim=True)
    return gamma[:, None] * (x - mean) / torch.sqrt(variance + 1e-5) + beta[:, None]


class PlainSpExPlus(nn.Module):
    """Takes a mixture, a reference padded with zeros and the reference's true length."""

    def __init__(self, weights: dict[str, Tensor], hop: int, windows: tuple[int, int, int]) -> None:
        super().__init__()
        self.w, self.hop, self.windows = weights, hop, windows

    def conv(self, name: str, x: Tensor, **kwargs: int) -> Tensor:
        return functional.conv1d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **kwargs)

    def encode(self, x: Tensor) -> list[Tensor]:
        frames = (x.shape[-1] - self.windows[0]) // self.hop + 1
        scales = []
        for k, window in enumerate(self.windows):
            length = (frames - 1) * self.hop + window
            padded = functional.pad(x, (0, length - x.shape[-1]))[:, None]
            scales.append(torch.relu(self.conv(f"encoder.banks.{k}", padded, stride=self.hop)))
        return scales

    def fuse(self, name: str, scales: list[Tensor]) -> Tensor:
        x = torch.cat(scales, 1).transpose(1, 2)
        weight, bias = self.w[f"{name}.norm.weight"], self.w[f"{name}.norm.bias"]
        x = functional.layer_norm(x, (x.shape[-1],), weight, bias, 1e-5)
        return self.conv(f"{name}.project", x.transpose(1, 2))

    def prelu(self, name: str, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, self.w[f"{name}.weight"] * x)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        scaled = (x - mean[:, None]) / torch.sqrt(var[:, None] + 1e-5)
        return scaled * self.w[f"{name}.weight"][:, None] + self.w[f"{name}.bias"][:, None]

    def res_block(self, name: str, x: Tensor) -> Tensor:
        y = self.prelu(
            f"{name}.activation_1",
            self.batch_norm(f"{name}.norm_1", self.conv(f"{name}.conv_1", x)),
        )
        y = self.batch_norm(f"{name}.norm_2", self.conv(f"{name}.conv_2", y))
        if f"{name}.shortcut.weight" in self.w:
            x = self.conv(f"{name}.shortcut", x)
        return functional.max_pool1d(self.prelu(f"{name}.activation_2", y + x), 3)

    def embed(self, reference: Tensor, length: int) -> Tensor:
        x = self.fuse("fusion.reference", self.encode(reference))
        for k in range(3):
            x = self.res_block(f"speaker.blocks.{k}", x)
        valid = (length - self.windows[0]) // self.hop + 1
        valid = ((valid // 3) // 3) // 3
        return self.conv("speaker.project", x)[..., :valid].sum(-1) / valid

    def tcn_block(self, name: str, x: Tensor, dilation: int, embedding: Tensor | None) -> Tensor:
        kernel, y = self.w[f"{name}.widen.weight"], x
        if embedding is not None:
            kernel = torch.cat([kernel, self.w[f"{name}.condition.weight"][..., None]], 1)
            y = torch.cat([x, embedding[..., None].repeat(1, 1, x.shape[-1])], 1)
        y = functional.conv1d(y, kernel, self.w[f"{name}.widen.bias"])
        for k in (1, 2):
            y = self.prelu(f"{name}.activation_{k}", y)
            y = global_norm(y, self.w[f"{name}.norm_{k}.weight"], self.w[f"{name}.norm_{k}.bias"])
            if k == 1:
                y = self.conv(
                    f"{name}.depthwise", y, padding=dilation, dilation=dilation, groups=y.shape[1]
                )
        return x + self.conv(f"{name}.narrow", y)

    def forward(self, mixture: Tensor, reference: Tensor, length: int) -> tuple[Tensor, Tensor]:
        scales = self.encode(mixture)
        embedding = self.embed(reference, length)
        x = self.fuse("fusion.mixture", scales)
        stacks = 1 + max(int(k.split(".")[2]) for k in self.w if k.startswith("extractor.stacks"))
        for stack in range(stacks):
            name = f"extractor.stacks.{stack}"
            x = self.tcn_block(f"{name}.condition", x, 1, embedding)
            block = 0
            while f"{name}.blocks.{block}.widen.weight" in self.w:
                x = self.tcn_block(f"{name}.blocks.{block}", x, 2 ** (block + 1), None)
                block += 1
        estimates = []
        for k, scale in enumerate(scales):
            masked = scale * torch.relu(self.conv(f"masks.heads.{k}", x))
            weight, bias = (self.w[f"decoder.banks.{k}.{p}"] for p in ("weight", "bias"))
            decoded = functional.conv_transpose1d(masked, weight, bias, stride=self.hop)
            estimates.append(decoded[:, 0, : mixture.shape[-1]])
        weight, bias = self.w["classifier.weight"], self.w["classifier.bias"]
        return torch.stack(estimates), functional.linear(embedding, weight, bias)
