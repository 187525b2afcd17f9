"""Keeps track of a run on rank 0: closes each iteration, with a line of metrics, a checkpoint and the decision whether
the run ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dppo.cluster.signals import Preemption
from dppo.config import Config
from dppo.console import Console
from dppo.data import EnvState, Report
from dppo.envs.clock import seconds_of
from dppo.rundir.evaluations import read_evaluations
from dppo.rundir.runfiles import RunFiles
from dppo.rundir.summary import FINISHED, PREEMPTED, RUNNING, TARGET, Summary
from dppo.training.counters import Counters
from dppo.training.episodes import WINDOW
from dppo.training.evaluations import Evaluations
from dppo.training.evaluator import PlayingProcess
from dppo.training.progress import Progress
from dppo.training.replay import Replay
from dppo.training.saver import Boundary, CheckpointSaver
from dppo.training.state import TrainingState

MOST_RETURNS = 1000
"""The most returns of single episodes in a line of metrics.jsonl: a reader refuses lines of 1 MiB."""


class Tracker:
    """Ties a run's counters, recorders and saver together.

    Args:
      workers: the workers' numbers; a checkpoint's files are named after the ranks that they had at the start.
      started: time.monotonic() at this attempt's start.
      wall_s: seconds of the attempts before.
      counters: the result of `Counters.as_dict`, from a checkpoint or a server that died; None: the run begins.
      replays: worker -> replay, as old as `counters` or newer; on a resume, the environments of a worker without a
        replay begin new episodes.
      first_rank: the rank of worker 0.
      next_segments: rank -> number of its next segment of trajectories, if the run continues.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        state: TrainingState,
        preemption: Preemption,
        console: Console,
        *,
        workers: Sequence[int],
        world_size: int,
        attempt: int,
        wall_s: float,
        started: float,
        counters: dict[str, Any] | None = None,
        replays: dict[int, Replay] | None = None,
        first_rank: int | None = None,
        next_segments: dict[int, int] | None = None,
    ) -> None:
        self.config, self.preemption, self.console = config, preemption, console
        self._state, self.workers = state, list(workers)
        self._replays = {w: Replay() for w in workers} | (replays or {})
        self.counters = Counters(config, counters)
        self._said_cut = self._said_stuck = False
        self._wall_s_before, self._started = wall_s, started
        self._first_step_at: float | None = None
        self._last_close = (time.monotonic(), 0)
        self._summary = Summary(
            attempt=attempt, world_size=world_size, env=config.env, run_dir=str(run_dir), wall_s=wall_s
        )
        self.files = RunFiles(
            run_dir, config.checkpoint, console.warn, last_iteration=state.iteration, first_step=state.env_steps,
            tensorboard=config.log.tensorboard,
        )  # fmt: skip
        self.saver = CheckpointSaver(
            run_dir, config, self.files, preemption, self._make_boundary(), self._wall_s, console.warn,
            first_rank=int(world_size > 1) if first_rank is None else first_rank, next_segments=next_segments or {},
        )  # fmt: skip
        self.evaluations = Evaluations(
            run_dir, config, self.files, PlayingProcess(run_dir, config), preemption,
            self.files.recorders.evaluation, console.warn,
            iteration=state.iteration, env_steps=state.env_steps,
        )  # fmt: skip
        past = read_evaluations(run_dir)  # those behind the boundary are gone: they come again
        self.files.recorders.add(Progress(console, config, best=self.files.best_return, evaluations=past))
        self.saver.update_summary(RUNNING)

    # -- clocks --------------------

    def start_training(self) -> None:
        """Starts to wait for the workers' episodes, just before the first environment step and after each recovery."""
        self.counters.wait_for(self.workers, self._state.iteration)
        self.start_clock()

    def start_clock(self) -> None:
        """Makes time count as training, from the first call on."""
        if self._first_step_at is None:
            self._first_step_at = time.monotonic()
            self._last_close = (self._first_step_at, self._state.env_steps)

    def _train_s(self) -> float:
        since = 0.0 if self._first_step_at is None else time.monotonic() - self._first_step_at
        return self.counters.train_s + since

    def _wall_s(self) -> float:
        return self._wall_s_before + time.monotonic() - self._started

    # -- iterations --------------------

    def add(self, report: Report) -> bool:
        """Adds a worker's rollout to the iteration that is closed next. Returns False if it was added before."""
        is_new = self.counters.add(report)
        if is_new:
            self._replays.setdefault(report.worker, Replay()).extend(report)
            self.saver.note_states(report)
        return is_new

    def close(self, extra: dict[str, Any]) -> str | None:
        """Closes the iteration that the state has just finished: metrics, checkpoint, and whether the run ends.

        Returns:
          The reason if the run ends here ("target", "finished", "preempted"), else None.

        Raises:
          SavingError: the disk has refused a checkpoint for too long.
        """
        reports, ended = self._count_episodes()
        self.saver.boundary = self._make_boundary()
        self._record(reports, ended, extra)
        reason = self.counters.reason_to_end(self._state)
        if reason != TARGET:
            self._name_the_stuck()
        if reason is None and (stopped_by := self.files.recorders.stopped_by) is not None:
            reason, self.saver.boundary.summary.stopped_by = FINISHED, stopped_by
        reason = self.evaluations.at_boundary(self.saver.boundary.state, reason)
        if reason is None and self.preemption.requested:
            reason = PREEMPTED
        if reason is not None:
            self._finish(reason)
            return reason
        self.saver.remove_old_states()
        self.saver.save_if_due()
        self.files.look()
        return None

    def end_if_over(self) -> None:
        """Ends a run that continues where its training is over, or would have been: evaluations of it were missing."""
        over = self.counters.reason_to_end(self._state)
        if (reason := self.evaluations.at_start(self.saver.boundary.state, over)) is not None:
            self._finish(reason)

    def _finish(self, reason: str) -> None:
        summary = self.saver.boundary.summary
        summary.stopped_by = self.evaluations.stopped_by or summary.stopped_by
        if reason == PREEMPTED:
            summary.stopped_by = None  # a resume decides it again
        self.saver.finish(reason)

    def close_passed(self) -> None:
        """Closes an iteration of which only the metrics are known, not the state. The next one is closed at once."""
        self._record(*self._count_episodes(), {})

    def catch_up(self, line: dict[str, Any]) -> None:
        """Brings the counters of a server that died up to `line` of metrics.jsonl, the last that it has written."""
        self.counters.catch_up(line)
        self.saver.boundary = self._make_boundary()

    def _count_episodes(self) -> tuple[list[Report], int]:
        reports, ended = self.counters.close_iteration(self._state.iteration)
        cut = sum(len(r.episodes_cut) for r in reports)
        if cut and not self._said_cut:
            self._said_cut = True
            self.console.warn(
                f"{cut} episode(s) could not be restored and are left out of all figures: from here on the numbers are"
                " not those of a run that was never stopped"
            )
        return reports, ended

    def _name_the_stuck(self) -> None:
        if (stuck := self.counters.waits_for_stuck) is None or self._said_stuck:
            return
        self._said_stuck = True
        env, since = stuck
        self.console.warn(
            f"the last {WINDOW} episodes reach --target-return, but environment {env} (worker"
            f" {env // self.config.num_envs}) has been in one episode since iteration {int(since) + 1}: the target"
            " counts as reached when that has ended, too; a time limit (max_episode_steps) would end it"
        )

    def _make_boundary(self) -> Boundary:
        state, train_s, episodes = self._state, self._train_s(), self.counters.episodes
        saved = state.as_dict()
        saved["numbers"]["round"] = 0  # if a server took over within an iteration, a resume begins the iteration again
        replays = {worker: replay.copy() for worker, replay in self._replays.items()}
        summary = replace(
            self._summary, env_steps=state.env_steps, updates=state.updates,
            steps_learnt_from=state.steps_learnt_from, episodes=episodes.total, train_s=train_s,
            return_mean_100=episodes.return_mean,
        )  # fmt: skip
        rows = {worker: replays[worker].next_row for worker in self.workers if worker in replays}
        return Boundary(saved, self.counters.as_dict(train_s), replays, summary, rows)

    # -- metrics --------------------

    def _record(self, reports: list[Report], ended: int, extra: dict[str, Any]) -> None:
        self.files.log(self._metrics(reports, ended, extra))

    def _metrics(self, reports: list[Report], ended: int, extra: dict[str, Any]) -> dict[str, Any]:
        """Makes a line of metrics.jsonl. docs/metrics.md explains its keys.

        Args:
          extra: metrics that the coordinator of one protocol adds.
        """
        state, episodes, now = self._state, self.counters.episodes, time.monotonic()
        since, steps_then = self._last_close
        self._last_close = (now, state.env_steps)
        metrics: dict[str, Any] = {
            "iteration": state.iteration,
            "env_steps": state.env_steps,
            "steps_learnt_from": state.steps_learnt_from,
            "updates": state.updates,
            "episodes": episodes.total,
            "episodes_ended": ended,
            "return_mean_100": episodes.return_mean,
            "return_mean_100_settled": episodes.settled_mean,
            "length_mean_100": episodes.length_mean,
            "returns": _thinned(episodes.newest_returns),
            **state.metrics(),
            **extra,
            "rollouts_cut": sum(len(r.env_actions) < (self.config.horizon or 0) for r in reports),
            "workers": len(self.workers),
            **self.counters.losses.as_dict(),
            "wall_s": self._wall_s(),
            "train_s": self._train_s(),
            "iteration_s": now - since,
            "steps_per_s": (state.env_steps - steps_then) / max(now - since, 1e-9),
            **seconds_of((r.env_seconds for r in reports), ranks=self.config.env_ranks),
        }
        if self.config.cases:
            metrics["cases"] = self.counters.cases.metrics()
        for name in ("collect", "learn", "exchange"):
            spent = [getattr(r, f"{name}_s") for r in reports]
            metrics[f"{name}_max_s"] = max(spent, default=0.0)
            metrics[f"{name}_mean_s"] = sum(spent) / max(len(spent), 1)
        return metrics

    # -- recovery --------------------

    def regroup(self, world_size: int, workers: Sequence[int]) -> None:
        """Notes that ranks were lost or replaced, and that `workers` are left."""
        self.workers, self._summary.world_size = list(workers), world_size
        self.saver.boundary.summary.world_size = world_size
        self.saver.boundary.counters["losses"] = self.counters.losses.as_dict()
        self.saver.regroup(workers)

    def hand_over(self, worker: int) -> tuple[dict[int, EnvState], int, int]:
        """Returns the first three arguments of `Collector.restore` for the rank that becomes this worker: states of the
        environments by global number, rows so far, first free episode number.
        """
        envs = self._replays[worker].states()[1] if worker in self._replays else []
        row = max((*(r.next_row for r in self._replays.values()), *self.counters.rows.values()), default=0)
        if (dumps := self.saver.dumps) is not None:  # the worker may have written more than it has reported
            row = max(row, dumps.end_row(worker))
        self._replays[worker] = Replay()
        self._replays[worker].start_from(row, envs)
        return {e.env: e for e in envs}, row, self.counters.next_episode


def _thinned(returns: list[float]) -> list[float | None]:
    """Returns at most MOST_RETURNS of the episodes' returns, at even distances; None for what is not finite."""
    num = len(returns)
    if num > MOST_RETURNS:
        returns = [returns[k * num // MOST_RETURNS] for k in range(MOST_RETURNS)]
    return [value if math.isfinite(value) else None for value in returns]
