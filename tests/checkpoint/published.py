"""SpEx+ restated as torch modules whose names are those published, to check conversions against.

Names and shapes are facts of the checkpoints of gemengtju/SpEx_Plus: `Published.state_dict()` is
one in its format. `RENAMED` says what two other programs call the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """The published letters and, below them, what the publication does not let one choose."""

    L: int = 20
    N: int = 256
    X: int = 8
    R: int = 4
    B: int = 256
    H: int = 512
    P: int = 3
    norm: str = "gLN"
    longer: tuple[int, int] = (80, 160)
    reference: int = 256
    widths: tuple[int, int, int] = (256, 512, 512)
    embedding: int = 256
    speakers: int = 101


class OverAll(nn.Module):
    """gLN, its channels a column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((1, 2), keepdim=True)
        spread = (centred**2).mean((1, 2), keepdim=True)
        return self.gamma * centred / (spread + 1e-5).sqrt() + self.beta


class OverChannels(nn.Module):
    """cLN: each frame on its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        spread = (centred**2).mean(1, keepdim=True)
        return self.weight[:, None] * centred / (spread + 1e-5).sqrt() + self.bias[:, None]


PUBLISHED_NORMS = {"gLN": OverAll, "cLN": OverChannels, "BN": nn.BatchNorm1d}


class Block(nn.Module):
    """A dilated block; told an embedding, it sees that beside every frame."""

    def __init__(self, sizes: Sizes, dilation: int, told: int = 0) -> None:
        super().__init__()
        norm = PUBLISHED_NORMS[sizes.norm]
        self.conv1x1 = nn.Conv1d(sizes.B + told, sizes.H, 1)
        self.prelu1, self.lnorm1 = nn.PReLU(), norm(sizes.H)
        padding = dilation * (sizes.P - 1) // 2
        self.dconv = nn.Conv1d(
            sizes.H, sizes.H, sizes.P, groups=sizes.H, padding=padding, dilation=dilation
        )
        self.prelu2, self.lnorm2 = nn.PReLU(), norm(sizes.H)
        self.sconv = nn.Conv1d(sizes.H, sizes.B, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        seen = x
        if embedding is not None:
            seen = torch.cat([x, embedding[:, :, None].expand(-1, -1, x.shape[-1])], 1)
        seen = self.lnorm1(self.prelu1(self.conv1x1(seen)))
        return x + self.sconv(self.lnorm2(self.prelu2(self.dconv(seen))))


class Residual(nn.Module):
    """A residual block of the speaker encoder."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.conv2 = nn.Conv1d(outputs, outputs, 1, bias=False)
        self.batch_norm1, self.batch_norm2 = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs)
        self.prelu1, self.prelu2 = nn.PReLU(), nn.PReLU()
        if inputs != outputs:
            self.conv_downsample = nn.Conv1d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.batch_norm2(self.conv2(self.prelu1(self.batch_norm1(self.conv1(x)))))
        beside = self.conv_downsample(x) if hasattr(self, "conv_downsample") else x
        return functional.max_pool1d(self.prelu2(y + beside), 3)


