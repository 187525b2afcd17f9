"""Environments of any spaces, stepped one after another: what they observe, what they get, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dppo.envs.env_list import EnvList
from dppo.envs.leaves import are_equal, array_type, to_value
from dppo.envs.vector import make_vector_env
from tests.any_space import ACTED, OBSERVED, AnySpace, counting_seeds


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forgets whatever a test registers."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def made_of(kind: type[AnySpace], num_envs: int = 2, **kwargs: Any) -> tuple[EnvList, list[AnySpace]]:
    """Returns a list of environments of this kind, and the environments themselves."""
    kind.made = []
    first_env = kwargs.pop("first_env", 0)
    max_restarts = kwargs.pop("max_restarts", 0)
    gymnasium.register("Any-v0", kind, kwargs=kwargs)  # type: ignore[arg-type]
    envs = make_vector_env("Any-v0", num_envs, counting_seeds(), "auto", first_env, max_restarts=max_restarts)
    assert isinstance(envs, EnvList)
    return envs, kind.made


def actions_of(space: spaces.Space[Any], num_rows: int, num_envs: int = 2) -> np.ndarray:
    """[num_rows, N, …] actions that differ from each other in every part."""
    shape, dtype = array_type(space)
    rows = np.zeros((num_rows, num_envs, *shape), dtype)
    space.seed(3)
    for place in np.ndindex(num_rows, num_envs):
        write(space, rows[place[0], place[1] : place[1] + 1], space.sample())
    return rows


def write(space: spaces.Space[Any], row: np.ndarray, value: Any) -> None:
    """Writes one value into an array [1]."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            write(part, row[key], value[key])
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            write(part, row[str(i)], value[i])
    else:
        row[0] = value


# -- observations and actions --------------------


@pytest.mark.parametrize("space", [OBSERVED, spaces.Discrete(7, start=-3), spaces.MultiDiscrete([3, 400])], ids=str)
def test_observations_of_any_space_are_what_the_environments_returned(space: spaces.Space[Any]) -> None:
    envs, made = made_of(AnySpace, observed=space)
    shape, dtype = array_type(space)
    rows = [envs.reset()]
    actions = actions_of(ACTED, 7)
    finals: list[tuple[int, np.ndarray]] = []
    for t, row in enumerate(actions):
        step = envs.step(row)
        rows.append(step.observations.copy())
        assert (step.observations.shape, step.observations.dtype) == ((2, *shape), dtype)
        assert (step.final_observations.shape[1:], step.final_observations.dtype) == (shape, dtype)
        if len(step.final_envs):
            finals.append((t, step.final_observations))
    assert [t for t, _ in finals] == [3]
    for index, env in enumerate(made):
        returned = iter(env.returned)
        for t, row in enumerate(rows):
            if t == 4:  # the fourth step ended the episode
                np.testing.assert_equal(to_value(space, finals[0][1][index]), next(returned))
            np.testing.assert_equal(to_value(space, row[index]), next(returned))


def test_observations_have_nothing_between_their_fields() -> None:
    envs, _ = made_of(AnySpace)

    def check(array: np.ndarray) -> None:
        clean = np.zeros(array.shape, array.dtype)
        clean[...] = array
        assert clean.tobytes() == array.tobytes()

    rows = actions_of(ACTED, 4)
    check(envs.reset())
    check(envs.begin_episode(0)[None])
    for row in rows:
        step = envs.step(row)
        check(step.observations)
        check(step.final_observations)
    check(envs.replay([1, 2], list(rows[:2].swapaxes(0, 1)))[0])


def test_actions_arrive_as_values_of_the_space() -> None:
    envs, made = made_of(AnySpace)
    envs.reset()
    rows = actions_of(ACTED, 3)
    for row in rows:
        envs.step(row)
    envs.replay([1, 2], list(rows.swapaxes(0, 1)))
    for index, env in enumerate(made):
        assert len(env.actions) == 6
        for action, row in zip(env.actions, [*rows, *rows], strict=True):
            assert ACTED.contains(action)
            np.testing.assert_equal(action, to_value(ACTED, row[index]))


def test_replay_restores_every_leaf_and_what_follows() -> None:
    envs, made = made_of(AnySpace)
    envs.reset()
    rows = actions_of(ACTED, 8)
    for row in rows[:6]:
        before = envs.step(row).observations.copy()
    seeds = [env.seeds[-1] or 0 for env in made]
    gymnasium.registry.pop("Any-v0")
    copy, _ = made_of(AnySpace)
    replayed, failed = copy.replay(seeds, [rows[4:6, 0], rows[4:6, 1]])
    assert failed == [] and are_equal(replayed, before)
    for row in rows[6:7]:
        assert are_equal(envs.step(row).observations, copy.step(row).observations)


