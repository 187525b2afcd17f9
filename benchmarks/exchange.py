"""What does communication cost? dppo beside bare MPI calls of the same bytes, and the parameter server at its limit.

    .venv/bin/python benchmarks/exchange.py [--only allreduce p2p server] [--seconds 4]

allreduce: the sum of the flat gradient over the workers, as a sync update makes it, against a bare in-place Allreduce;
a barrier before each, of all ranks the slowest. p2p: a gradient to rank 0 and parameters back, against a bare
ping-pong. server: gradients per second that rank 0 receives, applies and answers in async mode, from workers that do
nothing but send.

Starts itself under mpirun, with the MPI settings of a run. What is compared is measured in turn, in one job. Prints
tables and writes them, with their figures, to benchmarks/results/exchange.{md,json}; parts that are not run again keep
their last result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from common import machine, markdown_table, mpirun, save, spread, stored

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from dppo.seams import Answer

RANKS = (2, 4, 8, 16, 32)
WORKERS = (1, 2, 4, 8, 16, 31)
PARAMETERS = (10**4, 10**5, 10**6, 10**7)
SERVED = PARAMETERS[:3]
ROUND_TRIPS = 10
"""Between two looks at the clock."""
WINDOWS = 3
"""In which the server's rate is measured."""
GROWTH = 1.1
"""A rate that no larger number of workers raises by so much has stopped growing."""


# -- on the ranks: each part takes the communicator and seconds per row, and returns the rows --------------------


def world() -> MPI.Comm:
    """Of ranks that are set up as dppo.run sets them up. Everything else is imported after it."""
    from dppo.cluster import startup

    startup.prepare()
    from dppo.comm.mpi import MPI
    from dppo.run.command import start_mpi

    start_mpi()
    return MPI.COMM_WORLD


