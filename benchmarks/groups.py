"""What do environments on several ranks cost? A coupled step against the solver's own, and training on W groups of G.

    [chrt -r 1] .venv/bin/python benchmarks/groups.py [--parts coupled cpu training]

On a machine with other jobs, chrt gives its ranks real-time priority.

- coupled: a step of a solver through dppo, and the same step of the same ranks without dppo; both forms, environments
  in Python and programs that call dppo.h (coupled.py, coupled.c). Each job measures both in turn.
- cpu: CPU of a worker for a row, as the model needs it.
- training: steps/s of W groups of G ranks, whose solver divides its work evenly and sleeps, so that more ranks than
  cores do not matter: W grows, G grows, or G grows as W shrinks.

Prints tables and writes them to benchmarks/results/groups.{md,json}, and a plot to groups.svg. What is not run again
keeps its last result; `--parts` with nothing behind it writes the tables anew. Uses cost_model.py and drawing.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import MPIRUN, RESULTS, machine, markdown_table, middle, mpirun, per_second, save, spread, stored, train
from cost_model import Model, Point, fit, of_groups
from drawing import Series, speed_plot
from scaling import cpu_s_per_step, report_cpu_s

from dppo.job import INCLUDE
from dppo.study.curves import write_svg

HERE = Path(__file__).parent
STEP_S, LIMIT = 0.01, 1.05
"""Of the solver's own step, and how much longer a coupled one may take."""
WORKLOADS = {
    "heat": "the plate of examples/heat, an exchange of halos in each substep",
    "compute": "each rank computes, then one Allreduce",
    "sleep": "each rank sleeps, then one Allreduce",
}
COUPLED = (("python", 1, 1), ("python", 1, 2), ("python", 1, 4), ("c", 1, 1), ("c", 1, 2), ("c", 1, 4))
"""Form, W, G of the jobs with all workloads."""
REPEATS = 3
"""Of these jobs: where ranks share cores, whole jobs are fast or slow, as their ranks happen to take turns."""
SEVEN = (("python", 3, 2), ("c", 2, 2))
"""Jobs of 7 ranks, where the solver takes no time."""
FORMS = {"python": "in Python", "c": "dppo.h"}
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE)))}

