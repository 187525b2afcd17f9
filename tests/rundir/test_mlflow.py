"""A run in MLflow's SQLite store: settings, lines, evaluations, summary; a resume goes on in the same run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dppo.rundir import sending
from dppo.rundir.mlflow import MLflow
from dppo.seams import RunInfo

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


def test_a_run_and_its_resume_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(sending, "END_S", 100.0)  # the machine may be busy
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    many = {f"setting_{number}": "x" * 7000 for number in range(120)}
    for attempt, (first, exit_, status) in enumerate(((1, "preempted", "KILLED"), (3, "finished", "FINISHED"))):
        recorder = MLflow("walking")
        config = {"seed": 7, "total_steps": 256 + attempt, "ppo": {"clip": 0.2}, **many}
        recorder.start(RunInfo(tmp_path / "run", "ab" * 16, config, 4, attempt > 0, 64 * (first - 1)))
        for iteration in range(first, first + 2):
            recorder.iteration(
                {"iteration": iteration, "env_steps": 64 * iteration, "loss": iteration / 2, "kl": math.nan}
            )
        recorder.evaluation({"env_steps": 64 * iteration, "return_mean": 40.0 + attempt})
        recorder.end({"exit": exit_, "env_steps": 64 * iteration, "error": None})
        client = MlflowClient()
        experiment = client.get_experiment_by_name("walking")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert (run.info.run_name, run.info.status, run.data.tags["summary.exit"]) == ("run", status, exit_)
        assert run.data.params.items() >= {"seed": "7", "total_steps": "256", "ppo.clip": "0.2"}.items()
        assert len(run.data.params["setting_119"]) == 6000
        losses = client.get_metric_history(run.info.run_id, "loss")
        assert [(m.step, m.value) for m in losses] == [(64 * i, i / 2) for i in range(1, first + 2)]
        assert run.data.metrics["evaluation/return_mean"] == 40.0 + attempt and "kl" not in run.data.metrics


def test_another_run_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(sending, "END_S", 100.0)  # the machine may be busy
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for run_id, exit_ in (("1" * 32, "failed"), ("2" * 32, "target")):
        recorder = MLflow("walking")
        recorder.start(RunInfo(tmp_path / "run", run_id, {}, 1, False, 0))
        recorder.end({"exit": exit_})
    client = MlflowClient()
    experiment = client.get_experiment_by_name("walking")
    assert experiment is not None
    found = {r.data.tags["dppo.run_id"][0]: r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert found == {"1": "FAILED", "2": "FINISHED"}
