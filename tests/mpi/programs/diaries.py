"""Recorders: one writes down what it is told, and one kills its rank."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from dppo.seams import Recorder, RunInfo


class Diary(Recorder):
    """Writes RUN/diary.jsonl, and stops the run in iteration 12."""

    def start(self, run: RunInfo) -> None:
        self._path = run.run_dir / "diary.jsonl"
        self._note(start=[run.resumed, run.env_steps, run.world_size])

    def iteration(self, line: dict[str, Any]) -> bool:
        self._note(iteration=line["iteration"])
        return bool(line["iteration"] == 12)

    def checkpoint(self, path: Path) -> None:
        self._note(checkpoint=path.name)

    def end(self, summary: dict[str, Any]) -> None:
        self._note(end=[summary["exit"], summary["stopped_by"]])

    def _note(self, **told: Any) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(told) + "\n")


class Deadly(Recorder):
    """Kills the first server in iteration 5."""

    def start(self, run: RunInfo) -> None:
        self._is_first = not run.resumed

    def iteration(self, line: dict[str, Any]) -> None:
        if self._is_first and line["iteration"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
