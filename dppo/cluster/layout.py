"""Places environments of several ranks: each group of ranks on one node of the job, the server on its first node.

A launcher fills one node after another, so that groups would lie on two nodes wherever a node's tasks are not those of
whole groups. Here the tasks that are too many stay idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dppo.errors import UsageError

Room = Sequence[tuple[str, int]]
"""The nodes of a job, and the tasks that each has room for."""


@dataclass(frozen=True)
class Layout:
    """What the launcher is given."""

    launcher: list[str]
    """The launcher with its options, those for dppo's ranks included."""
    ranks: int
    """The number of dppo's ranks."""
    beside: list[str]
    """The simulator on its ranks, as further programs of the same command; [] where there is none."""
    description: str
    """Where the groups are, in words."""


def groups_by_node(tasks: Sequence[int], ranks_each: int) -> list[int]:
    """Returns the number of whole groups of `ranks_each` ranks that each node has room for, beside the server on the
    first.
    """
    return [max(0, count - (node == 0)) // ranks_each for node, count in enumerate(tasks)]


def spread(ranks: int, nodes: int) -> list[int]:
    """Returns the number of ranks that srun places on each node if it is told no nodes."""
    return [ranks // nodes + (node < ranks % nodes) for node in range(nodes)]


def lay_out(launcher: Sequence[str], room: Room, env_ranks: int, simulator: Sequence[str] = ()) -> Layout:
    """Returns the layout of as many groups as there is room for.

    Args:
      launcher: mpirun or srun, with options that name no ranks and no nodes.
      env_ranks: the ranks of an environment.
      simulator: a program that owns its main loop, with its arguments. Each group then is `env_ranks` of its ranks and
        one worker of dppo; without it, `env_ranks` ranks of dppo.

    Raises:
      UsageError: there is no room for a server and one group, or srun would have to start a simulator.
    """
    ranks_each = env_ranks + bool(simulator)
    groups = groups_by_node([tasks for _, tasks in room], ranks_each)
    if not any(groups):
        raise UsageError(
            f"no node of the job has room for a group of {ranks_each} ranks (the first has the server as well): ask for"
            f" --ntasks-per-node={1 + ranks_each} at least"
        )
    own = [
        (host, (node == 0) + count * (1 if simulator else env_ranks))
        for node, ((host, _), count) in enumerate(zip(room, groups, strict=True))
    ]
    own = [(host, ranks) for host, ranks in own if ranks]
    total = sum(ranks for _, ranks in own)
    where = ", ".join(f"{count} on {host}" for (host, _), count in zip(room, groups, strict=True))
    description = f"groups of {ranks_each} ranks, each on one node: {where}"
    if Path(launcher[0]).name == "srun":
        if simulator:
            raise UsageError("srun starts no simulator beside dppo: use mpirun")
        options = ["--distribution=block", f"--ntasks={total}"]
        if [ranks for _, ranks in own] != spread(total, len(room)):  # not otherwise: MPICH would share no memory
            hosts = ",".join(host for host, ranks in own for _ in range(ranks))
            options = ["--distribution=arbitrary", f"--ntasks={total}", f"--nodelist={hosts}"]
        return Layout([*launcher, *options], total, [], description)
    options = ["--host", ",".join(f"{host}:{ranks}" for host, ranks in own), "-n", str(total)]
    beside: list[str] = []
    if simulator:  # one program for each node: Open MPI takes several nodes of a further program as a hint only
        for (host, _), count in zip(room, groups, strict=True):
            ranks = str(count * env_ranks)
            beside += [":", "--host", f"{host}:{ranks}", "-n", ranks, *simulator] if count else []
    return Layout([*launcher, *options], total, beside, description)
