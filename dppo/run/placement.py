"""Decides which rank's network computes on which GPU: that of the i-th learner of a node on the node's i-th GPU."""

from __future__ import annotations

from collections.abc import Sequence

from dppo.comm.collectives import gather_at_zero
from dppo.comm.mpi import Comm
from dppo.comm.wakeup import Neighbours
from dppo.run.rank import Rank

MOST_NAMED = 8
"""The most ranks that the first lines name."""
CPU = "cpu"


def place_network(me: Rank, computing: Comm, *, computes: bool) -> None:
    """Collective over the group and over `computing`, the ranks that compute or those that do not. Has each network
    compute on its device, which the first lines name.
    """
    policy, gpus = me.parts.policy, me.parts.gpus
    if policy.place is None or me.plan.config.device == CPU:
        return
    neighbours = Neighbours(computing)
    index = neighbours.ranks.index(neighbours.rank)
    gpu = gpus[index % len(gpus)] if computes and gpus else None
    policy.place(CPU if gpu is None else gpu.device)
    mine = None if gpu is None else f"{gpu.device} ({gpu.description})"
    everyone = gather_at_zero(me.group.comm, (mine, "" if gpus else me.parts.why_no_gpu))
    if me.group.is_server:
        line = described([device for device, _ in everyone]) or f"the network computes on the CPU: {everyone[-1][1]}"
        me.services.console.line(f"  {line}")


def described(everyone: Sequence[str | None]) -> str:
    """Returns a line on the devices of all ranks, of which None is the CPU; "" if there is no other."""
    on_gpus = [(rank, gpu) for rank, gpu in enumerate(everyone) if gpu is not None]
    if not on_gpus:
        return ""
    if len(everyone) == 1:
        return f"the network computes on {on_gpus[0][1]}"
    named = ", ".join(f"of rank {rank} on {gpu}" for rank, gpu in on_gpus[:MOST_NAMED])
    more = f", and of {len(on_gpus) - MOST_NAMED} more ranks on GPUs" if len(on_gpus) > MOST_NAMED else ""
    others = len(everyone) - 1 - len(on_gpus)  # rank 0's network never runs
    return f"the network computes: {named}{more}" + f"; of {others} other worker(s) on the CPU" * (others > 0)
