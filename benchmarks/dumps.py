"""What do trajectory dumps cost, and do they hold every step once, whatever happens?

    .venv/bin/python benchmarks/dumps.py [--rounds 5] [--kills 30] [--only cost|kills] [--seed S]

Cost: each environment trains on 3 ranks without dumps, with them, and with each compression, in turn, round after
round; compared within a round are steps per second and the CPU time of all ranks. The memory of a worker is the most
that the kernel has seen of it. Kills: each cell trains on 4 ranks; at random moments all ranks are killed, and the run
is resumed, over and over. Then `validate` is asked, every segment is opened with plain h5py, and the rows are counted.
Prints tables and writes them to benchmarks/results/dumps.{md,json}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from common import MPIRUN, machine, markdown_table, save, spread, stored

sys.path.insert(0, str(Path(__file__).parents[1]))
from dppo.trajectories.format import rank_folders, segment_files
from dppo.trajectories.validate import validate
from tests.launch import Job
from tests.run_directory import count_lines, summary

ENVS = {
    "CartPole-v1": "--env CartPole-v1 --total-steps 1000000",
    "HalfCheetah-v5": "--env HalfCheetah-v5 --total-steps 400000",
}
COMMON = "--log.no-tensorboard"
FORMS = {
    "off": "",
    "gzip (default)": "--trajectories.enabled",
    "none": "--trajectories.enabled --trajectories.compression none",
}
RANKS = 3
CELLS = {
    "sync/allreduce": "--exchange allreduce",
    "sync/p2p": "--exchange p2p",
    "sync/p2p, drop 1": "--exchange p2p --server.drop 1",
    "async": "--mode async",
}
KILLED = (
    "--env CartPole-v1 --trajectories.enabled --trajectories.segment-mb 0.5 --checkpoint.every 6000"
    " --total-steps 100000000 --log.no-tensorboard"
)
AT_THE_END = 20_000  # steps of the last attempt, which nobody kills


def command(ranks: int, flags: str, run_dir: Path) -> list[str]:
    mpirun = [str(MPIRUN), "--with-ft", "ulfm", "--oversubscribe", "-n", str(ranks)]
    return [*mpirun, sys.executable, "-m", "dppo.run", *flags.split(), "--run-dir", str(run_dir)]


# -- cost --------------------


class Memory(threading.Thread):
    """Watches how much memory each rank of a job has had at most, in bytes."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self._job, self.most = job, dict[int, int]()

    def run(self) -> None:
        while self._job.running:
            for pid in list(self._job._pids()):
                with contextlib.suppress(OSError):
                    variables = Path(f"/proc/{pid}/environ").read_bytes()
                    rank = re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)\0", variables)
                    most = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                    if rank and most:
                        self.most[int(rank[1])] = max(self.most.get(int(rank[1]), 0), 1024 * int(most[1]))
            time.sleep(0.1)


def train(env: str, form: str, seed: int) -> dict[str, float]:
    """One run: steps per second, CPU seconds of all ranks, the most memory of a worker, bytes written."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="dppo-") as temporary:
        run_dir = Path(folder) / "run"
        flags = f"{ENVS[env]} {COMMON} {FORMS[form]} --seed {seed}"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        job = Job(command(RANKS, flags, run_dir), Path(folder), temporary, PYTHONPATH=str(Path(__file__).parents[1]))
        watch = Memory(job)
        watch.start()
        try:
            ended = job.wait(600)
        finally:
            job.close()
        watch.join()
        assert ended.code == 0, ended
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = summary(run_dir)
        written = sum(p.stat().st_size for f in rank_folders(run_dir).values() for p in segment_files(f).values())
        return {
            "steps_per_s": said["steps_per_s"],
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "memory": float(max(watch.most[rank] for rank in range(1, RANKS))),
            "bytes": float(written),
            "env_steps": float(said["env_steps"]),
        }


def measure_cost(rounds: int) -> list[dict[str, dict[str, dict[str, float]]]]:
    """[round][environment][form] -> figures."""
    out = []
    for number in range(rounds):
        forms = list(FORMS) if number % 2 == 0 else list(FORMS)[::-1]
        out.append({env: {form: train(env, form, number + 1) for form in forms} for env in ENVS})
        print(f"round {number + 1}: {json.dumps(out[-1])}", flush=True)
    return out


def cost_rows(rounds: list[dict[str, dict[str, dict[str, float]]]]) -> list[list[str]]:
    rows = []
    for env in ENVS:
        for form in FORMS:
            here = [r[env][form] for r in rounds]
            off = [r[env]["off"] for r in rounds]
            pairs = list(zip(here, off, strict=True))
            cpu = [1e6 * (h["cpu_s"] / h["env_steps"] - o["cpu_s"] / o["env_steps"]) for h, o in pairs]
            memory = statistics.median(h["memory"] for h in here)
            more = statistics.median(h["memory"] - o["memory"] for h, o in pairs)
            rows.append([
                env, form, spread((h["steps_per_s"] for h in here), ",.0f"),
                "–" if form == "off" else spread((h["steps_per_s"] / o["steps_per_s"] for h, o in pairs), ".3f"),
                "–" if form == "off" else spread(cpu, ".2f"),
                f"{memory / 2**20:.0f}" + ("" if form == "off" else f" (+{more / 2**20:.0f})"),
                "–" if form == "off" else f"{statistics.median(h['bytes'] / h['env_steps'] for h in here):.0f}",
            ])  # fmt: skip
    return rows


# -- kills --------------------


def kill_and_resume(cell: str, kills: int, rng: random.Random) -> dict[str, Any]:
    """Trains, is killed, is resumed; what is left at the end."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        for number in range(kills + 1):
            flags = f"{KILLED} {CELLS[cell]} --seed 1" if number == 0 else "--resume"
            if number == kills:
                manifests = sorted((run_dir / "checkpoints").glob("step_*/manifest.json"))
                flags += f" --total-steps {json.loads(manifests[-1].read_text())['env_steps'] + AT_THE_END}"
            with tempfile.TemporaryDirectory(prefix="dppo-", ignore_cleanup_errors=True) as temporary:
                root = str(Path(__file__).parents[1])
                job = Job(command(4, flags, run_dir), Path(folder), temporary, PYTHONPATH=root)
                try:
                    if number < kills:
                        lines = count_lines(run_dir)
                        job.until(lambda lines=lines: count_lines(run_dir) not in (0, lines))  # type: ignore[misc]
                        time.sleep(rng.uniform(0, 0.7))
                        job.kill()
                    else:
                        ended = job.wait(120)
                        assert ended.code == 0, ended
                finally:
                    job.close()
        return examine(run_dir) | {"kills": kills}


