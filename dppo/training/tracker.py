"""Rank 0's books: counts, metrics, checkpoints, and whether the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from dppo.cluster.signals import Preemption
from dppo.config import Config
from dppo.console import Console
from dppo.data import EnvState, Report
from dppo.errors import Failure
from dppo.rundir.checkpoint import Checkpoint, write_checkpoint
from dppo.rundir.runfiles import TRAJECTORIES, RunFiles
from dppo.training.counters import WINDOW, EpisodeCounter
from dppo.training.replay import History
from dppo.training.state import TrainingState
from dppo.trajectories.commits import Dumps
from dppo.trajectories.writer import Sealed

LAST_ATTEMPT = 0.8
"""Share of the grace period after which a disk that refuses the last checkpoint is not asked again."""


@dataclass(slots=True)
class Summary:
    """What a run came to; RUN/summary.json holds the same."""

    env_steps: int = 0
    steps_learnt_from: int = 0
    updates: int = 0
    episodes: int = 0
    return_mean_100: float | None = None
    wall_s: float = 0.0
    train_s: float = 0.0
    steps_per_s: float = 0.0
    exit: str = "running"
    attempt: int = 1
    world_size: int = 1
    env: str = ""
    run_dir: str = ""
    error: str | None = None
    """What went wrong, where exit is failed."""
    preempted_by: str | None = None
    """What asked the run to save and leave, where exit is preempted."""
    stalled: bool = False
    """It went wrong because ranks made no progress or did not answer: starting again may help."""


@dataclass(slots=True)
class Losses:
    """What deaths and resumes have cost so far; in every line of metrics.jsonl, and in checkpoints."""

    ranks_lost: int = 0
    ranks_replaced: int = 0
    updates_lost: int = 0
    env_steps_lost: int = 0
    episodes_cut: int = 0


@dataclass(slots=True)
class _Boundary:
    """A moment at which the run could be saved."""

    state: dict[str, Any]
    journal: dict[str, Any]
    histories: dict[int, History]
    summary: Summary
    limits: dict[int, int]
    """The row behind each present worker's part of it."""


