"""Every failure that a user can cause or repair, with its exit code.

```
McspexError             exit 1
├── AudioError          a sound file that cannot be used
│   ├── DamagedError    it is damaged or cut off: part of its sound cannot be read
│   └── NonFiniteError  it has NaN or infinite samples
├── OutputError         a place that cannot, or must not, be written
│   └── DiskFullError   nothing more fits on it: no other file will either
├── CheckpointError     a model that cannot be found or loaded
│   ├── ForeignModel    it is another program's
│   └── HubError        the Hugging Face Hub does not give it, or take it
├── EngineError         a device or precision that does not work here
├── PairingError        files that do not belong together
│   └── PlanError       the same of a whole batch, every reason listed
├── ConfigError         a configuration file with an impossible value
├── PartialFailure      exit 3: some of many files failed, the rest are done
├── BelowThreshold      exit 4: everything was scored, and is not good enough
└── AbsentError         exit 5: the voice is not in the mixture, and that is not accepted
```

Exit code 2 is a wrong command line (Click's own), 130 an interruption. A message says which file or
value, why, and what to do now, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence


class McspexError(Exception):
    """The root: what the command line turns into one line and an exit code."""

    exit_code = 1


class AudioError(McspexError):
    """A sound file is missing, empty, broken, silent or too short."""


class DamagedError(AudioError):
    """A sound file is damaged or cut off; with `damaged="keep"` what is left can be read."""


class NonFiniteError(AudioError):
    """A sound file has samples that are NaN or infinite."""


class OutputError(McspexError):
    """An output exists already, collides with another or cannot be written."""


class DiskFullError(OutputError):
    """The disk, or the user's share of it, is full."""


class CheckpointError(McspexError):
    """A checkpoint is unknown, incomplete, damaged or of another system."""


class ForeignModel(CheckpointError):  # noqa: N818
    """A model of another program."""


class HubError(CheckpointError):
    """The Hub cannot be reached, does not have a model, or refuses access to it."""


class EngineError(McspexError):
    """A device or precision is not available or does not give usable numbers."""


class PairingError(McspexError):
    """Files that should be compared or combined do not match."""


class PlanError(PairingError):
    """A batch that cannot be started; `problems` has a line for each reason."""

    def __init__(self, message: str, problems: Sequence[str]) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class ConfigError(McspexError):
    """A configuration file is missing, malformed or out of range."""


class PartialFailure(McspexError):  # noqa: N818
    """Some of several files failed; each has had its own line."""

    exit_code = 3


class BelowThreshold(McspexError):  # noqa: N818
    """A mean is worse than the user's threshold."""

    exit_code = 4


class AbsentError(McspexError):
    """The voice is not in a mixture."""

    exit_code = 5
