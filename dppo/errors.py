"""All named errors of dppo on one page, with their meaning and addressee; and the exit codes."""

from __future__ import annotations

from typing import NamedTuple

# -- exit codes of all commands --------------------

EXIT_FINISHED, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_AGAIN = 75
"""The exit code of a command whose work is not done yet: started again, the command continues it."""
EXIT_STALLED = EXIT_FAILED
"""The exit code of a rank that made no progress."""

# -- for the user --------------------


class UsageError(ValueError):
    """Wrong use of a command: one message, EXIT_USAGE."""


def missing_package(name: str, error: ImportError, extra: str = "analysis") -> UsageError:
    """Returns the error for a missing library that only some commands need, with the extra that has it."""
    return UsageError(f"this needs {name}, which cannot be imported ({error}): pip install 'dppo[{extra}]'")


class HelpShown(Exception):
    """Raised once --help or --version was answered: nothing else is to be done."""


class NoMPIError(ImportError):
    """Raised where no MPI can be loaded; the message says what to install."""


# -- about files --------------------


class RefusedFileError(OSError):
    """A file that is not opened, or not read to its end, because of what it is; the message names it."""


class MovedError(OSError):
    """Raised where the path does not lead to the file that was written so far."""


class OldFormError(ValueError):
    """A checkpoint of an earlier dppo, which kept pickles."""


# -- why a run cannot continue --------------------


class Failure(NamedTuple):
    """The reason why a run cannot continue."""

    text: str
    """The reason in words, with a traceback where there is one."""
    stalled: bool = False
    """Whether ranks made no progress or did not answer, as in `Summary`."""


class RankFailure(Exception):
    """Raised where another rank has died, or has given up the communicator because of a death."""


class JobFailure(Exception):
    """Raised where all ranks have agreed that the job ends, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class WorkerError(RuntimeError):
    """Raised where a worker cannot continue; the text is the worker's own account, with rank and host.

    Args:
      worker: the worker's number, where the worker itself has said so; it closes its environments meanwhile.
    """

    def __init__(self, text: str, *, stalled: bool = False, worker: int | None = None) -> None:
        super().__init__(text)
        self.failure, self.worker = Failure(text, stalled), worker


class SavingError(Exception):
    """Raised where the state of the run cannot be saved, and the run ends because of that."""


class DisplacedError(SavingError):
    """Raised where another start of the run has begun in the run directory: this one must write nothing more there."""


class DumpError(Exception):
    """Raised where trajectories could not be written, and the run was to end in that case."""
