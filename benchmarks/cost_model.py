"""What an iteration costs: steps/s of each cell of the grid as a function of the number of workers.

Uses the standard library; scaling.py fits it to measurements, and docs/scaling.md explains it. W workers, each with
T rows of N environments in a rollout and U updates made from it. All times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

Cell = Literal["sync/allreduce", "sync/p2p", "async"]
CELLS: tuple[Cell, ...] = get_args(Cell)


@dataclass(frozen=True)
class Point:
    """What a run with W workers showed: medians over its iterations."""

    steps_per_s: float
    """Environment steps per second, over all workers."""
    collect_s: float
    """The mean worker's collecting of a rollout."""
    spread_s: float
    """How much longer the slowest worker took."""
    learn_s: float
    """The mean worker's learning, waiting included."""
    exchange_s: float
    """The part of it that was waiting."""


@dataclass(frozen=True)
class Model:
    """One cell of the grid on one machine."""

    cell: Cell
    rows: int
    """T of a rollout."""
    envs: int
    """N of a worker."""
    updates: int
    """U: gradients that a worker computes from a rollout."""
    cores: float
    """Shared by all workers; infinite where each rank has its own."""
    sleep_s: float
    """Of a row: what needs no core of ours, here the simulator's sleep."""
    row_s: float
    """Of a row: CPU of a worker."""
    gradient_s: float
    """CPU of a worker for one gradient."""
    service_s: float
    """Rank 0's CPU for one worker's message: a gradient with its answer; with allreduce, a report."""
    pooled_s: float = 0.0
    """sync on shared cores: one more worker's samples in all updates of an iteration, passing them included."""
    hop_s: float = 0.0
    """allreduce: one of its ceil(log2 W) exchanges between two workers; next to nothing where they share cores."""
    round_s: float = 0.0
    """p2p: from the last vector's arrival to the answer's, whatever W."""
    spread_s: float = 0.0
    """Standard deviation of the time of a row."""

    @property
    def shared_s(self) -> float:
        """CPU of a row that waits for a core: in async the gradients', and rank 0's, come in between the rows."""
        if self.cell != "async":
            return self.row_s
        return self.row_s + self.updates * (self.gradient_s + self.service_s) / self.rows

    def share(self, workers: int) -> float:
        """Workers to a core: max(1, W / cores)."""
        return max(1.0, workers / self.cores)

    def gradients_s(self, workers: int) -> float:
        """All U gradients of a synchronous iteration: U gradient + (share(W) - 1) pooled, as one worker of each core
        computes for its neighbours.
        """
        return self.updates * self.gradient_s + (self.share(workers) - 1.0) * self.pooled_s

    def straggling_s(self, workers: int) -> float:
        """What the slowest of W workers needs more than the mean one: spread sqrt(T) sqrt(2 ln W), the expected maximum
        of W normal variables, for large W.
        """
        return self.spread_s * math.sqrt(2.0 * self.rows * math.log(workers))

    def exchange_s(self, workers: int) -> float:
        """One round of messages: ceil(log2 W) hops, or the vectors of all workers that compute at one server."""
        if self.cell == "sync/allreduce":
            return math.ceil(math.log2(workers)) * self.hop_s
        return self.round_s + min(workers, self.cores) * self.service_s

    def iteration_s(self, workers: int) -> float:
        """A rollout and the updates from it, if rank 0 keeps up.

        sync: T row(W) + straggling(W) + gradients(W) + (U + 1) exchange(W), the one more being that of the statistics;
        async: T row(W), where nobody waits and a row has its part of the gradients.
        """
        rollout_s = self.rows * shared_row_s(self.sleep_s, self.shared_s, self.cores, workers)
        if self.cell == "async":
            return rollout_s
        exchanges_s = (self.updates + 1) * self.exchange_s(workers)
        return rollout_s + self.straggling_s(workers) + self.gradients_s(workers) + exchanges_s

    def server_s(self, workers: int) -> float:
        """Rank 0's work for one iteration: of each worker one report (allreduce) or U gradients (async). With p2p it is
        part of the exchange already.
        """
        messages = {"sync/allreduce": 1, "sync/p2p": 0, "async": self.updates}[self.cell]
        return workers * messages * self.service_s

    def steps_per_s(self, workers: int) -> float:
        """W T N / max(iteration(W), server(W)): beyond saturation the server sets the pace."""
        return workers * self.rows * self.envs / max(self.iteration_s(workers), self.server_s(workers))

    def saturation(self) -> float:
        """The number of workers at which rank 0 is what takes the time: server(W) = iteration (async, allreduce), or
        half of the iteration is spent in the exchange (p2p). Meant for machines with a core for each rank.
        """
        alone_s = self.iteration_s(1)
        if self.cell == "sync/p2p":
            return (alone_s - (self.updates + 1) * self.service_s) / ((self.updates + 1) * self.service_s)
        return alone_s / self.server_s(1)


