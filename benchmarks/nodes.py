"""Does it scale over nodes? Plans the runs of jobs/scaling.sbatch, and makes a table and a plot of them.

    .venv/bin/python benchmarks/nodes.py DIR

Weak scaling: each worker's rollout is the same on any number of nodes. Strong scaling: the steps of an iteration are,
so that `--horizon` shrinks as the workers get more. Both begin with the same runs, on one node.

DIR is what the job has written: plan.json and a run directory for each run. The table and, with Matplotlib, the plot
come into it, as scaling.md and scaling.svg. Exit code 1 if runs are missing from them, which are named; 2 after wrong
use. Uses drawing.py and what dppo.report reads with.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import markdown_table, middle, per_second, spread
from drawing import Series, speed_plot

from dppo.cluster.slurm import this_allocation
from dppo.config import Config
from dppo.errors import UsageError, missing_package
from dppo.files import replace_atomically
from dppo.rundir.recorders import read_json, write_json
from dppo.rundir.runs import read_run
from dppo.settings.commands import Parser
from dppo.settings.flags import parse
from dppo.settings.resolve import check_world
from dppo.study.curves import write_svg

EXIT_INCOMPLETE, EXIT_USAGE = 1, 2
FEWEST_ITERATIONS = 4  # middle() leaves two of them
WEAK, STRONG = "weak", "strong"
HEAD = (
    "scaling", "nodes", "ranks", "workers", "steps per iteration", "steps/s", "speed-up", "efficiency", "updates/s",
    "exchange",
)  # fmt: skip
EXPLANATION = (
    "Figures are of the middle of each run{of_repeats}. Efficiency is steps/s for each worker, compared with one node."
    " Weak: the rollout of a worker is the same everywhere; strong: `--horizon` shrinks, so that an iteration has the"
    " same steps everywhere, up to rounding. Exchange is the share of time in which the mean worker waits for others"
    " while it learns (`exchange_mean_s` / `iteration_s`; where workers outnumber cores it says nothing in sync)."
)


class Case(NamedTuple):
    """A run that the job makes."""

    name: str
    scaling: str
    nodes: int
    ranks: int
    horizon: int
    total_steps: int


class Measurement(NamedTuple):
    """What a run showed."""

    steps: int
    """Of an iteration."""
    steps_per_s: float
    updates_per_s: float
    exchange: float
    """Share of time."""


class Row(NamedTuple):
    """All repeats on one number of nodes."""

    scaling: str
    nodes: int
    ranks: int
    repeats: list[Measurement]

    @property
    def workers(self) -> int:
        return self.ranks - 1

    def median(self, key: str) -> float:
        return statistics.median(getattr(m, key) for m in self.repeats)


# -- the plan --------------------


def node_counts(nodes: int) -> list[int]:
    """1, 2, 4, … and `nodes` itself."""
    return [2**k for k in range(nodes.bit_length()) if 2**k < nodes] + [nodes]


def strong_horizon(config: Config, alone: int, workers: int) -> int | None:
    """Rows of each of `workers`, so that all together have about as many as `alone` have with the whole horizon, and
    `--ppo.minibatches` divides them; None where a worker would have less than the least that can be divided.
    """
    assert config.horizon is not None, "a resolved configuration"
    unit = config.ppo.minibatches // math.gcd(config.ppo.minibatches, config.num_envs) if config.loss == "ppo" else 1
    share = config.horizon * alone / workers
    return None if share < unit else round(share / unit) * unit


def make_plan(config: Config, nodes: int, per_node: int, iterations: int, repeats: int) -> tuple[list[Case], list[str]]:
    """All runs, so that each number of nodes is there before any is repeated; and what is to be said of them.

    Raises:
      ValueError: where it cannot be measured.
    """
    if per_node < 2:
        raise ValueError(f"--ntasks-per-node={per_node} must be at least 2: one rank of all is the server")
    if iterations < FEWEST_ITERATIONS:
        raise ValueError(
            f"ITERATIONS={iterations} must be at least {FEWEST_ITERATIONS}: the first and last do not count"
        )
    if repeats < 1:
        raise ValueError(f"REPEATS={repeats} must be at least 1")
    check_world(config, per_node)
    assert config.horizon is not None
    cases, notes = [], []
    for count in node_counts(nodes):
        ranks = count * per_node
        rows = {WEAK: config.horizon, STRONG: strong_horizon(config, per_node - 1, ranks - 1)}
        for scaling in (WEAK, STRONG)[: 1 if count == 1 else 2]:
            horizon = rows[scaling]
            if horizon is None:
                whole = f"--horizon {config.horizon} on one node"
                notes.append(f"no strong scaling on {count} nodes: {whole} cannot be shared by {ranks - 1} workers")
                continue
            steps = iterations * (ranks - 1) * horizon * config.num_envs
            cases.append(Case(f"{scaling}-{count}", scaling, count, ranks, horizon, steps))
    return [c._replace(name=f"{c.name}-{k + 1}") for k in range(repeats) for c in cases], notes


def write_plan(folder: Path, args: argparse.Namespace) -> None:
    """Writes DIR/plan.json, and a line for each run: name, nodes, ranks, horizon, total steps."""
    if (folder / "plan.json").exists():
        raise UsageError(f"{folder} holds a measurement already: choose another SCALING_DIR")
    try:
        config, _ = parse(args.plan)
        cases, notes = make_plan(config, args.nodes, args.ranks_per_node, args.iterations, args.repeats)
        folder.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from error
    plan = {
        "job_id": this_allocation().job_id, "ranks_per_node": args.ranks_per_node, "repeats": args.repeats,
        "flags": args.plan, "notes": notes, "runs": [case._asdict() for case in cases],
    }  # fmt: skip
    write_json(folder / "plan.json", plan)
    for case in cases:
        print(case.name, case.nodes, case.ranks, case.horizon, case.total_steps)


def read_plan(folder: Path) -> tuple[dict[str, Any], list[Case]]:
    """What write_plan has written. Raises UsageError where there is none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give what jobs/scaling.sbatch has written")
    plan = read_json(folder / "plan.json")
    try:
        return plan, [Case(**values) for values in plan["runs"]]
    except (KeyError, TypeError):
        raise UsageError(f"{folder} has no plan.json that can be read: jobs/scaling.sbatch writes one") from None


