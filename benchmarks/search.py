"""Does a search of 20 trials beat the preset? CartPole-v1's learning rate and clip range, by the steps to 475.

    .venv/bin/python benchmarks/search.py [--trials 20] [--jobs 2] [--seeds 10]

The search minimises the steps to a mean return of 475 over three seeds a trial, on runs of two ranks, `--jobs` at a
time. Then the best trial and the preset are run with seeds that the search has not seen: a search's own best value is
the luckiest of twenty. Prints tables and writes them, with the figures of each run, to
benchmarks/results/search.{md,json}; `--trials 0` writes the tables anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MPIRUN, machine, markdown_table, save, spread, stored, train

SPACE = """
ranks = 2
[fixed]
env = "CartPole-v1"
target-return = 475.0
total-steps = 300_000
log.tensorboard = false
[search]
trials = {trials}
sampler = "tpe"
optimise = "steps_to_target"
seeds = [1, 2, 3]
[search.space]
optim.lr = {{low = 3e-4, high = 1e-2, log = true}}
ppo.clip = {{low = 0.05, high = 0.4}}
"""
LATE = 2.0
"""A run that has not reached 475 counts as so many times its steps, as in the search."""
TIMEOUT_S = 4 * 3600.0
"""Seconds of the whole search."""


def search(trials: int, jobs: int) -> dict[str, Any]:
    """Makes the search. Returns its trials, its best one, the importance of both settings, and its seconds."""
    from dppo.study.search_section import read_study

    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch) / "search.toml", Path(scratch) / "study"
        file.write_text(SPACE.format(trials=trials))
        command = [sys.executable, "-m", "dppo.sweep", str(file), str(folder), "--run", "--jobs", str(jobs)]
        began = time.monotonic()
        path = f"{MPIRUN.parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, env=os.environ | {"PATH": path}
        )
        seconds = time.monotonic() - began
        data = read_study(folder)
    assert data is not None and data.best is not None
    rows = [{"number": row.number, "steps": row.value, "state": row.state, **row.settings} for row in data.trials]
    return {
        "trials": rows, "best": {"number": data.best.number, "steps": data.best.value, **data.best.settings},
        "importance": data.importance, "seconds": seconds,
    }  # fmt: skip


def steps_to_target(flags: str, seed: int) -> float:
    """The environment steps of one run to 475."""
    given = f"--env CartPole-v1 --target-return 475 --total-steps 300000 --no-log.tensorboard {flags}"
    run = train(2, given, seed)
    return float(run["env_steps"]) * (1.0 if run["exit"] == "target" else LATE)


def compare(best: dict[str, Any], seeds: int) -> dict[str, list[float]]:
    """Steps to 475 of the preset and of the best trial, in turn, with seeds that the search has not seen."""
    flags = {"preset": "", "best trial": f"--optim.lr {best['optim.lr']} --ppo.clip {best['ppo.clip']}"}
    out: dict[str, list[float]] = {name: [] for name in flags}
    for seed in range(101, 101 + seeds):
        for name, given in flags.items():
            out[name].append(steps_to_target(given, seed))
            print(f"seed {seed}, {name}: {out[name][-1]:,.0f} steps", flush=True)
    return out


def text_of(data: dict[str, Any]) -> str:
    """The page of the results."""
    found, steps = data["search"], data["compared"]
    best = found["best"]
    preset, tuned = (statistics.median(steps[name]) for name in ("preset", "best trial"))
    wins = sum(t < p for p, t in zip(steps["preset"], steps["best trial"], strict=True))
    beats = "beats" if tuned < preset else "does not beat"
    verdict = f"**The search {beats} the preset**: {tuned:,.0f} steps in the median against {preset:,.0f}"
    rows = [
        (name, spread(values, ",.0f"), ", ".join(f"{value:,.0f}" for value in values)) for name, values in steps.items()
    ]
    ranked = sorted(found["trials"], key=lambda row: (row["steps"] is None, row["steps"]))
    trials = [
        (
            row["number"],
            f"{row['optim.lr']:.4g}",
            f"{row['ppo.clip']:.3g}",
            f"{row['steps']:,.0f}" if row["steps"] else "–",
        )
        for row in ranked
    ]
    share = ", ".join(f"{name} {value:.0%}" for name, value in found["importance"].items())
    return "\n".join([
        "# A search against the preset",
        "",
        f"CartPole-v1, steps to a mean return of 475 over 100 episodes, 2 ranks a run; made by `{data['command']}` on",
        f"{data['machine']}.",
        "",
        f"{verdict}, with {len(steps['preset'])} seeds that the search has not seen; it is faster with {wins} of them.",
        f"The search: {len(found['trials'])} trials of three seeds, {data['jobs']} runs at a time,"
        f" {found['seconds']:,.0f} s.",
        f"Its best trial, {best['number']}: learning rate {best['optim.lr']:.4g}, clip {best['ppo.clip']:.3g}, with"
        f" {best['steps']:,.0f} steps in the search itself.",
        f"Importance (PED-ANOVA): {share}." if share else "",
        "",
        markdown_table(["settings", "steps to 475: median [least, most]", "each seed"], rows),
        "All trials, best first; a run that has not reached 475 within 300,000 steps counts as 600,000:",
        "",
        markdown_table(["trial", "learning rate", "clip", "steps"], trials),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    data = stored("search")
    if args.trials:
        found = search(args.trials, args.jobs)
        data = {
            "command": " ".join(["python", *sys.argv]), "machine": machine(), "jobs": args.jobs, "search": found,
            "compared": compare(found["best"], args.seeds),
        }  # fmt: skip
    save("search", text_of(data), data)


if __name__ == "__main__":
    main()