def test_begin_episode_begins_one_and_leaves_the_others() -> None:
    envs, made = made_of(AnySpace)
    envs.reset()
    before = envs.step(actions_of(ACTED, 1)[0]).observations.copy()
    first = envs.begin_episode(1)
    np.testing.assert_equal(to_value(OBSERVED, first[()]), made[1].returned[-1])
    assert len(made[0].seeds) == 1 and len(made[1].seeds) == 2
    assert are_equal(before[:1], envs._rows[0][0][:1])


def test_a_wrong_leaf_names_the_environment() -> None:
    class Wrong(AnySpace):
        def observe(self) -> Any:
            value = super().observe()
            return value if self.time != 2 else value | {"pair": (value["pair"][0], 1001)}

    envs, _ = made_of(Wrong, first_env=6)
    envs.reset()
    rows = actions_of(ACTED, 2)
    envs.step(rows[0])
    with pytest.raises(ValueError, match=r"an observation's leaf 'pair/1' is 1001, but .* says 1..1000") as error:
        envs.step(rows[1])
    assert error.value.__notes__ == ["raised by environment 6 of 2 x Any-v0, stepped one after another"]


# -- masks --------------------

CHOICE = spaces.Discrete(3)


class Masked(AnySpace):
    """Permits the action that is the time in the episode, and 2."""

    def mask(self) -> np.ndarray:
        return np.array([self.time == 0, self.time == 1, True])


class InInfo(Masked):
    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask()}


class ByMethod(Masked):
    def action_masks(self) -> list[bool]:
        return [bool(legal) for legal in self.mask()]


class AsLeaf(Masked):
    def observe(self) -> Any:
        return {**super().observe(), "action_mask": self.mask().astype(np.int8)}


BESIDE = spaces.Dict({"action_mask": spaces.MultiBinary(3), "speed": spaces.Box(-1, 1, (2,))})
KINDS = [(InInfo, OBSERVED), (ByMethod, OBSERVED), (AsLeaf, BESIDE)]


def masks_of(envs: EnvList) -> list[list[int]]:
    assert envs.masks is not None
    return envs.masks.astype(int).tolist()


@pytest.mark.parametrize("is_asked", [False, True])
@pytest.mark.parametrize(("kind", "space"), KINDS)
def test_masks_are_of_the_observations_that_were_returned_last(
    kind: type[Masked], space: spaces.Space[Any], is_asked: bool
) -> None:
    envs, made = made_of(kind, observed=space, acted=CHOICE)
    if is_asked:
        assert envs.mask_size == 3
        assert [env.seeds for env in made] == [[0], []] if kind is InInfo else [[], []]
    envs.reset()
    assert [env.seeds[-1] for env in made] == [1, 1_000_001], "no seed was used up"
    first, second, later = [1, 0, 1], [0, 1, 1], [0, 0, 1]
    assert masks_of(envs) == [first, first] and envs.mask_size == 3
    held = envs.masks
    envs.step(np.zeros(2, np.int64))
    assert masks_of(envs) == [second, second]
    assert held is not None and held.astype(int).tolist() == [first, first], "it survives the next step"
    envs.begin_episode(1)
    assert masks_of(envs) == [second, first]
    envs.step(np.zeros(2, np.int64))
    assert masks_of(envs) == [later, second]
    envs.replay([5, 6], [np.zeros(1, np.int64), np.zeros(0, np.int64)])
    assert masks_of(envs) == [second, first]
    envs.replay([5, 6], [np.zeros(3, np.int64), np.zeros(2, np.int64)])
    assert masks_of(envs) == [later, later]
    envs.step(np.zeros(2, np.int64))  # the first has begun again
    assert masks_of(envs) == [first, later]


@pytest.mark.parametrize(
    ("kind", "acted"),
    [(AnySpace, CHOICE), (InInfo, spaces.Box(-1, 1, (2,))), (ByMethod, spaces.MultiBinary(2)), (AnySpace, ACTED)],
)
def test_without_a_mask_or_a_discrete_part_there_are_none(kind: type[AnySpace], acted: spaces.Space[Any]) -> None:
    envs, made = made_of(kind, acted=acted)
    assert (envs.mask_size, envs.masks) == (0, None)
    has_choice = acted in (CHOICE, ACTED)
    assert [len(env.seeds) for env in made] == [has_choice, 0], "only an info that may have a mask costs a reset"
    envs.reset()
    envs.step(actions_of(acted, 1)[0])
    assert (envs.mask_size, envs.masks) == (0, None)
    assert [len(env.seeds) for env in made] == [has_choice + 1, 1]


