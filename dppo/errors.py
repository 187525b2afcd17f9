"""Every error that has a name here, on one page: what it means, and for whom it is; and the exit codes."""

from __future__ import annotations

from typing import NamedTuple

# -- exit codes of all commands --------------------

EXIT_FINISHED, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_AGAIN = 75
"""What was asked for is not done yet: starting the command again goes on with it."""
EXIT_STALLED = EXIT_FAILED
"""Of a rank that made no progress."""

# -- for the user --------------------


class UsageError(ValueError):
    """Wrong use: one message, EXIT_USAGE."""


def missing_package(name: str, error: ImportError) -> UsageError:
    """A library that only some commands need."""
    return UsageError(f"this needs {name}, which cannot be imported ({error}): pip install 'dppo[analysis]'")


class HelpShown(Exception):
    """--help or --version was answered; nothing else is to be done."""


class NoMPIError(ImportError):
    """There is no MPI that can be loaded; the message says what to install."""


# -- of files --------------------


class RefusedFileError(OSError):
    """A file that is not opened, or not read to its end, because of what it is; the message names it."""


class MovedError(OSError):
    """The path does not lead to the file that was written so far."""


class OldFormError(ValueError):
    """A checkpoint of an earlier dppo, which kept pickles."""


# -- why a run cannot go on --------------------


class Failure(NamedTuple):
    """Why a run cannot go on."""

    text: str
    """With a traceback where there is one."""
    stalled: bool = False
    """As in `Summary`."""


class RankFailure(Exception):
    """Another rank has died, or has given the communicator up because of one that did."""


class JobFailure(Exception):
    """All ranks have agreed that the job ends, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class WorkerError(RuntimeError):
    """A worker cannot go on; the text is its own account, with rank and host.

    Args:
      worker: its place among the workers, where it has said so itself; it closes its environments meanwhile.
    """

    def __init__(self, text: str, *, stalled: bool = False, worker: int | None = None) -> None:
        super().__init__(text)
        self.failure, self.worker = Failure(text, stalled), worker


class SavingError(Exception):
    """What the run has come to cannot be saved, and the run ends with that."""


class DumpError(Exception):
    """Trajectories could not be written, and the run was to end with that."""
