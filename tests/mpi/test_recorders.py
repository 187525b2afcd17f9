"""Recorders of a real run: through the death of the server, to the end that one of them asks for."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from tests.launch import PROGRAMS, Launcher
from tests.run_directory import metric_lines, summary

FLAGS = (
    "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--log.no-tensorboard",
    "--checkpoint.every", 0,
)  # fmt: skip
SERVICES = {"wandb": ("--log.wandb", "walking"), "mlflow": ("--log.mlflow", "walking")}


def test_recorders_go_on_under_a_new_server_and_stop_the_run(launch: Launcher, tmp_path: Path) -> None:
    services = [flag for name, flags in SERVICES.items() if find_spec(name) is not None for flag in flags]
    variables = {
        "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    ended = launch.run(
        3, *FLAGS, "--log.recorder", "diaries:Diary", "diaries:Deadly", *services, "--run-dir", "run",
        survives=True, timeout=90, **variables,
    )  # fmt: skip
    assert "stopped by Diary" in ended.stdout and "is the server now" in ended.stderr, ended
    told = [json.loads(line) for line in (tmp_path / "run" / "diary.jsonl").read_text().splitlines()]
    assert [each["iteration"] for each in told if "iteration" in each] == list(range(1, 13)), "each once"
    assert [int(line["iteration"]) for line in metric_lines(tmp_path / "run")] == list(range(1, 13))
    starts = [each["start"] for each in told if "start" in each]
    assert [(resumed, ranks) for resumed, _, ranks in starts] == [(False, 3), (True, 2)]
    assert told[-1] == {"end": ["finished", "Diary"]} and "checkpoint" in told[-2]
    assert summary(tmp_path / "run")["stopped_by"] == "Diary"
    if "--log.wandb" in services:
        files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
        assert files and len({file.name for file in files}) == 1, "one run for both servers"


def test_a_recorder_that_is_not_there_is_one_message_and_nothing_on_disk(launch: Launcher, tmp_path: Path) -> None:
    ended = launch.run(2, *FLAGS, "--log.recorder", "diaries:Dairy", "--run-dir", "run", code=2)
    assert len(ended.messages) == 1, ended
    assert "log.recorder='diaries:Dairy' cannot be imported: AttributeError" in ended.messages[0]
    assert (PROGRAMS / "diaries.py").exists() and not (tmp_path / "run").exists()
