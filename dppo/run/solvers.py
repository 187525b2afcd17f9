"""Meets a simulator that is another program of the same mpirun, and speaks with it; envs/include/dppo.h is its side.

Each worker speaks with rank 0 of its group of simulator ranks, over an intercommunicator. All words of the protocol are
8 bytes long: whole numbers int64, all others float64.

    worker -> simulator:  [request, number, action …]; after SAVE and LOAD also the folder's name, of `number` bytes
    simulator -> worker:  [status, reward, observation …] after RESET and ACTION; [done] after SAVE and LOAD
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from dppo.cluster import processes
from dppo.cluster.launcher import survives_deaths
from dppo.comm import leaving
from dppo.comm.collectives import gather_all
from dppo.comm.mpi import MPI
from dppo.config import SOLVER, Config
from dppo.console import say
from dppo.envs.solver import HOW_TO_START, Declaration, SolverLink, connect
from dppo.errors import UsageError

PROTOCOL = 1
"""The version, in the word that every rank says first: dppo's ranks with +, simulators' with -."""
TAG, PATH_TAG = 7700, 7701
END, RESET, ACTION, SAVE, LOAD = range(5)
BEGIN_S, DECLARE_S, LEAVE_S = 60.0, 600.0, 10.0
"""Seconds that simulators may take until they call dppo_begin, from there until they call dppo_declare, and to leave at
the end of a run that survives deaths.
"""
_WELCOME = 5
_DECLARED = struct.Struct("=qqqq")
_SPIN_S, _LONGEST_S, _SHARE = 2e-4, 1e-3, 32
"""Seconds of a wait before its first sleep; the longest sleep; what part of the time waited so far a sleep takes."""


class Simulators:
    """The ranks of other programs of this job, which call dppo.h.

    Args:
      world: the communicator of all programs.
      own: the communicator of dppo's own ranks; `world` if there is no other program.
      ranks: the simulators' ranks in `world`.
      pids: the numbers of their processes, each on its node.
    """

    def __init__(
        self, world: MPI.Intracomm, own: MPI.Intracomm, ranks: Sequence[int] = (), pids: Sequence[int] = ()
    ) -> None:
        self._world, self.own, self._ranks, self._pids = world, own, tuple(ranks), tuple(pids)
        self._link: SolverLink | None = None
        self._are_told = False

    @property
    def size(self) -> int:
        """The number of the simulators' ranks."""
        return len(self._ranks)

    def meet(self, comm: MPI.Comm, alone: MPI.Intracomm, config: Config) -> None:
        """Collective over `comm`, dppo's own ranks that are left after the start, and over the simulators. Connects
        each worker with its group: `dppo.envs:Solver` uses it.

        Args:
          alone: a communicator of this rank alone.

        Raises:
          UsageError: on all ranks: the settings or numbers of ranks do not fit, groups differ, or one does not declare
            itself.
        """
        error = layout_error(config, self.own.size, self.size)
        if error is None and self._ranks and comm.size != self.own.size:
            error = "a rank died while the simulator was starting: start the job again"
        if error is not None:
            raise UsageError(error)
        if self._ranks:
            self._are_told = True
            self._link = meet(self._world, comm, alone, self._ranks, config.env_ranks)
            connect(self._link)

    def let_go(self) -> None:
        """Lets the simulators leave that this rank is responsible for, once."""
        if self._link is not None:
            self._link.end()
        elif not self._are_told and self.own.rank == 0:
            for rank in self._ranks:
                self._world.Send(np.zeros(_WELCOME, np.int64), dest=rank, tag=TAG)
        self._are_told = True

    def end_those_left(self) -> None:
        """Kills the simulators on this node that do not leave by themselves: mpirun would wait for them for ever."""
        launcher, deadline = processes.launcher(), time.monotonic() + LEAVE_S
        while launcher and (left := [pid for pid in self._pids if processes.is_below(pid, launcher)]):
            if time.monotonic() > deadline:
                say(f"{len(left)} rank(s) of the simulator did not call dppo_end within {LEAVE_S:g} s: they are killed")
                for pid in left:
                    processes.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.01)