def test_a_composite_action_has_a_mask_for_its_discrete_parts() -> None:
    class Parts(AnySpace):
        def info(self) -> dict[str, Any]:
            return {"action_mask": {"gear": [0, self.time == 0, 1], "arm": (None, ([1, 0], None))}}

    envs, _ = made_of(Parts)
    assert envs.mask_size == 8  # arm/1: 2 + 3, gear: 3
    envs.reset()
    assert masks_of(envs) == [[1, 0, 1, 1, 1, 0, 1, 1]] * 2
    envs.step(actions_of(ACTED, 1)[0])
    assert masks_of(envs) == [[1, 0, 1, 1, 1, 0, 0, 1]] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, r"step\(\)'s info\['action_mask'\] is missing"),
        ({"action_mask": [1, 1]}, r"step\(\)'s info\['action_mask'\] has shape \(2,\); expected \(3,\)"),
        ({"action_mask": [1, 1, 2]}, r"step\(\)'s info\['action_mask'\] holds 2"),
        ({"action_mask": np.zeros(3, np.int8)}, "leaves no legal action: repair"),
    ],
    ids=str,
)
def test_a_wrong_mask_names_the_environment(wrong: dict[str, Any], message: str) -> None:
    class Wrong(InInfo):
        def info(self) -> dict[str, Any]:
            return wrong if self.time == 2 else super().info()

    envs, _ = made_of(Wrong, acted=CHOICE, first_env=4)
    envs.reset()
    envs.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=message) as error:
        envs.step(np.zeros(2, np.int64))
    assert error.value.__notes__ == ["raised by environment 4 of 2 x Any-v0, stepped one after another"]
    with pytest.raises(ValueError, match=message):
        envs.replay([1, 2], [np.zeros(2, np.int64)] * 2)


def test_an_episode_may_end_without_a_mask() -> None:
    class Last(InInfo):
        def info(self) -> dict[str, Any]:
            return {} if self.time == 4 else super().info()

    envs, _ = made_of(Last, acted=CHOICE)
    envs.reset()
    for _ in range(4):
        envs.step(np.zeros(2, np.int64))
    assert masks_of(envs) == [[1, 0, 1]] * 2


def test_a_mask_that_only_step_gives_is_not_overlooked() -> None:
    class Late(InInfo):
        def info(self) -> dict[str, Any]:
            return super().info() if self.time else {}

    envs, _ = made_of(Late, acted=CHOICE)
    envs.reset()
    with pytest.raises(ValueError, match=r"the first reset.* had none: give it in both"):
        envs.step(np.zeros(2, np.int64))


def test_a_reset_that_fails_when_asked_for_the_mask_fails_the_run_as_it_would_have() -> None:
    class Broken(AnySpace):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            raise ZeroDivisionError("user's bug")

    for start in (lambda envs: envs.reset(), lambda envs: envs.replay([1, 2], [np.zeros(0, np.int64)] * 2)):
        envs, _ = made_of(Broken, acted=CHOICE)
        assert envs.mask_size == 0
        with pytest.raises(ZeroDivisionError, match="user's bug") as error:
            start(envs)
        assert error.value.__notes__ == ["raised by environment 0 of 2 x Any-v0, stepped one after another"]
        gymnasium.registry.pop("Any-v0")


def test_masks_of_gymnasiums_own_environments() -> None:
    envs = make_vector_env("Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3", 3, counting_seeds())
    assert isinstance(envs, EnvList) and envs.mask_size == 6
    observations = envs.reset()
    for _ in range(50):
        masks = envs.masks
        assert masks is not None
        for state, mask in zip(observations.tolist(), masks, strict=True):
            unwrapped: Any = envs._envs[0].unwrapped
            assert mask.tolist() == unwrapped.action_mask(state).astype(bool).tolist()
        observations = envs.step(masks.argmax(axis=1)).observations
    assert make_vector_env("FrozenLake-v1", 1, counting_seeds()).mask_size == 0
    assert make_vector_env("CartPole-v1", 1, counting_seeds()).mask_size == 0


