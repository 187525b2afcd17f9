"""What do slow steps cost, and what helps? Every way to average on an environment whose step times have a heavy tail.

    .venv/bin/python benchmarks/stragglers.py [--cells "sync/allreduce" async …] [--rounds 5]

A step of the environment sleeps 1 ms, one in 200, drawn at random, 200 ms: as a simulator does that remeshes now and
then, or writes to a busy disk. 15 workers train on it, all cells in turn, once a round; a round's seed is the same for
all. Prints tables and writes them, with the figures of each run, to benchmarks/results/stragglers.{md,json};
`--rounds 0` writes the tables anew.

Every rank imports this file for the environment: `--env stragglers:Straggler-v0`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from common import machine, markdown_table, save, spread, stored, train

STEP_S, SLOW_S, SLOW_SHARE = 0.001, 0.2, 1 / 200
MEAN_STEP_S = STEP_S + SLOW_SHARE * (SLOW_S - STEP_S)
WORKERS, HORIZON, EPOCHS = 15, 200, 4
IDEAL = WORKERS / MEAN_STEP_S
"""Steps/s of workers that only step."""
PREEMPT = 0.6
COMMON = f"--env stragglers:Straggler-v0 --num-envs 1 --horizon {HORIZON} --total-steps 36000"
PPO = f"--ppo.epochs {EPOCHS} --ppo.minibatches 1 --ppo.target-kl 0"  # the same updates from every rollout
PLAIN = "sync/allreduce"
CELLS = {
    PLAIN: f"{PPO} --exchange allreduce",
    "sync/p2p": f"{PPO} --exchange p2p",
    "sync/p2p, drop 1": f"{PPO} --exchange p2p --server.drop 1",
    "sync/p2p, drop 3": f"{PPO} --exchange p2p --server.drop 3",
    f"sync/allreduce, preempt {PREEMPT}": f"{PPO} --exchange allreduce --preempt-fraction {PREEMPT}",
    f"sync/p2p, preempt {PREEMPT}": f"{PPO} --exchange p2p --preempt-fraction {PREEMPT}",
    "async ppo": f"{PPO} --mode async --loss ppo",
    "async a3c": "--mode async",
}
FIRST = 2
"""Iterations that are not counted: all workers begin at the same moment, and soon no longer do in async."""
UNUSED = ("late", "dropped")
TIMES = ("iteration_s", "collect_max_s", "collect_mean_s", "learn_mean_s", "exchange_mean_s")
SIMULATED = 20_000
"""Iterations."""


class Straggler(gymnasium.Env[np.ndarray, Any]):
    """Shows nothing, pays 1 a step, ends by its time limit. An episode's seed says which of its steps are slow."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(SLOW_S if self.np_random.random() < SLOW_SHARE else STEP_S)
        return np.zeros(1, np.float32), 1.0, False, False, {}


gymnasium.register("Straggler-v0", "stragglers:Straggler", max_episode_steps=50)


# -- measuring --------------------


def updates_of_a_rollout(cell: str) -> int:
    """In how many updates a sample is."""
    return EPOCHS if PPO in CELLS[cell] else 1


def measure(cell: str, seed: int) -> dict[str, float]:
    """One run: rates, and means over its iterations but the first."""
    lines = train(WORKERS + 1, f"{COMMON} {CELLS[cell]}", seed, timeout_s=300.0)["metrics"]
    begin, lines = lines[FIRST - 1], lines[FIRST:]
    steps = lines[-1]["env_steps"] - begin["env_steps"]
    figures = {key: statistics.mean(line[key] for line in lines) for key in TIMES}
    figures["steps_per_s"] = steps / (lines[-1]["train_s"] - begin["train_s"])
    figures["rows"] = steps / len(lines) / WORKERS
    figures["used"] = sum(line["samples"] for line in lines) / updates_of_a_rollout(cell) / steps
    figures["used_per_s"] = figures["used"] * figures["steps_per_s"]
    for key in {*UNUSED, "staleness_mean"} & lines[-1].keys():
        figures[key] = statistics.mean(line[key] for line in lines)
    return figures


def measure_round(cells: list[str], seed: int) -> dict[str, dict[str, float]]:
    """Every cell once."""
    figures = {}
    for cell in cells:
        figures[cell] = measure(cell, seed)
        print(seed, cell, {key: round(value, 3) for key, value in figures[cell].items()}, flush=True)
    return figures


