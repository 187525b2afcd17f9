"""Meets simulators that are other programs of the same mpirun, and gives each worker one of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np

from dppo.cluster import processes
from dppo.comm.collectives import gather_all
from dppo.comm.mpi import MPI
from dppo.config import SOLVER, Config
from dppo.console import say
from dppo.envs.solver import HOW_TO_START, Declaration, SolverLink, connect
from dppo.errors import UsageError
from dppo.run.env_groups import listed, nodes, refuse_to_span, shortened
from dppo.run.solver_link import TAG, ServerLink, WorkerLink, wait

PROTOCOL = 2
"""The version, in the word that every rank says first: dppo's ranks with +, simulators' with -."""
BEGIN_S, LEAVE_S = 60.0, 10.0
"""Seconds that simulators may take until they call dppo_begin; to leave at the end of a run that survives deaths."""
SPREAD = (
    "start it by python -m dppo.job --place-groups in a Slurm job, or give the simulator's ranks on each node as a"
    " program of their own with --host (docs/simulators.md)"
)
"""How to place a simulator's ranks on one node."""
_WELCOME, _HOST = 5, 64
"""The words of a welcome; the bytes of a node's name in the first message of a rank: [version, process, node]."""


class Simulators:
    """The ranks of other programs of this job, which call dppo.h.

    Args:
      world: the communicator of all programs.
      own: the communicator of dppo's own ranks; `world` if there is no other program.
      ranks: the simulators' ranks in `world`.
      pids: the numbers of their processes on this node.
      hosts: the names of the nodes of all ranks of `world`.
    """

    def __init__(
        self, world: MPI.Intracomm, own: MPI.Intracomm, ranks: Sequence[int] = (), pids: Sequence[int] = (),
        hosts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._world, self.own, self._ranks, self._pids = world, own, tuple(ranks), tuple(pids)
        self._hosts = tuple(hosts)
        self._link: SolverLink | None = None
        self._are_told = False

    @property
    def size(self) -> int:
        """The number of the simulators' ranks."""
        return len(self._ranks)

    def meet(self, comm: MPI.Comm, alone: MPI.Intracomm, config: Config) -> list[str]:
        """Collective over `comm`, dppo's own ranks that are left after the start, and over the simulators. Connects
        each worker with its group: `dppo.envs:Solver` uses it. Returns lines on where the groups are.

        Args:
          alone: a communicator of this rank alone.

        Raises:
          UsageError: on all ranks: the settings or numbers of ranks do not fit, a group lies on several nodes, groups
            differ, or one does not declare itself.
        """
        error = layout_error(config, self.own.size, self.size)
        if error is None and self._ranks and comm.size != self.own.size:
            error = "a rank died while the simulator was starting: start the job again"
        if error is not None:
            raise UsageError(error)
        if not self._ranks:
            return []
        each, groups = config.env_ranks, range(self.size // config.env_ranks)
        members = [self._ranks[number * each : (number + 1) * each] for number in groups]
        if not config.env_ranks_span_nodes:
            refuse_to_span("simulator", members, self._hosts, SPREAD)
        lines = [f"simulator {n}: {listed(m)} on {nodes(m, self._hosts)}" for n, m in enumerate(members)]
        self._are_told = True
        self._link = meet(self._world, comm, alone, self._ranks, each)
        connect(self._link)
        return shortened(lines, "simulators")

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
    mine = np.zeros(2 + _HOST // 4, np.intc)
    mine[:2] = PROTOCOL, os.getpid()
    name = MPI.Get_processor_name().encode()[: _HOST - 1]
    mine[2:].view(np.uint8)[: len(name)] = np.frombuffer(name, np.uint8)
    said = np.zeros((world.size, len(mine)), np.intc)
    too_late = (
        f"another program of this job has not called dppo_begin within {BEGIN_S:g} s: it must do so right after"
        f" MPI_Init (dppo.h; {HOW_TO_START})"
    )
    wait(world.Iallgather(mine, said), time.monotonic() + BEGIN_S, too_late)
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
    hosts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in np.ascontiguousarray(said[:, 2:])]
    here = [rank for rank in others if hosts[rank] == hosts[world.rank]]
    return Simulators(world, comm, others, said[here, 1].tolist(), hosts)


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
        (bool(config.cases), "cases: a program chooses its case itself, by the number that dppo_begin gives it"),
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
    link: WorkerLink | None = None
    told: Declaration | str | None = None
    if own.rank in workers:
        number = own.rank - workers[0]
        members = solvers[number * env_ranks : (number + 1) * env_ranks]
        name = f"simulator {number} ({listed(members)} of the job)"
        try:
            comm = alone.Create_intercomm(0, world, members[0], TAG)
            comm.Set_errhandler(MPI.ERRORS_RETURN)
            link = WorkerLink(comm, name, has_others=lambda: own.size > 1 + own.Get_failed().size)
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
    return ServerLink(declared[0]) if link is None else link
