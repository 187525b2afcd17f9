"""What becomes of environments on several ranks when some of these are killed? As chaos.py, with groups.

    .venv/bin/python benchmarks/chaos_groups.py [--cells async …] [--runs N] [--seed S] [--quick]

Each run has 1 server and 3 groups of 2 ranks, and ends after a number of steps. A member, a head, both, or ranks of two
groups die by SIGKILL at a random moment: while the job starts, in a random call of an environment (made, reset, step,
within a step, save_state), after a random line of the metrics, while a checkpoint is half written, or at the end.

- Under ULFM the run must reach its end with the groups that are left.
- Without ULFM the job must end with code 137 or 1 within 10 s, and `--resume` must reach the end.
- With the C program of examples/heat, ranks of the simulator and workers die.

Prints a table and writes it, with the figures of each run, to benchmarks/results/chaos_groups.{md,json}; cells that are
not run again keep their last result. A run that fails leaves its files in runs/chaos_groups. --quick: a few runs of
each cell, nothing written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from chaos import POLL_PART_S, Over, Run, broken_files, half_written, last_line
from common import MPIRUN, machine, markdown_table, save, stored

sys.path.insert(0, str(Path(__file__).parents[1]))
from dppo.rundir.recorders import read_json
from tests.launch import PROGRAMS
from tests.run_directory import count_lines

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "runs" / "chaos_groups"
GROUPS, SIZE = 3, 2
LINES = 16  # of a run, about
STEPS = LINES * GROUPS * 16
SMALL = f"--total-steps {STEPS} --checkpoint.every 200 --checkpoint.states-s 0 --log.no-tensorboard --optim.no-anneal"
RING = f"--env group_envs:Mortal --env-ranks {SIZE} --num-envs 2 --horizon 8 --ppo.minibatches 2 {SMALL}"
HEAT = f"--env dppo.envs:Solver --env-ranks {SIZE} --num-envs 1 --horizon 16 --ppo.minibatches 2 {SMALL}"
EXCHANGES = {"sync/allreduce": "--exchange allreduce", "sync/p2p": "--exchange p2p", "async": "--mode async"}


@dataclass(frozen=True)
class Cell:
    """Runs of one kind: flags, and whether deaths are survived and simulators are programs of their own."""

    flags: str
    runs: int
    survives: bool = True
    is_program: bool = False


CELLS = {
    **{f"{name}, ULFM": Cell(f"{RING} {flags}", 20) for name, flags in EXCHANGES.items()},
    **{f"{name}, no ULFM": Cell(f"{RING} {flags}", 6, survives=False) for name, flags in EXCHANGES.items()},
    **{f"{name}, C, ULFM": Cell(f"{HEAT} {flags}", 20, is_program=True) for name, flags in EXCHANGES.items()},
    **{f"{name}, C, no ULFM": Cell(f"{HEAT} {flags}", 3, False, is_program=True) for name, flags in EXCHANGES.items()},
}
IN_CALLS = {"make": (1, 2), "reset": (1, 12), "step": (1, 200), "observe": (1, 200), "save": (3, 24)}
"""The calls in which a rank may die, by its first and last number. The first states are saved with step 0."""
MOMENTS = ("step", "training", "start", "observe", "reset", "checkpoint", "save", "training", "end", "make")
MOMENTS_OF_PROGRAMS = ("training", "start", "training", "checkpoint", "training", "end")
VICTIMS = ("a member", "a head", "both", "of two groups")
START_S, DELAY_S, END_S = 4.0, 0.1, 0.3
"""The most seconds to a death: since the ranks are there, since a line of the metrics, since one of the last lines."""
LIMIT_S, ENDS_S = 600.0, 10.0
DIED_AT_START = "died while MPI was starting|while the simulator was starting|An error occurred in MPI_Init"


@dataclass(frozen=True)
class Plan:
    """Which ranks die, and when."""

    who: str
    victims: tuple[int, ...]
    moment: str
    number: int
    """The number of the call, or of lines of the metrics."""
    delay_s: float
    seed: int


@dataclass
class Outcome:
    """What became of a run."""

    plan: Plan
    code: int | None = None
    exit: str | None = None
    ended_s: float | None = None
    """Seconds from the death to the end of the job, without ULFM."""
    resumed: int | None = None
    processes: int = 0
    lost: int = 0
    """Groups that the last line of the metrics counts as lost."""
    faults: list[str] = field(default_factory=list)
    kept: str | None = None


def draw(seed: int, name: str, number: int) -> Plan:
    """The same for the same arguments."""
    cell, rng = CELLS[name], random.Random(f"{seed} {name} {number}")
    moments = MOMENTS_OF_PROGRAMS if cell.is_program else MOMENTS
    moment, who = moments[number % len(moments)], VICTIMS[(number + number // len(moments)) % len(VICTIMS)]
    group, other = rng.sample(range(GROUPS), 2)
    if cell.is_program:  # a group: its worker, and its ranks of the simulator, whose first speaks with the worker
        ranks, others = ([1 + g, *range(1 + GROUPS + g * SIZE, 1 + GROUPS + (g + 1) * SIZE)] for g in (group, other))
        chosen = {
            "a member": [ranks[2]],
            "a head": [ranks[1]],
            "both": ranks[1:],
            "of two groups": [ranks[0], others[2]],
        }
    else:
        ranks, others = (range(1 + g * SIZE, 1 + (g + 1) * SIZE) for g in (group, other))
        chosen = {
            "a member": [ranks[1]],
            "a head": [ranks[0]],
            "both": [*ranks],
            "of two groups": [ranks[1], others[0]],
        }
    at = max(1, rng.randint(*IN_CALLS.get(moment, (0, LINES // 2))))
    if moment == "end":
        at = LINES - 1
    delay_s = rng.uniform(0, {"start": START_S, "end": END_S}.get(moment, DELAY_S))
    return Plan(who, tuple(chosen[who]), moment, at, delay_s, rng.randrange(1, 1_000_000))


def command(name: str, flags: str, simulator: Path | None) -> list[str]:
    """The words of a job."""
    cell = CELLS[name]
    ranks = 1 + GROUPS * (1 if cell.is_program else SIZE)
    beside = [":", "-n", str(GROUPS * SIZE), str(simulator)] if cell.is_program else []
    ulfm = ["--with-ft", "ulfm"] * cell.survives
    mpirun = [str(MPIRUN), "--oversubscribe", *ulfm, "-n", str(ranks)]
    return [*mpirun, sys.executable, "-m", "dppo.run", *flags.split(), *beside]


def strike(job: Run, plan: Plan, run_dir: Path) -> float:
    """Waits for the moment, and kills. Returns when. Raises Over where the moment does not come."""
    if plan.moment == "start":
        job.wait_for(lambda: all(map(job.has_rank, plan.victims)), 0.02)
    else:
        job.wait_for(lambda: count_lines(run_dir) >= plan.number)
    time.sleep(plan.delay_s)
    there = job.ranks()
    pids = [there[rank] for rank in plan.victims if rank in there]  # at the end some may have left
    if plan.moment == "checkpoint":
        job.wait_for(lambda: half_written(run_dir), POLL_PART_S)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, number)
    return time.monotonic()


def run(name: str, plan: Plan, folder: Path, simulator: Path | None) -> Outcome:
    """Trains once, in `folder`, while ranks die."""
    outcome, run_dir, cell = Outcome(plan), folder / "run", CELLS[name]
    flags = f"{cell.flags} --seed {plan.seed} --run-dir {run_dir}"
    variables = {"PYTHONPATH": f"{ROOT}:{PROGRAMS}"}
    in_call = plan.moment in IN_CALLS
    dies = {"DIES": f"{plan.moment} {plan.number} {' '.join(map(str, plan.victims))}"} if in_call else {}
    with tempfile.TemporaryDirectory(prefix="dppo-", ignore_cleanup_errors=True) as temporary:
        job = Run(command(name, flags, simulator), folder, temporary, **variables, **dies)
        job.deadline = time.monotonic() + LIMIT_S
        died_at = 0.0
        try:
            with contextlib.suppress(Over):
                if not in_call:
                    died_at = strike(job, plan, run_dir)
                elif not cell.survives:
                    job.wait_for(lambda: all(map(job.has_rank, plan.victims)), 0.02)
                    job.wait_for(lambda: not all(map(job.has_rank, plan.victims)), 0.02)
                    died_at = time.monotonic()
            finish(job, outcome, folder)
            if died_at:
                outcome.ended_s = time.monotonic() - died_at
            outcome.code, stderr = job.end(folder)
        finally:
            job.close()
        if cell.survives:
            examine(run_dir, outcome, stderr, cell)
        else:
            examine_end(outcome)
            if outcome.code != 0 and not outcome.faults:
                resume(name, flags, folder, temporary, variables, outcome, simulator)
    return outcome


def finish(job: Run, outcome: Outcome, folder: Path) -> None:
    """Waits until the job has ended by itself."""
    with contextlib.suppress(Over):
        job.wait_for(lambda: False, 0.02)
    if job.running:
        outcome.faults.append(f"hung: still running after {LIMIT_S:g} s")
        job.dump_stacks(folder / "stacks")
    else:
        outcome.processes = job.left_behind()
        if outcome.processes:
            outcome.faults.append(f"{outcome.processes} processes left over")


def resume(
    name: str, flags: str, folder: Path, temporary: str, variables: dict[str, str], outcome: Outcome,
    simulator: Path | None,
) -> None:  # fmt: skip
    """Continues a run that has failed, with all ranks; begins it if nothing was on disk."""
    run_dir = folder / "run"
    there = (run_dir / "checkpoints" / "latest").exists()
    words = f"--resume --run-dir {run_dir}" if there else flags
    job = Run(command(name, words, simulator), folder, temporary, **variables)
    job.deadline = time.monotonic() + LIMIT_S
    try:
        finish(job, outcome, folder)
        code, _ = job.end(folder)
    finally:
        job.close()
    outcome.resumed = code
    if code:
        outcome.faults.append(f"{words.split()[0]} ended with {code}")
    examine_files(run_dir, outcome, GROUPS)


def examine_end(outcome: Outcome) -> None:
    """Whether a job that does not survive deaths has ended as it should."""
    if outcome.code not in (0, 1, 137):
        outcome.faults.append(f"mpirun ended with {outcome.code}")
    if outcome.ended_s is not None and outcome.ended_s > ENDS_S:
        outcome.faults.append(f"the job ended after {outcome.ended_s:.1f} s")


def examine(run_dir: Path, outcome: Outcome, stderr: str, cell: Cell) -> None:
    """Whether a run that survives deaths has ended as it should."""
    plan, last = outcome.plan, last_line(run_dir)
    if outcome.code and re.search(DIED_AT_START, stderr):
        return  # the job says that it is to be started again
    if outcome.code:
        outcome.faults.append(f"mpirun ended with {outcome.code}")
    outcome.lost = last.get("ranks_lost", 0)
    dead = 2 if plan.who == "of two groups" else 1
    too_late = plan.moment in ("end", "checkpoint", "make") or plan.moment in IN_CALLS
    at_start = plan.moment in ("start", "make")  # then a run begins with those that are left
    if not (0 if too_late or at_start else dead) <= outcome.lost <= dead:
        outcome.faults.append(f"ranks_lost is {outcome.lost} in the last line, not {dead}")
    examine_files(run_dir, outcome, None if at_start else GROUPS - outcome.lost)


def examine_files(run_dir: Path, outcome: Outcome, workers: int | None) -> None:
    """Whether the files are those of a whole run that has reached its end. `workers`: in the last line."""
    said, faults = read_json(run_dir / "summary.json"), outcome.faults
    outcome.exit = said.get("exit")
    if outcome.exit != "finished":
        faults.append(f'summary.json says "{outcome.exit}"')
    faults += [text for text in broken_files(run_dir) if not text.startswith("summary.json")]
    metrics = run_dir / "metrics.jsonl"
    lines = [json.loads(text) for text in metrics.read_bytes().splitlines()] if metrics.exists() else [{}]
    steps = [0, *(line.get("env_steps", -1) for line in lines)]
    if not all(a < b for a, b in pairwise(steps)) or steps[-1] < STEPS or said.get("env_steps") != steps[-1]:
        faults.append(f"env_steps do not fit: {steps[-3:]} in the metrics, {said.get('env_steps')} in the summary")
    if workers is not None and (lines[-1].get("workers"), said.get("world_size")) != (workers, 1 + workers):
        faults.append(f"workers is {lines[-1].get('workers')}, world_size {said.get('world_size')}, not of {workers}")


# -- all runs --------------------


def told(outcome: dict[str, Any]) -> str:
    """A line about a run."""
    plan = outcome["plan"]
    ranks = " and ".join(map(str, plan["victims"]))
    text = f"{plan['who']} (rank {ranks}), {plan['moment']} {plan['number']}, seed {plan['seed']}: "
    if outcome["faults"]:
        return f"{text}FAILED ({'; '.join(outcome['faults'])}), see {outcome['kept']}"
    ended = "" if outcome["ended_s"] is None else f" {outcome['ended_s']:.1f} s after the death"
    return f"{text}code {outcome['code']}{ended}, {outcome['lost']} lost, resumed: {outcome['resumed']}"


def report(data: dict[str, Any]) -> str:
    """The table, and below it the runs that failed."""
    rows, failed = [], []
    for name, cell in CELLS.items():
        if not (outcomes := data["runs"].get(name)):
            continue
        reached = sum(o["exit"] == "finished" and not o["faults"] for o in outcomes)
        again = sum(o["exit"] is None and not o["faults"] for o in outcomes)
        codes = ", ".join(map(str, sorted({o["code"] for o in outcomes})))
        ended = [o["ended_s"] for o in outcomes if o["ended_s"] is not None and o["code"]]
        slowest = f"{max(ended):.1f}" if ended and not cell.survives else "–"
        left = sum(o["processes"] for o in outcomes)
        rows.append(
            [name, len(outcomes), codes, slowest, reached, again, left, sum(bool(o["faults"]) for o in outcomes)]
        )
        failed += [f"- {name}: {told(o)}\n" for o in outcomes if o["faults"]]
    head = (
        "cell", "runs", "codes", "s to the end, at worst", "end reached", "died while MPI started", "processes left",
        "failed",
    )  # fmt: skip
    notes = f"Runs that failed:\n\n{''.join(failed)}" if failed else "No run failed.\n"
    intro = f"""# Chaos: ranks of environments that are killed while they train

