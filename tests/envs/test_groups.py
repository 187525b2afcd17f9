"""An environment of a head and a follower, which is a thread here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from dppo.envs.env_list import EnvList
from dppo.envs.given import Given
from dppo.envs.group_link import Call, Failed
from dppo.envs.groups import Follower, GroupEnv, GroupMaker, MemberError, find_maker
from dppo.envs.maker import EnvMaker
from dppo.envs.vector import make_vector_env

CALLS: list[tuple[str, Any]] = []
"""Of both ranks, in any order: each says who it is."""


class Telling(gymnasium.Env):
    """Notes how it is called. Its rank is that of its communicator, a text here."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(7)

    def __init__(self, comm: str, env_number: int, fails: str = "", on: str = "follower") -> None:
        self._rank, self._fails, self._on = comm, fails, on
        self._note("make", env_number)

    def _note(self, what: str, value: Any) -> None:
        CALLS.append((f"{self._rank} {what}", value))
        if self._fails == what and self._on in self._rank:
            raise ZeroDivisionError(f"no flow on {self._rank}")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._note("reset", seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._note("step", action)
        return np.zeros(1, np.float32), 1.0 if self._rank.startswith("head") else -1.0, False, False, {}

    def set_progress(self, fraction: float) -> None:
        self._note("progress", fraction)

    def close(self) -> None:
        self._note("close", None)


NAME = f"{__name__}:Telling"


class Band:
    """Agents of a simulator, of which the last one ends first. Members return nothing, and list no agents."""

    def __init__(self, comm: str, on_head: str = "abc", on_others: str = "abc") -> None:
        self._rank = comm
        self.is_head = comm.startswith("head")
        self.possible_agents = list(on_head if self.is_head else on_others)

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return Telling.observation_space

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return Telling.action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        CALLS.append((f"{self._rank} reset", seed))
        if self.is_head:
            self.agents = list(self.possible_agents)
            return {agent: np.zeros(1, np.float32) for agent in self.agents}, {}
        return None

    def step(self, actions: dict[str, int]) -> Any:
        CALLS.append((f"{self._rank} step", dict(actions)))
        if not self.is_head:
            return None
        here, last = self.agents, self.agents[-1]
        self.agents = here[:-1]
        told = {agent: np.zeros(1, np.float32) for agent in here}, {agent: 1.0 for agent in here}
        return *told, {agent: agent == last for agent in here}, dict.fromkeys(here, False), {}

    def close(self) -> None:
        CALLS.append((f"{self._rank} close", None))


class Pipe:
    """Both ends of a group of two ranks."""

    first, is_stuck = 1, False

    def __init__(self) -> None:
        self.calls: queue.Queue[Any] = queue.Queue()
        self.results: queue.Queue[Failed | None] = queue.Queue()
        self.name = "rank 2 on node1"
        self.given_up = False
        self.env_id = NAME

    def tell(self, call: Call, number: int = 0, arguments: Any = None) -> None:
        self.calls.put((call, number, arguments))

    def answers(self, number: int, *, has_failed: bool) -> list[Failed]:
        failed = self.results.get(timeout=10)
        return [] if failed is None else [failed]

    def dismiss(self, outcome: object) -> None:
        self.tell(Call.LEAVE, 0, outcome)

    def free(self) -> None:
        raise AssertionError

    def next_call(self) -> tuple[Call, int, Any]:
        call: tuple[Call, int, Any] = self.calls.get(timeout=10)
        return call

    def answer(self, number: int, failed: Failed | None) -> None:
        self.results.put(failed)

    def is_given_up(self, number: int) -> bool:
        return self.given_up

    def open(self, number: int) -> str:
        role = "head" if threading.current_thread() is threading.main_thread() else "follower"
        return f"{role} {number}"


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """The link to a follower, which follows until the test ends."""
    pipe, kwargs = Pipe(), dict[str, Any]()
    CALLS.clear()
    pipe.kwargs = kwargs  # type: ignore[attr-defined]
    outcome: list[Any] = []
    follower = Follower(lambda: EnvMaker(pipe.env_id, kwargs), pipe, lambda env: env.close())
    thread = threading.Thread(target=lambda: outcome.append(follower.follow()), daemon=True)
    thread.start()
    yield pipe
    pipe.dismiss("the end")
    thread.join(10)
    assert outcome == ["the end"]


def make(pipe: Pipe, num_envs: int = 1, max_restarts: int = 0, **kwargs: Any) -> EnvList:
    pipe.kwargs.update(kwargs)  # type: ignore[attr-defined]
    envs = make_vector_env(
        pipe.env_id, num_envs, lambda index: 70 + index, first_env=4, kwargs=kwargs, given=Given(group=pipe),
        max_restarts=max_restarts,
    )  # fmt: skip
    assert isinstance(envs, EnvList)
    return envs


def test_every_rank_makes_the_calls_and_those_of_the_head_count(pipe: Pipe) -> None:
    envs = make(pipe, num_envs=2)
    envs.reset()
    step = envs.step(np.array([3, 5]))
    envs.close()
    assert step.rewards.tolist() == [1.0, 1.0]
    of = {role: [call for call in CALLS if call[0].startswith(role)] for role in ("head", "follower")}
    assert [(name.removeprefix("head "), value) for name, value in of["head"]] == [
        ("0 make", 4), ("1 make", 5), ("0 reset", 70), ("1 reset", 71), ("0 step", 3), ("1 step", 5),
        ("0 close", None), ("1 close", None),
    ]  # fmt: skip
    assert [(name.replace("follower", "head"), value) for name, value in of["follower"]] == of["head"]


def test_every_rank_of_a_group_is_told_the_share_of_the_run_that_is_done(pipe: Pipe) -> None:
    envs = make(pipe)
    assert envs.curriculum is not None
    envs.curriculum.tell(0.25)
    assert {call for call in CALLS if "progress" in call[0]} == {
        ("head 0 progress", 0.25),
        ("follower 0 progress", 0.25),
    }


def test_every_rank_of_a_group_has_the_arguments_of_its_case(pipe: Pipe) -> None:
    cases = [{"name": "calm", "env_kwargs": {}}, {"name": "wild", "env_kwargs": {"fails": "reset", "on": "follower"}}]
    envs = make_vector_env(NAME, 2, lambda _: 70, first_env=4, given=Given(group=pipe), cases=cases)
    with pytest.raises(MemberError, match="no flow on follower 1") as caught:
        envs.reset()
    assert any("raised by environment 5 in case wild of" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("where", ["reset", "step"])
def test_the_error_of_a_member_names_it(where: str, pipe: Pipe) -> None:
    envs = make(pipe, fails=where)
    with pytest.raises(MemberError, match=r"^rank 2 on node1: ZeroDivisionError: no flow on follower 0 \(") as caught:
        envs.reset()
        envs.step(np.array([0]))
    notes = "\n".join(caught.value.__notes__)
    assert "raised on rank 2 on node1:\nTraceback" in notes and "raised by environment 4 of" in notes


def test_an_environment_that_a_member_cannot_make_is_wrong_use(pipe: Pipe) -> None:
    with pytest.raises(ValueError, match=r"cannot be made on all ranks of its group: rank 2 on node1: env=.*no flow"):
        make(pipe, fails="make")


def test_an_environment_that_takes_no_communicator_is_told(pipe: Pipe) -> None:
    pipe.env_id = "CartPole-v1"
    envs = make_vector_env("CartPole-v1", 1, lambda index: 0, "sync", given=Given(group=pipe))
    assert envs.description.endswith("; it takes no comm: each rank of a group computes all of it")


def test_an_environment_that_takes_its_communicator_needs_no_word(pipe: Pipe) -> None:
    assert "takes no comm" not in make(pipe).description


def test_the_heads_own_error_is_raised_as_it_is(pipe: Pipe) -> None:
    envs = make(pipe, fails="step", on="head")
    envs.reset()
    with pytest.raises(ZeroDivisionError, match="no flow on head 0"):
        envs.step(np.array([0]))


def test_an_error_that_only_follows_from_a_members_is_not_shown(pipe: Pipe) -> None:
    """The head comes out of an operation that the member's error has interrupted."""
    envs = make(pipe, fails="step", on="")
    envs.reset()
    pipe.is_given_up = lambda number: threading.current_thread() is threading.main_thread()  # type: ignore[method-assign]
    with pytest.raises(MemberError, match="no flow on follower 0"):
        envs.step(np.array([0]))


def test_an_environment_is_made_anew_on_all_ranks(pipe: Pipe) -> None:
    envs = make(pipe, fails="step", max_restarts=3)
    envs.reset()
    assert envs.step(np.array([0])).truncations.tolist() == [True]
    made = [call for call in CALLS if "make" in call[0] or "close" in call[0]]
    for role in ("head", "follower"):
        assert [c for c in made if c[0].startswith(role)] == [
            (f"{role} 0 make", 4), (f"{role} 0 close", None), (f"{role} 1 make", 4),
        ]  # fmt: skip


def test_members_of_a_simulator_get_the_actions_of_the_heads_agents(pipe: Pipe) -> None:
    """Whatever agents they list themselves; what they return is not looked at."""
    pipe.env_id = f"{__name__}:Band"
    envs = make(pipe, num_envs=3)
    assert envs.agents == ("a", "b", "c")
    envs.reset()
    steps = [envs.step(np.array([3, 5, 6])) for _ in range(3)]
    envs.close()
    assert [step.valid is None or step.valid.tolist() for step in steps] == [True, [1, 1, 0], [1, 0, 0]]
    for role in ("head", "follower"):
        assert [(name.removeprefix(f"{role} 0 "), value) for name, value in CALLS if name.startswith(role)] == [
            ("reset", 70), ("step", {"a": 3, "b": 5, "c": 6}), ("step", {"a": 3, "b": 5}), ("step", {"a": 3}),
            ("reset", 70), ("close", None),
        ]  # fmt: skip


def test_agents_are_the_same_on_all_ranks_of_a_group(pipe: Pipe) -> None:
    pipe.env_id = f"{__name__}:Band"
    message = r"cannot be made on all ranks of its group: rank 2 on node1: it has the agents \['a', 'b'\], and the head"
    with pytest.raises(ValueError, match=message + r"'s \['a', 'b', 'c'\]: they must be the same"):
        make(pipe, num_envs=3, on_others="ab")


def test_without_a_group_nothing_is_different() -> None:
    assert type(find_maker("CartPole-v1", {}, ())) is EnvMaker
    assert type(find_maker("CartPole-v1", {}, (), Given(group=Pipe()))) is GroupMaker


def test_functions_are_called_on_all_ranks(pipe: Pipe) -> None:
    done = threading.Event()
    pipe.tell(Call.RUN, arguments=(done.set,))
    assert done.wait(10)


def test_a_group_that_is_stuck_is_not_closed() -> None:
    """Its ranks would wait for each other."""
    pipe = Pipe()
    pipe.is_stuck = True
    GroupEnv(gymnasium.make("CartPole-v1"), pipe, 0).close()
    assert pipe.calls.empty()