def test_to_ask_for_the_mask_changes_no_number() -> None:
    asked, other = (make_vector_env("CartPole-v1", 2, counting_seeds(), "sync") for _ in range(2))
    assert asked.mask_size == 0
    np.testing.assert_array_equal(asked.reset(), other.reset())
    for action in np.random.default_rng(0).integers(0, 2, (200, 2)):
        one, two = asked.step(action), other.step(action)
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.final_envs, two.final_envs)


# -- restarts --------------------


class Fragile(AnySpace):
    """Fails where `breaks` says so: at (call, number of the call among all of this kind)."""

    breaks: dict[tuple[str, int], Exception]
    calls: dict[str, int]

    def _count(self, call: str) -> None:
        number = self.calls[call] = self.calls.get(call, 0) + 1
        if (call, number) in self.breaks:
            raise self.breaks[call, number]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._count("reset")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self._count("step")
        return super().step(action)

    def close(self) -> None:
        super().close()
        raise OSError("the simulator is gone")


def fragile(breaks: dict[tuple[str, int], Exception], **kwargs: Any) -> tuple[EnvList, list[AnySpace]]:
    Fragile.breaks, Fragile.calls = breaks, {}
    return made_of(Fragile, **({"max_restarts": 3, "first_env": 6} | kwargs))


def steps_broken(*numbers: int) -> dict[tuple[str, int], Exception]:
    return {("step", number): RuntimeError("segfault\nof it") for number in numbers}


def test_a_step_that_fails_cuts_the_episode(capsys: pytest.CaptureFixture[str]) -> None:
    envs, made = fragile(steps_broken(4))  # environment 7, in the second row
    rows = actions_of(ACTED, 3)
    envs.reset()
    before = envs.step(rows[0]).observations.copy()
    step = envs.step(rows[1])
    assert step.rewards.tolist() == [2.0, 0.0]
    assert (step.terminations.tolist(), step.truncations.tolist()) == ([False, False], [False, True])
    assert step.final_envs.tolist() == [1] and are_equal(step.final_observations, before[1:])
    assert envs.restarts == 1 and len(made) == 3 and [env.is_closed for env in made] == [False, True, False]
    assert made[2].seeds == [1_000_002], "the next episode's seed"
    np.testing.assert_equal(to_value(OBSERVED, step.observations[1]), made[2].returned[0])
    step = envs.step(rows[2])
    assert step.rewards.tolist() == [3.0, 1.0] and not len(step.final_envs)
    np.testing.assert_equal(made[2].actions, [to_value(ACTED, rows[2][1])])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dppo: environment 7 (Any-v0) is made anew, its episode is cut: ")
    assert "RuntimeError: segfault of it (" in lines[0] and "test_env_list.py:" in lines[0]


@pytest.mark.parametrize("first", ["reset", "replay", "begin_episode"])
def test_the_last_observation_may_be_the_first_one(first: str) -> None:
    envs, _ = fragile(steps_broken(1))
    before = envs.reset()
    if first == "replay":
        before, _ = envs.replay([8, 9], [actions_of(ACTED, 1)[:0, 0]] * 2)
    elif first == "begin_episode":
        before[0] = envs.begin_episode(0)
    step = envs.step(actions_of(ACTED, 1)[0])
    assert step.final_envs.tolist() == [0] and are_equal(step.final_observations, before[:1])


def test_what_is_returned_wrong_is_a_failure_as_well() -> None:
    class Wrong(AnySpace):
        def observe(self) -> Any:
            return None if self.time == 2 and len(Wrong.made) == 2 else super().observe()

    envs, made = made_of(Wrong, max_restarts=1)
    rows = actions_of(ACTED, 2)
    envs.reset()
    envs.step(rows[0])
    step = envs.step(rows[1])
    assert step.truncations.tolist() == [True, False] and len(made) == 3


def test_a_reset_that_fails_begins_the_same_episode_anew() -> None:
    envs, made = fragile({("reset", 2): KeyError("a"), ("reset", 3): KeyError("b")})
    observations = envs.reset()
    assert envs.restarts == 2 and [env.seeds for env in made] == [[1], [], [], [1_000_001]]
    np.testing.assert_equal(to_value(OBSERVED, observations[1]), made[3].returned[0])
    rows = actions_of(ACTED, 4)
    Fragile.breaks = {("reset", 5): KeyError("c")}
    for row in rows:
        step = envs.step(row)  # the last one ends both episodes
    assert step.terminations.tolist() == [True, True], "an episode that has ended is not cut"
    assert envs.restarts == 3 and made[4].seeds == [2]


