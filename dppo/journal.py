"""Rank 0's books: counts, the window of 100 episodes, metrics, checkpoints, and whether the run ends.

Uses storage, state and console; the coordinators of both loops hand it reports and close its iterations.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dppo.batch import EnvState, Report
from dppo.config import Config
from dppo.console import Console
from dppo.preemption import Preemption
from dppo.state import TrainingState
from dppo.storage.checkpoint import Checkpoint, write_checkpoint
from dppo.storage.metrics import MetricsFile, TensorBoard, write_json

WINDOW = 100


@dataclass(slots=True)
class Summary:
    """What a run came to; RUN/summary.json holds the same."""

    env_steps: int = 0
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


class _History:
    """The actions of one worker's environments since their present episodes began; chunks are never changed."""

    def __init__(self) -> None:
        self.chunks: tuple[tuple[int, np.ndarray], ...] = ()
        self.last: Report | None = None
        self._saved: tuple[int, list[EnvState]] = (0, [])

    def copy(self) -> _History:
        """As it is now; chunks are shared."""
        out = _History()
        out.chunks, out.last, out._saved = self.chunks, self.last, self._saved
        return out

    def extend(self, report: Report) -> None:
        oldest = int(report.episode_first_rows.min())
        chunks = (*self.chunks, (report.first_row, report.env_actions))
        self.chunks = tuple((row, a) for row, a in chunks if len(a) and row + len(a) > oldest)
        self.last = report

    def start_from(self, row: int, envs: list[EnvState]) -> None:
        """Takes over what a checkpoint held: one chunk that ends at `row`, as long as the longest episode."""
        self._saved = (row, envs)
        longest = max((len(e.actions) for e in envs), default=0)
        if longest:
            template = next(e.actions for e in envs if len(e.actions))
            chunk = np.zeros((longest, len(envs), *template.shape[1:]), template.dtype)
            for i, e in enumerate(envs):
                if len(e.actions):
                    chunk[longest - len(e.actions) :, i] = e.actions
            self.chunks = ((row - longest, chunk),)

    def states(self) -> tuple[int, list[EnvState]]:
        """(rows so far, where each environment stands)."""
        report = self.last
        if report is None:
            return self._saved
        row = report.first_row + len(report.env_actions)
        return row, [
            EnvState(
                report.first_env + i,
                row,
                int(report.episode_numbers[i]),
                self._actions(i, int(report.episode_first_rows[i])),
                np.asarray(report.observations[i]),
                float(report.episode_returns[i]),
                int(report.episode_lengths[i]),
                float(report.discounted_returns[i]),
            )
            for i in range(len(report.episode_numbers))
        ]

    def _actions(self, i: int, first_row: int) -> np.ndarray:
        parts = [a[max(0, first_row - row) :, i] for row, a in self.chunks if row + len(a) > first_row]
        if parts:
            return np.concatenate(parts)
        return self.chunks[0][1][:0, i] if self.chunks else np.empty((0,), np.int64)


@dataclass(slots=True)
class _Boundary:
    """A moment at which the run could be saved."""

    state: dict[str, Any]
    journal: dict[str, Any]
    histories: dict[int, _History]
    summary: Summary


