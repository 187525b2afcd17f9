"""The ranks of groups.py: a solver's steps through dppo, and the same steps of the same ranks without it.

Blocks of steps alternate in one job. Rank 0 is the server of a run, and sleeps.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from exchange import world
from group_envs import Work, Workload, set_work

BLOCKS = 15
"""Of each side."""
BLOCK_STEPS = {"heat": 10, "compute": 10, "sleep": 10, "nothing": 300}
FEWEST = {"heat": 16, "compute": 1024}
"""How much work is tried first to find out how much takes as long as it should."""
MOST = 1 << 28
Row = dict[str, Any]


def in_turn(coupled: Callable[[int], object], bare: Callable[[int], float | None], steps: int) -> Row:
    """Seconds of a step, coupled and bare: the mean of each block. Both make a number of steps; `bare` may return the
    seconds that it took.
    """
    out: Row = {"coupled_s": [], "bare_s": []}
    coupled(max(2, steps // 4))
    for block in range(BLOCKS):
        for name, side in (("coupled_s", coupled), ("bare_s", bare))[:: 1 if block % 2 else -1]:
            since = time.perf_counter()
            told = side(steps)
            out[name].append((told or time.perf_counter() - since) / steps)
    return out


def calibrated(kind: str, step_s: float, seconds_of: Callable[[Work], float]) -> Work:
    """Returns the work of which a bare step takes `step_s`. `seconds_of`: a bare step of some work."""
    if kind not in FEWEST:
        return Work(kind, step_s if kind == "sleep" else 0)
    amount = FEWEST[kind]
    while (taken_s := statistics.median(seconds_of(Work(kind, amount)) for _ in range(5))) < step_s / 2:
        amount *= 2
        assert amount < MOST, (kind, taken_s)
    return Work(kind, max(1, round(amount * step_s / taken_s)))


@contextlib.contextmanager
def asleep(comm: Any) -> Iterator[None]:
    """Collective over `comm`. Leaves once all ranks have done what is inside; those that are early sleep."""
    yield
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.02)


# -- in Python --------------------

_bare: Workload | None = None
_group: Any = None
_ACTION = np.zeros(4, np.float32)


def make_bare() -> None:
    """Collective over the group. Makes the environment that is stepped without dppo."""
    global _bare
    _bare = Workload(None if _group is None else _group.comm.Dup())


def step_bare(steps: int) -> None:
    """Collective over the group, unless it does nothing."""
    assert _bare is not None
    if _bare.comm is not None:
        _bare.comm.Barrier()
    for _ in range(steps):
        _bare.step(_ACTION)


def bare_loop(steps: int) -> None:
    """Collective over the group: the least that a coupled step could send, by MPI's own waits, which spin."""
    assert _bare is not None
    if _bare.comm is not None:
        word, words = np.zeros(1), np.zeros(_bare.comm.size)
        for _ in range(steps):
            _bare.comm.Bcast(_ACTION.copy())
            _bare.comm.Gather(word, words)


def on_all(function: Callable[..., None], *arguments: object) -> None:
    """Calls a function on all ranks of the group; to be called on its head."""
    if _group is not None:
        from dppo.envs.group_link import Call

        _group.tell(Call.RUN, arguments=(function, *arguments))
    function(*arguments)


def timed(function: Callable[[int], None], steps: int) -> float:
    """Seconds of a step of a function of the whole group, from when all ranks have begun."""
    on_all(step_bare, 0)
    since = time.perf_counter()
    on_all(function, steps)
    return (time.perf_counter() - since) / steps


def on_head(kinds: Sequence[str], step_s: float) -> list[Row]:
    """Measures on the head of a group. Returns a row of each kind of work."""
    from dppo.envs.given import Given
    from dppo.envs.groups import find_maker

    def seconds_of(work: Work) -> float:
        on_all(set_work, work)
        return timed(step_bare, 3)

    def coupled(steps: int) -> None:
        for _ in range(steps):
            env.step(_ACTION)

    on_all(make_bare)
    env = find_maker("group_envs:Workload", {}, (), None if _group is None else Given(group=_group)).make(0)
    env.reset(seed=0)
    rows = []
    for kind in kinds:
        on_all(set_work, calibrated(kind, step_s, seconds_of))
        function = bare_loop if kind == "nothing" else step_bare

        def bare(steps: int, function: Callable[[int], None] = function) -> float:
            return steps * timed(function, steps)

        rows.append({"kind": kind, **in_turn(coupled, bare, BLOCK_STEPS[kind])})
    env.close()
    return rows


def python(comm: Any, ranks: int, kinds: Sequence[str], step_s: float) -> list[Row] | None:
    """Collective over `comm`, which has 1 + W * `ranks` ranks. Returns, on rank 0, what the groups have measured."""
    from dppo.config import Config
    from dppo.envs.groups import Follower
    from dppo.envs.maker import EnvMaker
    from dppo.run.env_groups import make_groups

    global _group
    _group = make_groups(Config(env="group_envs:Workload", env_ranks=ranks), comm)[1]
    rows: list[Row] = []
    with asleep(comm):
        if comm.rank and (_group is None or _group.is_head):
            rows = on_head(kinds, step_s)
            if _group is not None:
                _group.dismiss(None)
        elif comm.rank:
            Follower(lambda: EnvMaker("group_envs:Workload"), _group, lambda part: part.close()).follow()
    everyone = comm.gather(rows)
    return None if everyone is None else [row for of_rank in everyone for row in of_rank]


# -- in C --------------------


def c(comm: Any, ranks: int, kinds: Sequence[str], step_s: float) -> list[Row] | None:
    """Collective over `comm`, all ranks of both programs. Returns, on rank 0, what the workers have measured."""
    from mpi4py import MPI

    from dppo.config import SOLVER, Config
    from dppo.envs.solver import Solver
    from dppo.run.solvers import part

    simulators = part(comm)
    simulators.meet(simulators.own, MPI.COMM_SELF, Config(env=SOLVER, env_ranks=ranks, num_envs=1))
    rows: list[Row] = []
    with asleep(simulators.own):
        if simulators.own.rank:
            rows = on_worker(Solver(), kinds, step_s)
        simulators.let_go()
    everyone = simulators.own.gather(rows)
    return None if everyone is None else [row for of_rank in everyone for row in of_rank]


def on_worker(env: Any, kinds: Sequence[str], step_s: float) -> list[Row]:
    """Measures on the worker of a simulator. Returns a row of each kind of work."""
    env.reset(seed=0)

    def stepped(steps: int, work: Work) -> float:
        amounts = [work.amount * (kind == work.kind) for kind in ("heat", "compute")]
        action = np.array([steps, *amounts, 1e6 * work.amount * (work.kind == "sleep")], np.float32)
        return float(env.step(action)[0][0])

    rows = []
    for kind in kinds:
        work = calibrated(kind, step_s, lambda work: stepped(3, work) / 3)

        def coupled(steps: int, work: Work = work) -> None:
            for _ in range(steps):
                stepped(1, work)

        def bare(steps: int, work: Work = work) -> float:
            return stepped(steps, work)

        rows.append({"kind": kind, **in_turn(coupled, bare, BLOCK_STEPS[kind])})
    return rows


def main() -> None:
    """Prints the rows of `FORM RANKS STEP_S KIND …` on rank 0."""
    form, ranks, step_s, *kinds = sys.argv[1:]
    rows = {"python": python, "c": c}[form](world(), int(ranks), kinds, float(step_s))
    if rows is not None:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
