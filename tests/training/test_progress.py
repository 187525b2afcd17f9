"""The progress line: share, time left, the best returns; what a narrow terminal shows of it."""

from __future__ import annotations

import io
from typing import Any

import pytest

from dppo.config import Config, EvalConfig
from dppo.console import Console
from dppo.training.progress import Part, Progress, clock, fitted


class Watching(Console):
    """Shows every line, on a terminal of `columns` or in a file."""

    def __init__(self, columns: int | None = None) -> None:
        super().__init__(60.0, stream=io.StringIO())
        self.columns = columns
        self.shown: list[str] = []

    @property
    def width(self) -> int | None:
        return self.columns

    def progress_due(self) -> bool:
        return True

    def progress(self, text: str) -> None:
        self.shown.append(text)


def line(env_steps: int, train_s: float, mean: float | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "env_steps": env_steps, "train_s": train_s, "iteration_s": 1.0, "steps_per_s": 1000.0, "episodes": 250,
        "return_mean_100": mean, "return_mean_100_settled": mean, "entropy": 0.5, "approx_kl": 0.01, **changes,
    }  # fmt: skip


def progress(console: Console, **others: Any) -> Progress:
    return Progress(console, Config(total_steps=100_000), **others)


def test_a_line_has_the_bar_the_share_the_time_left_and_the_best_return() -> None:
    console = Watching()
    its = progress(console)
    its.iteration(line(1000, 1.0))
    its.iteration(line(45_500, 45.5, 180.0))
    its.iteration(line(46_000, 46.0, 170.0))
    assert console.shown == [
        "[                    ]    1%       1,000 steps  0:00:01  0:01:39 left    1,000 steps/s"
        "  no episode has ended yet  entropy 0.500  kl 0.0100",
        "[#########           ]   45%      45,500 steps  0:00:46  0:00:54 left    1,000 steps/s"
        "  return 180.00  (last 100)  best 180.00  entropy 0.500  kl 0.0100",
        "[#########           ]   46%      46,000 steps  0:00:46  0:00:54 left    1,000 steps/s"
        "  return 170.00  (last 100)  best 180.00  entropy 0.500  kl 0.0100",
    ]


def test_the_time_left_follows_from_the_last_minutes() -> None:
    """10,000 steps in the first 1000 s, then 100 a second."""
    console = Watching()
    its = progress(console)
    for second in range(1, 1001):
        its.iteration(line(10 * second, second, steps_per_s=10.0))
    assert "2:30:00 left" in console.shown[-1] and " 10 steps/s" in console.shown[-1]
    for second in range(1, 301):
        its.iteration(line(10_000 + 100 * second, 1000 + second))
    assert "0:10:00 left" in console.shown[-1] and " 100 steps/s" in console.shown[-1]


def test_a_resumed_run_has_its_speed_from_its_first_iteration() -> None:
    console = Watching()
    progress(console).iteration(line(60_000, 5000.0, iteration_s=2.0, steps_per_s=500.0))
    assert "0:01:20 left" in console.shown[0] and " 60%" in console.shown[0]


def test_without_steps_the_time_left_is_not_known() -> None:
    console = Watching()
    progress(console).iteration(line(0, 1.0, steps_per_s=0.0))
    assert "? left" in console.shown[0]


@pytest.mark.parametrize("settings", [{"target_return": 475.0}, {"eval": EvalConfig(every=100, target_return=1.0)}])
def test_a_run_with_a_target_may_end_before(settings: dict[str, Any]) -> None:
    console = Watching()
    Progress(console, Config(total_steps=100_000, **settings)).iteration(line(1000, 1.0))
    assert "at most 0:01:39 left" in console.shown[0]


def test_the_mean_of_the_first_short_episodes_is_no_best() -> None:
    console = Watching()
    its = progress(console)
    its.iteration(line(1000, 1.0, 300.0, return_mean_100_settled=None, episodes=3))
    assert "return 300.00  (last 3, short ones first)" in console.shown[0] and "best" not in console.shown[0]


def test_the_best_of_before_a_resume_counts() -> None:
    console = Watching()
    its = progress(
        console, best=200.0, evaluations=[{"return_mean": 210.0}, {"return_mean": None}, {"return_mean": 205.0}]
    )
    its.iteration(line(1000, 1.0, 180.0))
    assert "best 200.00  evaluated 205.00, best 210.00" in console.shown[0]
    its.evaluation({"return_mean": 220.0})
    its.iteration(line(1000, 1.0, 230.0))
    assert "best 230.00  evaluated 220.00, best 220.00" in console.shown[1]


def test_a_huge_return_takes_few_columns() -> None:
    console = Watching()
    its = progress(console, best=-1.5e300, evaluations=[{"return_mean": 1e308}])
    its.iteration(line(1000, 1.0, 2e12))
    assert "return 2e+12" in console.shown[0] and "evaluated 1e+308, best 1e+308" in console.shown[0]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (100, "[#########           ]   45%      45,500 steps  0:00:54 left  return 180.00  best 180.00"),
        (79, "[#########           ]   45%  0:00:54 left  return 180.00  best 180.00"),
        (40, " 45%  0:00:54 left  return 180.00"),
        (20, " 45%  0:00:54 left"),
        (5, " 45%"),
    ],
)
def test_a_narrow_terminal_shows_what_is_most_important(columns: int, shown: str) -> None:
    console = Watching(columns)
    progress(console).iteration(line(45_500, 45.5, 180.0))
    assert console.shown == [shown] and len(shown) <= columns


def test_parts_are_left_out_whole() -> None:
    parts = [Part("a" * 5, 2), Part("b" * 5, 0), Part("c" * 5, 1)]
    assert fitted(parts, None) == fitted(parts, 19) == "aaaaa  bbbbb  ccccc"
    assert [fitted(parts, width) for width in (18, 12, 11, 3)] == ["aaaaa  ccccc", "aaaaa  ccccc", "aaaaa", "aaaaa"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (360_000, "100:00:00")])
def test_times_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text
