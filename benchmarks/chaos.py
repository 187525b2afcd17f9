"""Is any rank indispensable? Kills ranks of running jobs at random moments, and looks at what the others make of it.

    .venv/bin/python benchmarks/chaos.py [--cells async …] [--kinds one …] [--runs N] [--seed S] [--quick]

Each run trains CartPole-v1 on 5 ranks, 1 server and 4 workers, until the mean return is 475. Ranks die by SIGKILL:

- one: a random one; the server in every fourth run at least.
- two: two at once; first the server with rank 1, which stands by for it, then the server with another, then any two.
- recovery: the same pairs, but the second dies 1 to 40 ms after the first, while the others recover from that.
- checkpoint: the server, while a checkpoint is half written.

Prints a table and writes it, with the figures of each run, to benchmarks/results/chaos.{md,json}; cells and kinds that
are not run again keep their last result. A run that fails is named below the table and leaves its run directory, its
output and, if it hung, its Python stacks in runs/chaos. --quick: one run of each, nothing written.
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import MPIRUN, machine, markdown_table, save, stored

sys.path.insert(0, str(Path(__file__).parents[1]))
from dppo.rundir.checkpoint import checkpoint_folders, read_checkpoint
from dppo.rundir.recorders import read_json
from tests.launch import LEFT_BEHIND_S, Job
from tests.run_directory import count_lines

ROOT = Path(__file__).parents[1]
RANKS = 5
CARTPOLE = "--env CartPole-v1 --target-return 475 --optim.lr 5e-4 --log.no-tensorboard"
CELLS = {  # with small rollouts and steps of the optimiser: many iterations, at any of which a rank may die
    "sync/allreduce": f"{CARTPOLE} --exchange allreduce --horizon 32",
    "sync/p2p": f"{CARTPOLE} --exchange p2p --horizon 32",
    "async": f"{CARTPOLE} --mode async --num-envs 4",
}
LINES = {
    "sync/allreduce": 60,
    "sync/p2p": 60,
    "async": 220,
}  # to the target with nobody killed, about the least of 11 seeds
KINDS = {"one": 20, "two": 5, "recovery": 5, "checkpoint": 5}
CHECKPOINTS = "--checkpoint.every 5000"  # more than ten in a run
LATEST = 0.6  # of these lines: enough is left to be learnt when the last rank has died
DELAY_S, GAP_S = 0.020, (0.001, 0.040)
POLL_S, POLL_PART_S = 0.001, 0.0002
LIMIT_S = 60.0
ATTEMPTS = 5  # a kill that came too late, or missed the checkpoint, is drawn again
KEPT = ROOT / "runs" / "chaos"
PY_SPY = Path(sys.executable).with_name("py-spy")


@dataclass(frozen=True)
class Plan:
    """Who dies, and when: `delay_s` after the metrics have `lines` lines, the second `gap_s` after the first."""

    victims: tuple[int, ...]
    lines: int
    delay_s: float
    gap_s: float
    seed: int


@dataclass
class Outcome:
    """What became of a run; None: it never came to that."""

    plan: Plan
    killed: bool = False
    missed: bool = False
    killed_at: float = 0.0
    code: int | None = None
    exit: str | None = None
    recovery_s: float | None = None
    env_steps_lost: int | None = None
    updates_lost: int | None = None
    broken: list[str] = field(default_factory=list)
    processes: int = 0
    shared: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    kept: str | None = None

    @property
    def reached(self) -> bool:
        return self.code == 0 and self.exit == "target"


class Over(Exception):
    """The job has ended, or its time is up."""


class Run(Job):
    """A job whose ranks are watched."""

    deadline = 0.0

    def ranks(self) -> dict[int, int]:
        """{rank: process} of those that are there."""
        found = {}
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                variables = Path(f"/proc/{pid}/environ").read_bytes()
                if match := re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)\0", variables):
                    found[int(match[1])] = pid
        return found

    def wait_for(self, condition: Callable[[], object], every_s: float = POLL_S) -> None:
        """Until `condition`. Raises Over where that cannot come any more."""
        while not condition():
            if time.monotonic() > self.deadline or not self.running:
                if condition():
                    return
                raise Over
            time.sleep(every_s)

    def left_behind(self) -> int:
        """Processes that are still there a while after mpirun has ended."""
        deadline = time.monotonic() + LEFT_BEHIND_S
        while (left := len(list(self._pids()))) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def dump_stacks(self, folder: Path) -> None:
        """Where each rank is, in Python."""
        folder.mkdir(exist_ok=True)
        for rank, pid in self.ranks().items() if PY_SPY.exists() else ():
            with open(folder / f"rank_{rank}.txt", "wb") as file, contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([PY_SPY, "dump", "--pid", str(pid)], stdout=file, stderr=file, timeout=20)

    def end(self, folder: Path) -> tuple[int, str]:
        """The code of mpirun and what was written to standard error; both outputs are in `folder` after it."""
        self.kill()
        out, err = self._output_parts()
        (folder / "stdout.txt").write_text(out)
        (folder / "stderr.txt").write_text(err)
        return self._process.wait(), err


# -- one run --------------------


def draw(seed: int, cell: str, kind: str, number: int, attempt: int) -> Plan:
    """The same for the same arguments; another attempt has the same victims at another moment."""
    who, when = (random.Random(f"{seed} {cell} {kind} {text}") for text in (number, f"{number} {attempt}"))
    if kind == "one":
        of_four = random.Random(f"{seed} {cell} {kind} block {number // 4}").randrange(4)
        victims = [0 if number % 4 == of_four else who.randrange(RANKS)]
    elif kind == "checkpoint":
        victims = [0]
    else:
        victims = {0: [0, 1], 1: [0, who.randrange(2, RANKS)]}.get(number, who.sample(range(RANKS), 2))
    lines = when.randint(0, int(LATEST * LINES[cell]))
    return Plan(tuple(victims), lines, when.uniform(0, DELAY_S), when.uniform(*GAP_S), when.randrange(1, 1_000_000))


def strike(job: Run, kind: str, run_dir: Path, outcome: Outcome) -> None:
    """Waits for the moment, kills, and waits for an update without the dead. Raises Over where that does not come."""
    plan = outcome.plan
    job.wait_for(lambda: len(job.ranks()) == RANKS, 0.05)
    job.wait_for(lambda: (run_dir / "summary.json").exists() and count_lines(run_dir) >= plan.lines)
    pids = job.ranks()  # not before: while MPI starts, a rank has a guard beside it
    time.sleep(plan.delay_s)
    if kind == "checkpoint":
        job.wait_for(lambda: half_written(run_dir), POLL_PART_S)
    victims = [pids[rank] for rank in plan.victims]
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        for pid in victims if kind == "two" else ():
            os.kill(pid, signal.SIGSTOP)  # else the first one's death might be survived before the second is killed
        for place, pid in enumerate(victims):
            if place and kind == "recovery":
                time.sleep(plan.gap_s)
            os.kill(pid, signal.SIGKILL)
    since = time.monotonic()
    outcome.killed = True
    outcome.missed = kind == "checkpoint" and not half_written(run_dir)
    outcome.killed_at = time.time()
    job.wait_for(lambda: last_line(run_dir).get("ranks_lost", 0) >= len(plan.victims))
    outcome.recovery_s = time.monotonic() - since


def run(cell: str, kind: str, plan: Plan, mpirun_flags: str, folder: Path) -> Outcome:
    """Trains once, in `folder`, while ranks die."""
    outcome = Outcome(plan)
    run_dir = folder / "run"
    before = shared_memory()
    flags = f"{CELLS[cell]} {CHECKPOINTS if kind == 'checkpoint' else ''} --seed {plan.seed}"
    command = [str(MPIRUN), *shlex.split(mpirun_flags), "-n", str(RANKS), sys.executable, "-m", "dppo.run"]
    with tempfile.TemporaryDirectory(prefix="dppo-", ignore_cleanup_errors=True) as temporary:
        job = Run([*command, *flags.split(), "--run-dir", str(run_dir)], folder, temporary, PYTHONPATH=str(ROOT))
        job.deadline = time.monotonic() + LIMIT_S
        try:
            with contextlib.suppress(Over):
                strike(job, kind, run_dir, outcome)
            with contextlib.suppress(Over):
                job.wait_for(lambda: False)
            if job.running:
                outcome.faults.append(f"hung: still running after {LIMIT_S:g} s")
                job.dump_stacks(folder / "stacks")
            else:
                outcome.processes = job.left_behind()
                left = [*Path(temporary).rglob("sm_segment*"), *left_in_shared_memory(before)]
                outcome.shared = [path.name for path in left]
            outcome.code, stderr = job.end(folder)
        finally:
            job.close()
    examine(run_dir, stderr, outcome)
    return outcome


def examine(run_dir: Path, stderr: str, outcome: Outcome) -> None:
    """What the run has left, and everything that is wrong with it."""
    faults, victims = outcome.faults, len(outcome.plan.victims)
    last = last_line(run_dir)
    outcome.exit = read_json(run_dir / "summary.json").get("exit")
    outcome.env_steps_lost, outcome.updates_lost = last.get("env_steps_lost"), last.get("updates_lost")
    outcome.broken = broken_files(run_dir)
    if outcome.code and not faults:
        faults.append(f"mpirun ended with {outcome.code}")
    if outcome.killed and outcome.reached and (run_dir / "metrics.jsonl").stat().st_mtime < outcome.killed_at:
        outcome.missed = True  # the last line was written before: the run had reached its target
    elif outcome.killed and outcome.exit == "target":
        present = RANKS - 1 - victims + last.get("ranks_replaced", 0)  # one of those present is the server
        for key, wanted in {"ranks_lost": victims, "workers": present}.items():
            if last.get(key) != wanted:
                faults.append(f"{key} is {last.get(key)} in the last line, not {wanted}")
        if not re.search(r"^dppo: rank \d+ on \S+ has died", stderr, re.MULTILINE):
            faults.append("no message names a dead rank")
    elif not outcome.killed and not outcome.reached:
        faults.append("ended before a rank was killed")
    faults += outcome.broken
    if outcome.processes:
        faults.append(f"{outcome.processes} processes left over")
    faults += [f"shared memory left over: {name}" for name in outcome.shared]


# -- what a run leaves --------------------


def last_line(run_dir: Path) -> dict[str, Any]:
    """The newest whole line of the metrics; {} where there is none."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().rpartition(b"\n")[0]
        line: dict[str, Any] = json.loads(lines.rpartition(b"\n")[2])
        return line
    except (OSError, ValueError):
        return {}


