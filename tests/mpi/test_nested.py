"""Trajectory dumps of trees and masks, by real jobs."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from dppo.envs.leaves import as_leaves, to_value
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Launcher
from tests.nested_env import ACTED, OBSERVED, Nested
from tests.run_directory import count_lines, metric_lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "exchange", "core"),
    [
        (signal.SIGUSR1, "p2p", ()),
        (signal.SIGKILL, "p2p", ("--model.core", "gru", "--model.core-size", 8)),
        (signal.SIGUSR1, "allreduce", ("--model.core", "lstm", "--model.core-size", 8, "--model.sequence", 3)),
    ],
    ids=["SIGUSR1-p2p", "SIGKILL-p2p-gru", "SIGUSR1-allreduce-lstm"],
)
def test_trees_and_masks_are_dumped_and_come_back_after_a_kill(
    end: int, exchange: str, core: tuple[object, ...], launch: Launcher, tmp_path: Path
) -> None:
    """To the bit as one run has them; each episode can be lived through again, and no forbidden action was taken."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (
        "--env", "tests.nested_env:Nested", "--exchange", exchange, *core, "--num-envs", 2, "--horizon", 8,
        "--ppo.epochs", 1, "--ppo.minibatches", 1, "--trajectories.enabled", "--checkpoint.every", 160,
        "--total-steps", 800,
    )  # fmt: skip
    launch.run(3, *flags, "--run-dir", whole)
    job = launch.start(3, *flags, "--run-dir", parts)
    job.until(lambda: count_lines(parts) > 10)
    if end == signal.SIGKILL:
        job.kill()
    else:
        job.send(end)
        assert job.wait(20).code == 75
    assert validate(parts) == []
    launch.run(3, "--resume", "--run-dir", parts)
    assert metric_lines(parts) == metric_lines(whole)
    for run_dir in (whole, parts):
        assert validate(run_dir) == []
    a, b = (open_trajectories(run).to_numpy() for run in (whole, parts))
    assert a.keys() == b.keys() >= {"actions_raw", "action_mask"}
    for name in a:
        for leaf, values in as_leaves(a[name]).items():
            np.testing.assert_array_equal(values, as_leaves(b[name])[leaf], f"{name} {leaf}")
    fresh = Nested()
    for episode in open_trajectories(parts, complete_only=True):
        observation, _ = fresh.reset(seed=episode.seed)
        for t in range(episode.length):
            np.testing.assert_equal(to_value(OBSERVED, episode.observations[t]), observation)
            observation, reward, *_ = fresh.step(to_value(ACTED, episode.actions[t]))
            assert np.float32(reward) == episode.rewards[t]
