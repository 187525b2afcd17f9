"""Vector forms of any spaces, however they reset: batches in, batches out, and masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dppo.envs.leaves import array_type, to_value
from dppo.envs.native import NativeVector
from dppo.envs.vector import make_vector_env
from tests.any_space import ACTED, OBSERVED, AnySpace, counting_seeds

MODES = list(AutoresetMode)
CHOICE = spaces.Discrete(3)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forgets whatever a test registers."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def made_of(
    kind: type[AnySpace], mode: AutoresetMode, vector: type[SyncVectorEnv] = SyncVectorEnv, **kwargs: Any
) -> tuple[NativeVector, list[AnySpace]]:
    """Returns a vector form of two such environments, and the environments themselves."""
    kind.made = []

    def make(num_envs: int) -> SyncVectorEnv:
        return vector([lambda: kind(**kwargs)] * num_envs, autoreset_mode=mode)

    gymnasium.register("Any-v0", kind, vector_entry_point=make)  # type: ignore[arg-type]
    envs = make_vector_env("Any-v0", 2, counting_seeds(), "native", first_env=6)
    assert isinstance(envs, NativeVector)
    made = kind.made[-2:]  # Gymnasium makes one more, to look at its spaces
    return envs, made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("space", [OBSERVED, spaces.Discrete(7, start=-3), spaces.Tuple([CHOICE, OBSERVED])], ids=str)
def test_observations_are_what_the_environments_returned(space: spaces.Space[Any], mode: AutoresetMode) -> None:
    envs, made = made_of(AnySpace, mode, observed=space)
    shape, dtype = array_type(space)
    first = envs.reset()
    for index, env in enumerate(made):
        np.testing.assert_equal(to_value(space, first[index]), env.returned[-1])
    for t in range(6):
        step = envs.step(np.zeros(2, array_type(ACTED)[1]))
        assert (step.observations.shape, step.observations.dtype) == ((2, *shape), dtype)
        assert (step.final_observations.shape[1:], step.final_observations.dtype) == (shape, dtype)
        for index, env in enumerate(made):
            np.testing.assert_equal(to_value(space, step.observations[index]), env.returned[-1])
            if t == 3:
                final = env.returned[-1] if mode is AutoresetMode.NEXT_STEP else env.returned[-2]
                np.testing.assert_equal(to_value(space, step.final_observations[index]), final)
        assert step.final_envs.tolist() == ([0, 1] if t == 3 else [])


def test_actions_arrive_as_values_of_the_space() -> None:
    envs, made = made_of(AnySpace, AutoresetMode.NEXT_STEP)
    envs.reset()
    row = np.zeros(2, array_type(ACTED)[1])
    row["arm"]["0"][1] = 0.5
    row["arm"]["1"] = [[1, 0], [2, 2]]
    row["gear"] = [1, 3]
    row["flags"][0] = 1
    sent = row.copy()
    envs.step(row)
    for index, env in enumerate(made):
        (action,) = env.actions
        assert ACTED.contains(action)
        np.testing.assert_equal(action, to_value(ACTED, row[index]))
        action["arm"][0][...] = 9
    np.testing.assert_array_equal(row, sent)


def test_a_wrong_leaf_names_its_environment() -> None:
    class Wrong(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            observations, *rest = super().step(actions)
            observations["pair"][1][1] = 2000
            return observations, *rest

    envs, _ = made_of(AnySpace, AutoresetMode.NEXT_STEP, Wrong)
    envs.reset()
    with pytest.raises(ValueError, match=r"an observation's leaf 'pair/1' of environment 7 is 2000, but"):
        envs.step(np.zeros(2, array_type(ACTED)[1]))


def test_last_observations_may_come_in_batches() -> None:
    class Batched(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *rest, infos = super().step(actions)
            if "final_obs" in infos:
                infos["final_obs"] = gymnasium.vector.utils.concatenate(
                    OBSERVED, list(infos["final_obs"]), gymnasium.vector.utils.create_empty_array(OBSERVED, 2)
                )
            return *rest, infos

    envs, made = made_of(AnySpace, AutoresetMode.SAME_STEP, Batched)
    envs.reset()
    for _ in range(4):
        step = envs.step(np.zeros(2, array_type(ACTED)[1]))
    for index, env in enumerate(made):
        np.testing.assert_equal(to_value(OBSERVED, step.final_observations[index]), env.returned[-2])


# -- masks --------------------


class Masked(AnySpace):
    """Permits the action that is the time in the episode, and 2; nothing at an episode's end."""

    def mask(self) -> np.ndarray:
        return np.array([self.time == 0, self.time == 1, self.time < 4], np.int8)


