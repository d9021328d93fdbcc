"""Every failure that a user can cause or repair.

```
McspexError            exit 1
├── AudioError         a sound file that cannot be used
│   └── NonFiniteError it has NaN or infinite samples
├── OutputError        a place that cannot, or must not, be written
├── CheckpointError    a model that cannot be found or loaded
│   ├── ForeignModel   it is another program's
│   └── HubError       the Hugging Face Hub does not give it, or take it
├── EngineError        a device or precision that does not work here
├── PairingError       files that do not belong together
│   └── PlanError      the same of a whole batch, every reason listed
├── ConfigError        a configuration file that says something impossible
├── PartialFailure     exit 3: some of many files failed, the rest are done
├── BelowThreshold     exit 4: everything was scored, and is not good enough
└── AbsentError        exit 5: the voice is not in the mixture, and that is not accepted
```

A message says which, why, and what to do now, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence


class McspexError(Exception):
    """The root: what the command line turns into one line and an exit code."""

    exit_code = 1


class AudioError(McspexError):
    """A sound file is missing, empty, broken, silent or too short."""


class NonFiniteError(AudioError):
    """A sound file holds samples that are no numbers."""


class OutputError(McspexError):
    """An output exists already, collides with another or cannot be written."""


class CheckpointError(McspexError):
    """A checkpoint is unknown, incomplete, damaged or of another system."""


class ForeignModel(CheckpointError):  # noqa: N818
    """A model of another program."""


class HubError(CheckpointError):
    """The Hub cannot be reached, does not have a model or does not let us have it."""


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
    """A mean fell short of what the user asked for."""

    exit_code = 4


class AbsentError(McspexError):
    """The voice asked for is not in a mixture."""

    exit_code = 5
