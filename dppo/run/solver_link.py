"""Speaks with a simulator that is another program of the same mpirun; envs/include/dppo.h is its side.

Each worker speaks with rank 0 of its group of simulator ranks, over an intercommunicator. All words of the protocol are
8 bytes long: whole numbers int64, all others float64.

    worker -> simulator:  [request, number, action …]; after SAVE and LOAD also the folder's name, of `number` bytes
    simulator -> worker:  [status, reward, observation …] after RESET and ACTION; [done] after SAVE and LOAD
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from dppo.cluster.launcher import survives_deaths
from dppo.comm import leaving
from dppo.comm.mpi import MPI
from dppo.console import say
from dppo.envs.solver import Declaration
from dppo.errors import UsageError

TAG, PATH_TAG = 7700, 7701
END, RESET, ACTION, SAVE, LOAD = range(5)
DECLARE_S = 600.0
"""Seconds that simulators may take from dppo_begin until they call dppo_declare."""
_DECLARED = struct.Struct("=qqqq")
_SPIN_S, _LONGEST_S, _SHARE = 2e-4, 1e-3, 64
"""Seconds of a wait before its first sleep; the longest sleep; what part of the time waited so far a sleep takes."""
_ALIKE, _EARLY, _NAP_S = 8, 0.95, 0.02
"""Of how many steps the shortest is what the next one is expected to take at least; the share of this time that a wait
sleeps through, so that the solver has the cores; the longest part of this sleep, as somebody may die meanwhile.
"""


def wait(request: MPI.Request, deadline: float | None = None, too_late: str = "") -> None:
    """Waits, soon mostly asleep: the simulator may need the core. Raises TimeoutError after the deadline."""
    poll(request.Test, deadline, too_late)


def poll(
    is_done: Callable[[], object], deadline: float | None = None, too_late: str = "", expected_s: float = 0.0
) -> float:
    """Returns the seconds waited, of which `expected_s` are expected; where it has perhaps overslept, less than these:
    what is expected next must not grow by that.
    """
    since, has_slept = time.monotonic(), False
    while not is_done():
        now = time.monotonic()
        if deadline is not None and now > deadline:
            raise TimeoutError(too_late)
        waited_s = now - since
        nap_s = _EARLY * expected_s - waited_s
        has_slept = nap_s > _SPIN_S
        if has_slept:
            time.sleep(min(_NAP_S, nap_s))
        elif waited_s > _SPIN_S:
            time.sleep(min(_LONGEST_S, waited_s / _SHARE))
    waited_s = time.monotonic() - since
    return min(waited_s, _EARLY * expected_s) if has_slept else waited_s


def unpacked(message: bytes, name: str) -> Declaration:
    """Returns what a message of `dppo_declare` says. Raises UsageError where it cannot be an environment."""
    num_observations, num_actions, can_save, length = _DECLARED.unpack_from(message)
    sizes = (num_observations, num_observations, num_actions, num_actions)
    values = np.frombuffer(message, np.float64, sum(sizes), _DECLARED.size)
    edges = np.cumsum((0, *sizes))
    bounds = [tuple(values[start:end].tolist()) for start, end in itertools.pairwise(edges)]
    for what, low, high in (("observation", *bounds[:2]), ("action", *bounds[2:])):
        wrong = [i for i, (a, b) in enumerate(zip(low, high, strict=True)) if not a < b]
        if wrong:
            i = wrong[0]
            raise UsageError(
                f"{name} has declared that {what} {i} lies between {low[i]:g} and {high[i]:g}: the lower bound must be"
                " below the upper one"
            )
    text = message[len(message) - length :].decode(errors="replace")
    return Declaration(text, bounds[0], bounds[1], bounds[2], bounds[3], bool(can_save))


class ServerLink:
    """The link of rank 0, which steps no environment: it knows the spaces only."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration

    def _refuse(self, *_: object) -> NoReturn:
        raise RuntimeError("this rank has no simulator: its worker has died, and it with it; --resume starts all again")

    reset = step = save = load = _refuse

    def end(self) -> None:
        """Does nothing."""


class WorkerLink:
    """A worker's link with its group. `comm`: an intercommunicator, in which the remote rank 0 speaks for the group;
    `has_others`: returns whether other ranks of dppo live, which go on without this one.
    """

    declaration: Declaration

    def __init__(self, comm: MPI.Comm, name: str, *, has_others: Callable[[], bool] = lambda: True) -> None:
        self._comm, self._name, self._has_others = comm, name, has_others
        self._request, self._state = np.zeros(2), np.zeros(2)
        self._has_ended = False
        self._lasted: deque[float] = deque([0.0], _ALIKE)

    def read_declaration(self) -> None:
        """Receives what the simulator declares. Raises TimeoutError, or UsageError where it can be no environment."""
        too_late = f"{self._name} has not called dppo_declare within {DECLARE_S:g} s after dppo_begin"
        status = MPI.Status()
        poll(lambda: self._comm.Iprobe(0, TAG, status), time.monotonic() + DECLARE_S, too_late)
        message = np.zeros(status.Get_count(MPI.BYTE), np.uint8)
        self._comm.Recv([message, MPI.BYTE], source=0, tag=TAG)
        self.declaration = unpacked(message.tobytes(), self._name)
        self._request = np.zeros(2 + len(self.declaration.action_low))
        self._state = np.zeros(2 + len(self.declaration.observation_low))

    def reset(self, seed: int) -> np.ndarray:
        self._send(RESET, seed)
        self._receive(self._state)
        return self._state[2:].copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, int]:
        self._request[2:] = action
        self._send(ACTION, 0)
        self._lasted.append(self._receive(self._state, min(self._lasted)))
        return self._state[2:].copy(), float(self._state[1]), int(self._state.view(np.int64)[0])

    def save(self, folder: str) -> bool:
        return self._ask(SAVE, folder)

    def load(self, folder: str) -> bool:
        return self._ask(LOAD, folder)

    def end(self) -> None:
        if not self._has_ended:
            with contextlib.suppress(MPI.Exception):  # it has died, and is gone anyway
                self._comm.Send(np.array([END, 0], np.int64), dest=0, tag=TAG)
            self._has_ended = True

    def _ask(self, request: int, folder: str) -> bool:
        path = np.frombuffer(os.fsencode(folder), np.uint8)
        self._send(request, len(path), path)
        answer = np.zeros(1, np.int64)
        self._receive(answer)
        return bool(answer[0])

    def _send(self, request: int, number: int, path: np.ndarray | None = None) -> None:
        if self._has_ended:
            raise RuntimeError(f"{self._name} has been let go: a worker has one simulator, which is started once")
        self._request.view(np.int64)[:2] = request, number
        try:
            self._comm.Send([self._request, MPI.BYTE], dest=0, tag=TAG)
            if path is not None:
                self._comm.Send([path, MPI.BYTE], dest=0, tag=PATH_TAG)
        except MPI.Exception as error:
            self._lost(error)

    def _receive(self, buffer: np.ndarray, expected_s: float = 0.0) -> float:
        """Returns the seconds waited."""
        try:
            return poll(self._comm.Irecv([buffer, MPI.BYTE], source=0, tag=TAG).Test, expected_s=expected_s)
        except MPI.Exception as error:
            self._lost(error)

    def _lost(self, error: MPI.Exception) -> NoReturn:
        """Ends this worker with its simulator, as if it had been killed; or the job, if nobody goes on."""
        self._has_ended = True
        text = f"{self._name} has died: {error.Get_error_string()}"
        if survives_deaths() and self._has_others():
            say(f"{text}; its worker ends with it")
            leaving.die()
        raise RuntimeError(text)