`{data["command"]}` on {data["machine"]}.

1 server and {GROUPS} groups of {SIZE} ranks; with C, {GROUPS} workers with a simulator of {SIZE} ranks each. In each
run a member, a head, both ranks of a group, or ranks of two groups die by SIGKILL, at a random moment: up to
{START_S:g} s after the ranks are there; in a random call of an environment (made, reset, step, within a step,
save_state); within {DELAY_S:g} s after a random line of the metrics; while a checkpoint is half written; or within
{END_S:g} s after one of the last lines. With C, of two groups a worker and a rank of the other's simulator die.

With ULFM the run must reach its end with the groups that are left, and with code 0. Where a rank dies while MPI
starts, the job may say so and end. Without ULFM, the job must end with code 137 or 1 within {ENDS_S:g} s, and
`--resume` (or, where nothing was on disk, a new start) must reach the end. After each run: one line of metrics for each
iteration, steps that grow, the right numbers of workers and lost ranks (a group counts once), whole checkpoints, no
process left.

- Python: `{RING}`
- C: `{HEAT}` with `examples/heat/heat.c`
"""
    return f"{intro}\n{markdown_table(head, rows)}\n{notes}"


def compile_simulator(folder: Path) -> Path:
    """Compiles examples/heat/heat.c."""
    include, target = ROOT / "dppo" / "envs" / "include", folder / "heat_c"
    mpicc = str(MPIRUN.with_name("mpicc"))
    subprocess.run([mpicc, "-O2", f"-I{include}", ROOT / "examples/heat/heat.c", "-o", target, "-lm"], check=True)
    return target


def main() -> None:
    """Runs what was asked for, one after another, and writes the table after each cell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=CELLS)
    parser.add_argument("--runs", type=int, help="of each cell")
    parser.add_argument("--numbers", nargs="*", type=int, help="of the runs; the others keep their results")
    parser.add_argument("--seed", type=int, default=1, help="of victims, moments and trainings")
    parser.add_argument("--quick", action="store_true", help="two runs of each cell; no result file")
    args = parser.parse_args()
    about = {"machine": machine(), "command": shlex.join(["python", *sys.argv])}
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="dppo-heat-") as built:
        simulator = compile_simulator(Path(built)) if any(CELLS[name].is_program for name in args.cells) else None
        for name in args.cells:
            numbers = args.numbers or range(args.runs or (2 if args.quick else CELLS[name].runs))
            kept = stored("chaos_groups").get("runs", {}).get(name, []) if args.numbers and not args.quick else []
            outcomes = runs[name] = list(kept)
            for number in numbers:
                folder = KEPT / f"{re.sub('[^a-zA-Z0-9]+', '-', name)}-{number}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                outcome = run(name, draw(args.seed, name, number), folder, simulator)
                if outcome.faults:
                    outcome.kept = str(folder.relative_to(ROOT))
                else:
                    shutil.rmtree(folder)
                outcomes[number : number + 1] = [asdict(outcome)]
                print(f"{name} {number}: {told(asdict(outcome))}", flush=True)
                if not args.quick:
                    before = stored("chaos_groups")  # other cells may run at the same time
                    data = before | about | {"runs": before.get("runs", {}) | {name: outcomes}}
                    with contextlib.redirect_stdout(None):
                        save("chaos_groups", report(data), data)
    print(report(about | {"runs": runs}))
    sys.exit(any(outcome["faults"] for outcomes in runs.values() for outcome in outcomes))


if __name__ == "__main__":
    main()
