"""The progress line: how far the run is, how long it still takes, and how good the policy is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from dppo.config import Config
from dppo.console import Console
from dppo.rundir.evaluations import return_of
from dppo.rundir.metrics_file import better
from dppo.seams import Recorder
from dppo.training.episodes import WINDOW

RATE_S = 180.0
"""Seconds of training over which the speed is measured: what a run did hours ago says little of what is left."""
SAMPLE_S = 1.0
"""Seconds between two samples of the speed."""
BAR = 20
"""Characters of the bar."""


class Part(NamedTuple):
    """A part of the line."""

    text: str
    importance: int
    """Where a terminal is too narrow, the parts with the lowest numbers are left out first."""


class Progress(Recorder):
    """Shows a line of progress whenever the console wants one.

    Args:
      best: the best return before this attempt; None: there is none.
      evaluations: the lines of evaluations.jsonl before this attempt.
    """

    def __init__(
        self, console: Console, config: Config, *, best: float | None = None, evaluations: Iterable[dict[str, Any]] = ()
    ) -> None:
        self._console, self._total = console, config.total_steps
        self._may_end_early = config.target_return is not None or config.eval.target_return is not None
        self._best = best
        self._evaluated: float | None = None
        self._best_evaluated: float | None = None
        self._samples = deque[tuple[float, float]]()  # (train_s, env_steps), the oldest first
        for line in evaluations:
            self.evaluation(line)

    def iteration(self, line: dict[str, Any]) -> None:
        """Takes in a line, and shows the progress if it is time to."""
        self._best = better(self._best, line)
        self._sample(line)
        if self._console.progress_due():
            self._console.progress(fitted(self._parts(line), self._console.width))

    def evaluation(self, line: dict[str, Any]) -> None:
        """Takes in the figures of an evaluation, for the next line."""
        if (value := return_of(line)) is not None:
            self._evaluated = value
            self._best_evaluated = value if self._best_evaluated is None else max(value, self._best_evaluated)

    def _sample(self, line: dict[str, Any]) -> None:
        now, steps = line["train_s"], line["env_steps"]
        if not self._samples:  # as if the attempt had begun one iteration ago
            took = line["iteration_s"]
            self._samples.append((now - took, steps - line["steps_per_s"] * took))
        if now - self._samples[-1][0] >= SAMPLE_S or len(self._samples) == 1:
            self._samples.append((now, steps))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_S:
            self._samples.popleft()

    def _rate(self, line: dict[str, Any]) -> float:
        """Returns the steps per second of the last minutes."""
        then, steps = self._samples[0]
        return max(0.0, line["env_steps"] - steps) / max(line["train_s"] - then, 1e-9)

    def _parts(self, line: dict[str, Any]) -> list[Part]:
        share, rate, mean = min(1.0, line["env_steps"] / self._total), self._rate(line), line["return_mean_100"]
        left = clock((self._total - line["env_steps"]) / rate) if rate else "?"
        parts = [
            Part(f"[{'#' * int(BAR * share):{BAR}}]", 6),
            Part(f"{math.floor(100 * share):3}%", 10),
            Part(f"{line['env_steps']:>10,} steps", 5),
            Part(f"{clock(line['train_s'])}", 3),
            Part(f"{'at most ' if self._may_end_early else ''}{left} left", 9),
            Part(f"{rate:>7,.0f} steps/s", 4),
        ]
        if mean is None:
            parts.append(Part("no episode has ended yet", 8))
        else:
            parts += [Part(f"return {_number(mean)}", 8), Part(f"({_of_which(line)})", 2)]
        if self._best is not None:
            parts.append(Part(f"best {_number(self._best)}", 7))
        if self._evaluated is not None:
            assert self._best_evaluated is not None
            reached = f"evaluated {_number(self._evaluated)}, best {_number(self._best_evaluated)}"
            parts.append(Part(reached, 7))
        return [*parts, Part(f"entropy {line['entropy']:.3f}", 1), Part(f"kl {line['approx_kl']:.4f}", 0)]


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e9 else f"{value:.4g}"


def fitted(parts: list[Part], width: int | None) -> str:
    """Returns the line, without the least important parts if it is wider than `width`; None: there is no limit."""
    left = list(parts)
    while width is not None and len(left) > 1 and len(_joined(left)) > width:
        left.remove(min(left, key=lambda part: part.importance))
    return _joined(left)


def _joined(parts: list[Part]) -> str:
    return "  ".join(part.text for part in parts)


def _of_which(line: dict[str, Any]) -> str:
    first = ", short ones first" if line["return_mean_100_settled"] is None else ""
    return f"last {min(line['episodes'], WINDOW)}{first}"


def clock(seconds: float) -> str:
    """Returns a time as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