def part(world: MPI.Intracomm) -> Simulators:
    """Collective over `world`, all programs of the job. Finds the simulators among its ranks.

    Raises:
      TimeoutError: another program has not called dppo_begin in time.
      UsageError: it was compiled with the dppo.h of another version, or dppo's ranks have different arguments.
    """
    mine, said = np.array([PROTOCOL, os.getpid()], np.intc), np.zeros((world.size, 2), np.intc)
    too_late = (
        f"another program of this job has not called dppo_begin within {BEGIN_S:g} s: it must do so right after"
        f" MPI_Init (dppo.h; {HOW_TO_START})"
    )
    _wait(world.Iallgather(mine, said), time.monotonic() + BEGIN_S, too_late)
    own, others = (np.flatnonzero(which).tolist() for which in (said[:, 0] > 0, said[:, 0] < 0))
    if (said[others, 0] != -PROTOCOL).any():
        raise UsageError(
            "the simulator was compiled with the dppo.h of another version: compile it anew with -I$(python -m dppo.job"
            " --include)"
        )
    comm = world.Create_group(world.Get_group().Incl(own), TAG) if others else world
    if any(arguments != sys.argv[1:] for arguments in gather_all(comm, sys.argv[1:])):
        raise UsageError(
            "this mpirun has started dppo several times, with different arguments: start it once, on all its ranks;"
            " what follows the : is the simulator"
        )
    return Simulators(world, comm, others, said[others, 1].tolist())


def layout_error(config: Config, num_ranks: int, num_simulators: int) -> str | None:
    """Returns what is wrong with the settings or the numbers of ranks, with the repair; None if nothing is.

    Args:
      num_ranks: of dppo.
      num_simulators: ranks of the simulator.
    """
    workers, per_env, env = max(1, num_ranks - 1), config.env_ranks, config.env
    if env != SOLVER:
        started = f"--env {env} uses no other program, but this mpirun has started one on {num_simulators} rank(s)"
        return f"{started}: set --env {SOLVER}, or leave the other program out" if num_simulators else None
    if not num_simulators:
        return f"--env {SOLVER} needs the simulator as the second program: {HOW_TO_START}"
    if num_simulators != workers * per_env:
        return (
            f"{workers} worker(s) with --env-ranks {per_env} need {workers * per_env} rank(s) of the simulator, and"
            f" {num_simulators} were started: mpirun -n {num_ranks} python -m dppo.run … : -n {workers * per_env} …"
        )
    once = "a program that mpirun has started cannot be started anew"
    wrong = (
        (config.num_envs != 1, f"num_envs={config.num_envs}: a worker has one simulator: set --num-envs 1"),
        (config.vectorization == "native", "vectorization=native: leave it out"),
        (config.on_env_error != "abort", f"on_env_error={config.on_env_error}: {once}: leave it out"),
        (config.respawn, f"respawn: {once}: leave it out"),
    )
    return next((f"--env {SOLVER} and {text}" for is_wrong, text in wrong if is_wrong), None)