# -- the results --------------------


def measurement(folder: Path, case: Case) -> Measurement | str:
    """What the run of `case` showed, or why it cannot be used."""
    run = read_run(folder)
    if run.state == "missing":
        return "has not run"
    if not run.ended or run.config is None:
        return f"is {run.state}: {run.reason}"
    hosts = read_json(folder / "versions.json").get("hosts", [])
    if (len(hosts), len(set(hosts))) != (case.ranks, case.nodes):
        return f"ran with {len(hosts)} ranks on {len(set(hosts))} nodes instead of {case.ranks} on {case.nodes}"
    if run.summary.get("world_size") != case.ranks:
        return f"lost ranks: {run.summary.get('world_size')} of {case.ranks} were left"
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        if len(lines) < FEWEST_ITERATIONS:
            return f"has {len(lines)} iterations, and {FEWEST_ITERATIONS} are needed"
        lines = list(middle(lines))
        waiting, whole = (statistics.median(line[key] for line in lines) for key in ("exchange_mean_s", "iteration_s"))
        rates = (per_second(lines, "env_steps"), per_second(lines, "updates"))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        return f"has a metrics.jsonl that cannot be used: {error!r}"
    return Measurement(case.horizon * run.config.num_envs * (case.ranks - 1), *rates, waiting / whole)


def read_rows(folder: Path, cases: Sequence[Case]) -> tuple[list[Row], dict[str, str]]:
    """The table's rows, weak before strong, and why other runs are in none, by name."""
    rows: dict[tuple[str, int], Row] = {}
    problems: dict[str, str] = {}
    for case in cases:
        found = measurement(folder / case.name, case)
        if isinstance(found, str):
            output = folder / f"{case.name}.out"
            problems[case.name] = f"{found}; its output is {output}" if output.exists() else found
            continue
        # one node is where both begin
        for scaling in (WEAK, STRONG) if case.nodes == 1 else (case.scaling,):
            row = rows.setdefault((scaling, case.nodes), Row(scaling, case.nodes, case.ranks, []))
            row.repeats.append(found)
    return sorted(rows.values(), key=lambda row: (row.scaling == STRONG, row.nodes)), problems


