"""Are the numbers still the same? Short runs of every kind, and a hash of each figure that they write.

    .venv/bin/python benchmarks/same_numbers.py --record FILE [--tree DIR] [--only NAME …]
    .venv/bin/python benchmarks/same_numbers.py --compare FILE [--tree DIR] [--only NAME …]

A run is hashed key by key: each column of metrics.jsonl but those that end in `_s`, and the final parameters. So a
comparison says which figure of which run differs, and a key that is new does not count. `--tree` names the checkout
whose code runs, by default the one that this file is in: record with the commit before a change, compare with the one
after, on the same machine. Ends with code 1 where something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MPIRUN, machine, markdown_table

PPO = "--horizon 32 --num-envs 4 --ppo.epochs 3 --ppo.minibatches 4 --total-steps 6000"
A3C = "--loss a3c --horizon 16 --num-envs 4 --total-steps 6000"
UNCLIPPED = "--optim.max-grad-norm 0"
CHEETAH = "--env HalfCheetah-v5 --num-envs 1 --horizon 256 --ppo.epochs 2 --total-steps 3000"
NETWORK = """
import torch

class Network(torch.nn.Module):
    def __init__(self, observation_size, head_size):
        super().__init__()
        self.torso = torch.nn.Sequential(torch.nn.Linear(observation_size, 32), torch.nn.Tanh())
        self.head, self.value = torch.nn.Linear(32, head_size), torch.nn.Linear(32, 1)

    def forward(self, observations):
        features = self.torso(observations)
        return self.head(features), self.value(features)[:, 0]
"""
RUNS: dict[str, tuple[int, str]] = {
    "allreduce ppo": (3, PPO),
    "allreduce ppo, not clipped": (3, f"{PPO} {UNCLIPPED}"),
    "allreduce a3c": (3, A3C),
    "allreduce a3c, not clipped": (3, f"{A3C} {UNCLIPPED}"),
    "p2p ppo": (3, f"{PPO} --exchange p2p"),
    "p2p ppo, not clipped": (3, f"{PPO} --exchange p2p {UNCLIPPED}"),
    "p2p a3c": (3, f"{A3C} --exchange p2p"),
    "p2p a3c, not clipped": (3, f"{A3C} --exchange p2p {UNCLIPPED}"),
    "p2p, drop 0": (4, f"{PPO} --exchange p2p --server.drop 0"),
    "KL penalty, allreduce": (3, f"{PPO} --ppo.objective kl"),
    "KL penalty, p2p": (3, f"{PPO} --ppo.objective kl --exchange p2p"),
    "async a3c, one rank": (1, f"{A3C} --mode async"),
    "async ppo, one rank": (1, f"{PPO} --mode async --loss ppo"),
    "one rank": (1, PPO),
    "preset": (3, "--env CartPole-v1 --total-steps 20000 --target-return 1e9"),
    "Pendulum": (3, f"--env Pendulum-v1 {PPO}"),
    "Pendulum, not clipped": (3, f"--env Pendulum-v1 {PPO} {UNCLIPPED}"),
    "HalfCheetah": (3, CHEETAH),
    "HalfCheetah, not clipped": (3, f"{CHEETAH} {UNCLIPPED}"),
    "native vector form": (3, f"{PPO} --vectorization native"),
    "torch factory": (3, f"{PPO} --model.factory same_numbers_network:Network {UNCLIPPED}"),
    "pooled, 8 ranks": (8, f"{PPO} --total-steps 12000"),
    "pooled, 8 ranks, not clipped": (8, f"{PPO} --total-steps 12000 {UNCLIPPED}"),
    "dumps": (3, f"{PPO} --trajectories.enabled"),
    "stopped and resumed": (3, f"{PPO} {UNCLIPPED}"),
}
HALFWAY = {"stopped and resumed": "3000"}
"""Runs that end after so many steps, and are resumed to the end."""
PARAMETERS = """
import hashlib, sys
from pathlib import Path
from dppo.rundir.checkpoint import newest_valid
saved, _ = newest_valid(Path(sys.argv[1]))
print(hashlib.sha256(saved.state["parameters"].tobytes()).hexdigest()[:16])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runs whose names begin with one of these")
    options = parser.parse_args()
    chosen = {n: r for n, r in RUNS.items() if not options.only or n.startswith(tuple(options.only))}
    before = {} if options.compare is None else json.loads(options.compare.read_text())["runs"]
    runs = {}
    for name, (ranks, flags) in chosen.items():
        runs[name] = _hashes(options.tree.absolute(), ranks, flags, HALFWAY.get(name))
        print(f"{name}: {runs[name]['parameters']}", file=sys.stderr, flush=True)
    if options.record is not None:
        options.record.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
        return 0
    rows, equal = [], True
    for name, hashes in runs.items():
        differ = [key for key, value in before.get(name, {"parameters": ""}).items() if hashes.get(key) != value]
        equal &= not differ
        rows.append((name, "equal" if not differ else ", ".join(differ)))
    print(markdown_table(("run", "what differs"), rows))
    return int(not equal)


def _hashes(tree: Path, ranks: int, flags: str, halfway: str | None) -> dict[str, str]:
    """{key of metrics.jsonl, or "parameters": hash} of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "same_numbers_network.py").write_text(NETWORK)
        run = [*flags.split(), "--seed", "3", "--log.no-tensorboard", "--run-dir", "run"]
        if halfway is None:
            _dppo(tree, folder, ranks, run)
        else:
            _dppo(tree, folder, ranks, [*run, "--optim.no-anneal", "--total-steps", halfway])
            total = flags.split()[flags.split().index("--total-steps") + 1]
            _dppo(tree, folder, ranks, ["--resume", "--run-dir", "run", "--total-steps", total])
        columns: dict[str, list[str]] = {}
        for line in (folder / "run" / "metrics.jsonl").read_text().splitlines():
            for key, value in json.loads(line, parse_float=str, parse_int=str, parse_constant=str).items():
                if not key.endswith("_s"):
                    columns.setdefault(key, []).append(str(value))
        hashes = {key: hashlib.sha256("\n".join(column).encode()).hexdigest()[:16] for key, column in columns.items()}
        return hashes | {"parameters": _python(tree, folder, ["-c", PARAMETERS, "run"]).strip()}


def _dppo(tree: Path, folder: Path, ranks: int, flags: list[str]) -> None:
    mpirun = [] if ranks == 1 else [str(MPIRUN), "--oversubscribe", "-n", str(ranks)]
    _python(tree, folder, ["-m", "dppo.run", *flags], mpirun)


def _python(tree: Path, folder: Path, arguments: list[str], launcher: list[str] | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": f"{tree}:{folder}", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*(launcher or []), sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
