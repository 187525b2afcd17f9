"""Rank 0's counters: rollouts, episodes, what deaths have cost, why the run ends. No clocks, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from dppo.config import Config
from dppo.data import Report
from dppo.rundir.summary import FINISHED, TARGET
from dppo.training.cases import CaseCounter
from dppo.training.episodes import EpisodeCounter
from dppo.training.state import TrainingState


@dataclass(slots=True)
class Losses:
    """The costs of deaths, resumes and failing environments so far, as in metrics.jsonl and checkpoints."""

    ranks_lost: int = 0
    ranks_replaced: int = 0
    updates_lost: int = 0
    env_steps_lost: int = 0
    episodes_cut: int = 0
    env_restarts: int = 0

    def as_dict(self) -> dict[str, int]:
        """Returns the numbers by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Counters:
    """The numbers of a run that are not the learner's.

    Args:
      saved: the result of `as_dict`, from a checkpoint or from a server that died; None: the run begins.
    """

    def __init__(self, config: Config, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {}
        self._total_steps, self._target = config.total_steps, config.target_return
        self.episodes = EpisodeCounter(config.num_envs, saved)
        self.cases = CaseCounter(config.cases, saved.get("cases"))
        self.losses = Losses(**saved.get("losses", {}))
        self.rows: dict[int, int] = dict(saved.get("rows", {}))
        """worker -> first row that was not counted yet."""
        self.next_episode: int = saved.get("next_episode", 0)
        """A number above every episode number that was ever used, also by environments that were dropped since."""
        self.train_s: float = saved.get("train_s", 0.0)
        """Seconds of training before this attempt."""
        self._pending: list[Report] = []

    def as_dict(self, train_s: float) -> dict[str, Any]:
        """Returns everything as plain values; `train_s` includes this attempt."""
        return {
            **self.episodes.as_dict(),
            "next_episode": self.next_episode,
            "train_s": train_s,
            "losses": self.losses.as_dict(),
            "rows": dict(self.rows),
            **({"cases": cases} if (cases := self.cases.as_dict()) else {}),
        }

    def add(self, report: Report) -> bool:
        """Adds a rollout to the iteration that is closed next. Returns False if it was added before."""
        if report.first_row < self.rows.get(report.worker, 0):
            return False
        self.rows[report.worker] = report.first_row + len(report.env_actions)
        self._pending.append(report)
        self.next_episode = max(self.next_episode, int(report.episode_numbers.max()) + 1)
        return True

    @property
    def pending_env_steps(self) -> int:
        """Number of transitions that were reported since the last iteration was closed."""
        return sum(r.env_steps for r in self._pending)

    @property
    def pending_rollouts(self) -> int:
        """Number of rollouts that were reported since the last iteration was closed."""
        return len(self._pending)

    def close_iteration(self, iteration: int) -> tuple[list[Report], int]:
        """Counts the episodes of the reports since the last call as episodes of `iteration`. Returns the reports, and
        how many episodes ended.
        """
        reports, self._pending = sorted(self._pending, key=attrgetter("worker")), []
        self.losses.episodes_cut += sum(len(r.episodes_cut) for r in reports)
        self.losses.env_restarts += sum(r.env_restarts for r in reports)
        self.cases.count(reports)
        return reports, self.episodes.count(reports, iteration)

    def wait_for(self, workers: Sequence[int], iteration: int) -> None:
        """Makes the environments of these workers take part from now on, and no others."""
        self.losses.episodes_cut += self.episodes.wait_for(workers, iteration)

    def catch_up(self, line: dict[str, Any]) -> None:
        """Brings a dead server's counters up to `line` of metrics.jsonl, the last that the server has written. The
        reports that were added since belong to the iterations up to this line.
        """
        pending, self._pending = sorted(self._pending, key=attrgetter("iteration")), []
        for iteration, reports in groupby(pending, attrgetter("iteration")):
            listed = list(reports)
            self.cases.count(listed)
            self.episodes.count(listed, iteration + 1)
        self.cases.correct(line.get("cases", {}))
        self.episodes.correct_total(line["episodes"])
        self.train_s = line["train_s"]
        self.losses = Losses(**{name: line.get(name, 0) for name in Losses.__dataclass_fields__})

    def reason_to_end(self, state: TrainingState) -> str | None:
        """Returns why the run ends by itself at this boundary: "target", "finished", or None."""
        if self._target is not None and self.episodes.reached(self._target):
            return TARGET
        return FINISHED if state.env_steps >= self._total_steps else None

    @property
    def waits_for_stuck(self) -> tuple[int, float] | None:
        """The environment whose episode does not end, and since which iteration, if only this episode keeps the run
        from its target; else None.
        """
        mean = self.episodes.return_mean
        if self._target is None or mean is None or mean < self._target:
            return None
        return self.episodes.stuck
