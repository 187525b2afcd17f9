"""Are agents that share a simulator learnt where the simulator has two ranks, in the three exchanges?

    python3 -m venv /tmp/agents
    /tmp/agents/bin/pip install torch -e '.[mpi,mujoco]' pettingzoo mpe2
    /tmp/agents/bin/python benchmarks/agents.py [--only NAME ...]

Each environment is trained on 5 ranks, which are a server and two groups of two ranks, and records every step. Then the
run is begun anew, killed by SIGKILL after a quarter of it, and resumed to its end. In sync all lines of metrics.jsonl
(clock figures apart) and the last checkpoint are compared with those of the run that was not killed, to the bit. Both
dumps are validated, and all their episodes have the name of an agent. Two ranks evaluate the untrained policy, the
trained one, and the one of the resumed run. Rows that --only leaves out stay as they are. Prints a table and writes it
to benchmarks/results/agents.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import shlex
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import machine, markdown_table, save, stored

sys.path.insert(0, str(Path(__file__).parents[1]))
from dppo.settings.toml import load_config
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Launcher
from tests.run_directory import checkpoint, count_lines, differences, first_difference, metric_lines, summary

RANKS, EPISODES, LIMIT_S = 5, 240, 600.0
COMMON = (
    "--env-ranks 2 --optim.lr 3e-3 --seed 4 --log.no-tensorboard --trajectories.enabled --checkpoint.every 1600"
    " --checkpoint.keep 1000"
)
EXCHANGES = {"sync/allreduce": "", "sync/p2p": "--exchange p2p", "async": "--mode async --loss ppo"}
SPREAD = (
    "--env mpe2.simple_spread_v3:parallel_env --env-kwargs N=2 --total-steps 38400 --num-envs 16 --horizon 25"
    " --ppo.gamma 0.95 --ppo.epochs 8"
)
SIGNS = (
    "--env dppo.envs.probes_of_agents:parallel_env --total-steps 9600 --num-envs 12 --horizon 13 --ppo.minibatches 2"
    " --ppo.epochs 3"
)
ENVS = {"mpe2": SPREAD, "12 agents": SIGNS}


class Row(NamedTuple):
    """What came of an environment in an exchange; the returns are means over EPISODES episodes."""

    env: str
    exchange: str
    random: str
    """Of actions drawn uniformly."""
    untrained: str
    """Of the policy of the first checkpoint on two ranks: by actions drawn from it, and by its most likely ones."""
    trained: str
    """Of the last one's, the same way."""
    resumed: str
    dumped: str


def random_return(run_dir: Path) -> float:
    """Returns the mean return of a run's agents where all their actions are drawn uniformly."""
    config, rng = load_config(run_dir), np.random.default_rng(0)
    env = pkgutil.resolve_name(config.env)(**config.env_kwargs)
    simulators, total = EPISODES // len(env.possible_agents), 0.0
    for seed in range(simulators):
        env.reset(seed=seed)
        while env.agents:
            _, rewards, *_ = env.step({agent: int(rng.integers(env.action_space(agent).n)) for agent in env.agents})
            total += sum(rewards.values())
    return total / EPISODES


def first_policy(run_dir: Path) -> Path:
    """Returns a copy of a run that has its first checkpoint only."""
    copy = run_dir.with_name("untrained")
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("latest", "step_*[1-9]*", "trajectories"))
    return copy


def dumped(run_dir: Path) -> str:
    """Returns what is wrong with a dump; the number of its episodes, and their agents, where nothing is."""
    if violations := validate(run_dir):
        return str(violations[0])
    names = open_trajectories(run_dir).table()["agent"]
    if not all(names):
        return "an episode without the name of an agent"
    agents = sorted(set(names), key=lambda name: (len(name), name))
    return f"{len(names):,} episodes of {len(agents)} agents, `{agents[0]}` to `{agents[-1]}`, valid"


def compared(whole: Path, killed: Path) -> str:
    """Returns how a run that was killed and resumed differs from the one that was not."""
    if difference := first_difference(metric_lines(whole), metric_lines(killed)):
        return difference
    if found := differences(checkpoint(whole)["state"], checkpoint(killed)["state"]):
        return f"other checkpoints: {found}"
    return f"to the bit, {count_lines(killed)} lines"


def one(name: str, exchange: str, folder: Path) -> Row:
    whole, killed = folder / "whole", folder / "killed"
    flags = shlex.split(f"{ENVS[name]} {EXCHANGES[exchange]} {COMMON}")
    launcher = Launcher(folder)

    def evaluated(run_dir: Path) -> str:
        play = (run_dir, "--episodes", EPISODES, "--json")
        jobs = [launcher.run(2, *play, *how, program="evaluate.py", timeout=LIMIT_S) for how in (["--stochastic"], [])]
        return " / ".join(f"{json.loads(job.stdout)['mean']:.2f}" for job in jobs)

    try:
        launcher.run(RANKS, *flags, "--run-dir", whole, timeout=LIMIT_S)
        job = launcher.start(RANKS, *flags, "--run-dir", killed)
        job.until(lambda: count_lines(killed) >= count_lines(whole) // 4, timeout=LIMIT_S)
        job.kill()
        assert summary(killed)["exit"] == "running"
        launcher.run(RANKS, "--resume", "--run-dir", killed, timeout=LIMIT_S)
        assert (summary(killed)["attempt"], summary(killed)["exit"]) == (2, "finished")
        resumed = "to its end" if exchange == "async" else compared(whole, killed)
        return Row(
            f"`{ENVS[name]}`", exchange, f"{random_return(whole):.2f}", evaluated(first_policy(whole)),
            evaluated(whole), f"{resumed}: {evaluated(killed)}", f"{dumped(whole)}; {dumped(killed)}",
        )  # fmt: skip
    finally:
        launcher.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", help="parts of names of environments and exchanges")
    args = parser.parse_args()
    cells = {f"{name}, {exchange}": (name, exchange) for name in ENVS for exchange in EXCHANGES}
    for cell, (name, exchange) in cells.items():
        if args.only is not None and not any(part in cell for part in args.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = one(name, exchange, Path(folder))
        rows = {key: Row(*told) for key, told in stored("agents").get("rows", {}).items()} | {cell: row}
        rows = {key: rows[key] for key in cells if key in rows}
        save("agents", report(rows), {"machine": machine(), "rows": rows})


def report(rows: dict[str, Row]) -> str:
    head = ("environment", "exchange", "random", "untrained", "trained", "killed and resumed", "dumps")
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("mpe2", "pettingzoo"))
    return (
        f"# Agents of simulators on two ranks\n\n`benchmarks/agents.py`; {machine()}, {versions}. The machine was"
        f" shared with other jobs.\n\nEach run is of {RANKS} ranks: a server and two groups of two ranks, with"
        f" `{COMMON}`, and in async `{EXCHANGES['async']}`. The figures are mean returns of {EPISODES} episodes of"
        " agents: of actions drawn uniformly, of the policy before training, after it, and after a run that was killed"
        " and resumed. Policies were evaluated on two ranks, by actions drawn from them / by their most likely actions."
        " There is one seed. The agents of `dppo.envs.probes_of_agents` copy a sign: their best return is 8, and most"
        f" likely actions may be right, or wrong, before training.\n\n{markdown_table(head, rows.values())}"
    )


if __name__ == "__main__":
    main()
