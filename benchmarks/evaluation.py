"""What evaluations while training cost, and what the best checkpoint is worth.

    python benchmarks/evaluation.py speed [--rounds 5]    steps/s with and without evaluations, in time slices
    python benchmarks/evaluation.py best [--seeds 5]      best and last checkpoint in 100 fresh episodes

Each writes its part of benchmarks/results/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, markdown_table, mpirun, save, spread, stored
from in_turns import SLICE_S, steps_per_s

EVERY = 50_000
SPEED = {"CartPole-v1": 500_000, "Pendulum-v1": 300_000, "HalfCheetah-v5": 200_000}
"""Environment steps of a run; so many that evaluations are a part of it as in a long one."""
WITHOUT, AGAIN, WITH = "without", "without, again", "with"
BEST = {"Pendulum-v1": 400_000, "CartPole-v1": 400_000, "Hopper-v5": 1_000_000}
EVALUATIONS = 20
"""Evaluations in a run whose best checkpoint is compared with its last one."""
CHOSEN_BY = 50
"""Episodes of each. Of the default of 10, the best of 20 checkpoints is the luckiest one where returns vary as
Pendulum's do: 400,000 steps of 5 seeds gave a median of -170.6 for the best and -169.4 for the last.
"""
EPISODES, FIRST_SEED = 100, 1_000


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(env: str, ranks: int, seed: int) -> dict[str, float]:
    """Trains with and without evaluations, and without once more, in time slices. Returns the steps/s of each, and the
    seconds of the median evaluation.
    """
    flags = ["--env", env, "--total-steps", str(SPEED[env]), "--seed", str(seed)]
    given = {WITHOUT: flags, WITH: [*flags, "--eval.every", str(EVERY)], AGAIN: flags}
    names = list(given)[seed % 3 :] + list(given)[: seed % 3]  # none is always the first
    with tempfile.TemporaryDirectory() as scratch:
        found = steps_per_s({name: (Path(scratch) / name, given[name]) for name in names}, ranks)
        evaluations = read_lines(Path(scratch) / WITH / "evaluations.jsonl")
        return found | {"evaluation_s": statistics.median(line["seconds_s"] for line in evaluations)}


def speed(rounds: int, ranks: int, envs: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for env in envs:
        out[env] = []
        for seed in range(1, rounds + 1):
            out[env].append(found := measure(env, ranks, seed))
            ratios = {name: round(found[name] / found[WITHOUT], 3) for name in (WITH, AGAIN)}
            print(f"{env}: round {seed} of {rounds}: {ratios}", flush=True)
    return {"speed": out, "ranks": ranks, "speed_machine": machine()}


def evaluate(run_dir: Path, checkpoint: str, seed: int) -> float:
    command = [sys.executable, "-m", "dppo.evaluate", str(run_dir), "--checkpoint", checkpoint, "--json"]
    command += ["--episodes", str(EPISODES), "--seed", str(seed)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["mean"])


def best(seeds: int, ranks: int, envs: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for env in envs:
        out[env] = []
        for seed in range(1, seeds + 1):
            with tempfile.TemporaryDirectory() as scratch:
                run_dir, total = Path(scratch) / "run", BEST[env]
                flags = ["--env", env, "--total-steps", total, "--eval.every", total // EVALUATIONS, "--seed", seed]
                flags += ["--eval.episodes", CHOSEN_BY]
                mpirun(ranks, ["-m", "dppo.run", *map(str, flags), "--run-dir", str(run_dir)])
                found = {name: evaluate(run_dir, name, FIRST_SEED + seed) for name in ("best", "latest")}
                lines = read_lines(run_dir / "evaluations.jsonl")
                found["at"] = [line["env_steps"] for line in lines if line["best"]][-1]
            out[env].append(found | {"seed": seed})
            print(f"{env}, seed {seed}: best {found['best']:.1f}, last {found['latest']:.1f}", flush=True)
    return {"best": out, "best_ranks": ranks, "best_machine": machine()}


def text_of(data: dict[str, Any]) -> str:
    parts = ["# Evaluations while training\n\n"]
    if "speed" in data:
        rows = [
            (
                env,
                *(spread((r[name] for r in runs), ",.0f") for name in (WITHOUT, WITH)),
                spread((2 * r[WITH] / (r[WITHOUT] + r[AGAIN]) for r in runs), ".3f"),
                spread((r[AGAIN] / r[WITHOUT] for r in runs), ".3f"),
                f"{statistics.median(r['evaluation_s'] for r in runs):.2f} s",
            )
            for env, runs in data["speed"].items()
        ]
        head = (
            "environment",
            WITHOUT,
            WITH,
            "with / mean of both without",
            "without, again / without",
            "one evaluation",
        )
        parts.append(
            f"`python benchmarks/evaluation.py speed`: steps/s of a run with `--eval.every {EVERY}` (10 episodes each),"
            f" of one without, and of one more without, which shows how much the measure itself varies; the three take"
            f" turns in slices of {SLICE_S} s. `mpirun -n {data['ranks']}`, {max(map(len, data['speed'].values()))}"
            f" rounds, median [least, most]. Where ranks fill all cores, evaluations take what they compute from"
            f" training (`--ranks`).\n\n"
            f"{markdown_table(head, rows)}\n{data['speed_machine']}\n\n"
        )
    if "best" in data:
        rows = [
            (
                env,
                " ".join(f"{r['best']:.1f}" for r in runs),
                " ".join(f"{r['latest']:.1f}" for r in runs),
                f"{statistics.median(r['best'] for r in runs):.1f}",
                f"{statistics.median(r['latest'] for r in runs):.1f}",
            )
            for env, runs in data["best"].items()
        ]
        head = ("environment", "best, by seed", "last, by seed", "best, median", "last, median")
        parts.append(
            f"`python benchmarks/evaluation.py best`: mean return of {EPISODES} greedy episodes, not of the seeds"
            f" of the evaluations, of which each run has {EVALUATIONS} (`--eval.episodes {CHOSEN_BY}`);"
            f" `mpirun -n {data['best_ranks']}`.\n\n"
            f"{markdown_table(head, rows)}\n{data['best_machine']}\n"
        )
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "best"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=max(2, os.cpu_count() or 1), help="default: one for each core")
    parser.add_argument("--env", nargs="*", help="of these environments only; nothing is saved then")
    args = parser.parse_args()
    if args.part == "speed":
        found = speed(args.rounds, args.ranks, args.env or list(SPEED))
    else:
        found = best(args.seeds, args.ranks, args.env or list(BEST))
    if args.env:
        print(text_of(found))
    else:
        data = {key: value for key, value in (stored("evaluation") | found).items()}
        save("evaluation", text_of(data), data)


if __name__ == "__main__":
    main()