# -- what the step times alone allow --------------------


def simulated(row_s: float) -> dict[str, tuple[float, float]]:
    """Steps/s and rows of a rollout where stepping is all that takes time, a step that is not slow `row_s`.

    Preemption: once enough workers are done, the others stop with the step that they are in, but not before a quarter.
    """
    rng = np.random.default_rng(0)
    rates: dict[str, list[tuple[float, float]]] = {"wait for all": [], "preempt": [], "preempt at once": []}
    enough, quarter = int(np.ceil(PREEMPT * WORKERS)), HORIZON // 4
    for _ in range(SIMULATED):
        ends = np.cumsum(np.where(rng.random((WORKERS, HORIZON)) < SLOW_SHARE, SLOW_S, row_s), axis=1)
        rates["wait for all"].append((ends[:, -1].max(), HORIZON))
        stop_s = np.sort(ends[:, -1])[enough - 1]
        ended = (ends <= stop_s).sum(axis=1)
        for name, rows in (("preempt", ended + 1), ("preempt at once", ended)):
            rows = rows.clip(quarter, HORIZON)
            last_s = ends[np.arange(WORKERS), rows - 1].max()
            rates[name].append((max(stop_s, last_s), rows.mean()))
    means = {name: np.mean(of, axis=0) for name, of in rates.items()}
    return {name: (WORKERS * rows / seconds, rows) for name, (seconds, rows) in means.items()}


# -- showing --------------------


Median = Callable[[str, str], float]
"""(cell, figure) -> over the rounds."""


def report(data: dict[str, Any]) -> str:
    """Tables and what they say."""
    rounds: list[dict[str, dict[str, float]]] = data["rounds"]
    cells = [cell for cell in CELLS if cell in rounds[0]]

    def median(cell: str, key: str) -> float:
        return statistics.median(figures[cell][key] for figures in rounds)

    rates, times = [], []
    for cell in cells:
        rate = [figures[cell]["steps_per_s"] for figures in rounds]
        ratios = [
            spread((figures[cell][key] / figures[PLAIN][key] for figures in rounds), ".2f")
            for key in ("steps_per_s", "used_per_s")
        ]
        unused = [f"{median(cell, key):.1f} {key}" for key in UNUSED if key in rounds[0][cell]]
        row = [cell, spread(rate, ",.0f"), ratios[0], f"{statistics.median(rate) / IDEAL:.0%}"]
        row += [f"{median(cell, 'rows'):.0f}", f"{median(cell, 'used'):.0%}", ratios[1]]
        rates.append([*row, *(unused or ["–"])])
        times.append([cell, *(f"{1e3 * median(cell, key):.0f}" for key in TIMES)])
    head = ["", "steps/s", f"/ {PLAIN}", "of the ideal", "rows", "used", "used/s / the same", "messages an iteration"]
    environment = (
        f"A step of the environment sleeps {1e3 * STEP_S:g} ms, one in {1 / SLOW_SHARE:g}, drawn at random,"
        f" {1e3 * SLOW_S:g} ms: {1e3 * MEAN_STEP_S:.3f} ms in the mean. {WORKERS + 1} ranks on {data['cores']} cores:"
        f" one server, and {WORKERS} workers with one environment each. A rollout of {HORIZON} rows has"
        f" {HORIZON * SLOW_SHARE:g} slow step in the mean."
    )
    legend = (
        f"Medians [least, most] over {len(rounds)} rounds; the first {FIRST} iterations of a run are not counted."
        f" Ratios are to {PLAIN} in the same round. The ideal: {WORKERS} workers that do nothing but step,"
        f" {IDEAL:,.0f} steps/s. Rows: steps in an iteration, by workers. Used: the share of the steps that were learnt"
        " from; steps/s counts the others, too. Messages: late or dropped ones."
    )
    command = f"`mpirun --oversubscribe -n {WORKERS + 1} python -m dppo.run {COMMON} --seed ROUND`"
    parts = [
        f"# Stragglers\n\nMeasured on {data['machine']}.\n\n{environment}\n",
        f"{command}, with `benchmarks` on PYTHONPATH, and\n",
        "".join(f"- {cell}: `{CELLS[cell]}`\n" for cell in cells),
        f"{legend}\n",
        markdown_table(head, rates),
        "Where the time goes: means over iterations, in ms, of keys of `metrics.jsonl`.\n",
        markdown_table(["", *(key.removesuffix("_s") for key in TIMES)], times),
        "## Why\n",
        "".join(f"- {line}\n" for line in explanation(cells, median)),
    ]
    return "\n".join(parts)