WORK_S, ROWS, UPDATES = 0.02, 32, 4
"""Of training: a step on one rank; rows and updates of an iteration."""
GROUPS = (2, 4, 8, 16)
FLAGS = (
    f"--env group_envs:Sleeping --env-kwargs work_s={WORK_S} --num-envs 1 --horizon {ROWS} --ppo.epochs {UPDATES}"
    " --ppo.minibatches 1"
)
ALONE = [(w, 1) for w in (1, 2, 4, 8, 16)]
"""W and G of the runs to which the model is fitted; it predicts the others."""
CURVES = {
    "more workers, G = 1": ALONE,
    "more workers, G = 2": [(w, 2) for w in (1, 2, 4, 8)],
    "larger groups, W = 2": [(2, g) for g in (1, 2, 4, 8)],
    "W G = 16": [(w, 16 // w) for w in (16, 8, 4, 2, 1)],
}

DRAWN = {
    "G = 1": ALONE,
    "G = 2": CURVES["more workers, G = 2"],
    "G = 4": [(2, 4), (4, 4)],
    "W = 2": CURVES["larger groups, W = 2"],
    "W = 1": [(1, 1), (1, 2), (1, 16)],
}
"""The same runs; where the product is 16, all of these are."""


# -- measuring --------------------


def compiled(folder: str) -> str:
    """Compiles coupled.c. Returns the program."""
    program = str(Path(folder, "coupled"))
    flags = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-O2", f"-I{INCLUDE}"]
    subprocess.run([str(MPIRUN.with_name("mpicc")), *flags, str(HERE / "coupled.c"), "-o", program, "-lm"], check=True)
    return program


def num_ranks(form: str, workers: int, ranks: int) -> int:
    """Of the whole job."""
    return 1 + workers * ranks + (workers if form == "c" else 0)


def coupled_rows(
    form: str, workers: int, ranks: int, kinds: list[str], solver: str = "", step_s: float = STEP_S
) -> list[dict[str, Any]]:
    """Runs a job. Returns its rows: of each worker and kind of work the seconds of a step."""
    program = [str(HERE / "coupled.py"), form, str(ranks), str(step_s), *kinds]
    if form == "c":
        program += [":", "-n", str(workers * ranks), solver]
    job = mpirun(1 + workers * (ranks if form == "python" else 1), program, timeout_s=300.0)
    same = {"form": form, "workers": workers, "group": ranks, "ranks": num_ranks(form, workers, ranks)}
    return [same | row for row in json.loads(job.stdout.splitlines()[-1])]


def training_point(workers: int, ranks: int, seconds: float) -> Point:
    """Trains for about `seconds`; what the iterations in the middle of the run showed."""
    steps = int(workers * seconds / (WORK_S / ranks + 1e-3))
    run = train(1 + workers * ranks, f"{FLAGS} --env-ranks {ranks} --total-steps {steps}")
    lines = middle(run["metrics"])
    keys = ("collect_mean_s", "collect_max_s", "learn_mean_s", "exchange_mean_s")
    mean_s, max_s, learn_s, exchange_s = (statistics.median(line[key] for line in lines) for key in keys)
    return Point(per_second(lines, "env_steps"), mean_s, max_s - mean_s, learn_s, exchange_s)


def measure(parts: list[str], seconds: float, data: dict[str, Any]) -> None:
    """Runs what was asked for, one after another; `data` is on disk after each."""

    def keep(part: str, value: Any) -> None:
        data[part] = value
        (RESULTS / "groups.json").write_text(json.dumps(data, indent=1) + "\n")
        print(part, "done", flush=True)

    if "coupled" in parts:
        with tempfile.TemporaryDirectory() as folder:
            solver, rows = compiled(folder), []
            for job in COUPLED * REPEATS:
                rows += coupled_rows(*job, [*WORKLOADS, "nothing"], solver)
                keep("coupled", rows)
            for job in SEVEN:
                rows += coupled_rows(*job, ["nothing"], solver)
                keep("coupled", rows)
        keep("coupling", [row for g in GROUPS for row in coupled_rows("python", 1, g, ["sleep"], step_s=WORK_S / g)])
    if "cpu" in parts:
        keep("row_cpu_s", cpu_s_per_step(5, FLAGS, int(4 * seconds / WORK_S))[1])
    if "training" in parts:
        points: dict[str, Any] = {}
        for workers, ranks in dict.fromkeys(point for curve in CURVES.values() for point in curve):
            points[f"{workers} x {ranks}"] = asdict(training_point(workers, ranks, seconds))
            keep("training", points)


# -- the model --------------------


def coupling_s(data: dict[str, Any], ranks: int) -> float:
    """What a coupled step of one group adds to the solver's own, where that sleeps as long as it does in training:
    caches are then as cold.
    """
    if ranks == 1:
        return 0.0
    row = next(row for row in data["coupling"] if row["group"] == ranks)
    return statistics.median(row["coupled_s"]) - statistics.median(row["bare_s"])


def fitted(data: dict[str, Any]) -> Model:
    """The model of environments on one rank."""
    points = {w: Point(**data["training"][f"{w} x 1"]) for w, _ in ALONE}
    cpu_s = data["row_cpu_s"]
    service_s = report_cpu_s(stored("scaling"))
    start = Model("sync/allreduce", ROWS, 1, UPDATES, data["cores"], WORK_S, cpu_s, 0.0, service_s)
    return fit(start, points, cpu_s)


def predicted(data: dict[str, Any], model: Model, workers: int, ranks: int) -> float:
    """Steps/s of W groups of G ranks."""
    return of_groups(model, ranks, WORK_S, coupling_s(data, ranks)).steps_per_s(workers)


# -- showing --------------------


def quartiles(seconds: list[float], scale: float, form: str) -> str:
    """Median [quartiles]."""
    low, median, high = (scale * value for value in statistics.quantiles(seconds, n=4))
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"


def pooled(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of repeated jobs, together."""
    out: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault((row["form"], row["workers"], row["group"], row["kind"]), []).append(row)
    return list(out.values())


def all_of(rows: list[dict[str, Any]], key: str) -> list[float]:
    """The figures of several rows."""
    return [value for row in rows for value in row[key]]


def ratio_table(rows: list[dict[str, Any]]) -> str:
    """A coupled step against the solver's own, for each kind of work that takes time."""
    cells = []
    for same in pooled(rows):
        row, coupled, bare = same[0], all_of(same, "coupled_s"), all_of(same, "bare_s")
        if row["kind"] != "nothing":
            ratios = [statistics.median(r["coupled_s"]) / statistics.median(r["bare_s"]) for r in same]
            cells.append(
                [
                    FORMS[row["form"]], row["group"], row["ranks"], row["kind"], quartiles(bare, 1e3, ".2f"),
                    quartiles(coupled, 1e3, ".2f"), spread(ratios, ".3f"), f"{min(coupled) / min(bare):.3f}",
                    "yes" if statistics.median(ratios) <= LIMIT else "no",
                ]
            )  # fmt: skip
    head = (
        "form", "G", "ranks of the job", "solver", "bare, ms", "coupled, ms", "ratio", "ratio of the least",
        f"at most {LIMIT}",
    )  # fmt: skip
    return markdown_table(head, cells)


def coupling_table(rows: list[dict[str, Any]]) -> str:
    """Microseconds of a coupled step where the solver takes no time."""
    cells = []
    for same in pooled(rows):
        row = same[0]
        if row["kind"] == "nothing" and (row["form"], row["group"]) != ("python", 1):
            coupled = quartiles(all_of(same, "coupled_s"), 1e6, ",.0f")
            bare = quartiles(all_of(same, "bare_s"), 1e6, ",.1f") if row["form"] == "python" else "–"
            cells.append([FORMS[row["form"]], row["workers"], row["group"], row["ranks"], coupled, bare])
    head = ("form", "W", "G", "ranks of the job", "coupled step, µs", "bare Bcast and Gather, µs")
    return markdown_table(head, cells)


def training_table(data: dict[str, Any], model: Model) -> str:
    """Measured and predicted steps/s along each curve."""
    rows = []
    for name, curve in CURVES.items():
        first_w, first_g = curve[0]
        alone = data["training"][f"{first_w} x {first_g}"]["steps_per_s"] / (first_w * first_g)
        for workers, ranks in curve:
            rate = data["training"][f"{workers} x {ranks}"]["steps_per_s"]
            guess = predicted(data, model, workers, ranks)
            rows.append(
                [
                    name, workers, ranks, f"{rate:,.0f}", f"{rate / (workers * ranks) / alone:.1%}", f"{guess:,.0f}",
                    f"{guess / rate - 1:+.1%}{' (fitted)' if ranks == 1 else ''}",
                ]
            )  # fmt: skip
    head = ("", "W", "G", "steps/s", "of the first row's, per rank", "predicted", "the model's error")
    return markdown_table(head, rows)


def report(data: dict[str, Any]) -> str:
    """All tables, as far as there are figures for them."""
    parts = [f"# Environments on several ranks\n\n{data['machine']}. {data.get('load', '')}\n"]
    if "coupled" in data:
        kinds = "".join(f"- {kind}: {text}\n" for kind, text in WORKLOADS.items())
        parts.append(
            f"## A coupled step\n\nThe solver's step takes about {1e3 * STEP_S:g} ms by itself, on {data['cores']}"
            " cores. Blocks of coupled and bare steps alternate in one job, which also has rank 0, asleep, and with"
            " dppo.h a worker. Milliseconds are medians [quartiles] of the blocks' means, ratios medians [least, most]"
            f" of {REPEATS} jobs. With G = 4, ranks share cores, and how the solver's waits in MPI take turns decides."
            "\n\n"
            f"{kinds}\n{ratio_table(data['coupled'])}"
        )
        parts.append(
            "**Where the solver takes no time.** The bare loop spins in a Bcast of the action and a Gather of a word,"
            " the least that a step can send; ranks of dppo sleep while they wait.\n\n"
            + coupling_table(data["coupled"])
        )
    if "training" in data and "row_cpu_s" in data:
        model = fitted(data)
        told = ", ".join(f"{1e6 * coupling_s(data, g):,.0f} (G = {g})" for g in GROUPS)
        parts.append(
            f"## Training\n\nsync/allreduce, `{FLAGS} --env-ranks G`, `mpirun -n 1+W*G`: a step of {1e3 * WORK_S:g} ms"
            f" on one rank takes 1/G of it on G. The solver sleeps, as {data['cores']} cores have no room for 16 that"
            " compute. The model was fitted to G = 1. It predicts the other rows with what coupling adds to a step that"
            f" sleeps as long, measured in turn as above, in µs: {told}.\n\n{training_table(data, model)}\n"
            "![Steps per second](groups.svg)\n"
        )
    return "\n".join(parts)


def plot(data: dict[str, Any], path: Path) -> None:
    """Draws `path`: steps/s over all solver's ranks, W G. Rings: what the model predicts."""
    model = fitted(data)
    series = []
    for name, curve in DRAWN.items():
        measured = {w * g: data["training"][f"{w} x {g}"]["steps_per_s"] for w, g in curve}
        guesses = {w * g: predicted(data, model, w, g) for w, g in curve if g > 1}
        series.append(Series(name, measured, guesses))
    ticks = {n: n for n in (1, 2, 4, 8, 16)}
    write_svg(path, speed_plot(series, ticks, "ranks of all solvers, W G", "predicted from G = 1"))


def main() -> None:
    """Measures what was asked for and writes all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ["coupled", "cpu", "training"]
    parser.add_argument("--parts", nargs="*", default=parts, choices=parts)
    parser.add_argument("--seconds", type=float, default=8.0, help="training time of each run")
    args = parser.parse_args()
    os.environ |= ENVIRONMENT
    data = stored("groups")
    if args.parts:
        load = f"The load of the machine was {os.getloadavg()[0]:.0f} at the start."
        if os.sched_getscheduler(0) == os.SCHED_RR:
            load += " All ranks ran at real-time priority, by `chrt -r 1`, ahead of what caused it."
        data |= {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "load": load}
    measure(args.parts, args.seconds, data)
    save("groups", report(data), data)
    if "training" in data and "row_cpu_s" in data:
        plot(data, RESULTS / "groups.svg")


if __name__ == "__main__":
    main()
