"""What environments were told, by rows: which of it an episode needs, and that a resume is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.config import CheckpointConfig, PPOConfig
from dppo.training.told import as_array, merged, plan_of, since, told_before
from tests.parts import Run, wait_for_checkpoints

TOLD = [(-1, 0.0), (4, 0.1), (8, 0.2), (12, 0.3)]


def test_an_episode_begins_under_what_the_row_before_its_first_was_stepped_under() -> None:
    assert [told_before(TOLD, row) for row in (0, 4, 5, 8, 9, 99)] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.3]
    assert plan_of(TOLD, 4, 6) == {-1: 0.0, 0: 0.1, 4: 0.2}
    assert plan_of(TOLD, 5, 2) == {-1: 0.1}
    assert plan_of([], 5, 2) == {}


def test_only_what_an_episode_needs_is_kept() -> None:
    assert since(TOLD, 0) == TOLD
    assert since(TOLD, 8) == TOLD[1:]
    assert since(TOLD, 9) == TOLD[2:]
    assert since([], 3) == []
    assert merged(TOLD[:2], [(3, 0.05), (4, 0.15)]) == [(-1, 0.0), (3, 0.05), (4, 0.15)]
    assert as_array([]).shape == (0, 2)


class Told(Run):
    """A run whose collectors tell environments what the state says, as the loops do."""

    def collect(self, place: Any, episodes: Any = None) -> None:
        place.collector.tell(self.state.fraction_done)
        super().collect(place, episodes)


@pytest.mark.parametrize("env", ["Growing", "SavedGrowing", "Pair"])
@pytest.mark.parametrize("horizon", [5, 11, 1])
def test_a_resume_is_exact_where_dynamics_follow_the_run(env: str, horizon: int, tmp_path: Path) -> None:
    """Within an episode, over several iterations, and between two episodes."""

    def begin(folder: str, saved: Any = None) -> Told:
        return Told(
            tmp_path / folder, workers=2, saved=saved, env=f"tests.curricula:{env}", num_envs=2, horizon=horizon,
            ppo=PPOConfig(epochs=1, minibatches=1), total_steps=4 * horizon * 40,
            checkpoint=CheckpointConfig(every=1, states_s=0.0),
        )  # fmt: skip

    whole = begin("whole")
    stop, end = {5: (3, 7), 11: (2, 4), 1: (11, 25)}[horizon]
    for _ in range(end):
        whole.iterate()
    for first in (stop, stop + 1):
        run = begin(f"run-{first}")
        for _ in range(first):
            run.iterate()
            wait_for_checkpoints(run)
        run = begin(f"run-{first}", run.saved())
        assert run.state.iteration == first
        for _ in range(end - first):
            run.iterate()
        for one, other in zip(whole.places, run.places, strict=True):
            np.testing.assert_array_equal(one.collector.last.observations, other.collector.last.observations)
            np.testing.assert_array_equal(one.collector.last.rewards, other.collector.last.rewards)
            np.testing.assert_array_equal(one.collector.first_observation(), other.collector.first_observation())
        assert run.lines()[-1]["return_mean_100"] == whole.lines()[-1]["return_mean_100"]


def test_nothing_is_kept_for_environments_that_do_not_ask(tmp_path: Path) -> None:
    run = Told(tmp_path, env="CartPole-v1", vectorization="sync")
    for attempt in range(2):
        run.iterate()
        wait_for_checkpoints(run)
        run.tracker.saver.write(run.tracker.saver.boundary)
        saved = run.saved()
        assert all(len(env.told) == 0 for _, envs in saved.ranks.values() for env in envs), attempt
        run = Told(tmp_path, env="CartPole-v1", vectorization="sync", saved=saved)