def shared_row_s(sleep_s: float, cpu_s: float, cores: float, workers: int) -> float:
    """Time of a row where W workers share the cores: sleep + response time R(W) of a closed queue.

    R(1) = cpu, R(n) = cpu / cores (1 + q(n - 1)) + cpu (1 - 1 / cores), with q(n) = n (cpu / cores) (1 + q(n - 1)) /
    (sleep + R(n)) workers at the queue. Its limits are sleep + cpu for few workers and W cpu / cores for many.

    Source: Reiser and Lavenberg 1980 (mean value analysis); Seidmann, Schweitzer, Shalev-Oren 1987 (several servers
    as a fast one and a delay).
    """
    if math.isinf(cores):
        return sleep_s + cpu_s
    demand_s, delay_s = cpu_s / cores, cpu_s * (1.0 - 1.0 / cores)
    queue, response_s = 0.0, cpu_s
    for n in range(1, workers + 1):
        waiting_s = demand_s * (1.0 + queue)
        response_s = waiting_s + delay_s
        queue = n * waiting_s / (sleep_s + response_s)
    return sleep_s + response_s


def of_groups(model: Model, ranks: int, solver_s: float, coupling_s: float) -> Model:
    """The same work with environments of G ranks each, whose solver divides its work evenly among them.

    A row becomes N (1 - 1/G) solver shorter, which is time that needs no core of ours, and N coupling longer, which is
    CPU: telling the members, waking them, hearing them.

    Args:
      model: of environments on one rank.
      ranks: G.
      solver_s: a step of an environment on one rank.
      coupling_s: what coupling G ranks adds to a step.
    """
    saved_s = model.envs * solver_s * (1.0 - 1.0 / ranks)
    return replace(model, sleep_s=model.sleep_s - saved_s, row_s=model.row_s + model.envs * coupling_s)


def fit(unfitted: Model, points: Mapping[int, Point], cpu_s: float) -> Model:
    """The constants that the points show; one of them must be of one worker.

    Args:
      unfitted: its cell, sizes, cores and service_s are kept.
      cpu_s: CPU of one worker per row, gradients included.
    """
    alone, model = points[1], unfitted
    gradient_s = max(0.0, alone.learn_s - alone.exchange_s) / model.updates
    model = replace(model, gradient_s=gradient_s, row_s=max(0.0, cpu_s - model.updates * gradient_s / model.rows))
    for _ in range(20):  # how long the queue is depends on the sleep: a fixed point, reached in a few rounds
        queues = {w: shared_row_s(model.sleep_s, model.shared_s, model.cores, w) - model.sleep_s for w in points}
        rollouts = {w: p.collect_s + p.learn_s * (model.cell == "async") for w, p in points.items()}
        model = replace(model, sleep_s=_mean([rollouts[w] / model.rows - queues[w] for w in points]))
    many = {w: p for w, p in points.items() if w > 1}
    unit = replace(model, spread_s=1.0)
    model = replace(model, spread_s=_slope({unit.straggling_s(w): p.spread_s for w, p in many.items()}))
    if model.cell == "async":
        return model
    left = {w: p.learn_s - model.straggling_s(w) - model.gradients_s(w) for w, p in points.items()}
    if model.cell == "sync/p2p":
        uncrowded = [left[w] / (model.updates + 1) - w * model.service_s for w in points if model.share(w) == 1.0]
        model = replace(model, round_s=max(0.0, _mean(uncrowded)))
    exchanges_s = {w: (model.updates + 1) * model.exchange_s(w) for w in many}
    return replace(model, pooled_s=_slope({model.share(w) - 1.0: left[w] - exchanges_s[w] for w in many}))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _slope(pairs: Mapping[float, float]) -> float:
    """Least squares through the origin, not below 0; 0 where no x is another."""
    squares = sum(x * x for x in pairs)
    return max(0.0, sum(x * y for x, y in pairs.items()) / squares) if squares else 0.0


def on_cluster(model: Model, message_bytes: int, latency_s: float, bytes_per_s: float) -> Model:
    """The same work with a core for each rank and another network: messages cost latency + bytes / bandwidth, and all
    that the server receives and answers goes through its one link.
    """
    transfer_s = message_bytes / bytes_per_s
    service_s = model.service_s if model.cell == "sync/allreduce" else model.service_s + 2 * transfer_s
    hop_s = latency_s + transfer_s
    return replace(model, cores=math.inf, hop_s=hop_s, round_s=2 * hop_s, service_s=service_s)