class Published(nn.Module):
    """The network; takes a mixture, a reference and the reference's length."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.hop = sizes, sizes.L // 2
        for name, number, window in zip(
            ("short", "middle", "long"), "123", (sizes.L, *sizes.longer), strict=True
        ):
            filters = nn.Conv1d(1, sizes.N, window, self.hop)
            synthesis = nn.ConvTranspose1d(sizes.N, 1, window, self.hop)
            self.add_module(f"encoder_1d_{name}", filters)
            self.add_module(f"mask{number}", nn.Conv1d(sizes.B, sizes.N, 1))
            self.add_module(f"decoder_1d_{number}", synthesis)
        self.ln, self.proj = OverChannels(3 * sizes.N), nn.Conv1d(3 * sizes.N, sizes.B, 1)
        for stack in range(1, sizes.R + 1):
            others = (Block(sizes, 2**e) for e in range(1, sizes.X))
            self.add_module(f"conv_block_{stack}", Block(sizes, 1, sizes.embedding))
            self.add_module(f"conv_block_{stack}_other", nn.Sequential(*others))
        one, two, three = sizes.widths
        self.aux_enc3 = nn.Sequential(
            OverChannels(3 * sizes.N),
            nn.Conv1d(3 * sizes.N, sizes.reference, 1),
            *(Residual(sizes.reference, one), Residual(one, two), Residual(two, three)),
            nn.Conv1d(three, sizes.embedding, 1),
        )
        self.pred_linear = nn.Linear(sizes.embedding, sizes.speakers)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The three scales' frames, the longer windows' over zeros at the end."""
        frames = (x.shape[-1] - self.sizes.L) // self.hop + 1
        scales = []
        for filters in (self.encoder_1d_short, self.encoder_1d_middle, self.encoder_1d_long):
            end = (frames - 1) * self.hop + filters.kernel_size[0]
            scales.append(filters(functional.pad(x, (0, end - x.shape[-1]))[:, None]).relu())
        return scales

    def forward(
        self, mixture: Tensor, reference: Tensor, length: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        scales = self.encode(mixture)
        y = self.proj(self.ln(torch.cat(scales, 1)))
        pooled = self.aux_enc3(torch.cat(self.encode(reference), 1))
        valid = ((length - self.sizes.L) // self.hop + 1) // 3 // 3 // 3
        embedding = pooled.sum(-1) / valid[:, None]
        for stack in range(1, self.sizes.R + 1):
            y = getattr(self, f"conv_block_{stack}")(y, embedding)
            y = getattr(self, f"conv_block_{stack}_other")(y)
        estimates = []
        for number, scale in zip("123", scales, strict=True):
            mask = getattr(self, f"mask{number}")(y).relu()
            decoded = getattr(self, f"decoder_1d_{number}")(scale * mask)
            estimates.append(decoded[:, 0, : mixture.shape[-1]])
        return estimates, self.pred_linear(embedding)


def published(sizes: Sizes) -> Published:
    """The network with nothing left as it begins: neither norms nor slopes nor statistics."""
    network = Published(sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * parameter.abs().mean() * torch.randn_like(parameter))
            if parameter.ndim < 3:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(1234)
            else:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return network


def as_wesep(name: str) -> str:
    """What wesep calls this tensor; the gLN of its blocks has weight and bias, still columns."""
    if name.startswith(("encoder_1d", "ln.", "proj.")):
        return f"encoder.{name}"
    if name.startswith(("decoder_1d", "mask")):
        return f"decoder.{name}"
    if name.startswith("aux_enc3."):
        return f"spk_model.{name}"
    name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    if match := re.match(r"conv_block_(\d)\.(.*)", name):
        return f"separation.separation.{2 * int(match[1]) - 2}.{match[2]}"
    if match := re.match(r"conv_block_(\d)_other\.(.*)", name):
        inner = match[2].replace("prelu", "PReLU_").replace("lnorm", "norm_")
        inner = inner.replace("dconv", "dwconv").replace("sconv", "Output")
        return f"separation.separation.{2 * int(match[1]) - 1}.separation.{inner}"
    return name


def as_xuchenglin(name: str) -> str:
    """What xuchenglin28's and ClearerVoice's code calls this tensor."""
    for number, scale in zip("123", ("short", "middle", "long"), strict=True):
        name = name.replace(f"decoder_1d_{number}", f"decoder_1d_{scale}")
    return name.replace("aux_enc3", "spk_encoder").replace(".lnorm", ".norm")


RENAMED: dict[str, Callable[[str], str]] = {
    "gemengtju/SpEx_Plus": lambda name: name,
    "xuchenglin28/speaker_extraction_SpEx": as_xuchenglin,
    "wenet-e2e/wesep": as_wesep,
}