def examine(run_dir: Path) -> dict[str, Any]:
    """Rows that are missing or there twice, files that plain h5py does not open, violations."""
    missing = repeated = unreadable = files = steps = 0
    for folder in rank_folders(run_dir).values():
        rows: list[np.ndarray] = []
        for path in segment_files(folder).values():
            files += 1
            try:
                with h5py.File(path) as file:
                    rows.append(file["steps/row"][:])
                    steps += int(np.count_nonzero(file["steps/valid"][:]))
            except OSError:
                unreadable += 1
        held, times = np.unique(np.concatenate(rows), return_counts=True)
        missing += int(held[-1]) + 1 - len(held)
        repeated += int((times - 1).sum())
    manifests = sorted((run_dir / "checkpoints").glob("step_*/manifest.json"))
    return {
        "files": files, "unreadable": unreadable, "missing": missing, "repeated": repeated, "steps": steps,
        "env_steps": json.loads(manifests[-1].read_text())["env_steps"],
        "orphaned": len(list(run_dir.glob("trajectories/orphaned/*/*/*.h5"))),
        "violations": [str(v) for v in validate(run_dir)],
    }  # fmt: skip


# -- showing --------------------


def report(data: dict[str, Any]) -> str:
    parts = [f"# Trajectory dumps\n\n`{data['command']}` on {data['machine']}.\n"]
    if data.get("cost"):
        head = (
            "environment", "dump", "steps/s", "/ off, same round", "CPU µs a step more", "memory of a worker, MB",
            "bytes a step",
        )  # fmt: skip
        flags = "".join(f"- {env}: `{text} {COMMON}`\n" for env, text in ENVS.items())
        parts.append(
            f"## Cost\n\n`mpirun --with-ft ulfm -n {RANKS}` with\n\n{flags}\nMedians [least, most] of"
            f" {len(data['cost'])} rounds. CPU: user and system time of all ranks, start included, over all steps,"
            " less that without dumps in the same round. Memory: the most that a worker has had, and how much more"
            " that is than without; a segment has 32 MB of raw data at most.\n"
        )
        parts.append(markdown_table(head, cost_rows(data["cost"])))
    if data.get("kills"):
        head = (
            "cell", "SIGKILLs to all ranks, and resumes", "segments", "not opened by h5py", "rows missing",
            "rows twice", "steps in segments", "steps of the last checkpoint", "orphaned", "violations",
        )  # fmt: skip
        rows = [
            [cell, k["kills"], k["files"], k["unreadable"], k["missing"], k["repeated"], f"{k['steps']:,}",
             f"{k['env_steps']:,}", k["orphaned"], len(k["violations"])]
            for cell, k in data["kills"].items()
        ]  # fmt: skip
        parts.append(f"## Kills\n\n`mpirun --with-ft ulfm -n 4 python -m dppo.run {KILLED}`\n")
        parts.append(markdown_table(head, rows))
    return "\n".join(parts)


def main() -> None:
    """Measures what was asked for; the other part keeps its last result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--only", choices=["cost", "kills"])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    data = stored("dumps")
    data |= {"machine": machine(), "command": ".venv/bin/python benchmarks/dumps.py"}
    if args.only != "kills":
        data["cost"] = measure_cost(args.rounds)
    if args.only != "cost":
        data["kills"] = {}
        for cell in CELLS:
            data["kills"][cell] = kill_and_resume(cell, args.kills, random.Random(f"{args.seed} {cell}"))
            print(cell, data["kills"][cell], flush=True)
    save("dumps", report(data), data)
    bad = [k for k in data.get("kills", {}).values() if k["violations"] or k["missing"] or k["repeated"]]
    sys.exit(bool(bad))


if __name__ == "__main__":
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
    main()
