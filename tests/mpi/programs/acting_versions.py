"""dppo.run --mode async, which notes the parameters of each version, and those that each rollout was made with.

Lines of JSON in the working directory: server.txt [version, fingerprint], worker_N.txt [first row, fingerprint].
"""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import json
import sys
from pathlib import Path
from typing import Any

from dppo.run import command
from dppo.training.async_loop import AsyncCoordinator
from dppo.training.collector import Collector


def note(name: str, *values: object) -> None:
    with open(Path(name), "a") as file:
        file.write(json.dumps(values) + "\n")


def main() -> int:
    begin, apply, collect = AsyncCoordinator.__init__, AsyncCoordinator.on_gradient, Collector._collect

    def begin_and_note(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        note("server.txt", self._state.version, self._state.flat.fingerprint())

    def apply_and_note(self: Any, *args: Any) -> Any:
        answers = apply(self, *args)
        note("server.txt", self._state.version, self._state.flat.fingerprint())
        return answers

    def collect_and_note(self: Any, *args: Any) -> Any:
        note(f"worker_{self.worker}.txt", self.row, self.policy.flat.fingerprint())
        return collect(self, *args)

    AsyncCoordinator.__init__ = begin_and_note  # type: ignore[method-assign]
    AsyncCoordinator.on_gradient = apply_and_note  # type: ignore[method-assign]
    Collector._collect = collect_and_note  # type: ignore[method-assign]
    return command.main()


if __name__ == "__main__":
    code = main()
    sys.exit(code)
