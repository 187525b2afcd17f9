"""Makes environments of one kind, with their arguments and wrappers, and says how to repair what fails."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator

from dppo.envs.arguments import named_parameters, require_seed, why_no_env, why_not_made, why_not_wrapped
from dppo.envs.cases import Case, Shared, case_of, errors_of
from dppo.envs.checks import show
from dppo.envs.given import NAMES, Given
from dppo.envs.registration import find_spec, find_wrapper, keep_mujoco_quiet
from dppo.envs.simulators import as_simulator, is_simulator, why_not_by_id

# What Gymnasium's own families need beyond Gymnasium, as dppo's optional dependencies name it.
_EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}

_NO_ENV = ("Gym is incompatible with Gymnasium", "The environment must inherit from the gymnasium.Env class")
"""How Gymnasium's messages begin where a registered entry point has made no environment."""


class EnvMaker:
    """Makes environments as `env`, `env_kwargs` and `wrappers` of the configuration describe them.

    Args:
      env_id: a Gymnasium id, `module:Id`, or `module:callable`.
      kwargs: arguments of the constructor. Each environment gets a copy of its own.
      wrappers: `module:callable` of each wrapper, innermost first.
      given: what a constructor is given that takes it; None: no communicator, and temporary folders.
      cases: further arguments, over `kwargs`, dealt to the environments in turn.

    Attributes:
      spec: the whole in Gymnasium's form, arguments and wrappers included, without those of cases.

    Raises:
      ValueError: the id, its module or a wrapper is missing.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[str] = (),
        given: Given | None = None,
        cases: Sequence[Case] = (),
    ) -> None:
        self.env_id, self._kwargs = env_id, dict(kwargs or {})
        self.cases, self._agents = tuple(cases), 1
        self._shared: Shared | None = None
        self._given = given or Given()
        self._takes: frozenset[str] | None = None
        registered, self._creator = find_spec(env_id)
        self._unwrapped = _with_arguments(registered, self._kwargs, is_registered=self._creator is None)
        for case in self.cases:
            with errors_of(case):
                _with_arguments(registered, case["env_kwargs"], is_registered=self._creator is None)
        self._wrappers = {name: find_wrapper(name) for name in wrappers}
        self._order = tuple(wrappers)
        self.spec = copy.copy(self._unwrapped)
        self.spec.additional_wrappers += tuple(map(_wrapper_spec, wrappers))
        keep_mujoco_quiet(self.spec)

    @property
    def takes(self) -> frozenset[str]:
        """Those of comm, env_number and workdir that the constructor takes by name, and its registration does not set.
        Raises ValueError where `kwargs` set one of them.
        """
        if self._takes is None:
            creator = self._creator or _loaded(self._unwrapped.entry_point)
            takes = frozenset(NAMES).intersection(named_parameters(creator))
            _refuse_given(takes, self._kwargs)
            for case in self.cases:
                with errors_of(case):
                    _refuse_given(takes, case["env_kwargs"])
            self._takes = takes - self._unwrapped.kwargs.keys()
        return self._takes

    def make(self, number: int = 0, **further: Any) -> gymnasium.Env[Any, Any]:
        """Makes the environment with the global number `number`; `further` are arguments of its constructor. Simulators
        of agents come as a `Simulator`.

        Raises:
          ValueError: it cannot be made, or its spaces are not those of another case. The text has the repair.
        """
        given = self._given.arguments(self.takes, number)
        if (case := self.case_of(number)) is None:
            return self._make(given, further)
        with errors_of(case):
            env = self._make(given, {**copy.deepcopy(case["env_kwargs"]), **further})
        shared = Shared.of(case["name"], env)
        self._shared = self._shared or shared
        try:
            self._shared.require_same(shared)
        except ValueError:
            env.close()
            raise
        return env

    def case_of(self, number: int) -> Case | None:
        """Returns the case of the environment with the global number `number`; None where there are no cases."""
        return case_of(self.cases, number, self._agents) if self.cases else None

    def _make(self, given: Mapping[str, Any], further: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
        return self.make_with(given, further)

    def deal_to_simulators(self, made: gymnasium.Env[Any, Any], number: int, agents: int) -> gymnasium.Env[Any, Any]:
        """Deals cases to simulators of so many agents from now on. Returns the simulator whose first agent has the
        global number `number`: the one `made`, or another one if it should have another case.
        """
        before, self._agents = self.case_of(number), agents
        if self.case_of(number) is before:
            return made
        made.close()
        return self.make(number)

    @property
    def note(self) -> str:
        """What is to be said of the environments in addition to their name; "" as a rule."""
        return ""

    def make_with(self, given: Mapping[str, Any], further: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
        """Makes an environment with what it is given, and further arguments of its constructor. Raises as `make`."""
        with contextlib.ExitStack() as if_one_fails:
            env = self._constructed({**further, **given})
            if_one_fails.callback(env.close)
            for name in self._order:
                env = self._wrapped(env, name)
            try:
                require_seed(env)
                env = env if isinstance(env, gymnasium.Env) else as_simulator(env)
            except ValueError as error:
                raise ValueError(f"env={self.env_id!r}: {error}") from error
            if_one_fails.pop_all()
        own = env.unwrapped.spec
        if isinstance(own, EnvSpec):  # a function may return a registered environment
            own.kwargs = {name: value for name, value in own.kwargs.items() if name not in given}  # wrappers copy them
            keep_mujoco_quiet(own)
            self.spec.nondeterministic |= own.nondeterministic
        return env

    def make_vector(self, num_envs: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """Makes the environment's own vector form. Raises ValueError where it has none, or where it fails."""
        if self.spec.vector_entry_point is None:
            raise ValueError(
                f"{self.spec.id} has no vector form of its own (its registration names no vector_entry_point): "
                "use vectorization='sync' or 'auto'"
            )
        try:
            return gymnasium.make_vec(self.spec, num_envs=num_envs, vectorization_mode="vector_entry_point")
        except Exception as error:
            limit = self.spec.max_episode_steps
            arguments = {"num_envs": num_envs, **({} if limit is None else {"max_episode_steps": limit})}
            raise self._failed(self.spec.vector_entry_point, arguments | self.spec.kwargs, error) from error

    def to_json(self) -> str:
        """Returns the specification as Gymnasium's own JSON. Where that lacks a value (an entry point that is a
        function, arguments of the registration that are objects), returns what was set for the run: id, kwargs,
        additional_wrappers.
        """
        try:
            return self.spec.to_json()
        except Exception:  # of whatever the registration holds
            wrappers = [asdict(_wrapper_spec(name)) for name in self._order]
            return json.dumps({"id": self.spec.id, "kwargs": self._kwargs, "additional_wrappers": wrappers})

    def _constructed(self, given: Mapping[str, Any]) -> Any:
        """Makes an environment, or a simulator of agents in its own form."""
        spec, creator = self._unwrapped, self._creator
        if creator is None:
            try:
                # the passive checker is for those who write environments, and costs time in every step
                return gymnasium.make(spec, disable_env_checker=True, **given)
            except Exception as error:
                raise self._failed(spec.entry_point, {**spec.kwargs, **given}, error) from error
        arguments = {**copy.deepcopy(spec.kwargs), **given}
        try:
            env = creator(**arguments)
        except Exception as error:  # a user's constructor may raise anything, and it is the user who can repair it
            raise self._failed(creator, arguments, error) from error
        if not (isinstance(env, gymnasium.Env) or is_simulator(env)):
            raise ValueError(f"env={self.env_id!r} {why_no_env(env)}")
        if isinstance(env, gymnasium.Env) and env.unwrapped.spec is None:
            with contextlib.suppress(AttributeError):  # a property of the user's
                env.unwrapped.spec = copy.deepcopy(spec)
        return env

    def _wrapped(self, env: Any, name: str) -> Any:
        wrapper = self._wrappers[name]
        try:
            wrapped = wrapper(env)
        except Exception as error:
            raise ValueError(f"wrappers={name!r} cannot be put around it: {why_not_wrapped(wrapper, error)}") from error
        if not (isinstance(wrapped, gymnasium.Env) or is_simulator(wrapped)):
            raise ValueError(f"wrappers={name!r} {why_no_env(wrapped)}")
        return wrapped

    def _failed(self, entry_point: Any, arguments: Mapping[str, Any], error: Exception) -> ValueError:
        """Returns the error that says why an environment cannot be made, and how to get what cannot be imported."""
        creator = _loaded(entry_point)
        said = why_not_made(creator, arguments, error)
        if creator is not None and str(error).startswith(_NO_ENV):
            # Gymnasium has thrown away what it was: it is made once more, to be looked at
            with contextlib.suppress(Exception):
                made = creator(**arguments)
                said = f"its entry point {why_no_env(made)}"
                if is_simulator(made):
                    as_simulator(made)  # raises for a vector of environments
                    said = why_not_by_id(made, entry_point)
        families = [extra for prefix, extra in _EXTRAS.items() if str(entry_point).startswith(prefix)]
        missing = isinstance(error, ImportError | gymnasium.error.Error)
        install = f" (pip install 'dppo[{families[0]}]')" if families and missing else ""
        name = self.env_id if self._creator is not None else self.spec.id
        return ValueError(f"env={name!r} cannot be made: {said}{install}")


