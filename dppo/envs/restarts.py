"""Makes environments anew after an error, counts them, and decides when that is enough."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import gymnasium

from dppo.envs.maker import EnvMaker
from dppo.envs.process import kept_as_it_was
from dppo.envs.reasons import reason
from dppo.seams import Closable


def close_quietly(env: Closable) -> None:
    """Closes an environment that is broken, and so may raise again."""
    with contextlib.suppress(Exception):
        env.close()


class Restarts:
    """The restarts of N environments.

    Args:
      most_in_a_row: how often an environment may fail without a successful step between; 0: the first error ends the
        run.
    """

    def __init__(self, most_in_a_row: int) -> None:
        self._most = most_in_a_row
        self._in_a_row: dict[int, int] = {}
        self._named: set[int] = set()
        self.total = 0

    def allow(self, index: int, error: Exception, name: str) -> bool:
        """Returns whether environment `index` is made anew after `error`, and counts it. Names the first restart of
        each environment on standard error.

        Args:
          name: the environment in words.
        """
        if not self._most or isinstance(error, MemoryError):
            return False
        failures = self._in_a_row.get(index, 0)
        if failures == self._most:
            error.add_note(f"{failures} restarts of it in a row have not helped (--max-env-restarts)")
            return False
        self._in_a_row[index] = failures + 1
        self.total += 1
        if index not in self._named:
            self._named.add(index)
            text = f"{name} is made anew, its episode is cut: {reason(error)}; its further restarts are only counted"
            line = "".join(c if c.isprintable() else " " for c in text)
            print(f"dppo: {line}", file=sys.stderr, flush=True)
        return True

    def forgive(self, failed: Collection[int]) -> None:
        """Ends the rows of failures of all environments but those that have `failed` in this step."""
        if self._in_a_row:
            self._in_a_row = {index: count for index, count in self._in_a_row.items() if index in failed}


class Remaker:
    """Makes environments anew that have raised an error.

    Args:
      first_env: global number of the first environment.
      restarts: counts and allows.
      close_broken: closes an environment before it is made anew.
      description: the environments in words.
      agents: how many of the global numbers each environment has.
    """

    def __init__(
        self,
        maker: EnvMaker,
        first_env: int,
        restarts: Restarts,
        close_broken: Callable[[Closable], None],
        description: str,
        agents: int = 1,
    ) -> None:
        self._maker, self._first_env, self._restarts = maker, first_env, restarts
        self._close_broken, self.description, self._process = close_broken, description, os.getpid()
        self._agents = agents

    def is_fork(self) -> bool:
        """Returns whether this is a process that an environment has forked: its errors must not make it a rank."""
        return os.getpid() != self._process

    def remake(self, index: int, env: gymnasium.Env[Any, Any], error: Exception) -> gymnasium.Env[Any, Any]:
        """Returns a new environment in place of `env`, which has raised `error`. Raises what ends the run."""
        number, last = (self._first_env + place * self._agents for place in (index, index + 1))
        name = f"environment {number}" if self._agents == 1 else f"simulator of environments {number}..{last - 1}"
        if (case := self._maker.case_of(number)) is not None:
            name += f" in case {case['name']}"
        while True:
            error.add_note(f"raised by {name} of {self.description}")
            if self.is_fork() or not self._restarts.allow(index, error, f"{name} ({self._maker.spec.id})"):
                raise error
            self._close_broken(env)
            if self.is_fork():
                raise error
            try:
                with kept_as_it_was():
                    return self._maker.make(number)
            except Exception as another:
                error = another
