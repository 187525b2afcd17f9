"""Tells Weights & Biases of a run (extra wandb)."""

from __future__ import annotations

from typing import Any

from dppo.errors import EXIT_FAILED, EXIT_FINISHED
from dppo.rundir.sending import Point, Sender, settings_of
from dppo.seams import RunInfo

LOGIN_S = 10
"""Seconds that W&B may wait for somebody who types a key."""


class WandB(Sender):
    """One run of W&B for all attempts, under dppo's `run_id`; its local files are in RUN/wandb.

    W&B's step is the iteration, of which it keeps the first line that it was sent: iterations that come again after a
    resume are there once.
    """

    def __init__(self, project: str) -> None:
        super().__init__()
        self._project = project

    def open(self, run: RunInfo) -> None:
        import wandb

        self._run = wandb.init(
            project=self._project, id=run.run_id, name=run.run_dir.name, dir=str(run.run_dir),
            resume="allow" if run.resumed else None, allow_val_change=True,
            config=settings_of(run) | {"world_size": run.world_size},
            settings=wandb.Settings(console="off", silent=True, disable_git=True, login_timeout=LOGIN_S),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="env_steps")

    def send(self, points: list[Point]) -> None:
        for point in points:
            self._run.log({"env_steps": point.env_steps, **point.values}, step=point.iteration)

    def close(self, summary: dict[str, Any]) -> None:
        self._run.summary.update({f"summary/{name}": value for name, value in summary.items() if value is not None})
        self._run.finish(EXIT_FAILED if summary.get("exit") == "failed" else EXIT_FINISHED)