def _wrapper_spec(name: str) -> WrapperSpec:
    return WrapperSpec(name.rpartition(":")[2], name, {})


def _loaded(entry_point: Any) -> Callable[..., Any] | None:
    """Returns the callable that an entry point names; None where that cannot be imported."""
    if isinstance(entry_point, str):
        try:
            return load_env_creator(entry_point)
        except Exception:  # the message says why, from the attempt before
            return None
    made_by: Callable[..., Any] | None = entry_point
    return made_by


def _refuse_given(takes: frozenset[str], kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError where arguments of the user's are some that dppo gives."""
    if both := sorted(takes & kwargs.keys()):
        raise ValueError(
            f"env-kwargs.{both[0]}: dppo gives {both[0]} to each environment itself (docs/simulators.md): leave it out"
        )


def _with_arguments(spec: EnvSpec, kwargs: Mapping[str, Any], *, is_registered: bool) -> EnvSpec:
    """Returns a copy of `spec` that has these arguments, over those of the registration. As in `gymnasium.make`, the
    argument max_episode_steps of a registered environment is the limit around it.
    """
    given, spec = dict(kwargs), copy.copy(spec)
    if is_registered and "max_episode_steps" in given:
        limit = given.pop("max_episode_steps")
        if type(limit) is not int or limit == 0 or limit < -1:
            raise ValueError(
                f"env-kwargs.max_episode_steps={show(limit)} must be a positive whole number, or -1 for no limit"
            )
        spec.max_episode_steps = None if limit == -1 else limit
    spec.kwargs = {**spec.kwargs, **given}
    return spec
