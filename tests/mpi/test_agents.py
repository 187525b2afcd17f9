"""Many agents of one simulator, in real jobs: learnt in each exchange, resumed to the bit, dumped with their names."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.envs.probes_of_agents import parallel_env
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Launcher
from tests.mpi.test_equal_to_one_rank import assert_same_run
from tests.run_directory import checkpoint, count_lines, differences, metric_lines, summary

PROBES = "dppo.envs.probes_of_agents"
AGENTS, BEST = 12, 8.0
COMMON = (
    "--horizon", 13, "--ppo.minibatches", 2, "--ppo.epochs", 3, "--optim.lr", 3e-3, "--optim.no-anneal", "--seed", 3,
    "--log.no-tensorboard", "--trajectories.enabled", "--checkpoint.every", 1000,
)  # fmt: skip
"""Rollouts of 13 rows, episodes of 10: at the boundaries some agents wait, others play, and some simulators have just
begun."""
CELLS: dict[str, tuple[tuple[Any, ...], int]] = {
    "allreduce": (("--env", f"{PROBES}:Signs"), 4000),
    "p2p": (("--env", f"{PROBES}:parallel_env", "--exchange", "p2p"), 4000),
    "async": (("--env", f"{PROBES}:parallel_env", "--mode", "async"), 9000),
}
"""Flags and steps of each exchange."""
SYNC = ("allreduce", "p2p")
LAYOUTS = {"alone": (1, 2 * AGENTS), "n3": (3, AGENTS)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run on two workers, those in sync also in two parts, and one iteration in two layouts; in one start."""
    folder = tmp_path_factory.mktemp("agents")
    jobs: list[tuple[int, tuple[Any, ...]]] = []
    for cell, (chosen, steps) in CELLS.items():
        new = (*chosen, *COMMON, "--num-envs", AGENTS)
        jobs.append((3, (*new, "--total-steps", steps, "--run-dir", folder / cell)))
        if cell in SYNC:
            parts = folder / f"{cell}-parts"
            jobs.append((3, (*new, "--total-steps", 1400, "--run-dir", parts)))
            jobs.append((3, ("--resume", "--total-steps", steps, "--run-dir", parts)))
    for name, (ranks, num_envs) in LAYOUTS.items():
        one = ("--ppo.minibatches", 1, "--ppo.epochs", 1, "--total-steps", 1, "--horizon", 60)
        flags = (*CELLS["allreduce"][0], *COMMON, *one, "--num-envs", num_envs, "--run-dir", folder / name)
        jobs.append((ranks, flags))
    told = [{"ranks": ranks, "flags": [str(flag) for flag in flags]} for ranks, flags in jobs]
    (folder / "jobs.json").write_text(json.dumps(told))
    with closing(Launcher(folder)) as launcher:
        launcher.run(3, folder / "jobs.json", program="train_layouts.py", timeout=240)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_agents_learn_in_every_exchange(cell: str, runs: Path) -> None:
    assert summary(runs / cell)["return_mean_100"] > 0.9 * BEST


@pytest.mark.slow
@pytest.mark.parametrize("cell", SYNC)
def test_a_run_in_two_parts_is_the_whole_to_the_bit(cell: str, runs: Path) -> None:
    whole, parts = runs / cell, runs / f"{cell}-parts"
    assert summary(parts)["attempt"] == 2 and count_lines(parts) == count_lines(whole) > 12
    assert metric_lines(parts) == metric_lines(whole)
    saved = [checkpoint(run_dir) for run_dir in (whole, parts)]
    for one in saved:
        del one["next_segments"]  # the end of the first part has sealed one more
    assert differences(*saved) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [*CELLS, "p2p-parts"])
def test_dumps_are_sound_and_name_the_agents(name: str, runs: Path) -> None:
    """Seeds and actions of the dump are lived through again."""
    assert [str(v) for v in validate(runs / name)] == []
    kind = "agent" if name == "allreduce" else "signaller"
    together: dict[tuple[int, int], dict[int, Any]] = {}
    steps = 0
    for episode in open_trajectories(runs / name):
        simulator, agent = divmod(episode.env, AGENTS)
        assert episode.agent == f"{kind}_{agent}"
        steps += episode.length
        if episode.complete:
            assert episode.length == 10 - 2 * (agent % 3)
            assert episode.terminated != episode.truncated and episode.truncated == (agent % 3 == 0)
        together.setdefault((simulator, episode.id), {})[agent] = episode
    assert steps == summary(runs / name)["env_steps"]
    whole = [e for e in together.values() if len(e) == AGENTS and all(one.complete for one in e.values())]
    assert len(whole) > 20
    for episodes in whole[::7]:
        assert len({episode.seed for episode in episodes.values()}) == 1
        relive(episodes)


def relive(episodes: dict[int, Any]) -> None:
    """Plays an episode of all agents again, by their actions."""
    env = parallel_env(AGENTS)
    observations, _ = env.reset(seed=episodes[0].seed)
    for t in range(10):
        here = {int(name.rpartition("_")[2]): name for name in env.agents}
        for agent, name in here.items():
            np.testing.assert_array_equal(observations[name], episodes[agent].observations[t])
        observations, rewards, *_ = env.step({name: episodes[agent].actions[t] for agent, name in here.items()})
        assert all(rewards[name] == episodes[agent].rewards[t] for agent, name in here.items())
    assert env.agents == []


@pytest.mark.slow
def test_two_workers_make_the_same_update_as_one(runs: Path) -> None:
    assert_same_run(runs / "alone", runs / "n3", 1e-5)