def broken_files(run_dir: Path) -> list[str]:
    """A line for each file that is not as it should be."""
    broken = []
    for folder in checkpoint_folders(run_dir):
        try:
            read_checkpoint(folder)
        except ValueError as error:
            broken.append(f"{folder.name}: {error}")
    broken += [f"{path.relative_to(run_dir)} left over" for path in run_dir.rglob("*.part")]
    metrics = run_dir / "metrics.jsonl"
    iterations = [0]
    for number, line in enumerate(metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else [], 1):
        try:
            iterations.append(json.loads(line)["iteration"])
        except (ValueError, KeyError, TypeError):
            broken.append(f"line {number} of the metrics cannot be read")
        else:
            broken += [f"line {number} of the metrics is torn"] * (not line.endswith(b"\n"))
    broken += [f"metrics: iteration {a} is followed by {b}" for a, b in pairwise(iterations) if b != a + 1]
    exit_reason = read_json(run_dir / "summary.json").get("exit")
    return broken + [f'summary.json says "{exit_reason}"'] * (exit_reason != "target")


def half_written(run_dir: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return list(run_dir.glob("checkpoints/step_*.part"))


def shared_memory() -> set[Path]:
    """Files in /dev/shm of the kinds that dppo and Open MPI make; not those of a process that no mpirun has started,
    whose job number ends in 0000.
    """
    found = {path for pattern in ("dppo-*", "sm_segment*") for path in Path("/dev/shm").glob(pattern)}
    return {path for path in found if not re.search(r"0000\.0$", path.name)}


def left_in_shared_memory(before: set[Path]) -> list[Path]:
    """Those that are new and that no process has mapped: other jobs on the machine have files there, too."""
    deadline = time.monotonic() + 1.0
    while (new := shared_memory() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    maps = ""
    for path in Path("/proc").glob("[0-9]*/maps") if new else ():
        with contextlib.suppress(OSError):
            maps += path.read_text()
    return sorted(path for path in new if str(path) not in maps)


# -- all runs --------------------


def until_struck(cell: str, kind: str, number: int, args: argparse.Namespace) -> Outcome:
    """A run in which the kill came at the moment that `kind` demands, or that failed."""
    folder = KEPT / f"{cell.replace('/', '-')}-{kind}-{number}"
    for attempt in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        outcome = run(cell, kind, draw(args.seed, cell, kind, number, attempt), args.mpirun, folder)
        if outcome.faults or (outcome.killed and not outcome.missed):
            break
    else:
        outcome.faults.append(f"no kill came at the right moment in {ATTEMPTS} attempts")
    if outcome.faults:
        outcome.kept = str(folder.relative_to(ROOT))
    else:
        shutil.rmtree(folder)
    return outcome


def told(outcome: dict[str, Any]) -> str:
    """A line about a run."""
    plan = outcome["plan"]
    who = " and ".join(f"rank {v}" for v in plan["victims"])
    text = f"{who} after {plan['lines']} lines, seed {plan['seed']}: "
    if outcome["faults"]:
        return f"{text}FAILED ({'; '.join(outcome['faults'])}), see {outcome['kept']}"
    lost = f"{outcome['env_steps_lost']} steps and {outcome['updates_lost']} updates lost"
    return f"{text}{1e3 * outcome['recovery_s']:.0f} ms to the next update, {lost}"


def median_worst(outcomes: list[dict[str, Any]], key: str, scale: int = 1) -> str:
    values = [scale * o[key] for o in outcomes if o[key] is not None]
    return f"{statistics.median(values):,.0f}, {max(values):,.0f}" if values else "–"


def report(data: dict[str, Any]) -> str:
    """The table, and below it the runs that failed."""
    rows, failed = [], []
    for cell in CELLS:
        for kind in KINDS:
            if not (outcomes := data["runs"].get(cell, {}).get(kind)):
                continue
            figures = (("recovery_s", 1000), ("env_steps_lost", 1), ("updates_lost", 1))
            left = (sum(len(o["broken"]) for o in outcomes), sum(o["processes"] for o in outcomes))
            rows.append([
                cell, kind, len(outcomes), sum(o["reached"] for o in outcomes),
                *(median_worst(outcomes, key, scale) for key, scale in figures),
                *left, sum(len(o["shared"]) for o in outcomes),
            ])  # fmt: skip
            failed += [f"- {cell}, {kind}: {told(o)}\n" for o in outcomes if o["faults"]]
    head = (
        "cell", "deaths", "runs", "target reached, code 0", "ms to the next update", "environment steps lost",
        "updates lost", "broken files", "processes left", "shared memory left",
    )  # fmt: skip
    flags = "".join(f"- {cell}: `{text}`\n" for cell, text in CELLS.items())
    notes = f"Runs that failed:\n\n{''.join(failed)}" if failed else "No run failed.\n"
    intro = f"""# Chaos: ranks that are killed while they train

`{data["command"]}` on {data["machine"]}.

Each run is `mpirun {data["mpirun"]} -n {RANKS} python -m dppo.run` with these flags; SIGKILL comes at a random
moment between the start of training and {LATEST:.0%} of the iterations that the quickest runs need:

{flags}
Deaths: **one** random rank, in every fourth run at least rank 0; **two** at once, in the first run rank 0 and rank 1,
its standby, in the second rank 0 and another; **recovery**: the same, but the second dies {1e3 * GAP_S[0]:g} to
{1e3 * GAP_S[1]:g} ms after the first; rank 0 with a **checkpoint** half written (`{CHECKPOINTS}`).

Median, worst. The time is from the last SIGKILL to the first line of `metrics.jsonl` that counts all the dead: the
end of an iteration, so an upper bound of the time to the next update. Steps (an upper bound) and updates lost are what
the metrics tell. Broken files: checkpoints that cannot be read, `*.part` left over, lines of the metrics torn, missing
or doubled, a summary that does not say "target".
"""
    return f"{intro}\n{markdown_table(head, rows)}\n{notes}"


def main() -> None:
    """Runs what was asked for, one after another, and writes the table after each cell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=CELLS)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--runs", type=int, help="of each cell and kind; default: 20 of one, 5 of the others")
    parser.add_argument("--seed", type=int, default=1, help="of victims, moments and trainings")
    parser.add_argument("--quick", action="store_true", help="one run of each cell and kind; no result file")
    parser.add_argument("--mpirun", default="--with-ft ulfm", help="flags of mpirun, in one argument")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    data = {} if args.quick else stored("chaos")
    data |= {"machine": machine(), "mpirun": args.mpirun, "command": shlex.join(["python", *sys.argv])}
    failed = False
    for cell in args.cells:
        for kind in args.kinds:
            outcomes = data.setdefault("runs", {}).setdefault(cell, {})[kind] = []
            for number in range(1 if args.quick else args.runs or KINDS[kind]):
                outcome = until_struck(cell, kind, number, args)
                outcomes.append(asdict(outcome) | {"reached": outcome.reached})
                failed |= bool(outcome.faults)
                print(f"{cell} {kind} {number}: {told(outcomes[-1])}", flush=True)
        if not args.quick:
            save("chaos", report(data), data)
    if args.quick:
        print(report(data))
    sys.exit(failed)


if __name__ == "__main__":
    main()
