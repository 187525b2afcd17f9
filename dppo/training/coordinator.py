"""What the coordinators of both loops have in common on rank 0: signals, failures, mirrors, and the end of a run.

At the end, the order to stop goes to every worker, each worker says goodbye, and rank 0 waits only as long as allowed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np

from dppo.data import Report
from dppo.errors import WorkerError
from dppo.rundir.summary import PREEMPTED
from dppo.seams import Answer, Sealed, Tag
from dppo.training.standby import Mirror
from dppo.training.state import TrainingState
from dppo.training.tracker import Tracker

GIVE_UP, LEAVE = 0.7, 0.9
"""Shares of the grace period after which the iteration under way is given up, and after which rank 0 stops waiting."""


LOOK_S, ABORT_MARGIN_S = 0.5, 5.0
"""Seconds between two looks of rank 0 for workers that are stuck, and seconds that they have to end by themselves."""
STANDBYS = 2
"""Number of standbys: one of them may die together with the server."""
LEAVE_S = 5.0
"""Seconds that a run that ended by itself waits for its workers at least, however short the grace period."""


class BaseCoordinator:
    """A coordinator's reactions to signals, failures and the end of the run.

    Args:
      workers: the workers' numbers, in the order of their ranks.
      mirror_every: updates between two mirrors for the standbys, the first of the workers present; None: no mirrors.
      names: names of the workers' ranks, with their hosts; if empty, rank 0 does not look for stuck workers.
      mirrors_state: whether mirrors hold the state; if not, they hold only the run's counters, and go out each
        iteration.
    """

    def __init__(
        self,
        tracker: Tracker,
        state: TrainingState,
        workers: Sequence[int],
        mirror_every: int | None = None,
        *,
        mirrors_state: bool = True,
        names: Sequence[str] = (),
    ) -> None:
        num_workers = len(workers)
        self._index = {worker: index for index, worker in enumerate(workers)}
        self._names = names
        self._heard_at = [time.monotonic()] * num_workers
        self._next_look, self._told_of = 0.0, set[int]()
        self._tracker, self._state, self._present = tracker, state, set(range(num_workers))
        self._num_workers, self._mirror_every, self._mirrors_state = num_workers, mirror_every, mirrors_state
        self._mirrored_at: int | None = None  # updates, or iterations where the state is not copied
        self.begun = False
        self._begun_at = 0.0
        self._saved_at_once = False
        self.abandoned = False
        """Whether workers that did not leave in time are still there; only the launcher can end them."""

    @property
    def totals(self) -> np.ndarray | None:
        """The statistics of the iteration under way, added up (p2p)."""
        return None

    @property
    def unclosed(self) -> list[Report]:
        """Reports that wait for their iteration's end (allreduce)."""
        return []

    def settle(self) -> None:
        """Does what is due without the ranks that have died. Afterwards `totals` belongs to the state."""

    @property
    def done(self) -> bool:
        return self.begun and (not self._present or self.abandoned)

    def begin(self, reason: str) -> list[Answer]:
        """Begins the end of the run, which the tracker has closed for `reason`: every worker seals what the last
        boundary has seen, and stops.
        """
        self.begun, self._begun_at = True, time.monotonic()
        return self._seal_orders() + [Answer(w, Tag.STOP, np.empty(0, np.uint8)) for w in sorted(self._present)]

    def aside(self) -> list[Answer]:
        """Returns what goes out before the answer to a message, in addition to it."""
        return [*self.mirror(), *self._seal_orders()]

    def _seal_orders(self) -> list[Answer]:
        orders = self._tracker.saver.take_seal_orders()
        rows = {w: np.array([row], np.int64).view(np.uint8) for w, row in orders.items() if w in self._index}
        return [Answer(self._index[worker], Tag.SEAL, row) for worker, row in rows.items()]

    def on_sealed(self, answer: Sealed) -> list[Answer]:
        """Takes in that a worker has written trajectories for which a checkpoint waits."""
        self._tracker.saver.on_sealed(answer)
        return []

    def mirror(self) -> list[Answer]:
        """Returns the standbys' next mirror, if it is due. It goes out before the replies of the same update: a standby
        that has taken part in the next update has received it.
        """
        if self._mirror_every is None or self.begun:
            return []
        state = self._state
        now, every = (state.updates, self._mirror_every) if self._mirrors_state else (state.iteration, 1)
        if self._mirrored_at is not None and now - self._mirrored_at < every:
            return []
        self._mirrored_at = now
        packed = np.empty(state.layout.all_bytes if self._mirrors_state else 0, np.uint8)
        if self._mirrors_state:
            state.pack(packed)
        copy = Mirror(state.updates, state.iteration, packed, self._tracker.saver.boundary.counters)
        message = copy.to_message()
        return [Answer(w, Tag.MIRROR, message) for w in range(min(STANDBYS, self._num_workers))]

    def on_report(self, report: Report) -> list[Answer]:
        """Takes in the report of a finished rollout."""
        raise NotImplementedError

    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]:
        """Takes in a worker's sums, on a server that adds up."""
        raise self._unexpected(Tag.SUMS)

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        """Takes in a worker's gradient, on a server that makes the steps."""
        raise self._unexpected(Tag.GRADIENT)

    def on_boundary(self, worker: int, message: np.ndarray) -> list[Answer]:
        """Takes in the lead's state at an iteration's end, if workers make the steps."""
        raise self._unexpected(Tag.BOUNDARY)

    def on_fetch(self, worker: int) -> list[Answer]:
        """Answers a worker that wants the server's state."""
        raise self._unexpected(Tag.FETCH)

    def _unexpected(self, tag: Tag) -> AssertionError:
        return AssertionError(f"{type(self).__name__} got {tag.name}, which its workers do not send")

    def on_failure(self, worker: int, text: str) -> list[Answer]:
        """Raises WorkerError: if one worker cannot continue, no rank can."""
        raise WorkerError(text, worker=worker)

    def on_signal(self) -> list[Answer]:
        """Asks all ranks to save and leave, because one worker was asked to."""
        self._tracker.preemption.request("a signal to a worker")
        return []

    def on_bye(self, worker: int) -> list[Answer]:
        """Takes in that a worker has left its loop."""
        self._present.discard(worker)
        return []

    def idle(self) -> list[Answer]:
        """Looks at clocks and signals. If asked to leave, it saves the last boundary at once, and the run ends at the
        next one, or now, if the next one is too far away.
        """
        preemption = self._tracker.preemption
        if not self.begun:
            self._tracker.evaluations.poll()
        if preemption.requested and not self.begun and not self._saved_at_once:
            self._saved_at_once = True
            self._tracker.saver.save_at_once()
        if not self.begun and preemption.past(GIVE_UP):
            self._tracker.saver.finish(PREEMPTED)
            return self.begin(PREEMPTED)
        if self.begun and (
            preemption.past(LEAVE) or time.monotonic() - self._begun_at > max(LEAVE_S, preemption.grace_s)
        ):
            self.abandoned = True
        if self._names and not self.begun and time.monotonic() > self._next_look:
            self._look_for_the_stuck()
        if self.begun:
            return []
        return self.aside() if self._mirrored_at is None else self._seal_orders()

    def heard(self, index: int) -> None:
        """Notes that this worker has finished a rollout."""
        self._heard_at[index] = time.monotonic()
        self._told_of.discard(index)

    def name(self, index: int) -> str:
        """Returns a worker's rank and host."""
        return self._names[index] if self._names else f"rank {index}"

    def waits_for(self) -> Collection[int]:
        """Returns the workers whose rollouts the run waits for."""
        raise NotImplementedError

    def _look_for_the_stuck(self) -> None:
        """Names the workers that rank 0 waits for. They tell more themselves, unless an environment holds Python's
        lock; then they cannot end themselves, either, and this raises WorkerError if --log.stall-abort-s asks for that.
        """
        now, log = time.monotonic(), self._tracker.config.log
        self._next_look = now + LOOK_S
        for index in sorted(self.waits_for()):
            silent_s = now - max(self._heard_at[index], self._tracker.evaluations.waited_until)
            if 0 < log.stall_abort_s < silent_s - ABORT_MARGIN_S:
                text = f"{self._names[index]}: no rollout for {silent_s:.0f} s (--log.stall-abort-s)"
                raise WorkerError(text, stalled=True)
            if 0 < log.stall_after_s < silent_s and index not in self._told_of:
                self._told_of.add(index)
                self._tracker.console.warn(f"rank 0 waits for {self._names[index]}: no rollout for {silent_s:.0f} s")
