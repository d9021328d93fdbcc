"""mcspex: pull one person's voice out of a recording, given a sample of that voice.

```python
from mcspex_cli import Extractor

extractor = Extractor.load()
voice = extractor.enroll("reference.wav")
result = extractor.extract_file("mixture.wav", voice, "target.wav")
```

Names are imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcspex_cli.audio import read as read_audio
    from mcspex_cli.audio import write as write_audio
    from mcspex_cli.checkpoint.checkpoint import find_checkpoint, load_checkpoint
    from mcspex_cli.errors import McspexError
    from mcspex_cli.evaluation.metrics import si_sdr
    from mcspex_cli.extraction.engine import Engine
    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.job import ExtractionOptions, Job, Outputs, Result
    from mcspex_cli.extraction.reference import Span, Voice
    from mcspex_cli.extraction.runtime import EngineSettings

__version__ = "0.6.0"

_HOMES = {
    "Engine": ("extraction.engine", "Engine"),
    "EngineSettings": ("extraction.runtime", "EngineSettings"),
    "ExtractionOptions": ("extraction.job", "ExtractionOptions"),
    "Extractor": ("extraction.extractor", "Extractor"),
    "Job": ("extraction.job", "Job"),
    "McspexError": ("errors", "McspexError"),
    "Outputs": ("extraction.job", "Outputs"),
    "Result": ("extraction.job", "Result"),
    "Span": ("extraction.reference", "Span"),
    "Voice": ("extraction.reference", "Voice"),
    "find_checkpoint": ("checkpoint.checkpoint", "find_checkpoint"),
    "load_checkpoint": ("checkpoint.checkpoint", "load_checkpoint"),
    "read_audio": ("audio", "read"),
    "si_sdr": ("evaluation.metrics", "si_sdr"),
    "write_audio": ("audio", "write"),
}

__all__ = [
    "Engine",
    "EngineSettings",
    "ExtractionOptions",
    "Extractor",
    "Job",
    "McspexError",
    "Outputs",
    "Result",
    "Span",
    "Voice",
    "__version__",
    "find_checkpoint",
    "load_checkpoint",
    "read_audio",
    "si_sdr",
    "write_audio",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
