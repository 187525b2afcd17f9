"""An environment on several ranks: each rank of its group builds it, and calls it as the head's is called.

The group's first rank, the head, is a worker. Everything above it sees one plain environment, whose `reset`, `step` and
`close` first tell the other ranks, the followers, to make the same call. What the head's call returns counts. Messages
to users call the followers members.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium

from dppo.envs.cases import Case
from dppo.envs.curriculum import METHOD, tell, teller
from dppo.envs.given import Given
from dppo.envs.group_link import Call, Failed, FollowerLink, HeadLink
from dppo.envs.maker import EnvMaker
from dppo.envs.process import kept_as_it_was
from dppo.envs.reasons import reason
from dppo.envs.simulators import Simulator, agents_of
from dppo.envs.states import Start, load, owner, save
from dppo.seams import Closable

T = TypeVar("T")


class MemberError(RuntimeError):
    """Raised on the head where a call of the environment has failed on another rank of the group."""


class GroupMaker(EnvMaker):
    """Makes environments on all ranks of a group; on the head, which gets them as plain environments."""

    def __init__(
        self, env_id: str, kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = (),
        given: Given | None = None, cases: Sequence[Case] = (),
    ) -> None:  # fmt: skip
        assert given is not None and given.group is not None
        super().__init__(env_id, kwargs, wrappers, given, cases)
        self._link, self._made = given.group, 0

    @property
    def note(self) -> str:
        return "" if "comm" in self.takes else "; it takes no comm: each rank of a group computes all of it"

    def _make(self, given: Mapping[str, Any], further: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
        key = self._made
        self._made += 1

        def make_it() -> gymnasium.Env[Any, Any]:
            return self.make_with(_with(self._link.open(key), given), further)

        try:
            env = together(self._link, Call.MAKE, key, (given, further), make_it)
            together(self._link, Call.COMPARE, key, agents_of(env), lambda: None)
        except MemberError as error:
            raise ValueError(f"env={self.env_id!r} cannot be made on all ranks of its group: {error}") from error
        if isinstance(env, Simulator):
            env.made = GroupSimulator(env.made, self._link, key)
            return env
        kind = GroupEnv if owner(env) is None else SavingGroupEnv
        return kind(env, self._link, key)


def find_maker(
    env_id: str, kwargs: Mapping[str, Any], wrappers: Sequence[str], given: Given | None = None,
    cases: Sequence[Case] = (),
) -> EnvMaker:  # fmt: skip
    """Returns the maker of environments that have one rank, or several as `given` says."""
    maker = EnvMaker if given is None or given.group is None else GroupMaker
    return maker(env_id, kwargs, wrappers, given, cases)


class _Calls:
    """What is called of an environment of a group, on its head."""

    env: Any
    _link: HeadLink
    _number: int

    def reset(self, **arguments: Any) -> Any:
        return together(self._link, Call.RESET, self._number, arguments, lambda: self.env.reset(**arguments))

    def step(self, action: Any) -> Any:
        return together(self._link, Call.STEP, self._number, action, lambda: self.env.step(action))

    def _offer_progress(self) -> None:
        """Has `set_progress`, if the environment has it."""
        if teller(self.env) is not None:
            setattr(self, METHOD, self._set_progress)

    def _set_progress(self, fraction: float) -> None:
        together(self._link, Call.PROGRESS, self._number, fraction, lambda: tell(self.env, fraction))

    def close(self) -> None:
        if not self._link.is_stuck:  # the others could not take part, and this rank might wait for them
            together(self._link, Call.CLOSE, self._number, None, self.env.close)


class GroupEnv(_Calls, gymnasium.Wrapper[Any, Any, Any, Any]):
    """The environment of a group, on its head."""

    def __init__(self, env: gymnasium.Env[Any, Any], link: HeadLink, number: int) -> None:
        super().__init__(env)
        self._link, self._number = link, number
        self._offer_progress()


class GroupSimulator(_Calls):
    """The simulator of a group's agents, on its head, in the form that the user has given it. So its members get what
    the head's is given, and what they return is not looked at.
    """

    def __init__(self, env: Any, link: HeadLink, number: int) -> None:
        self.env, self._link, self._number = env, link, number
        self._offer_progress()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


class SavingGroupEnv(GroupEnv):
    """The environment of a group whose ranks save and load its state together, in the same folder."""

    def save_state(self, path: Path) -> None:
        together(self._link, Call.SAVE, self._number, path, lambda: save(self.env, path))

    def load_state(self, path: Path) -> Any:
        return self.load_start(Start(path, None, None, 0))

    def load_start(self, start: Start) -> Any:
        """Brings the wrappers that are put around the environment on each rank to `start` as well."""
        return together(self._link, Call.LOAD, self._number, start, lambda: load(self.env, start))


def together(link: HeadLink, call: Call, number: int, arguments: Any, make_it: Callable[[], T]) -> T:
    """Makes a call on all ranks of the group. Returns what it returns on the head.

    Raises:
      MemberError: it has failed on a follower; the text names the rank.
    """
    link.tell(call, number, arguments)
    own: BaseException | None = None
    result: Any = None
    is_cause = True
    try:
        result = make_it()
    except (Exception, SystemExit) as error:
        own, is_cause = error, not link.is_given_up(number)
    failed = link.answers(number, has_failed=own is not None)
    if own is not None and (is_cause or not failed):
        raise own
    if failed:
        first = next((f for f in failed if f.is_cause), failed[0])
        theirs = MemberError(f"{first.who}: {first.text}")
        theirs.add_note(f"raised on {first.who}:\n{first.trace}")
        raise theirs
    return result  # type: ignore[no-any-return]


class Follower:
    """A rank of a group that is not its head, with its parts of the environments, by their numbers.

    Args:
      find_maker: makes the maker of environments; may raise.
      close: closes an environment, though it may raise or never come back.
    """

    def __init__(
        self, find_maker: Callable[[], EnvMaker], link: FollowerLink, close: Callable[[Closable], None]
    ) -> None:
        self._find_maker, self._link, self._close = find_maker, link, close
        self._maker: EnvMaker | None = None
        self._envs: dict[int, Any] = {}
        self._agents: dict[int, tuple[str, ...]] = {}

    def follow(self) -> Any:
        """Makes the calls that the head makes, until the head says LEAVE. Returns what the head says with it."""
        while True:
            call, number, arguments = self._link.next_call()
            if call is Call.LEAVE:
                return arguments
            if call is Call.RUN:
                arguments[0](*arguments[1:])
                continue
            failed = None
            try:
                self._make(call, number, arguments)
            except (Exception, SystemExit) as error:
                is_cause = not self._link.is_given_up(number)
                failed = Failed(self._link.name, _one_line(error), traceback.format_exc(), is_cause)
            self._link.answer(number, failed)

    def _make(self, call: Call, number: int, arguments: Any) -> None:
        """Makes a call here."""
        if call is Call.STEP:
            self._envs[number].step(arguments)
        elif call is Call.COMPARE:
            if self._agents[number] != arguments:
                raise ValueError(
                    f"it has the agents {list(self._agents[number])}, and the head's {list(arguments)}: they must be"
                    " the same on all ranks of a group"
                )
        elif call is Call.RESET:
            self._envs[number].reset(**arguments)
        elif call is Call.SAVE:
            save(self._envs[number], arguments)
        elif call is Call.LOAD:
            load(self._envs[number], arguments)
        elif call is Call.PROGRESS:
            tell(self._envs[number], arguments)
        elif call is Call.MAKE:
            comm = self._link.open(number)  # first of all: the head waits in it
            given, further = arguments
            with kept_as_it_was():
                self._maker = self._maker or self._find_maker()
                env = self._maker.make_with(_with(comm, given), further)
            self._agents[number] = agents_of(env)
            self._envs[number] = env.made if isinstance(env, Simulator) else env
        else:
            assert call is Call.CLOSE, call
            if (env := self._envs.pop(number, None)) is not None:  # else it could not be made
                self._close(env)


def _with(comm: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a constructor is given, with the communicator of its environment if it takes one."""
    return {**given, "comm": comm} if "comm" in given else dict(given)


def _one_line(error: BaseException) -> str:
    is_ours = isinstance(error, ValueError) and str(error).startswith(("env=", "it has the agents"))
    return str(error) if is_ours else reason(error)
