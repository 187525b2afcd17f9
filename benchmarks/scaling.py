"""Does it scale? Workers on a slow simulator, CPU seconds per step on many ranks, and a model of both.

    .venv/bin/python benchmarks/scaling.py [--parts weak service cpu] [--cells async …] [--workers 1 2 …]

- weak: steps/s of 1 to 64 workers whose environment sleeps 5 ms a step, which needs no core of ours.
- service: CPU of rank 0 for one worker's message, as the model needs it.
- cpu: CPU seconds of all ranks for a million steps of CartPole-v1, start-up excluded.

Prints tables and writes them to benchmarks/results/scaling.{md,json}, into docs/scaling.md between two markers, and
as a plot to benchmarks/results/scaling.svg. What is not run again keeps its last result; `--parts` with nothing
behind it writes the tables anew. Uses cost_model.py and drawing.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import RESULTS, machine, markdown_table, middle, mpirun, per_second, save, spread, stored, train
from cost_model import CELLS, Cell, Model, Point, fit, on_cluster
from drawing import Series, speed_plot

from dppo.study.curves import write_svg

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
CHOICE = {"sync/allreduce": "--exchange allreduce", "sync/p2p": "--exchange p2p", "async": "--mode async"}
WORKERS, RANKS = (1, 2, 4, 8, 16, 32, 64), (2, 3, 4, 8, 16, 32)
FITTED = (1, 2, 4, 8, 16)
STEP_S = 0.005
NUM_ENVS = 8  # the default: a worker steps them one after another, and acts for all at once
ROWS = {"sync/allreduce": 32, "sync/p2p": 32, "async": 8}
UPDATES = {"sync/allreduce": 4, "sync/p2p": 4, "async": 1}
SLOW = f"--env dppo.envs.probes:dppo/ProbeSlow-v0 --num-envs {NUM_ENVS}"
WEAK = {
    cell: f"{SLOW} {CHOICE[cell]} --horizon {ROWS[cell]}"
    + ("" if cell == "async" else f" --ppo.epochs {UPDATES[cell]} --ppo.minibatches 1")
    for cell in CELLS
}
CARTPOLE = "--env CartPole-v1 --target-return 1000"
EQUAL_WORK = "--ppo.target-kl 0"  # the KL stop would make fewer updates on some numbers of ranks than on others
CPU = {cell: f"{CARTPOLE} {CHOICE[cell]}" + ("" if cell == "async" else f" {EQUAL_WORK}") for cell in CELLS}
CPU_STEPS = {"sync/allreduce": 300_000, "sync/p2p": 300_000, "async": 1_000_000}
BUSY_ROWS, BUSY_WORKERS = 8, 8
BUSY = f"{CARTPOLE} --mode async --num-envs 1 --horizon {BUSY_ROWS}"  # rank 0 always has a gradient to apply
CLUSTER_RANKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
MESSAGE_BYTES = 36_000  # the default network's 9,000 parameters
LATENCY_S, BYTES_PER_S = 2e-6, 10e9  # assumed of a cluster's network
CPU_PROGRAM = """
import json, sys, time
from dppo.cluster import startup
startup.prepare()
from dppo.comm.mpi import MPI
from dppo.run.command import main, start_mpi
start_mpi()
spent = []
for flags in json.loads(sys.argv[1]):
    MPI.COMM_WORLD.Barrier()
    since = time.process_time()
    main(flags)
    spent.append(time.process_time() - since)
everyone = MPI.COMM_WORLD.gather(spent)
if everyone:
    print(json.dumps(everyone))
