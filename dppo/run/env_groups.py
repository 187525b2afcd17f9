"""Environments on several ranks: which ranks are a group, and what a head does for its followers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from dppo.comm.collectives import UNREADABLE, first_error, from_rank, gather_all
from dppo.comm.leaving import die
from dppo.comm.mpi import MPI, Comm
from dppo.comm.ulfm import wait_for_all
from dppo.config import Config
from dppo.envs.given import Given
from dppo.envs.reasons import reason
from dppo.errors import RankFailure, UsageError
from dppo.run.env_group import EnvGroup, Seat, divide, look_around
from dppo.training.build import Parts, build_parts

SPREAD = (
    "place 1 + k*{each} ranks on the first node and k*{each} on each other one (a hostfile with slots=, a rankfile, or"
    " python -m dppo.job --place-groups in a Slurm job)"
)
"""How to place the ranks of groups on one node each."""
MOST_NAMED = 16
"""The most groups that the first lines name."""


def make_groups(config: Config, comm: Comm) -> tuple[Comm, EnvGroup | None, list[str]]:
    """Collective over `comm`. Returns the communicator of the ranks that train, this rank's group, and lines on where
    the groups are; `comm`, None and no line where an environment has one rank.

    Raises:
      UsageError: on all ranks: a group would lie on several nodes.
    """
    if config.own_env_ranks == 1 or comm.size == 1:  # a dry run of one rank, to look at the environment
        return comm, None, []
    seats = look_around(comm)
    groups = [range(first, first + config.own_env_ranks) for first in range(1, comm.size, config.own_env_ranks)]
    if not config.env_ranks_span_nodes:
        hosts = [seat.host for seat in seats]
        refuse_to_span("group", groups, hosts, SPREAD.format(each=config.own_env_ranks))
    lines = [f"group {number}: {described(ranks, seats)}" for number, ranks in enumerate(groups)]
    return *divide(comm, config.own_env_ranks, seats), shortened(lines, "groups")


def end_broken_groups(ranks_each: int, comm: Comm, launched: Comm) -> None:
    """Collective over `comm`. Ends the ranks of groups of which some have died before there were groups, or of which
    one has become the server. The ranks that are left begin again with whole groups.

    Args:
      comm: the ranks of `launched`, all ranks of the job, that are left.

    Raises:
      MPI.Exception: on the ranks that are left: others have ended.
    """
    if ranks_each == 1 or comm.size == launched.size:
        return
    left = comm.Get_group().Translate_ranks(None, launched.Get_group())
    if launched.rank != left[0] and not whole(ranks_each, left, launched.rank):
        die()
    wait_for_all(comm, lambda: None)  # before rank 0 finds that the ranks make no whole groups


def whole(ranks_each: int, left: Sequence[int], rank: int) -> bool:
    """Returns whether `left`, of which the first is the server, has all ranks of the group of `rank`."""
    first = rank - (rank - 1) % ranks_each
    return set(range(first, first + ranks_each)) <= set(left[1:])


def refuse_to_span(what: str, groups: Sequence[Sequence[int]], hosts: Sequence[str], repair: str) -> None:
    """Raises UsageError, with the repair, if a group of ranks lies on several nodes. `hosts` are those of all ranks."""
    for number, ranks in enumerate(groups):
        if " and " in (where := nodes(ranks, hosts)):
            raise UsageError(
                f"{what} {number}, {listed(ranks)}, would lie on {where}: {repair}, or allow it by"
                " --env-ranks-span-nodes"
            )


def nodes(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Returns the names of the nodes of some ranks."""
    return " and ".join(dict.fromkeys(hosts[rank] for rank in ranks))


def listed(ranks: Sequence[int]) -> str:
    """Returns ranks as in `ranks 3-5`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {spans(sorted(ranks))}"


def shortened(lines: Sequence[str], what: str) -> list[str]:
    """Returns the lines, at most `MOST_NAMED` of them, and how many `what` are left out."""
    return [*lines[:MOST_NAMED], *([f"and {len(lines) - MOST_NAMED} more {what}"] if len(lines) > MOST_NAMED else [])]


def described(ranks: Sequence[int], seats: Sequence[Seat]) -> str:
    """Returns a text on where the ranks of a group are."""
    places = []
    for host in dict.fromkeys(seats[rank].host for rank in ranks):
        cores = frozenset[int]().union(*(seats[rank].cores for rank in ranks if seats[rank].host == host))
        places.append(f"{host}, core{'s' if len(cores) > 1 else ''} {spans(sorted(cores))}")
    return f"{listed(ranks)} on {' and '.join(places)}"


def spans(numbers: Sequence[int]) -> str:
    """Returns sorted numbers as in 0-3,8."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


# -- the head --------------------


@contextlib.contextmanager
def start_of(group: EnvGroup | None) -> Iterator[None]:
    """Surrounds what a head does at the start: its followers are told why the start has ended, if an error ends it."""
    try:
        yield
    except (UsageError, RankFailure, MPI.Exception, UNREADABLE) as error:
        if group is not None:
            group.dismiss(error if isinstance(error, UsageError) else RankFailure(str(error)))
        raise


def share_spaces(config: Config, comm: Comm, parts: Parts | None, given: Given) -> tuple[Parts | None, str | None]:
    """Collective over `comm`, the ranks that train. Gives rank 0, which is in no group and makes no environment, its
    parts. Returns this rank's parts, and an error if there is one; the same on all ranks.
    """
    seen, error = from_rank(comm, 1, None if parts is None else parts.seen), None
    if parts is None:
        try:
            parts = build_parts(config, None, given, seen=seen)
        except Exception as problem:
            error = str(problem) if isinstance(problem, ValueError) else reason(problem)
    return parts, first_error(comm, error)


def unlike_agents(comm: Comm, parts: Parts | None) -> str | None:
    """Collective over `comm`, the ranks that train. Returns an error if the environments of two workers have different
    agents; the same on all ranks.
    """
    told = gather_all(comm, None if parts is None or parts.envs is None else parts.envs.agents)
    workers = [agents for agents in told if agents is not None]
    for number, agents in enumerate(workers):
        if agents != workers[0]:
            return (
                f"the environments of worker {number} have the agents {list(agents)}, and those of worker 0"
                f" {list(workers[0])}: the agents of all must be the same"
            )
    return None
