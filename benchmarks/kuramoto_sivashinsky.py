"""Control of the Kuramoto-Sivashinsky equation: what is learnt, beside no control and the best constant gain.

    .venv/bin/python benchmarks/kuramoto_sivashinsky.py [--seeds 1 2 3] [--workers 1] [--env-ranks 1]

Trains on a server and groups of ranks, as examples/kuramoto_sivashinsky/README.md says, then plays 20 greedy episodes.
Prints a Markdown table and writes it to benchmarks/results/kuramoto_sivashinsky.{md,json}, and the learning curves to
examples/kuramoto_sivashinsky/learning.svg (Matplotlib). Seeds that are not run again keep their last result.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from common import greedy_mean, machine, markdown_table, save, spread, stored, train, with_curve
from drawing import learning_plot

from dppo.study.curves import write_svg

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "kuramoto_sivashinsky"
EPISODES = 20
ENVS = 6
"""Environments of all workers together."""
FLAGS = (
    "--env kuramoto_sivashinsky:KuramotoSivashinsky --horizon 100 --total-steps 300000 --ppo.gamma 0.99"
    " --optim.lr 1e-3 --log.no-tensorboard"
)


def main() -> None:
    """Trains with each seed, and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--env-ranks", type=int, default=1)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{EXAMPLE}"
    sys.path.insert(1, str(EXAMPLE))
    sys.path.pop(0)  # this file has the example's name
    import kuramoto_sivashinsky as example

    flags = f"{FLAGS} --num-envs {ENVS // args.workers} --env-ranks {args.env_ranks}"
    runs: list[dict[str, Any]] = [
        run for run in stored("kuramoto_sivashinsky").get("runs", []) if run["seed"] not in args.seeds
    ]
    for seed in args.seeds:
        trained = train(
            1 + args.workers * args.env_ranks,
            flags,
            seed,
            3600.0,
            evaluate=lambda run_dir: greedy_mean(run_dir, example.KuramotoSivashinsky(), EPISODES),
        )
        runs.append(with_curve(trained) | {"seed": seed, "flags": flags})
        print(seed, runs[-1], flush=True)
    levels = {
        "no control": example.mean_return(0.0, EPISODES),
        f"opposition, gain {example.BEST_GAIN:g}": example.mean_return(example.BEST_GAIN, EPISODES),
    }
    rows = [[name, "", f"{value:.1f}"] for name, value in levels.items()]
    rows.append([f"learnt, {len(runs)} seeds", f"`{flags}`", spread((r["greedy_mean"] for r in runs), ".1f")])
    text = markdown_table(("controller", "flags", f"return, {EPISODES} episodes"), rows)
    head = f"Medians over seeds [least, most]; workers: {args.workers}; on {machine()}.\n\n"
    save("kuramoto_sivashinsky", head + text, {"runs": runs, "levels": levels})
    curves = {f"seed {r['seed']}": [(steps, mean) for steps, mean, _ in r["curve"] if mean is not None] for r in runs}
    write_svg(EXAMPLE / "learning.svg", learning_plot(curves, levels))


if __name__ == "__main__":
    main()
