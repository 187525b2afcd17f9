"""Heat control on a simulator of several ranks: every exchange, with the plate in C, in Fortran and in Python.

    .venv/bin/python benchmarks/heat.py [--only NAME …] [--seeds 1] [--groups 3] [--env-ranks 2]

Each row trains on a server and groups of ranks, as examples/heat/README.md says, then plays 20 greedy episodes on the
Python form, which a policy that was trained on any of the three controls. Prints a Markdown table and writes it, with
the learning curve of each run as JSON, to benchmarks/results/heat.{md,json}, and the curves of C to
examples/heat/learning.svg (Matplotlib). Rows that are not run again keep their last result. Needs a C compiler, and
gfortran for the rows of Fortran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import MPIRUN, greedy_mean, machine, markdown_table, save, spread, stored, train, with_curve
from drawing import learning_plot

from dppo.study.curves import write_svg

ROOT = Path(__file__).parents[1]
HEAT = ROOT / "examples" / "heat"
EPISODES = 20
LONGEST_S = 3600.0
FLAGS = "--num-envs 1 --horizon 60 --ppo.minibatches 1 --ppo.gamma 0.8 --ppo.lam 0.9 --log.no-tensorboard"
EXCHANGES = {
    "sync/allreduce": " --total-steps 16200 --optim.lr 4e-3",
    "sync/p2p": " --total-steps 16200 --optim.lr 4e-3 --exchange p2p",
    "async": " --total-steps 24000 --optim.lr 2e-3 --mode async --loss ppo",
}
PROGRAMS = {"C": "heat_c", "Fortran": "heat_fortran", "Python": None}
"""The simulator beside dppo; None: the environment is made by dppo's own ranks."""
ROWS = {
    f"{language}, {exchange}": (program, FLAGS + flags)
    for language, program in PROGRAMS.items()
    for exchange, flags in EXCHANGES.items()
}


def heat() -> Any:
    """The module examples/heat/heat.py; this file has the same name."""
    sys.path.insert(0, str(HEAT))
    import heat as module

    return module


def build(folder: Path) -> None:
    """Compiles the simulators into `folder`."""
    include = ROOT / "dppo" / "envs" / "include"
    make = ["make", "-C", str(HEAT), f"CC={MPIRUN.with_name('mpicc')}", f"INCLUDE={include}"]
    for target in filter(None, PROGRAMS.values()):
        subprocess.run([*make, target], check=True, capture_output=True)
        (HEAT / target).rename(folder / target)
    subprocess.run([*make, "clean"], check=True, capture_output=True)


def run(built: Path, program: str | None, flags: str, seed: int, groups: int, env_ranks: int) -> dict[str, Any]:
    """Trains once and evaluates; the summary with the greedy mean in `greedy_mean`, and the learning curve."""
    env = "heat:Heat" if program is None else "dppo.envs:Solver"
    ranks = 1 + groups * (env_ranks if program is None else 1)
    beside = [] if program is None else [":", "-n", str(groups * env_ranks), str(built / program)]
    trained = train(
        ranks,
        f"--env {env} --env-ranks {env_ranks} {flags}",
        seed,
        LONGEST_S,
        beside=beside,
        evaluate=lambda run_dir: greedy_mean(run_dir, heat().Heat(), EPISODES),
    )
    return with_curve(trained) | {"seed": seed, "flags": flags, "groups": groups, "env_ranks": env_ranks}


def table(results: dict[str, list[dict[str, Any]]], best: float) -> str:
    """Markdown, medians over seeds with the least and the most in brackets."""
    head = (
        "simulator, exchange",
        "W x G",
        "flags",
        "seeds",
        "steps",
        "last 100 episodes",
        "greedy",
        "of the best gain",
    )
    rows = []
    for name in ROWS:
        if runs := results.get(name):
            one = runs[0]
            figures = [
                spread((r["env_steps"] for r in runs), ",.0f"),
                spread((r["return_mean_100"] for r in runs), ".1f"),
                spread((r["greedy_mean"] for r in runs), ".2f"),
                spread((r["greedy_mean"] / best for r in runs), ".1%"),
            ]
            rows.append([name, f"{one['groups']} x {one['env_ranks']}", f"`{one['flags']}`", len(runs), *figures])
    return markdown_table(head, rows)


def main() -> None:
    """Runs the rows asked for, one after another, and writes the tables after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="beginnings of rows' names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--env-ranks", type=int, default=2)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{HEAT}"
    best = heat().mean_return(heat().BEST_GAIN, EPISODES)
    results = stored("heat")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        for name, (program, flags) in ROWS.items():
            if not name.startswith(tuple(args.only)):
                continue
            results[name] = []
            for seed in args.seeds:
                results[name].append(run(Path(folder), program, flags, seed, args.groups, args.env_ranks))
                print(name, seed, results[name][-1], flush=True)
                head = (
                    f"Medians over seeds [least, most]; W groups of G ranks, on {machine()}. Greedy: {EPISODES}"
                    f" episodes; the best constant gain, {heat().BEST_GAIN:g}, earns {best:.2f} in them.\n\n"
                )
                save("heat", head + table(results, best), results)
    curves = {
        name: [(steps, mean) for steps, mean, _ in results[name][0]["curve"] if mean is not None]
        for name in ROWS
        if name.startswith("C,") and name in results
    }
    write_svg(HEAT / "learning.svg", learning_plot(curves, {"best constant gain, without noise": best}))


if __name__ == "__main__":
    main()
