"""Tells MLflow of a run (extra mlflow)."""

from __future__ import annotations

import math
import time
from typing import Any

from dppo.rundir.sending import Point, Sender, settings_of
from dppo.rundir.summary import FAILED, PREEMPTED
from dppo.seams import RunInfo

RUN_ID = "dppo.run_id"
"""The tag by which a resume finds its run."""
STATUS = {PREEMPTED: "KILLED", FAILED: "FAILED"}
"""MLflow's words for the states of a run; else FINISHED."""
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 6000
"""What MLflow takes in one call, and the characters of a parameter's value."""


class MLflow(Sender):
    """One run of MLflow for all attempts, in the experiment of this name. MLFLOW_TRACKING_URI says where its server is.
    Its step is the number of environment steps.
    """

    def __init__(self, experiment: str) -> None:
        super().__init__()
        self._experiment = experiment

    def open(self, run: RunInfo) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient()
        experiment = client.get_experiment_by_name(self._experiment)
        number = client.create_experiment(self._experiment) if experiment is None else experiment.experiment_id
        found = client.search_runs([number], f"tags.`{RUN_ID}` = '{run.run_id}'", max_results=1)
        if found:
            its = found[0]
            client.update_run(its.info.run_id, status="RUNNING")
        else:
            its = client.create_run(number, tags={RUN_ID: run.run_id}, run_name=run.run_dir.name)
        self._id = its.info.run_id
        settings = settings_of(run) | {"world_size": run.world_size, "run_dir": str(run.run_dir)}
        # MLflow refuses to change a parameter: those of the first attempt stay
        params = [Param(name, str(value)[:LONGEST]) for name, value in settings.items() if name not in its.data.params]
        for first in range(0, len(params), MOST_PARAMS):
            client.log_batch(self._id, params=params[first : first + MOST_PARAMS])

    def send(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name, value, now, point.env_steps)
            for point in points
            for name, value in point.values.items()
            if math.isfinite(value)
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_METRICS])

    def close(self, summary: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(f"summary.{name}", str(value)[:LONGEST]) for name, value in summary.items() if value is not None]
        self._client.log_batch(self._id, tags=tags)
        self._client.set_terminated(self._id, STATUS.get(summary.get("exit", ""), "FINISHED"))