class Journal:
    """Keeps the books of a run on rank 0.

    Args:
      workers: their numbers; a checkpoint's files are named after the ranks that they had at the start.
      books: what `books` gave, of a checkpoint or of a server that died; None: a run that begins.
      histories: by worker, of the same moment or later; of whom it lacks, the environments begin new episodes on
      resume.
      next_segments: of trajectories, by rank, where the run goes on.
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
        books: dict[str, Any] | None = None,
        histories: dict[int, History] | None = None,
        first_rank: int | None = None,
        next_segments: dict[int, int] | None = None,
    ) -> None:
        self.run_dir, self.config, self.preemption, self.console = run_dir, config, preemption, console
        self._state = state
        self._first_rank = int(world_size > 1) if first_rank is None else first_rank
        self._histories = {w: History() for w in workers} | (histories or {})
        self._rows: dict[int, int] = {}  # of each worker, the first that was not counted yet
        self.workers = list(workers)
        enabled = config.trajectories.enabled
        required = config.trajectories.required
        before = next_segments or {}
        self.dumps = Dumps[_Boundary](run_dir, self._first_rank, before, required=required) if enabled else None
        self.losses = Losses()
        self.progress: Callable[[str], None] = lambda phase: None
        """Told where rank 0 itself waits for the disk."""
        self.ended = False
        self._exit, self._concluded = "running", False
        self._pending: list[Report] = []
        self._episodes = EpisodeCounter(config.num_envs, books)
        self._said_cut = self._said_stuck = False
        self._next_episode = 0  # above every episode number that was ever used, also by environments since dropped
        self._train_s_before, self._wall_s_before = 0.0, wall_s
        self._started = started
        self._first_step_at: float | None = None
        self._last_close = (time.monotonic(), 0)
        self.summary = Summary(
            attempt=attempt, world_size=world_size, env=config.env, run_dir=str(run_dir), wall_s=wall_s
        )
        if books is not None:
            self._load(books)
        self.files = RunFiles(
            run_dir, config.checkpoint, console.warn, last_iteration=state.iteration, first_step=state.env_steps,
            tensorboard=config.log.tensorboard,
        )  # fmt: skip
        self._next_checkpoint = state.env_steps + config.checkpoint.every
        self._boundary = self._snapshot()
        self._update_summary("running")

    def _load(self, books: dict[str, Any]) -> None:
        self._train_s_before, self._next_episode = books["train_s"], books["next_episode"]
        self.losses = Losses(**books.get("losses", {}))
        self._rows = dict(books.get("rows", {}))

    # -- while the run goes on --------------------

    def start_training(self) -> None:
        """Just before the first environment step, and again after a regrouping."""
        self.losses.episodes_cut += self._episodes.wait_for(self.workers, self._state.iteration)
        self.start_clock()

    def start_clock(self) -> None:
        """Time counts as training from here on; the first call decides."""
        if self._first_step_at is not None:
            return
        self._first_step_at = time.monotonic()
        self._last_close = (self._first_step_at, self._state.env_steps)

    def add(self, report: Report) -> bool:
        """A rollout of a worker; counted with the iteration that is closed next. False: it was told before."""
        if report.first_row < self._rows.get(report.worker, 0):
            return False
        self._rows[report.worker] = report.first_row + len(report.env_actions)
        self._pending.append(report)
        self._next_episode = max(self._next_episode, int(report.episode_numbers.max()) + 1)
        self._histories.setdefault(report.worker, History()).extend(report)
        return True

    def catch_up(self, line: dict[str, Any]) -> None:
        """The books are those of a server that died, which has written on until `line`: what was added since belongs to
        the iterations before.
        """
        told, self._pending = sorted(self._pending, key=attrgetter("iteration")), []
        for iteration, reports in groupby(told, attrgetter("iteration")):
            self._episodes.count(list(reports), iteration + 1)
        self._episodes.total, self._train_s_before = line["episodes"], line["train_s"]
        self.losses = Losses(**{name: line[name] for name in Losses.__dataclass_fields__})
        self._boundary = self._snapshot()

    def regrouped(self, world_size: int, workers: Sequence[int]) -> None:
        """Ranks were lost or replaced."""
        self.workers = list(workers)
        self._boundary.limits = {w: row for w, row in self._boundary.limits.items() if w in self.workers}
        if self.dumps is not None and self.dumps.is_waiting:  # some that a checkpoint waits for may have died
            self._try_next_boundary()
        self._boundary.summary.world_size = self.summary.world_size = world_size
        self._boundary.journal["losses"] = asdict(self.losses)

    def hand_over(self, worker: int) -> tuple[dict[int, EnvState], int, int]:
        """Where this worker's environments stand, for whoever takes its place, as `Collector.restore` takes it: by
        global number, rows so far, first free episode number.
        """
        envs = self._histories[worker].states()[1] if worker in self._histories else []
        row = max((*(h.next_row for h in self._histories.values()), *self._rows.values()), default=0)
        if self.dumps is not None:  # it may have written more than it could tell of
            row = max(row, self.dumps.end_row(worker))
        self._histories[worker] = History()
        self._histories[worker].start_from(row, envs)
        return {e.env: e for e in envs}, row, self._next_episode

    @property
    def pending_env_steps(self) -> int:
        """Transitions that were reported since the last iteration was closed."""
        return sum(r.env_steps for r in self._pending)

    @property
    def pending_rollouts(self) -> int:
        """Rollouts that were reported since the last iteration was closed."""
        return len(self._pending)

    @property
    def books(self) -> dict[str, Any]:
        """What a server that takes over has to know in addition to the state; as of the last boundary."""
        return self._boundary.journal

    def _count_episodes(self) -> tuple[list[Report], int]:
        """(reports, episodes that ended in them) since the last iteration was closed."""
        reports, self._pending = sorted(self._pending, key=attrgetter("worker")), []
        cut = sum(len(r.episodes_cut) for r in reports)
        self.losses.episodes_cut += cut
        if cut and not self._said_cut:
            self._said_cut = True
            self.console.warn(
                f"{cut} episode(s) could not be restored and are left out of all figures: from here on the numbers are"
                " not those of a run that was never stopped"
            )
        return reports, self._episodes.count(reports, self._state.iteration)

    def close(self, extra: dict[str, Any], *, passing: bool = False) -> str | None:
        """Closes the iteration that the state has just finished: metrics, checkpoint, verdict.

        Args:
          passing: only the metrics of it are known, not the whole state: the next one is closed at once.

        Returns:
          Why the run ends here ("target", "finished", "preempted"), or None.

        Raises:
          SavingError: the disk has refused a checkpoint for too long.
        """
        reports, num_episodes = self._count_episodes()
        if passing:
            self._write_metrics(reports, num_episodes, extra)
            return None
        self._boundary = self._snapshot()
        reason = self._reason()
        self._write_metrics(reports, num_episodes, extra)
        if reason is not None:
            self.finish(reason)
            return reason
        every = self.config.checkpoint.every
        if (every and self._state.env_steps >= self._next_checkpoint) or self.files.owes_checkpoint:
            self._next_checkpoint = self._state.env_steps + every
            self._save_meanwhile()
        self.files.look()
        return None

    def _reason(self) -> str | None:
        target = self.config.target_return
        if target is not None and self._episodes.reached(target):
            return "target"
        if target is not None and (mean := self._episodes.return_mean) is not None and mean >= target:
            self._name_the_stuck()
        if self._state.env_steps >= self.config.total_steps:
            return "finished"
        return "preempted" if self.preemption.requested else None

    def _name_the_stuck(self) -> None:
        if (stuck := self._episodes.stuck) is None or self._said_stuck:
            return
        self._said_stuck = True
        env, since = stuck
        self.console.warn(
            f"the last {WINDOW} episodes reach --target-return, but environment {env} (worker"
            f" {env // self.config.num_envs}) has been in one episode since iteration {int(since) + 1}: the target"
            " counts as reached when that has ended, too; a time limit (max_episode_steps) would end it"
        )

    def _write_metrics(self, reports: list[Report], ended: int, extra: dict[str, Any]) -> None:
        state, now = self._state, time.monotonic()
        since, steps_then = self._last_close
        self._last_close = (now, state.env_steps)
        metrics: dict[str, Any] = {
            "iteration": state.iteration,
            "env_steps": state.env_steps,
            "steps_learnt_from": state.steps_learnt_from,
            "updates": state.updates,
            "episodes": self._episodes.total,
            "episodes_ended": ended,
            "return_mean_100": self._episodes.return_mean,
            "return_mean_100_settled": self._episodes.settled_mean,
            "length_mean_100": self._episodes.length_mean,
            **state.metrics(),
            **extra,
            "rollouts_cut": sum(len(r.env_actions) < (self.config.horizon or 0) for r in reports),
            "workers": len(self.workers),
            **asdict(self.losses),
            "wall_s": self._wall_s_before + now - self._started,
            "train_s": self._train_s(now),
            "iteration_s": now - since,
            "steps_per_s": (state.env_steps - steps_then) / max(now - since, 1e-9),
        }
        for name in ("collect_s", "learn_s", "exchange_s"):
            spent = [getattr(r, name) for r in reports]
            metrics[name.replace("_s", "_max_s")] = max(spent, default=0.0)
            metrics[name.replace("_s", "_mean_s")] = float(np.mean(spent)) if spent else 0.0
        self.files.log(state.env_steps, metrics)
        if self.console.progress_due():
            self.console.progress(self._progress_text(metrics))

    def _progress_text(self, metrics: dict[str, Any]) -> str:
        mean, last = metrics["return_mean_100"], f"last {min(self._episodes.total, WINDOW)}"
        if metrics["return_mean_100_settled"] is None:
            last += ", short ones first"
        parts = [
            f"{metrics['env_steps']:>10,} steps",
            f"{metrics['train_s']:7.1f} s",
            f"{metrics['env_steps'] / max(metrics['train_s'], 1e-9):>9,.0f} steps/s",
            f"return {mean:9.2f} ({last})" if mean is not None else "no episode has ended yet",
            f"entropy {metrics['entropy']:.3f}",
            f"kl {metrics['approx_kl']:.4f}",
        ]
        return "  ".join(parts)

    # -- saving --------------------

    def _train_s(self, now: float) -> float:
        return self._train_s_before + (now - self._first_step_at if self._first_step_at is not None else 0.0)

    def _snapshot(self) -> _Boundary:
        now = time.monotonic()
        books = {
            **self._episodes.books,
            "next_episode": self._next_episode,
            "train_s": self._train_s(now),
            "losses": asdict(self.losses),
            "rows": dict(self._rows),
        }
        state = self._state.as_dict()
        state["numbers"]["ticket"] = 0  # a server that took over within an iteration: on resume it begins again
        histories = {worker: history.copy() for worker, history in self._histories.items()}
        summary = Summary(**asdict(self.summary))
        summary.env_steps, summary.updates = self._state.env_steps, self._state.updates
        summary.steps_learnt_from = self._state.steps_learnt_from
        summary.episodes, summary.train_s = self._episodes.total, self._train_s(now)
        summary.return_mean_100 = self._episodes.return_mean
        limits = {worker: histories[worker].next_row for worker in self.workers if worker in histories}
        return _Boundary(state, books, histories, summary, limits)

    def _write(self, boundary: _Boundary) -> None:
        ranks = {w + self._first_rank: h.states() for w, h in boundary.histories.items()}
        numbers = boundary.state["numbers"]
        named = {} if self.dumps is None else self.dumps.named({rank: row for rank, (row, _) in ranks.items()})
        checkpoint = Checkpoint(
            numbers["env_steps"], numbers["iteration"], boundary.state, boundary.journal, ranks,
            {rank: n.next_segment for rank, n in named.items()},
            {rank: n.missing_rows for rank, n in named.items() if n.missing_rows},
        )  # fmt: skip
        write_checkpoint(self.run_dir, checkpoint, self.config.checkpoint.keep)

    def save_start(self) -> None:
        """The checkpoint at step 0: a job that is killed at any time can be resumed."""
        self._write(self._boundary)

    def save_at_once(self) -> None:
        """Writes the last boundary now: whoever asked the run to leave may kill it before the next one. Where
        trajectories are written, as soon as they are.
        """
        if self.dumps is not None:
            self.dumps.ask(self._boundary, self._boundary.limits)
        else:
            self._write_at_once(self._boundary)

    def _write_at_once(self, boundary: _Boundary) -> None:
        self.progress("checkpoint")
        if self.files.save(lambda: self._write(boundary)):
            self._update_summary("preempted")
        self.files.tell()

    def _save_meanwhile(self) -> None:
        """Writes the last boundary in a thread: nobody waits for the disk."""
        if self.files.is_writing:
            return  # the disk is slower than the interval: the next boundary will do
        if self.dumps is None:
            self._write_meanwhile(self._boundary)
        elif (late := self.dumps.expired()) is not None:
            self.console.warn("a worker does not write its trajectories: a checkpoint is made without its last ones")
            self._write_meanwhile(late)
        elif not self.dumps.is_waiting:
            self.dumps.ask(self._boundary, self._boundary.limits)

    def _try_next_boundary(self) -> None:
        assert self.dumps is not None
        self.dumps.give_up()
        self._next_checkpoint = self._state.env_steps

    def _write_meanwhile(self, boundary: _Boundary) -> None:
        self.files.save_meanwhile(lambda: self._write(boundary))

    def take_seal_orders(self) -> dict[int, int]:
        """{worker: row}: what a checkpoint that waits needs to have written, each once."""
        return {} if self.dumps is None else self.dumps.take_orders()

    def sealed(self, answer: Sealed) -> None:
        """A worker's account of its trajectories."""
        assert self.dumps is not None
        known = self.dumps.problem
        waited = self.dumps.is_waiting
        boundary = self.dumps.answer(answer)
        if answer.refusal is not None:
            refusal = self.dumps.refusal
            self.files.hear(TRAJECTORIES, None if refusal is None else OSError(refusal))
        self.files.lacks_steps = self.dumps.problem is not None
        if known is None and self.dumps.problem is not None and not self.dumps.ends_the_run:
            self.console.warn(f"{self.dumps.problem}{'' if self.ended else '; training goes on'}")
        if self.ended:
            return
        if boundary is None:
            if waited and not self.dumps.is_waiting and not self.dumps.ends_the_run:
                self._try_next_boundary()
            return
        if self.preemption.requested:
            self._write_at_once(boundary)
        else:
            self._write_meanwhile(boundary)

    def finish(self, reason: str) -> None:
        """The run ends at the last boundary; after it nothing is counted any more. Where trajectories are written,
        `conclude` has to be called once they are.

        Raises:
          SavingError: as by `conclude`.
        """
        self.ended, self._exit = True, reason
        if self.dumps is None:
            self.conclude()
        else:
            self.dumps.ask(self._boundary, self._boundary.limits)

    @property
    def final_limits(self) -> dict[int, int]:
        """{worker: row} of the last boundary."""
        return self._boundary.limits

    def conclude(self) -> None:
        """Saves the last boundary and says how the run ended; once. Not where trajectories that were required are
        lost: a resume makes them anew. Waits for a disk that is full as long as that is allowed.

        Raises:
          SavingError: it was not well in time.
        """
        if self._concluded:
            return
        self._concluded = True
        self.progress("checkpoint")
        if self.dumps is not None and self.dumps.ends_the_run:
            self._boundary.summary.error = self.dumps.problem
            self._update_summary("failed")
        else:
            save = lambda: self._write(self._boundary)  # noqa: E731
            self.files.finish(save, lambda: self._update_summary(self._exit), self._may_wait)
        self.close_files()

    def _may_wait(self) -> bool:
        self.progress("checkpoint")
        return not self.preemption.past(LAST_ATTEMPT)

    def fail(self, failure: Failure) -> None:
        """The run ends by an error: the summary says so, checkpoints stay as they are."""
        self._boundary.summary.error, self._boundary.summary.stalled = failure
        self._update_summary("failed")
        self.close_files()

    def close_files(self) -> None:
        """Everything that was logged is on disk after it."""
        self.files.close()

    def _update_summary(self, exit_reason: str) -> None:
        self.summary = self._boundary.summary
        self.summary.exit = exit_reason
        self.summary.preempted_by = self.preemption.reason if exit_reason == "preempted" else None
        self.summary.wall_s = self._wall_s_before + time.monotonic() - self._started
        self.summary.steps_per_s = (
            self.summary.env_steps / max(self.summary.train_s, 1e-9) if self.summary.train_s else 0.0
        )
        self.files.write_summary(asdict(self.summary))