class Journal:
    """Keeps the books of a run on rank 0.

    Args:
      first_worker_rank: rank of worker 0; files are named after ranks.
      saved: the journal's part of the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        state: TrainingState,
        preemption: Preemption,
        console: Console,
        *,
        num_workers: int,
        world_size: int,
        attempt: int,
        wall_s: float,
        started: float,
        saved: Checkpoint | None,
    ) -> None:
        self.run_dir, self.config, self.preemption, self.console = run_dir, config, preemption, console
        self._state = state
        self._first_rank = 0 if world_size == 1 else 1
        self._histories = {w: _History() for w in range(num_workers)}
        self._pending: list[Report] = []
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._episodes = 0
        self._next_episode = 0  # above every episode number that was ever used, also by environments since dropped
        self._train_s_before, self._wall_s_before = 0.0, wall_s
        self._started = started
        self._first_step_at: float | None = None
        self._last_close = (time.monotonic(), 0)
        self.summary = Summary(
            attempt=attempt, world_size=world_size, env=config.env, run_dir=str(run_dir), wall_s=wall_s
        )
        if saved is not None:
            self._load(saved, num_workers)
        self._metrics = MetricsFile(run_dir / "metrics.jsonl", state.iteration)
        self._tensorboard = TensorBoard(run_dir / "tensorboard", state.env_steps) if config.log.tensorboard else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Any] | None = None
        self._next_checkpoint = state.env_steps + config.checkpoint.every
        self._boundary = self._snapshot()
        self._update_summary("running")

    def _load(self, saved: Checkpoint, num_workers: int) -> None:
        books = saved.journal
        self._window.extend(books["returns"])
        self._lengths.extend(books["lengths"])
        self._episodes, self._train_s_before = books["episodes"], books["train_s"]
        self._next_episode = books["next_episode"]
        envs = {e.env: e for _, states in saved.ranks.values() for e in states}
        rows = max((row for row, _ in saved.ranks.values()), default=0)
        n = self.config.num_envs
        for worker in range(num_workers):
            mine = [envs[g] for g in range(worker * n, (worker + 1) * n) if g in envs]
            if len(mine) == n:  # with some of them missing, the worker's first report starts the history anew
                self._histories[worker].start_from(rows, mine)

    # -- while the run goes on --------------------

    def start_training(self) -> None:
        """Just before the first environment step."""
        self._first_step_at = time.monotonic()
        self._last_close = (self._first_step_at, self._state.env_steps)

    def add(self, report: Report) -> None:
        """A rollout of a worker; counted with the iteration that is closed next."""
        self._pending.append(report)
        self._next_episode = max(self._next_episode, int(report.episode_numbers.max()) + 1)
        self._histories[report.worker].extend(report)

    @property
    def pending_env_steps(self) -> int:
        """Transitions that were reported since the last iteration was closed."""
        return sum(r.env_steps for r in self._pending)

    @property
    def pending_rollouts(self) -> int:
        """Rollouts that were reported since the last iteration was closed."""
        return len(self._pending)

    def close(self, extra: dict[str, Any]) -> str | None:
        """Closes the iteration that the state has just finished: metrics, checkpoint, verdict.

        Returns:
          Why the run ends here ("target", "finished", "preempted"), or None.
        """
        reports, self._pending = sorted(self._pending, key=lambda r: r.worker), []
        episodes = sorted((e for r in reports for e in r.episodes), key=lambda e: (e.row, e.env))
        self._window.extend(e.episode_return for e in episodes)
        self._lengths.extend(e.length for e in episodes)
        self._episodes += len(episodes)
        self._boundary = self._snapshot()
        reason = self._reason()
        self._write_metrics(reports, len(episodes), extra)
        if reason is not None:
            self.finish(reason)
        elif self.config.checkpoint.every and self._state.env_steps >= self._next_checkpoint:
            self._next_checkpoint = self._state.env_steps + self.config.checkpoint.every
            self._save_meanwhile()
        return reason

    def _reason(self) -> str | None:
        target = self.config.target_return
        if target is not None and len(self._window) == WINDOW and np.mean(self._window) >= target:
            return "target"
        if self._state.env_steps >= self.config.total_steps:
            return "finished"
        return "preempted" if self.preemption.requested else None

    def _write_metrics(self, reports: list[Report], ended: int, extra: dict[str, Any]) -> None:
        state, now = self._state, time.monotonic()
        since, steps_then = self._last_close
        self._last_close = (now, state.env_steps)
        metrics: dict[str, Any] = {
            "iteration": state.iteration,
            "env_steps": state.env_steps,
            "updates": state.updates,
            "episodes": self._episodes,
            "episodes_ended": ended,
            "return_mean_100": float(np.mean(self._window)) if self._window else None,
            "length_mean_100": float(np.mean(self._lengths)) if self._lengths else None,
            **state.metrics(),
            **extra,
            "wall_s": self._wall_s_before + now - self._started,
            "train_s": self._train_s(now),
            "iteration_s": now - since,
            "steps_per_s": (state.env_steps - steps_then) / max(now - since, 1e-9),
        }
        for name in ("collect_s", "learn_s", "exchange_s"):
            spent = [getattr(r, name) for r in reports]
            metrics[name.replace("_s", "_max_s")] = max(spent, default=0.0)
            metrics[name.replace("_s", "_mean_s")] = float(np.mean(spent)) if spent else 0.0
        self._metrics.write(metrics)
        if self._tensorboard is not None:
            self._tensorboard.write(state.env_steps, metrics)
        if self.console.progress_due():
            self.console.progress(self._progress_text(metrics))

    def _progress_text(self, metrics: dict[str, Any]) -> str:
        mean = metrics["return_mean_100"]
        parts = [
            f"{metrics['env_steps']:>10,} steps",
            f"{metrics['train_s']:7.1f} s",
            f"{metrics['env_steps'] / max(metrics['train_s'], 1e-9):>9,.0f} steps/s",
            f"return {mean:9.2f} (last {len(self._window)})" if mean is not None else "no episode has ended yet",
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
            "returns": list(self._window),
            "lengths": list(self._lengths),
            "episodes": self._episodes,
            "next_episode": self._next_episode,
            "train_s": self._train_s(now),
        }
        histories = {worker: history.copy() for worker, history in self._histories.items()}
        summary = Summary(**asdict(self.summary))
        summary.env_steps, summary.updates = self._state.env_steps, self._state.updates
        summary.episodes, summary.train_s = self._episodes, self._train_s(now)
        summary.return_mean_100 = float(np.mean(self._window)) if self._window else None
        return _Boundary(self._state.as_dict(), books, histories, summary)

    def _write(self, boundary: _Boundary) -> None:
        ranks = {w + self._first_rank: h.states() for w, h in boundary.histories.items()}
        numbers = boundary.state["numbers"]
        checkpoint = Checkpoint(numbers["env_steps"], numbers["iteration"], boundary.state, boundary.journal, ranks)
        write_checkpoint(self.run_dir, checkpoint, self.config.checkpoint.keep)

    def save_start(self) -> None:
        """The checkpoint at step 0: a job that is killed at any time can be resumed."""
        self._write(self._boundary)

    def save_at_once(self) -> None:
        """Writes the last boundary now: whoever asked the run to leave may kill it before the next one."""
        self._check_writing()
        try:
            self._write(self._boundary)
        except OSError as error:
            self.console.warn(f"the state could not be saved at once: {error}; the next boundary tries again")
            return
        self._update_summary("preempted")

    def _save_meanwhile(self) -> None:
        """Writes the last boundary in a thread: nobody waits for the disk."""
        if self._writing is not None and not self._writing.done():
            return  # the disk is slower than the interval: the next boundary will do
        self._check_writing()
        self._writing = self._writer.submit(self._write, self._boundary)

    def _check_writing(self) -> None:
        if self._writing is not None and (error := self._writing.exception()) is not None:
            self.console.warn(f"a checkpoint could not be written: {error}; training goes on from the one before")
        self._writing = None

    def finish(self, reason: str) -> None:
        """Saves the last boundary and says how the run ended. After it nothing is counted any more."""
        self._check_writing()
        self._write(self._boundary)
        self._update_summary(reason)
        self.close_files()

    def fail(self) -> None:
        """The run ends by an error: the summary says so, checkpoints stay as they are."""
        self._update_summary("failed")
        self.close_files()

    def close_files(self) -> None:
        """Everything that was logged is on disk after it."""
        self._writer.shutdown(wait=True)
        self._metrics.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _update_summary(self, exit_reason: str) -> None:
        self.summary = self._boundary.summary
        self.summary.exit = exit_reason
        self.summary.wall_s = self._wall_s_before + time.monotonic() - self._started
        self.summary.steps_per_s = (
            self.summary.env_steps / max(self.summary.train_s, 1e-9) if self.summary.train_s else 0.0
        )
        write_json(self.run_dir / "summary.json", asdict(self.summary))
