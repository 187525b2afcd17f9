"""What the head of an environment's group and its followers say to each other: every rank of the group builds the
environment, and calls it as the head's is called (envs/groups.py).
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, Protocol


class Call(enum.IntEnum):
    """What a follower is told to do."""

    MAKE = enum.auto()
    COMPARE = enum.auto()
    """Compare the names of a simulator's agents with the head's."""
    RESET = enum.auto()
    STEP = enum.auto()
    CLOSE = enum.auto()
    SAVE = enum.auto()
    LOAD = enum.auto()
    PROGRESS = enum.auto()
    """Tell which share of the run is done."""
    RUN = enum.auto()
    """Call a function of a module, without an answer: (function, its arguments)."""
    LEAVE = enum.auto()
    """Follow no more, for now or for ever."""


class Failed(NamedTuple):
    """How a call has failed on a follower."""

    who: str
    """Rank and host."""
    text: str
    """The error in one line."""
    trace: str
    is_cause: bool
    """False if another rank had given up the environment's communicator before: the error may only follow from that."""


class HeadLink(Protocol):
    """The head's link to its followers."""

    first: int
    """The head's rank in the job."""

    def tell(self, call: Call, number: int = 0, arguments: Any = None) -> None:
        """Tells the followers to make a call of environment `number`; never waits."""

    def answers(self, number: int, *, has_failed: bool) -> list[Failed]:
        """Waits until all followers have made the call. Returns the failures.

        Args:
          has_failed: whether the head's own call has failed, so that followers may wait in vain for the head.
        """

    def open(self, number: int) -> Any:
        """Collective over the group. Returns a new communicator for environment `number`."""

    def is_given_up(self, number: int) -> bool:
        """Returns whether some rank has given up the environment's communicator, because of an error."""

    def dismiss(self, outcome: object) -> None:
        """Tells the followers to follow no more, and why."""

    def rest(self) -> None:
        """Notes that the head has no environment any more: a follower's death does not concern it from here on."""

    def wake(self) -> bool:
        """Ends the rest. Returns whether all followers are there."""

    def free(self) -> None:
        """Frees the group's communicator, at the end of a job without deaths."""

    @property
    def is_stuck(self) -> bool:
        """Whether followers have not come out of a call, so that no further one is possible."""


class FollowerLink(Protocol):
    """A follower's link to its head."""

    def next_call(self) -> tuple[Call, int, Any]:
        """Waits, mostly asleep, for the next call: which, of which environment, its arguments."""

    def answer(self, number: int, failed: Failed | None) -> None:
        """Tells the head how the call went."""

    def open(self, number: int) -> Any:
        """As of `HeadLink`."""

    def is_given_up(self, number: int) -> bool:
        """As of `HeadLink`."""

    @property
    def name(self) -> str:
        """Rank and host, for messages."""
