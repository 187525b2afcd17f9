"""Does it learn? Every cell of the grid on CartPole-v1, and every preset on its environment, several seeds each.

    .venv/bin/python benchmarks/learning.py [--only NAME …] [--seeds 1 2 3] [--ranks 3]

Each row is `mpirun -n RANKS python -m dppo.run FLAGS --seed S`, then `python -m dppo.evaluate` over 100 greedy
episodes. Prints a Markdown table and writes it, with the figures of each run as JSON and what it ran on, to
benchmarks/results/learning.{md,json}. Rows that are not run again keep their last result. DoorKey needs
`pip install minigrid`, Pong `pip install 'dppo[atari]'`. Start it in the root of the repository, where the rows'
wrappers are found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, markdown_table, mpirun, save, spread, stored

CARTPOLE = "--env CartPole-v1 --target-return 475"
PONG = (
    "--env PongNoFrameskip-v4 --wrappers dppo.envs.atari:preprocess --target-return 18.5 --total-steps 2499000"
    " --num-envs 4 --horizon 128 --ppo.epochs 4 --ppo.minibatches 4 --ppo.entropy-coef 0.01 --optim.lr 1e-3"
    " --model.hidden --model.encoder nature --model.bf16"
)
"""At most ten million frames, four to a step; the preset of ALE/… has these settings, but for bfloat16."""
PONG_STICKY = "--env ALE/Pong-v5 --target-return 18.5 --total-steps 2499000 --model.bf16"
"""With the preset of ALE/…; a quarter of the actions is the one before (sticky), as this id has it."""
TMAZE = (
    "--env dppo.envs.probes_of_memory:ProbeTMaze --model.hidden 32 --horizon 84 --ppo.minibatches 4"
    " --ppo.entropy-coef 0.01 --total-steps 150000 --target-return 0.97"
)
"""Its corridor is 20 long."""
PROBE = (
    "--horizon 32 --ppo.epochs 4 --ppo.minibatches 4 --optim.lr 3e-3 --optim.no-anneal --model.hidden 64"
    " --env dppo.envs.probes_of_spaces:dppo/Probe"
)
PROBES = {
    "Dict": "Inputs-v0 --total-steps 10000 --ppo.entropy-coef 0.02 --model.activation relu",
    "composite": "Parts-v0 --total-steps 15000",
    "masked": "Mask-v0 --total-steps 5000",
}
"""A vector and an image; a composite action; an illegal action that would pay. The best returns are 1, 2 and 1."""
EXCHANGES = {
    "sync/allreduce": "--exchange allreduce",
    "sync/p2p": "--exchange p2p",
    "async ppo": "--mode async --loss ppo",
    "async a3c": "--mode async --horizon 21 --optim.lr 5e-3",
}
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
    "FrozenLake 8x8": '--env FrozenLake-v1 --env-kwargs map_name="8x8" is_slippery=false --total-steps 200000',
    "CliffWalking": "--env CliffWalking-v1 --env-kwargs max_episode_steps=200 --target-return -13.05",
    "Blackjack": "--env Blackjack-v1 --total-steps 200000",
    "Taxi": "--env Taxi-v4 --total-steps 300000",
    "Taxi without its mask": "--env Taxi-v4 --wrappers benchmarks.wrappers:WithoutMask --total-steps 300000",
    "Pong": PONG,
    "Sticky Pong": PONG_STICKY,
    "DoorKey": "--env MiniGrid-DoorKey-5x5-v0 --wrappers benchmarks.wrappers:WithoutMission --total-steps 120000",
    **{
        f"T-maze 20, {core}, {exchange}": f"{TMAZE} --model.core {core} --model.core-size 32 {flags}"
        for core in ("gru", "lstm")
        for exchange, flags in EXCHANGES.items()
    },
    "T-maze 20, without memory": TMAZE,
    **{
        f"{name} probe, {exchange}": f"{PROBE}{given} {EXCHANGES[exchange]}"
        for name, given in PROBES.items()
        for exchange in ("sync/allreduce", "sync/p2p", "async ppo")
    },
}
CURVE = ("env_steps", "return_mean_100", "train_s")
"""What the JSON has of about twenty iterations of a run."""
LONGEST_S = 7200.0
"""The longest run is Pong's: half an hour on two cores that nobody shares."""
EPISODES = {"Blackjack": 10_000}
"""Greedy episodes of rows whose return is mostly chance; 100 of the others."""


def run(flags: str, seed: int, ranks: int, episodes: int = 100) -> dict[str, Any]:
    """Trains once and evaluates; the summary with the greedy mean in `greedy_mean`, and the learning curve."""
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        mpirun(ranks, ["-m", "dppo.run", *flags.split(), "--seed", str(seed), "--run-dir", str(run_dir)], LONGEST_S)
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
        del summary["run_dir"]
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        evaluate = [sys.executable, "-m", "dppo.evaluate", str(run_dir), "--episodes", str(episodes), "--json"]
        played = subprocess.run(evaluate, check=True, capture_output=True, text=True, timeout=1800)
        return summary | {
            "greedy_mean": json.loads(played.stdout)["mean"],
            "seed": seed,
            "flags": flags,
            "ranks": ranks,
            "curve": [[line[key] for key in CURVE] for line in lines[:: max(1, len(lines) // 20)]],
        }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, medians over seeds with the least and the most in brackets."""
    head = ("run", "flags", "seeds", "end", "steps", "last 100 episodes", "greedy, 100 episodes", "training s")
    forms = {"env_steps": ",.0f", "return_mean_100": ".1f", "greedy_mean": ".1f", "train_s": ".1f"}
    rows = []
    for name in ROWS:
        if runs := results.get(name):
            ends = ", ".join(sorted({r["exit"] for r in runs}))
            is_small = all(abs(r["greedy_mean"]) < 10 for r in runs)
            shown = forms | {key: ".3f" for key in ("return_mean_100", "greedy_mean") if is_small}
            figures = [spread((r[key] for r in runs), form) for key, form in shown.items()]
            figures[2] += f", {EPISODES[name]:,} episodes" if name in EPISODES else ""
            rows.append([name, f"`{runs[0]['flags']}`", len(runs), ends, *figures])
    return markdown_table(head, rows)


def main() -> None:
    """Runs the rows asked for, one after another, and writes the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="beginnings of rows' names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=3)
    args = parser.parse_args()
    results = stored("learning")
    for name, flags in ROWS.items():
        if not name.startswith(tuple(args.only)):
            continue
        results[name] = []
        for seed in args.seeds:
            results[name].append(run(flags, seed, args.ranks, EPISODES.get(name, 100)))
            print(name, seed, results[name][-1], flush=True)
        head = f"Medians over seeds [least, most]; {args.ranks} ranks on {machine()}.\n\n"
        save("learning", head + table(results), results)


if __name__ == "__main__":
    main()
