"""A run in W&B's offline files: settings, lines, evaluations, summary; a resume goes on under the same id."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from dppo.rundir import sending
from dppo.rundir.wandb import WandB
from dppo.seams import RunInfo

pytest.importorskip("wandb")


def records(file: Path) -> list[Any]:
    """All records of an offline run. W&B's own process writes the last of them after the run's end."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    deadline = time.monotonic() + 60
    while True:
        store, found = DataStore(), []
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            found.append(record)
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_run_and_its_resume_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "END_S", 100.0)  # the machine may be busy
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    before: set[Path] = set()
    for attempt, (first, exit_) in enumerate(((1, "preempted"), (3, "finished"))):
        time.sleep(1.1 * attempt)  # W&B names folders by the second
        recorder = WandB("walking")
        config = {"seed": 7, "ppo": {"clip": 0.2}}
        recorder.start(RunInfo(tmp_path, "ab" * 16, config, 4, attempt > 0, 64 * (first - 1)))
        for iteration in range(first, first + 2):
            recorder.iteration({"iteration": iteration, "env_steps": 64 * iteration, "loss": iteration / 2})
        recorder.evaluation({"env_steps": 64 * iteration, "return_mean": 40.0 + attempt})
        recorder.end({"exit": exit_, "env_steps": 64 * iteration, "error": None})
        (file,) = files = set(tmp_path.glob("wandb/offline-run-*/*.wandb")) - before
        before |= files
        found = records(file)
        (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project, run.display_name) == ("ab" * 16, "walking", tmp_path.name)
        assert values(run.config.update).items() >= {"seed": 7, "ppo.clip": 0.2, "world_size": 4}.items()
        lines = [values(r.history.item) for r in found if r.WhichOneof("record_type") == "history"]
        assert [line["loss"] for line in lines if "loss" in line] == [first / 2, (first + 1) / 2]
        assert [line["env_steps"] for line in lines if "loss" in line] == [64 * first, 64 * (first + 1)]
        assert [line["_step"] for line in lines if "loss" in line] == [first, first + 1]
        assert lines[-1]["evaluation/return_mean"] == 40.0 + attempt
        summary: dict[str, Any] = {}
        for record in found:
            if record.WhichOneof("record_type") == "summary":
                summary |= values(record.summary.update)
        assert (summary["summary/exit"], summary["summary/env_steps"]) == (exit_, 64 * iteration)
        assert [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"] == [0]