def in_turn(comm: MPI.Comm, sides: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Collective over `comm`. Seconds that each side took on the slowest rank, as often as there is time for it."""
    import numpy as np
    from mpi4py import MPI

    def timed(side: Callable[[], None]) -> float:
        comm.Barrier()
        since = time.perf_counter()
        side()
        return time.perf_counter() - since

    for side in sides.values():
        timed(side)  # the first makes connections and buffers
    both = comm.allreduce(sum(timed(side) for side in sides.values()), MPI.MAX)
    times = np.empty((min(1000, max(5, int(seconds / both))), len(sides)))
    for row, repeat in enumerate(times):
        order = list(enumerate(sides.values()))
        for column, side in order if row % 2 else reversed(order):
            repeat[column] = timed(side)
    comm.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
    return dict(zip(sides, times.T.tolist(), strict=True))


def allreduce(comm: MPI.Comm, seconds: float) -> list[dict[str, Any]]:
    """Collective over `comm`. All ranks are workers."""
    from mpi4py import MPI

    from dppo.algo.losses import METRICS
    from dppo.comm.allreduce import Allreduce
    from dppo.models.flat import FlatParameters

    workers = Allreduce(comm)

    def measure(size: int) -> dict[str, Any]:
        summed = FlatParameters({"all": (size,)}, len(METRICS)).summed
        sides = {"dppo": lambda: workers.add(summed), "bare": lambda: comm.Allreduce(MPI.IN_PLACE, summed, MPI.SUM)}
        return {"ranks": comm.size, "parameters": size, "us": quartiles(in_turn(comm, sides, seconds))}

    return [measure(size) for size in PARAMETERS]


def p2p(comm: MPI.Comm, seconds: float) -> list[dict[str, Any]]:
    """Collective over `comm`, of two ranks: the server and a worker."""
    import numpy as np

    from dppo.algo.losses import METRICS
    from dppo.comm.link import MPILink
    from dppo.comm.server import serve
    from dppo.models.flat import FlatParameters
    from dppo.seams import Answer, Tag

    class Echo:
        """A coordinator that answers as many gradients as there are round trips, and does nothing with them."""

        abandoned = False

        def __init__(self, answer: np.ndarray) -> None:
            self._answer, self._answered = answer, 0

        @property
        def done(self) -> bool:
            return self._answered == ROUND_TRIPS

        def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
            self._answered += 1
            return [Answer(worker, Tag.REPLY, self._answer)]

        def idle(self) -> list[Answer]:
            return []

    def measure(size: int) -> dict[str, Any]:
        flat = FlatParameters({"all": (size,)}, len(METRICS))
        gradient, answer = np.zeros(flat.summed.nbytes + 8, np.uint8), np.zeros(flat.vector.nbytes, np.uint8)

        def dppo() -> None:
            if comm.rank == 0:
                serve(comm, Echo(answer), first_worker_rank=1)
                return
            link = MPILink(comm, lambda: False)
            for _ in range(ROUND_TRIPS):
                link.gradient(0, flat.summed)
                link.reply(wait=True)

        def bare() -> None:
            for _ in range(ROUND_TRIPS):
                if comm.rank == 0:
                    comm.Recv(gradient, 1)
                    comm.Send(answer, 1)
                else:
                    comm.Send(gradient, 0)
                    comm.Recv(answer, 0)

        times = in_turn(comm, {"dppo": dppo, "bare": bare}, seconds)
        single = {side: [t / ROUND_TRIPS for t in taken] for side, taken in times.items()}
        return {"parameters": size, "us": quartiles(single)}

    return [measure(size) for size in PARAMETERS]


class Until:
    """A coordinator whose run ends once a time has passed since its first gradient."""

    def __init__(self, coordinator: Any, seconds: float) -> None:
        self._coordinator, self._seconds = coordinator, seconds
        self.gradients, self.wall_s, self.cpu_s = -1, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coordinator, name)

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        answers: list[Answer] = self._coordinator.on_gradient(worker, version, summed)
        if self.begun:
            return answers
        if self.gradients < 0:
            self._since = time.monotonic(), time.process_time()
        self.gradients += 1
        self.wall_s, self.cpu_s = time.monotonic() - self._since[0], time.process_time() - self._since[1]
        return self.begin("finished") if self.wall_s > self._seconds else answers


def server(comm: MPI.Comm, seconds: float) -> list[dict[str, Any]]:
    """Collective over `comm`. Rank 0 is the server of async mode, without a tracker; the others are workers."""
    import numpy as np
    from gymnasium import spaces

    from dppo.algo.losses import METRICS
    from dppo.algo.moments import RewardScale
    from dppo.comm.link import MPILink
    from dppo.comm.server import serve
    from dppo.comm.wakeup import make_doorbell
    from dppo.config import Config
    from dppo.models.flat import FlatParameters
    from dppo.models.inputs import Inputs
    from dppo.settings.resolve import resolve
    from dppo.training.async_loop import AsyncCoordinator
    from dppo.training.moments import RunMoments
    from dppo.training.state import TrainingState

    config = resolve(Config(mode="async"))
    preemption = SimpleNamespace(requested=False, past=lambda share: False, grace_s=30.0)
    tracker: Any = SimpleNamespace(
        counters=SimpleNamespace(pending_rollouts=0),
        saver=SimpleNamespace(take_seal_orders=dict),
        preemption=preemption,
    )
    learner: Any = None
    doorbell = make_doorbell(comm)

    def window(state: TrainingState) -> dict[str, float]:
        comm.Barrier()
        if comm.rank == 0:
            real = AsyncCoordinator(tracker, state, learner, config, range(comm.size - 1))
            timed = Until(real, seconds / WINDOWS)
            serve(comm, timed, first_worker_rank=1, doorbell=doorbell)
            return {"rate": timed.gradients / timed.wall_s, "cpu_us": 1e6 * timed.cpu_s / timed.gradients}
        link = MPILink(comm, lambda: False, doorbell=doorbell)
        while not link.stopped:
            link.gradient(state.version, state.flat.summed)
            if (message := link.reply(wait=True)) is not None:
                state.unpack(message)
        link.bye()
        return {}

    rows = []
    for size in SERVED:
        flat = FlatParameters({"all": (size,)}, len(METRICS))
        flat.gradient[:] = np.random.default_rng(comm.rank).normal(0.0, 1.0, size)
        flat.sums[METRICS.index("count")] = 64.0
        state = TrainingState(
            flat, RunMoments(Inputs(spaces.Box(-1.0, 1.0, (8,)), config.moments), RewardScale(is_used=True)), config
        )
        windows = [window(state) for _ in range(WINDOWS)]
        if comm.rank == 0:
            figures = {key: [w[key] for w in windows] for key in windows[0]}
            rows.append({"workers": comm.size - 1, "parameters": size, **figures})
    return rows


# -- tables --------------------


def quartiles(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of seconds, in µs."""
    out = {}
    for side, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        out[side] = {"median": 1e6 * median, "q1": 1e6 * low, "q3": 1e6 * high, "repeats": len(seconds)}
    return out


def against_bare(row: dict[str, Any]) -> list[str]:
    """Cells: dppo, bare MPI, the one over the other."""
    sides = [row["us"][side] for side in ("dppo", "bare")]
    cells = [f"{t['median']:,.0f} [{t['q1']:,.0f}, {t['q3']:,.0f}]" for t in sides]
    return [
        f"{row['parameters']:,}",
        *cells,
        f"{sides[0]['median'] / sides[1]['median']:.2f}",
        str(sides[0]["repeats"]),
    ]


def allreduce_table(rows: list[dict[str, Any]]) -> str:
    """A row for each number of ranks and parameters."""
    head = ("ranks", "parameters", "dppo, µs", "bare, µs", "ratio", "repeats", "at most 1.2 bare + 20 µs")
    cells = []
    for row in rows:
        limit = 1.2 * row["us"]["bare"]["median"] + 20.0
        cells.append([row["ranks"], *against_bare(row), "yes" if row["us"]["dppo"]["median"] <= limit else "no"])
    note = "Median [quartiles] of the slowest rank."
    return f"## The sum of an update, allreduce\n\n{note}\n\n{markdown_table(head, cells)}"


def p2p_table(rows: list[dict[str, Any]]) -> str:
    """A row for each number of parameters."""
    head = ("parameters", "dppo, µs", "bare, µs", "ratio", "repeats")
    note = f"One worker; median [quartiles] of means over {ROUND_TRIPS} round trips."
    return (
        f"## A gradient to the server and its answer, p2p\n\n{note}\n\n{markdown_table(head, map(against_bare, rows))}"
    )


def server_table(rows: list[dict[str, Any]]) -> str:
    """A row for each number of workers, two columns for each number of parameters; then where rates stop growing."""
    head, cells, ends = ["workers"], [[str(workers)] for workers in WORKERS], []
    for size in SERVED:
        head += [f"{size:,} parameters: gradients/s", "server's CPU, µs each"]
        column = [row for row in rows if row["parameters"] == size]
        for line, row in zip(cells, column, strict=True):
            line += [spread(row["rate"], ",.0f"), spread(row["cpu_us"], ",.0f")]
        rates = [statistics.median(row["rate"]) for row in column]
        end = next(i for i, rate in enumerate(rates) if max(rates[i:]) < GROWTH * rate)
        service = statistics.median(column[end]["cpu_us"])
        ends.append(
            f"- {size:,} parameters: {WORKERS[end]} workers, {rates[end]:,.0f} gradients/s, {service:,.0f} µs each"
        )
    note = f"Median [least, most] of {WINDOWS} windows. Where more workers bring less than {GROWTH - 1:.0%} more:"
    lines = "\n".join(ends)
    return f"## The server's rate, async\n\n{markdown_table(head, cells)}\n{note}\n\n{lines}\n"


PARTS: dict[str, tuple[Callable[[Any, float], list[dict[str, Any]]], tuple[int, ...], Callable[[Any], str]]] = {
    "allreduce": (allreduce, RANKS, allreduce_table),
    "p2p": (p2p, (2,), p2p_table),
    "server": (server, tuple(w + 1 for w in WORKERS), server_table),
}


def main() -> None:
    """Runs the parts asked for, a job for each number of ranks, and writes the tables after each part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row")
    parser.add_argument("--rank-program", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_program:
        comm = world()
        rows = PARTS[args.rank_program][0](comm, args.seconds)
        if comm.rank == 0:
            print(json.dumps(rows))
        return
    results = stored("exchange")
    for part in args.only:
        program = [__file__, "--rank-program", part, "--seconds", str(args.seconds)]
        jobs = [mpirun(ranks, program, timeout_s=300.0) for ranks in PARTS[part][1]]
        results[part] = [row for job in jobs for row in json.loads(job.stdout)]
        results["machine"] = machine()
        tables = [table(results[name]) for name, (_, _, table) in PARTS.items() if name in results]
        save("exchange", "\n".join([f"# Exchange\n\n{results['machine']}.\n", *tables]), results)


if __name__ == "__main__":
    main()
