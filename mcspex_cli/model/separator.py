"""The speech extractor: stacks of dilated blocks, each told anew whose voice to follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from mcspex_cli.model.config import SystemConfig
from mcspex_cli.model.layers import TCNBlock


class ConcatBlock(TCNBlock):
    """A TCN block that also sees the embedding, as if concatenated to every frame.

    A 1x1 convolution of [features; embedding] is the convolution of the features plus one
    projection of the embedding, the same for all frames; so nothing is repeated or copied.
    Source: SpEx+, section 2.3.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, embedding: int, norm: str = "gLN"
    ) -> None:
        super().__init__(channels, hidden, kernel, dilation=1, norm=norm)
        self.condition = nn.Linear(embedding, hidden, bias=False)

    def forward(  # type: ignore[override]
        self, features: Tensor, embedding: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Refine `features` [batch, channel, frame] for `embedding` [batch, embedding]."""
        told = self.condition(embedding).unsqueeze(-1)
        return features + self.transform(self.widen(features) + told, valid)


class ConSM(nn.Module):
    """Conditional speaker modulation: scale and shift the features as the speaker asks.

    `x · (1 + scale) + shift`, from the paper: a module before each stack that modulates
    the features by E_r. Ours: where scale and shift come from, in the two subclasses;
    `CONSMS` names them. A frame's scale and shift must not depend on other frames: some may
    be behind the signal's end.
    """

    def modulation(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Scale and shift, [batch, 2 * channel, frame or 1]."""
        raise NotImplementedError

    def forward(self, features: Tensor, embedding: Tensor, _: Tensor | None = None) -> Tensor:
        """Modulate `features` [batch, channel, frame] by `embedding` [batch, embedding]."""
        scale, shift = self.modulation(features, embedding).chunk(2, dim=1)
        return features * (1 + scale) + shift


class FiLMConSM(ConSM):
    """FiLM: one scale and shift for all frames, linear in E_r. Source: Perez et al., 2018."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(embedding, 2 * channels)

    def modulation(self, _: Tensor, embedding: Tensor) -> Tensor:
        """As `ConSM.modulation`, [batch, 2 * channel, 1]."""
        modulation: Tensor = self.modulate(embedding).unsqueeze(-1)
        return modulation


class FeatureFiLMConSM(ConSM):
    """FiLM by the features too: each frame has a scale and shift of its own.

    ```
    E_r ─ linear ─────┐
    x ─── 1x1 B→B/2 ─ + ─ PReLU ─ 1x1 B/2→2B ─ (scale, shift)
    ```
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.listen = nn.Conv1d(channels, channels // 2, 1)
        self.condition = nn.Linear(embedding, channels // 2, bias=False)
        self.activation = nn.PReLU()
        self.modulate = nn.Conv1d(channels // 2, 2 * channels, 1)

    def modulation(self, features: Tensor, embedding: Tensor) -> Tensor:
        """As `ConSM.modulation`."""
        told = self.listen(features) + self.condition(embedding).unsqueeze(-1)
        modulation: Tensor = self.modulate(self.activation(told))
        return modulation


CONSMS: dict[str, Callable[[int, int], ConSM]] = {
    "film": FiLMConSM,
    "feature_film": FeatureFiLMConSM,
}


class Stack(nn.Module):
    """A conditioned step and the dilated blocks after it."""

    def __init__(self, condition: ConSM | ConcatBlock, blocks: Iterable[TCNBlock]) -> None:
        super().__init__()
        self.condition = condition
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: Tensor, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Refine `features` [batch, channel, frame] for `embedding` [batch, embedding]."""
        refined: Tensor = self.condition(features, embedding, valid)
        for block in self.blocks:
            refined = block(refined, valid)
        return refined


class SpeechExtractor(nn.Module):
    """The stacks one after another. Source: SpEx+, figure 1; MC-SpEx, figure 1.

    Args:
        config: Of the whole system.
        condition: Makes what each stack begins with.
        exponents: A stack has a block of dilation 2^e for each e of these.
    """

    def __init__(
        self, config: SystemConfig, condition: Callable[[], ConSM | ConcatBlock], exponents: range
    ) -> None:
        super().__init__()
        sizes = config.channels, config.hidden, config.kernel
        self.stacks = nn.ModuleList()
        for _ in range(config.stacks):
            first = condition()
            blocks = [TCNBlock(*sizes, 2**exponent, config.norm) for exponent in exponents]
            self.stacks.append(Stack(first, blocks))

    def forward(self, features: Tensor, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Follow `embedding` [batch, embedding] through `features` [batch, channel, frame]."""
        for stack in self.stacks:
            features = stack(features, embedding, valid)
        return features