def explanation(cells: list[str], median: Median) -> list[str]:
    """Why each cell stands where it does, from its figures."""

    def ms(cell: str, key: str) -> str:
        return f"{1e3 * median(cell, key):.0f} ms"

    step_s = median(PLAIN, "collect_mean_s") / HORIZON
    allowed = simulated((step_s - SLOW_SHARE * SLOW_S) / (1 - SLOW_SHARE))
    other_s = median(PLAIN, "iteration_s") - median(PLAIN, "collect_max_s")
    lines = [
        f"**Plain sync** waits for the worker with the most slow steps. The slowest of {WORKERS} collects for"
        f" {ms(PLAIN, 'collect_max_s')}, the mean one for {ms(PLAIN, 'collect_mean_s')}; whatever else there is adds"
        f" {1e3 * other_s:.0f} ms. Allreduce and p2p wait for the same worker. A step takes {1e3 * step_s:.2f} ms,"
        f" not {1e3 * MEAN_STEP_S:.2f}: a sleep ends late, acting takes time, and {WORKERS + 1} ranks take turns on the"
        " cores. Simulated with such steps, nothing else taking time:"
        f" {allowed['wait for all'][0]:,.0f} steps/s."
    ]
    for cell in (cell for cell in cells if "drop" in cell):
        lines.append(
            f"**{cell}**: an iteration takes {ms(cell, 'iteration_s')}, and the rollouts of those that it does not"
            f" wait for are finished and counted, but come too late: {median(cell, 'used'):.0%} of the steps are learnt"
            f" from, {median(cell, 'used_per_s'):,.0f} a second."
        )
    preempted = [cell for cell in cells if "preempt" in cell]
    lines += [
        f"**{cell}**: the slowest worker collects for {ms(cell, 'collect_max_s')}, the mean one for"
        f" {ms(cell, 'collect_mean_s')}; a rollout has {median(cell, 'rows'):.0f} of {HORIZON} rows in the mean, and"
        f" {median(cell, 'used'):.0%} are learnt from."
        for cell in preempted
    ]
    if preempted:
        (rate, rows), (rate_at_once, rows_at_once) = allowed["preempt"], allowed["preempt at once"]
        lines.append(
            "**What bounds preemption**: a step under way is not interrupted, and when"
            f" {PREEMPT:.0%} of the workers have finished, another one is nearly always within one of"
            f" {1e3 * SLOW_S:g} ms. Simulated as above: {rate:,.0f} steps/s with {rows:.0f} rows in the mean; if steps"
            f" could be interrupted, {rate_at_once:,.0f} with {rows_at_once:.0f}."
        )
    for cell in (cell for cell in cells if "async" in cell):
        mine_s = median(cell, "collect_mean_s") / HORIZON
        lines.append(
            f"**{cell}**: nobody waits for anybody, so only the step's own {1e3 * mine_s:.2f} ms count; they allow"
            f" {MEAN_STEP_S / mine_s:.0%} of the ideal. The price is age: with {updates_of_a_rollout(cell) * WORKERS}"
            f" gradients an iteration, one is {median(cell, 'staleness_mean'):.1f} versions old in the mean, and"
            f" {median(cell, 'dropped'):.1f} of them are too old to be used."
        )
    return lines


def main() -> None:
    """Runs the rounds, one after another, and writes the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), help=f"with {PLAIN}, always")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # the ranks', so that they find this file
    if args.rounds == 0:
        data = stored("stragglers")
        return save("stragglers", report(data), data)
    data = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "rounds": []}
    cells = [cell for cell in CELLS if cell in {PLAIN, *args.cells}]
    for seed in range(1, args.rounds + 1):
        data["rounds"].append(measure_round(cells, seed))
        save("stragglers", report(data), data)


if __name__ == "__main__":
    main()
