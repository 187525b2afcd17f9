"""Are agents that share a simulator learnt where the simulator has two ranks, in the three exchanges?

    python3 -m venv /tmp/agents
    /tmp/agents/bin/pip install torch -e '.[mpi,mujoco]' pettingzoo mpe2
    /tmp/agents/bin/python benchmarks/agents.py [--only NAME ...]

Each environment is trained on 5 ranks, which are a server and two groups of two ranks, and records every step. Then the
run is begun anew, killed by SIGKILL after a quarter of it, and resumed until half of it. The lines of metrics.jsonl
(keys that end in `_s` apart) and the checkpoint in the middle, to the bit, are compared with those of the whole run.
Both dumps are validated, and all their episodes have the name of an agent. Two ranks evaluate the policy. Rows that
--only leaves out stay as they are. Prints a table and writes it to benchmarks/results/agents.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from common import machine, markdown_table, save, stored

sys.path.insert(0, str(Path(__file__).parents[1]))
from dppo.rundir.checkpoint import read_checkpoint
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Launcher
from tests.run_directory import count_lines, differences, metric_lines, summary

RANKS, LIMIT_S = 5, 1800.0
COMMON = (
    "--env-ranks 2 --optim.lr 3e-3 --optim.no-anneal --seed 3 --log.no-tensorboard --trajectories.enabled"
    " --checkpoint.keep 1000"
)
EXCHANGES = {"sync/allreduce": "", "sync/p2p": "--exchange p2p", "async": "--mode async"}
SPREAD = (
    "--env mpe2.simple_spread_v3:parallel_env --env-kwargs N=2 --num-envs 8 --horizon 25 --ppo.gamma 0.9 --ppo.epochs 8"
)
SIGNS = "--env dppo.envs.probes_of_agents:parallel_env --num-envs 12 --horizon 13 --ppo.minibatches 2 --ppo.epochs 3"
ENVS = {"mpe2": (SPREAD, 9_600, 400), "12 agents": (SIGNS, 6_240, 312)}
"""Flags, steps in all, and steps of an iteration."""


class Row(NamedTuple):
    """What came of an environment in an exchange."""

    env: str
    exchange: str
    start: str
    """The mean return of the first iteration's episodes."""
    end: str
    """The mean return of the last 100 episodes."""
    evaluated: str
    """The mean return of 40 episodes on two ranks, by the most likely actions."""
    resumed: str
    dumped: str


def dumped(run_dir: Path) -> str:
    """Returns what is wrong with a dump; the number of its episodes, and of their agents, where nothing is."""
    if violations := validate(run_dir):
        return str(violations[0])
    table = open_trajectories(run_dir).table()
    return f"{len(table['agent']):,} episodes of {len(set(table['agent']))} agents, valid"


def compared(whole: Path, killed: Path, step: int) -> str:
    """Returns whether a run that was killed, and ended at `step`, is the first half of the whole one."""
    lines = metric_lines(killed)
    if lines != metric_lines(whole)[: len(lines)]:
        return "other lines"
    states = [read_checkpoint(run_dir / "checkpoints" / f"step_{step:09d}").state for run_dir in (whole, killed)]
    return f"to the bit, {len(lines)} lines" if not differences(*states) else "another checkpoint"


def one(name: str, exchange: str, folder: Path) -> Row:
    chosen, steps, iteration = ENVS[name]
    whole, killed = folder / "whole", folder / "killed"
    flags = (*shlex.split(f"{chosen} {EXCHANGES[exchange]} {COMMON}"), "--checkpoint.every", 2 * iteration)
    launcher = Launcher(folder)
    try:
        launcher.run(RANKS, *flags, "--total-steps", steps, "--run-dir", whole, timeout=LIMIT_S)
        job = launcher.start(RANKS, *flags, "--total-steps", steps // 2, "--run-dir", killed)
        job.until(lambda: count_lines(killed) >= len(metric_lines(whole)) // 4, timeout=LIMIT_S)
        job.kill()
        assert summary(killed)["exit"] == "running"
        launcher.run(RANKS, "--resume", "--run-dir", killed, timeout=LIMIT_S)
        assert (summary(killed)["attempt"], summary(killed)["exit"]) == (2, "finished")
        resumed = "to its end" if exchange == "async" else compared(whole, killed, steps // 2)
        play = ("--episodes", 40, "--json")
        played = json.loads(launcher.run(2, whole, *play, program="evaluate.py", timeout=LIMIT_S).stdout)
    finally:
        launcher.close()
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])["return_mean_100"]
    last = summary(whole)["return_mean_100"]
    return Row(
        f"`{chosen}`", exchange, f"{first:.2f}", f"{last:.2f}", f"{played['mean']:.2f}", resumed,
        f"{dumped(whole)}; {dumped(killed)}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", help="parts of names of environments and exchanges")
    args = parser.parse_args()
    for name in ENVS:
        for exchange in EXCHANGES:
            cell = f"{name}, {exchange}"
            if args.only is not None and not any(part in cell for part in args.only):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = one(name, exchange, Path(folder))
            rows = {key: Row(*told) for key, told in stored("agents").get("rows", {}).items()} | {cell: row}
            save("agents", report(rows), {"machine": machine(), "rows": rows})


def report(rows: dict[str, Row]) -> str:
    head = ("environment", "exchange", "return at the start", "at the end", "evaluated", "killed and resumed", "dumps")
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("mpe2", "pettingzoo"))
    return (
        f"# Agents of simulators on two ranks\n\n`benchmarks/agents.py`; {machine()}, {versions}. The machine was"
        f" shared with other jobs.\n\nEach run is of {RANKS} ranks: a server and two groups of two ranks, with"
        f" `{COMMON}`. The best return of the 12 agents of `dppo.envs.probes_of_agents` is 8. Agents of `simple_spread`"
        f" that act at random earn what there is at the start.\n\n{markdown_table(head, rows.values())}"
    )


if __name__ == "__main__":
    main()