"""


# -- measuring --------------------


def weak_point(cell: Cell, workers: int, seconds: float) -> Point:
    """Trains for about `seconds` on `workers` workers; what the iterations in the middle of the run showed."""
    steps = int(workers * seconds / (1.1 * STEP_S))
    lines = middle(train(workers + 1, f"{WEAK[cell]} --total-steps {steps}")["metrics"])
    keys = ("collect_mean_s", "collect_max_s", "learn_mean_s", "exchange_mean_s")
    mean_s, max_s, learn_s, exchange_s = (statistics.median(line[key] for line in lines) for key in keys)
    return Point(per_second(lines, "env_steps"), mean_s, max_s - mean_s, learn_s, exchange_s)


def cpu_s_per_step(ranks: int, flags: str, steps: int) -> tuple[float, float]:
    """CPU seconds, user and system, per environment step: of rank 0, and of all workers together.

    Three runs in the same processes: one that only loads what is loaded on first use, one of `steps` / 5, one of that
    and `steps` more. Start and end are in the last two, so their difference has neither.
    """
    with tempfile.TemporaryDirectory() as scratch:
        totals = {"first": 1, "short": steps // 5, "long": steps // 5 + steps}
        where = [
            [*flags.split(), "--total-steps", str(n), "--run-dir", f"{scratch}/{run}"] for run, n in totals.items()
        ]
        output = mpirun(ranks, ["-c", CPU_PROGRAM, json.dumps(where)]).stdout
        short, long = (
            json.loads(Path(scratch, run, "summary.json").read_text())["env_steps"] for run in ("short", "long")
        )
    server, *workers = ((spent[2] - spent[1]) / (long - short) for spent in json.loads(output.splitlines()[-1]))
    return server, sum(workers)


def measure(args: argparse.Namespace, data: dict[str, Any]) -> None:
    """Runs what was asked for, one after another; `data` is on disk after each."""

    def keep(part: str, name: str, key: object, value: object) -> None:
        data.setdefault(part, {}).setdefault(name, {})[str(key)] = value
        (RESULTS / "scaling.json").write_text(json.dumps(data, indent=1) + "\n")
        print(part, name, key, value, flush=True)

    if "weak" in args.parts:
        for cell in args.cells:
            for workers in args.workers:
                keep("weak", cell, workers, asdict(weak_point(cell, workers, args.seconds)))
    if "service" in args.parts:
        for cell in args.cells:
            for workers in FITTED[2:]:
                steps = int(workers * args.seconds / (1.1 * STEP_S) / 2)
                keep("row_cpu_s", cell, workers, NUM_ENVS * cpu_s_per_step(workers + 1, WEAK[cell], steps)[1])
        server = cpu_s_per_step(BUSY_WORKERS + 1, BUSY, int(5_000 * args.seconds))[0]
        keep("service_s", "gradient", BUSY_WORKERS, server * BUSY_ROWS)
    if "cpu" in args.parts:
        new: dict[tuple[Cell, int], list[tuple[float, float]]] = {}
        for _ in range(args.repeats):
            for cell in args.cells:
                for ranks in args.ranks:
                    spent = cpu_s_per_step(ranks, CPU[cell], CPU_STEPS[cell])
                    new.setdefault((cell, ranks), []).append((1e6 * spent[0], 1e6 * spent[1]))
                    keep("cpu", cell, ranks, new[cell, ranks])


# -- the model --------------------


def points(data: dict[str, Any], cell: Cell) -> dict[int, Point]:
    """The measurements of a cell, by the number of workers."""
    return {int(w): Point(**p) for w, p in sorted(data["weak"].get(cell, {}).items(), key=lambda item: int(item[0]))}


def report_cpu_s(data: dict[str, Any]) -> float:
    """Rank 0's CPU for a worker's report: by how much an iteration of sync/allreduce costs it more with each worker.

    Source of the figures: the CPU part, with the preset's rollouts of 64 rows of 8 environments.
    """
    runs = {int(r) - 1: v for r, v in data.get("cpu", {}).get("sync/allreduce", {}).items()}
    spent = {w: statistics.median(server for server, _ in v) / 1e6 * 64 * 8 * w for w, v in runs.items()}
    if len(spent) < 2:
        return 0.0
    return max(0.0, statistics.linear_regression(list(spent), list(spent.values())).slope)


def fitted_models(data: dict[str, Any]) -> dict[Cell, Model]:
    """The model of every cell of which enough was measured, fitted to 1 to 16 workers."""
    models: dict[Cell, Model] = {}
    gradient_s = data.get("service_s", {}).get("gradient", {}).get(str(BUSY_WORKERS))
    for cell in CELLS:
        measured = {w: p for w, p in points(data, cell).items() if w in FITTED}
        cpu = list(data.get("row_cpu_s", {}).get(cell, {}).values())
        if 1 in measured and len(measured) > 1 and cpu and gradient_s:
            cpu_s = statistics.mean(cpu)
            service_s = report_cpu_s(data) if cell == "sync/allreduce" else gradient_s
            start = Model(
                cell, ROWS[cell], NUM_ENVS, UPDATES[cell], data["cores"], NUM_ENVS * STEP_S, cpu_s, 0.0, service_s
            )
            models[cell] = fit(start, measured, cpu_s)
    return models


# -- showing --------------------


def weak_table(data: dict[str, Any], models: dict[Cell, Model]) -> str:
    """Steps/s, efficiency against one worker, and what the model says."""
    measured = {cell: points(data, cell) for cell in CELLS}
    rows = []
    for workers in sorted({w for of_cell in measured.values() for w in of_cell}):
        row: list[object] = [workers]
        for cell in CELLS:
            point, alone = measured[cell].get(workers), measured[cell].get(1)
            row += [f"{point.steps_per_s:,.0f}" if point else "–"]
            row += [f"{point.steps_per_s / workers / alone.steps_per_s:.1%}" if point and alone else "–"]
            error = models[cell].steps_per_s(workers) / point.steps_per_s - 1 if point and cell in models else None
            row += ["–" if error is None else f"{error:+.1%}{' (fitted)' if workers in FITTED else ''}"]
        rows.append(row)
    return markdown_table(
        ["workers", *(h for c in CELLS for h in (f"{c} steps/s", "efficiency", "model's error"))], rows
    )


def constants_table(models: dict[Cell, Model]) -> str:
    """What was fitted, in microseconds."""
    names = {
        "sleep_s": f"a row of {NUM_ENVS} environments: the simulator's sleep (needs no core)",
        "row_s": f"a row of {NUM_ENVS} environments: CPU of a worker",
        "gradient_s": "a gradient: CPU of a worker",
        "service_s": "rank 0's CPU for a message of a worker (allreduce: a report; else a gradient)",
        "pooled_s": "sync: one more worker's samples, in all updates from a rollout",
        "round_s": "a round of p2p, without its messages",
        "spread_s": "spread of a row (standard deviation)",
    }
    rows = [[text, *(f"{1e6 * getattr(m, name):,.0f}" for m in models.values())] for name, text in names.items()]
    return markdown_table(["µs", *models], rows)


def cluster_table(models: dict[Cell, Model]) -> str:
    """Predictions for ranks with a core each."""
    clusters = {cell: on_cluster(m, MESSAGE_BYTES, LATENCY_S, BYTES_PER_S) for cell, m in models.items()}

    def cell_text(model: Model, workers: int) -> str:
        rate = model.steps_per_s(workers)
        return f"{rate:,.0f} ({rate / workers / model.steps_per_s(1):.0%})"

    rows = [[r, *(cell_text(m, r - 1) for m in clusters.values())] for r in CLUSTER_RANKS]
    return markdown_table(["ranks", *(f"{cell} steps/s" for cell in clusters)], rows)


def saturation_table(models: dict[Cell, Model]) -> str:
    """Where rank 0 becomes the bottleneck, for rollouts of other lengths and other simulators."""
    kinds = [cell for cell in models if cell != "sync/allreduce"]
    rows = []
    for step_s in (0.005, 0.001, 0.0001):
        for length in (8, 32, 128, 512):
            changed = (replace(models[c], sleep_s=NUM_ENVS * step_s, rows=length) for c in kinds)
            clusters = [on_cluster(m, MESSAGE_BYTES, LATENCY_S, BYTES_PER_S) for m in changed]
            rows.append([f"{1e3 * step_s:g} ms", length, *(f"{m.saturation():,.0f}" for m in clusters)])
    heads = [f"{cell}, {UPDATES[cell]} gradient{'s' * (UPDATES[cell] > 1)} a rollout" for cell in kinds]
    return markdown_table(["simulator's step", f"rows of {NUM_ENVS} environments", *heads], rows)


def cpu_table(data: dict[str, Any]) -> str:
    """CPU seconds of all ranks for a million steps, and the ratio to 3 ranks."""
    totals = {c: {int(r): [sum(v) for v in runs] for r, runs in of.items()} for c, of in data["cpu"].items()}
    rows = []
    for ranks in sorted({r for of_cell in totals.values() for r in of_cell}):
        row: list[object] = [ranks]
        for of_cell in totals.values():
            here, base = of_cell.get(ranks), of_cell.get(3)
            row.append(spread(here) if here else "–")
            row.append(f"{statistics.median(here) / statistics.median(base):.2f}" if here and base else "–")
        rows.append(row)
    return markdown_table(["ranks", *(h for cell in totals for h in (f"{cell} CPU s", "ratio to 3 ranks"))], rows)


def report(data: dict[str, Any], models: dict[Cell, Model]) -> str:
    """All tables, as far as there are figures for them."""
    flags = "".join(f"- {cell}: `{WEAK[cell]}`\n" for cell in CELLS)
    cores = data["cores"]
    parts = [f"Measured on {data['machine']}.\n"]
    if "weak" in data:
        parts.append(
            f"**Workers on a simulator that takes {1e3 * STEP_S:g} ms a step**, `mpirun -n W+1`: one server, W workers"
            f" on {cores} cores; median over the middle of a run. Efficiency is steps/s / (W × steps/s of one worker)."
            f" The model was fitted to {FITTED[0]} to {FITTED[-1]} workers, the others it predicts.\n\n{flags}"
        )
        parts.append(weak_table(data, models))
    if models:
        parts += ["**The model's constants**\n", constants_table(models)]
        network = f"{1e6 * LATENCY_S:g} µs, {BYTES_PER_S / 1e9:g} GB/s and {MESSAGE_BYTES / 1e3:g} kB messages"
        parts.append(f"**Predicted for a core to each rank**, with a network of {network} (assumed):\n")
        parts += [cluster_table(models), "**Workers at which rank 0 saturates** there:\n", saturation_table(models)]
    if "cpu" in data:
        used = "".join(f"- {cell}: `{CPU[cell]}`\n" for cell in data["cpu"])
        parts.append(
            "**CPU seconds, user and system, of all ranks for a million steps of CartPole-v1**, start-up excluded:"
            f" median [least, most] of repeated pairs of runs.\n\n{used}"
        )
        parts.append(cpu_table(data))
    return "\n".join(parts)


def plot(data: dict[str, Any], models: dict[Cell, Model], path: Path) -> None:
    """Draws `path`: steps/s over workers. Filled: measured; rings: what the model predicts."""
    series = []
    for cell in CELLS:
        measured = {w: p.steps_per_s for w, p in points(data, cell).items()}
        predicted = {w: models[cell].steps_per_s(w) for w in measured if cell in models and w not in FITTED}
        if measured:
            series.append(Series(cell, measured, predicted))
    most = max(w for s in series for w in s.measured)
    ticks = {w: w for w in WORKERS if w <= most}
    write_svg(path, speed_plot(series, ticks, "workers", f"predicted from {FITTED[0]} to {FITTED[-1]} workers"))


def main() -> None:
    """Measures what was asked for and writes all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="*", default=["weak", "service", "cpu"], choices=["weak", "service", "cpu"])
    parser.add_argument("--cells", nargs="*", default=CELLS, choices=CELLS)
    parser.add_argument("--workers", nargs="*", type=int, default=WORKERS)
    parser.add_argument("--ranks", nargs="*", type=int, default=RANKS)
    parser.add_argument("--seconds", type=float, default=12.0, help="training time of each point of weak")
    parser.add_argument("--repeats", type=int, default=3, help="of cpu")
    args = parser.parse_args()
    data = stored("scaling")
    if args.parts:
        data |= {"machine": machine(), "cores": len(os.sched_getaffinity(0))}
    measure(args, data)
    models = fitted_models(data)
    data["models"] = {cell: asdict(model) for cell, model in models.items()}
    tables = report(data, models)
    save("scaling", tables, data)
    if "weak" in data:
        plot(data, models, RESULTS / "scaling.svg")
    marked = re.compile(r"(<!-- scaling: begin -->\n).*(<!-- scaling: end -->)", re.DOTALL)
    DOCUMENT.write_text(marked.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