def table(rows: Sequence[Row]) -> str:
    """Medians, and the spread of steps/s where runs were repeated."""
    base = next((row for row in rows if row.nodes == 1), None)
    lines = []
    for row in rows:
        rate = row.median("steps_per_s")
        faster = rate / base.median("steps_per_s") if base else None
        shown = [m.steps_per_s for m in row.repeats]
        lines.append(
            [
                row.scaling, row.nodes, row.ranks, row.workers, f"{row.median('steps'):,.0f}",
                spread(shown, ",.0f") if len(shown) > 1 else f"{rate:,.0f}",
                f"{faster:.2f}" if faster else "–",
                f"{faster * base.workers / row.workers:.1%}" if faster and base else "–",
                f"{row.median('updates_per_s'):,.1f}", f"{row.median('exchange'):.1%}",
            ]
        )  # fmt: skip
    return markdown_table(HEAD, lines)


def plot(rows: Sequence[Row], per_node: int, path: Path) -> None:
    """Draws `path`: steps/s over nodes, by their workers. Raises ImportError where Matplotlib is missing."""
    series = [
        Series(scaling, {row.workers: row.median("steps_per_s") for row in rows if row.scaling == scaling})
        for scaling in (WEAK, STRONG)
    ]
    ticks = {row.workers: row.nodes for row in rows}
    write_svg(path, speed_plot([s for s in series if s.measured], ticks, f"nodes of {per_node} ranks"))


def heading(folder: Path, plan: dict[str, Any], cases: Sequence[Case]) -> str:
    """What was measured, and on what: as the first run says that is there."""
    ran_on = next((found for case in cases if (found := read_json(folder / case.name / "versions.json"))), {})
    packages = ran_on.get("packages", {})
    known = [
        f"job {plan['job_id']}",
        f"{plan['ranks_per_node']} ranks on each node",
        ran_on.get("cpu"),
        ran_on.get("mpi"),
    ]
    known += [f"{name} {packages[name]}" for name in ("dppo", "numpy", "gymnasium") if packages.get(name)]
    return f"# Scaling over nodes\n\n{', '.join(filter(None, known))}:\n`{shlex.join(plan['flags'])}`\n"


def report(folder: Path) -> int:
    """Writes and prints all; returns the exit code."""
    plan, cases = read_plan(folder)
    rows, problems = read_rows(folder, cases)
    repeats = plan["repeats"]
    of_repeats = f", medians [least, most] of {repeats} runs" if repeats > 1 else ""
    measured = [table(rows), EXPLANATION.format(of_repeats=of_repeats)] if rows else ["No run can be used."]
    notes = [f"- {note}" for note in (*plan["notes"], *(f"{name} {why}" for name, why in problems.items()))]
    text = "\n".join([heading(folder, plan, cases), *measured, "", *notes])
    picture = ""
    if rows:
        try:
            plot(rows, plan["ranks_per_node"], folder / "scaling.svg")
            picture = "\n\n![Steps per second over nodes](scaling.svg)"
        except ImportError as error:
            print(f"dppo: no plot: {missing_package('Matplotlib', error)}", file=sys.stderr)
    replace_atomically(folder / "scaling.md", f"{text.rstrip()}{picture}\n".encode())
    print(text.rstrip(), flush=True)
    if problems:
        missing = f"{len(problems)} of {len(cases)} runs are missing from the table"
        print(f"dppo: {missing}: {', '.join(problems)}", file=sys.stderr)
    return EXIT_INCOMPLETE if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = Parser(prog="nodes.py", description="Table and plot of what jobs/scaling.sbatch has measured.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="of the job: it has a plan.json")
    for name in ("nodes", "ranks-per-node", "iterations", "repeats"):
        parser.add_argument(f"--{name}", type=int, metavar="N", default=1, help="of the plan")
    parser.add_argument(
        "--plan", nargs=argparse.REMAINDER, metavar="FLAG", help="the job's: plan runs with these flags"
    )
    try:
        args = parser.parse_args(argv)
        if args.plan is None:
            return report(args.folder)
        write_plan(args.folder, args)
    except UsageError as error:
        print(f"dppo: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
