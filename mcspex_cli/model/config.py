"""All that determines a network's shape, and the limits within which a file may set it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

Width = Annotated[int, Meta(ge=1, le=8192)]
WindowMs = Annotated[float, Meta(ge=0.1, le=1000)]


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """All that determines a network's shape; times in ms, so a rate changes no cost.

    The letters are the papers': N filters, B channels, H hidden, P kernel, X blocks in each of R
    stacks. config.json has the same keys. msgspec checks them by the limits here, which keep a
    hostile file from asking for all memory. The defaults are for keys that the first files lack,
    and are what the networks of their time were; for new networks see `SIZES`.

    Raises:
        ValueError: sizes that contradict each other.
    """

    system: str
    """Of `SYSTEMS`."""
    scale_fuser: str = "gate"
    """Of `FUSERS`. This and the next two are MC-SpEx's own, SpEx+ does not look at them."""
    consm: str = "feature_film"
    """Of `CONSMS`. The first files, which do not say it, are of networks with "feature_film"; new
    networks have "film", which measured best."""
    scale_intermg: str = "mixing"
    """Of `INTERMGS`."""
    true_level: bool = False
    """Whether an estimate's level is the target's own; if not, it is arbitrary."""
    sample_rate_hz: Annotated[int, Meta(ge=4000, le=192_000)]
    windows_ms: tuple[WindowMs, WindowMs, WindowMs]
    hop_ms: Annotated[float, Meta(ge=0.1, le=100)]
    filters: Annotated[int, Meta(ge=2, le=4096)]
    channels: Annotated[int, Meta(ge=2, le=4096)]
    hidden: Width
    kernel: Annotated[int, Meta(ge=1, le=31)]
    blocks: Annotated[int, Meta(ge=1, le=16)]
    stacks: Annotated[int, Meta(ge=1, le=32)]
    norm: str = "gLN"
    """Of `NORMS`, in all blocks."""
    reference_channels: Annotated[int, Meta(ge=0, le=4096)] = 0
    """Width of SpEx+'s reference branch; 0: as `channels`. MC-SpEx shares its fuser and has 0."""
    embedding: Annotated[int, Meta(ge=1, le=4096)]
    speaker_channels: Annotated[tuple[Width, ...], Meta(min_length=3, max_length=3)]
    speakers: Annotated[int, Meta(ge=1, le=1_000_000)]

    def __post_init__(self) -> None:
        windows = self.windows
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}. It must be odd.")
        if self.hop < 1 or windows[0] < 1 or list(windows) != sorted(windows):
            raise ValueError(
                "windows_ms must grow from the first to the last, and the windows and the hop "
                "must have a sample or more."
            )
        if self.system == "mcspex" and self.reference_width != self.channels:
            raise ValueError("only SpEx+ has reference_channels. For mcspex, set 0.")

    @property
    def windows(self) -> tuple[int, ...]:
        """Window lengths of the short, middle and long scale, in samples."""
        return tuple(round(w * self.sample_rate_hz / 1000) for w in self.windows_ms)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_ms * self.sample_rate_hz / 1000)

    @property
    def reference_width(self) -> int:
        """Channels of the fused features that the speaker encoder gets."""
        return self.reference_channels or self.channels


_BASE = SystemConfig(  # SpEx+'s sizes; MC-SpEx's parts are what measured best (docs/lab-book.md)
    system="mcspex",
    scale_fuser="gate",
    consm="film",
    scale_intermg="mixing",
    sample_rate_hz=8000,
    windows_ms=(2.5, 10.0, 20.0),
    hop_ms=1.25,
    filters=256,
    channels=256,
    hidden=512,
    kernel=3,
    blocks=8,
    stacks=4,
    embedding=256,
    speaker_channels=(256, 512, 512),
    speakers=101,
)
_SMALL = replace(  # Twice the hop halves the work; the windows keep their overlap.
    _BASE,
    windows_ms=(5.0, 10.0, 20.0),
    hop_ms=2.5,
    filters=128,
    channels=128,
    hidden=256,
    stacks=3,
    embedding=128,
    speaker_channels=(128, 256, 256),
)
_MINI = replace(  # Learns within minutes on a CPU what takes the others hours.
    _SMALL,
    filters=64,
    channels=64,
    hidden=128,
    blocks=6,
    stacks=2,
    embedding=64,
    speaker_channels=(64, 128, 128),
)
_TINY = replace(
    _MINI,
    filters=16,
    channels=16,
    hidden=32,
    blocks=4,
    embedding=16,
    speaker_channels=(16, 32, 32),
    speakers=4,
)
SIZES = {"base": _BASE, "small": _SMALL, "mini": _MINI, "tiny": _TINY}


def sized(system: str, size: str, sample_rate_hz: int, speakers: int) -> SystemConfig:
    """One of `SIZES` as a config of `system` at a rate, for a number of training speakers."""
    return replace(SIZES[size], system=system, sample_rate_hz=sample_rate_hz, speakers=speakers)