def test_each_environment_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    envs, _ = fragile(steps_broken(1, 3, 6))
    envs.reset()
    for row in actions_of(ACTED, 4):
        envs.step(row)
    assert envs.restarts == 3
    names = [line.split(" (")[0] for line in capsys.readouterr().err.splitlines()]
    assert names == ["dppo: environment 6", "dppo: environment 7"]


def test_too_many_restarts_in_a_row_end_the_run_with_the_environments_own_error() -> None:
    envs, _ = fragile(steps_broken(1, 3, 5, 7))  # environment 6 in each row
    envs.reset()
    rows = actions_of(ACTED, 4)
    for row in rows[:3]:
        assert envs.step(row).truncations.tolist() == [True, False]
    with pytest.raises(RuntimeError, match="segfault") as error:
        envs.step(rows[3])
    assert error.value.__notes__ == [
        "raised by environment 6 of 2 x Any-v0, stepped one after another",
        "3 restarts of it in a row have not helped (--max-env-restarts)",
    ]
    assert envs.restarts == 3


def test_a_successful_step_ends_the_row_of_failures() -> None:
    envs, _ = fragile(steps_broken(*range(1, 200, 4)))  # environment 6 in every other row
    envs.reset()
    for row in actions_of(ACTED, 20):
        envs.step(row)
    assert envs.restarts == 10


def test_resets_in_a_row_end_the_run_too() -> None:
    envs, _ = fragile({("reset", number): OSError("no licence") for number in range(1, 9)})
    with pytest.raises(OSError, match="no licence") as error:
        envs.reset()
    assert "3 restarts of it in a row" in error.value.__notes__[-1] and envs.restarts == 3


def test_a_constructor_that_fails_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    envs, made = fragile(steps_broken(1), max_restarts=2)
    envs.reset()

    def refuse(self: Fragile) -> None:
        raise ConnectionError("port in use")

    monkeypatch.setattr(Fragile, "__init__", refuse)
    with pytest.raises(ValueError, match="cannot be made: ConnectionError: port in use") as error:
        envs.step(actions_of(ACTED, 1)[0])
    assert "2 restarts of it in a row" in error.value.__notes__[-1] and len(made) == 2


def test_a_replay_that_fails_names_the_environment() -> None:
    envs, made = fragile(steps_broken(2))
    rows = actions_of(ACTED, 3)
    rewards: list[np.ndarray] = []
    observations, failed = envs.replay([5, 6], list(rows.swapaxes(0, 1)), rewards=rewards)
    assert failed == [0] and envs.restarts == 1 and [len(earned) for earned in rewards] == [3, 3]
    np.testing.assert_equal(to_value(OBSERVED, observations[1]), made[1].returned[-1])
    envs.begin_episode(0)
    assert made[2].seeds == [1] and not len(envs.step(rows[0]).final_envs) - 1, "the other one's fourth step"


def test_masks_of_a_new_environment_are_its_own() -> None:
    class Both(Fragile):
        def info(self) -> dict[str, Any]:
            return {"action_mask": [self.time == 0, self.time == 1, 1]}

    Fragile.breaks, Fragile.calls = steps_broken(3), {}
    envs, _ = made_of(Both, acted=CHOICE, max_restarts=1)
    envs.reset()
    envs.step(np.zeros(2, np.int64))
    envs.step(np.zeros(2, np.int64))
    assert masks_of(envs) == [[1, 0, 1], [0, 0, 1]]


def test_asking_for_the_mask_restarts_as_well() -> None:
    Fragile.breaks, Fragile.calls = {("reset", 1): KeyError("a")}, {}
    envs, _ = made_of(Fragile, acted=CHOICE, max_restarts=1)
    assert envs.mask_size == 0 and envs.restarts == 1
    envs.reset()


def test_a_forked_process_never_goes_on_as_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    envs, made = fragile(steps_broken(1))
    envs.reset()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="segfault"):
        envs.step(actions_of(ACTED, 1)[0])
    assert envs.restarts == 0 and len(made) == 2


def test_without_restarts_an_error_ends_the_run() -> None:
    envs, made = fragile(steps_broken(1), max_restarts=0)
    envs.reset()
    with pytest.raises(RuntimeError, match="segfault"):
        envs.step(actions_of(ACTED, 1)[0])
    assert envs.restarts == 0 and len(made) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()], ids=repr)
def test_what_is_no_fault_of_the_environment_is_never_caught(error: Any) -> None:
    envs, _ = fragile({("step", 1): error})
    envs.reset()
    with pytest.raises(type(error)):
        envs.step(actions_of(ACTED, 1)[0])
    assert envs.restarts == 0