class InInfo(Masked):
    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask()}


class AsLeaf(Masked):
    def observe(self) -> Any:
        return {**super().observe(), "action_mask": self.mask()}


LEAF = spaces.Dict({"action_mask": spaces.MultiBinary(3), "speed": spaces.Box(-1, 1, (2,))})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "space"), [(InInfo, OBSERVED), (AsLeaf, LEAF)])
def test_masks_are_of_the_observations_that_were_returned_last(
    kind: type[Masked], space: spaces.Space[Any], mode: AutoresetMode
) -> None:
    envs, made = made_of(kind, mode, observed=space, acted=CHOICE)
    assert envs.mask_size == 3
    envs.reset()
    assert [env.seeds[-1] for env in made] == [1, 2], "no seed was used up"
    seen = []
    for _ in range(6):
        assert envs.masks is not None
        seen.append(envs.masks[0].astype(int).tolist())
        assert (envs.masks == seen[-1]).all()
        held = envs.masks
        envs.step(np.zeros(2, np.int64))
        assert held[0].astype(int).tolist() == seen[-1], "it survives the next step"
    first, second, later = [1, 0, 1], [0, 1, 1], [0, 0, 1]
    is_next = mode is AutoresetMode.NEXT_STEP  # the action of the row that only resets does not count
    assert seen == [first, second, later, later, *([[1, 1, 1], first] if is_next else [first, second])]


def test_a_mask_by_part_may_be_missing_for_some() -> None:
    class Parts(AnySpace):
        def info(self) -> dict[str, Any]:
            mine = {"gear": np.array([0, 0, 1], np.int8)} if self is Parts.made[-1] else {}
            return {"action_mask": mine}

    envs, _ = made_of(Parts, AutoresetMode.NEXT_STEP)
    envs.reset()
    assert envs.masks is not None
    assert envs.masks.astype(int).tolist() == [[1] * 8, [1] * 5 + [0, 0, 1]]


def test_a_missing_mask_names_the_environment() -> None:
    class Sometimes(InInfo):
        def info(self) -> dict[str, Any]:
            return {} if self.time == 1 and self is Sometimes.made[-1] else super().info()

    envs, _ = made_of(Sometimes, AutoresetMode.NEXT_STEP, acted=CHOICE)
    envs.reset()
    with pytest.raises(ValueError, match=r"step\(\)'s info\['action_mask'\] is missing") as error:
        envs.step(np.zeros(2, np.int64))
    assert "raised by environment 7 of 2 x Any-v0, its own vector form" in error.value.__notes__[0]


def test_there_are_none_without_a_discrete_part_or_a_mask() -> None:
    envs, made = made_of(InInfo, AutoresetMode.NEXT_STEP, acted=spaces.Box(-1, 1, (2,)))
    assert (envs.mask_size, envs.masks) == (0, None) and made[0].seeds == []
    gymnasium.registry.pop("Any-v0")
    envs, _ = made_of(AnySpace, AutoresetMode.NEXT_STEP, acted=CHOICE)
    assert envs.mask_size == 0
    envs.reset()
    envs.step(np.zeros(2, np.int64))
    assert envs.masks is None


def test_restarts_are_refused() -> None:
    gymnasium.register("Any-v0", AnySpace)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"on_env_error='restart'.*use vectorization='sync' or 'auto'"):
        make_vector_env("Any-v0", 2, counting_seeds(), "native", max_restarts=3)