def meet(
    world: MPI.Intracomm, own: MPI.Comm, alone: MPI.Intracomm, solvers: Sequence[int], env_ranks: int
) -> SolverLink:
    """Collective over `own`, and over the simulators in `world`. Connects each worker with its group. Returns the
    worker's link; on a rank 0 that is no worker, one that knows only what was declared.

    Args:
      alone: a communicator of this rank alone.

    Raises:
      UsageError: on all ranks: groups differ, or one does not declare itself.
    """
    workers = range(own.size) if own.size == 1 else range(1, own.size)
    heads = gather_all(own, world.rank)
    if own.rank == 0:
        for number, rank in enumerate(workers):
            for solver in solvers[number * env_ranks : (number + 1) * env_ranks]:
                welcome = np.array([1, env_ranks, number, heads[rank], number * env_ranks], np.int64)
                world.Send(welcome, dest=solver, tag=TAG)
    link: _Link | None = None
    told: Declaration | str | None = None
    if own.rank in workers:
        number = own.rank - workers[0]
        members = solvers[number * env_ranks : (number + 1) * env_ranks]
        name = f"simulator {number} ({'rank' if env_ranks == 1 else 'ranks'} {_listed(members)} of the job)"
        try:
            comm = alone.Create_intercomm(0, world, members[0], TAG)
            comm.Set_errhandler(MPI.ERRORS_RETURN)
            link = _Link(comm, name, has_others=own.size > 1)
            link.read_declaration()
            told = link.declaration
        except (TimeoutError, UsageError) as error:
            told = str(error)
        except MPI.Exception as error:
            told = f"{name} has ended before it called dppo_declare: {error.Get_error_string()}"
    said = [each for each in gather_all(own, told) if each is not None]
    errors = [each for each in said if isinstance(each, str)]
    declared = [each for each in said if isinstance(each, Declaration)]
    if not errors:
        differ = [(n, d.differs_from(declared[0])) for n, d in enumerate(declared) if d != declared[0]]
        errors = [f"simulators {n} and 0 have declared different things, their {why}" for n, why in differ]
    if errors:
        if link is not None:
            link.end()
        raise UsageError(errors[0])
    return _Told(declared[0]) if link is None else link


def _listed(ranks: Sequence[int]) -> str:
    is_row = list(ranks) == list(range(ranks[0], ranks[0] + len(ranks)))
    return f"{ranks[0]}-{ranks[-1]}" if is_row and len(ranks) > 1 else ", ".join(map(str, ranks))


def _wait(request: MPI.Request, deadline: float | None = None, too_late: str = "") -> None:
    """Waits, soon mostly asleep: the simulator may need the core. Raises TimeoutError after the deadline."""
    _poll(request.Test, deadline, too_late)


def _poll(is_done: Callable[[], object], deadline: float | None = None, too_late: str = "") -> None:
    since = time.monotonic()
    while not is_done():
        now = time.monotonic()
        if deadline is not None and now > deadline:
            raise TimeoutError(too_late)
        if now - since > _SPIN_S:
            time.sleep(min(_LONGEST_S, (now - since) / _SHARE))


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


class _Told:
    """The link of rank 0, which steps no environment: it knows the spaces only."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration

    def _refuse(self, *_: object) -> NoReturn:
        raise RuntimeError("this rank has no simulator: those of the workers that have died have ended with them")

    reset = step = save = load = _refuse

    def end(self) -> None:
        """Does nothing."""


class _Link:
    """A worker's link with its group. `comm`: an intercommunicator, in which the remote rank 0 speaks for the group;
    `has_others`: whether other ranks of dppo train, which go on without this one.
    """

    declaration: Declaration

    def __init__(self, comm: MPI.Comm, name: str, *, has_others: bool = True) -> None:
        self._comm, self._name, self._has_others = comm, name, has_others
        self._request, self._state = np.zeros(2), np.zeros(2)
        self._has_ended = False

    def read_declaration(self) -> None:
        """Receives what the simulator declares. Raises TimeoutError, or UsageError where it can be no environment."""
        too_late = f"{self._name} has not called dppo_declare within {DECLARE_S:g} s after dppo_begin"
        status = MPI.Status()
        _poll(lambda: self._comm.Iprobe(0, TAG, status), time.monotonic() + DECLARE_S, too_late)
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
        self._receive(self._state)
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

    def _receive(self, buffer: np.ndarray) -> None:
        try:
            _wait(self._comm.Irecv([buffer, MPI.BYTE], source=0, tag=TAG))
        except MPI.Exception as error:
            self._lost(error)

    def _lost(self, error: MPI.Exception) -> NoReturn:
        """Ends this worker with its simulator, as if it had been killed; or the job, if nobody goes on."""
        self._has_ended = True
        text = f"{self._name} has died: {error.Get_error_string()}"
        if survives_deaths() and self._has_others:
            say(f"{text}; its worker ends with it")
            leaving.die()
        raise RuntimeError(text)
