"""Many agents of one simulator, in real jobs: learnt in each exchange, resumed to the bit, dumped with their names. The
simulator has one rank, or two, of which each steps half of the agents.
"""

from __future__ import annotations

import json
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.envs.probes_of_agents import parallel_env
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Job, Launcher
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
CELLS = {
    "allreduce": ("--env", f"{PROBES}:Signs"),
    "p2p": ("--env", f"{PROBES}:parallel_env", "--exchange", "p2p"),
    "async": ("--env", f"{PROBES}:parallel_env", "--mode", "async"),
}
"""Flags of each exchange."""
STEPS = 9000
SYNC = ("allreduce", "p2p")
PAIRS = ("--env-ranks", 2)
LAYOUTS = {"alone": (1, 2 * AGENTS), "n3": (3, AGENTS)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run on two workers, those in sync also in two parts, and one iteration in two layouts; in one start."""
    folder = tmp_path_factory.mktemp("agents")
    jobs: list[tuple[int, tuple[Any, ...]]] = []
    for cell, chosen in CELLS.items():
        new = (*chosen, *COMMON, "--num-envs", AGENTS)
        jobs.append((3, (*new, "--total-steps", STEPS, "--run-dir", folder / cell)))
        if cell in SYNC:
            parts = folder / f"{cell}-parts"
            jobs.append((3, (*new, "--total-steps", 1400, "--run-dir", parts)))
            jobs.append((3, ("--resume", "--total-steps", STEPS, "--run-dir", parts)))
    for name, (ranks, num_envs) in LAYOUTS.items():
        one = ("--ppo.minibatches", 1, "--ppo.epochs", 1, "--total-steps", 1, "--horizon", 60)
        flags = (*CELLS["allreduce"], *COMMON, *one, "--num-envs", num_envs, "--run-dir", folder / name)
        jobs.append((ranks, flags))
    told = [{"ranks": ranks, "flags": [str(flag) for flag in flags]} for ranks, flags in jobs]
    (folder / "jobs.json").write_text(json.dumps(told))
    with closing(Launcher(folder)) as launcher:
        launcher.run(3, folder / "jobs.json", program="train_layouts.py", timeout=240)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of each exchange on two groups of two ranks. Those in sync are killed, resumed, asked to leave by
    SIGUSR1, and resumed to their end; the last start begins with that, and has the rest.
    """
    folder = tmp_path_factory.mktemp("pairs")
    new = {
        cell: (*chosen, *COMMON, *PAIRS, "--num-envs", AGENTS, "--total-steps", STEPS, "--run-dir", folder / cell)
        for cell, chosen in CELLS.items()
    }
    a, b = (folder / cell for cell in SYNC)
    again = {run_dir: ("--resume", "--run-dir", run_dir) for run_dir in (a, b)}
    with closing(Launcher(folder)) as launcher:

        def start(*jobs: tuple[Any, ...]) -> Job:
            listed = [{"ranks": 5, "flags": [str(flag) for flag in job]} for job in jobs]
            (folder / "jobs.json").write_text(json.dumps(listed))
            return launcher.start(5, folder / "jobs.json", program="train_layouts.py")

        def kill(job: Job, run_dir: Path) -> None:
            job.until(lambda: count_lines(run_dir) >= 5, timeout=120)
            job.kill()
            assert summary(run_dir)["exit"] == "running"

        def preempt(run_dir: Path, *then: tuple[Any, ...]) -> Job:
            killed_at = count_lines(run_dir)
            job = start(again[run_dir], again[run_dir], *then)
            job.until(lambda: summary(run_dir)["attempt"] == 2 and count_lines(run_dir) > killed_at, timeout=120)
            job.send(signal.SIGUSR1)
            return job

        kill(start(new["allreduce"]), a)
        kill(preempt(a, new["p2p"]), b)
        assert preempt(b, new["async"]).wait(240).code == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_agents_learn_in_every_exchange(cell: str, runs: Path, pairs: Path) -> None:
    for folder in (runs, pairs):
        assert summary(folder / cell)["return_mean_100"] > 0.9 * BEST


@pytest.mark.slow
@pytest.mark.parametrize("cell", SYNC)
@pytest.mark.parametrize("how", ["parts", "pairs"])
def test_a_run_in_parts_is_the_whole_to_the_bit(how: str, cell: str, runs: Path, pairs: Path) -> None:
    """Also where the simulator has two ranks."""
    whole, parts = runs / cell, runs / f"{cell}-parts" if how == "parts" else pairs / cell
    assert summary(parts)["attempt"] == (2 if how == "parts" else 3)
    assert count_lines(parts) == count_lines(whole) > 12
    assert metric_lines(parts) == metric_lines(whole)
    saved = [checkpoint(run_dir) for run_dir in (whole, parts)]
    for one in saved:
        del one["next_segments"]  # the end of the first part has sealed one more
    assert differences(*saved) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [*CELLS, "p2p-parts", *(f"pairs/{cell}" for cell in CELLS)])
def test_dumps_are_sound_and_name_the_agents(name: str, request: pytest.FixtureRequest) -> None:
    """Seeds and actions of the dump are lived through again."""
    folder, cell = name.split("/") if "/" in name else ("runs", name)
    run_dir = request.getfixturevalue(folder) / cell
    assert [str(v) for v in validate(run_dir)] == []
    kind = "agent" if cell == "allreduce" else "signaller"
    together: dict[tuple[int, int], dict[int, Any]] = {}
    steps = 0
    for episode in open_trajectories(run_dir):
        simulator, agent = divmod(episode.env, AGENTS)
        assert episode.agent == f"{kind}_{agent}"
        steps += episode.length
        if episode.complete:
            assert episode.length == 10 - 2 * (agent % 3)
            assert episode.terminated != episode.truncated and episode.truncated == (agent % 3 == 0)
        together.setdefault((simulator, episode.id), {})[agent] = episode
    assert steps == summary(run_dir)["env_steps"]
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
