"""Counts the environments that are made anew after an error, and decides when that is enough."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection

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
