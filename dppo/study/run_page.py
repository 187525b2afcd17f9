"""The page of one run: returns, losses, where the time goes, what happened, settings, how to repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dppo.rundir.runs import Run
from dppo.study.charts import Band, Bars, Chart, Item, Line, Mark, Points, Stack, short_number
from dppo.study.history import History
from dppo.study.page import Cell, Details, Figures, Page, Section, Table, Text, number_cell
from dppo.study.provenance import repeat_parts, settings_parts

STEPS, RETURN = "environment steps", "return"
LEARNING = (
    ("entropy", "Entropy", "nats"), ("approx_kl", "Divergence from the acting policy", "approx. KL, nats"),
    ("value_loss", "Value loss", "½ (V - R)²"), ("policy_loss", "Policy loss", "loss"),
    ("explained_variance", "Explained variance", "share"), ("clip_fraction", "Clipped ratios", "share of samples"),
    ("grad_norm", "Gradient before clipping", "norm"), ("lr", "Learning rate", "learning rate"),
    ("loss", "Loss", "loss"), ("kl_coef", "Weight of the KL penalty", "weight"),
    ("minibatches", "Updates of an iteration", "updates"),
)  # fmt: skip
"""Metrics of learning: key, title of the chart, and of its y axis."""
SHOWN_ELSEWHERE = {
    "iteration", "env_steps", "steps_learnt_from", "updates", "episodes", "episodes_ended", "return_mean_100",
    "return_mean_100_settled", "wall_s", "train_s", "iteration_s", "steps_per_s", "staleness_mean", "staleness_p95",
    "staleness_max", "env_slowest_by_s", "collect_mean_s", "collect_max_s", "learn_mean_s", "learn_max_s",
    "exchange_mean_s", "exchange_max_s", "env_step_mean_s", "env_step_max_s", "env_reset_mean_s", "env_reset_max_s",
    "env_waiting_per_s", *(key for key, *_ in LEARNING),
}  # fmt: skip
COUNTS = (
    ("ranks_lost", "ranks that died"), ("ranks_replaced", "ranks replaced"), ("updates_lost", "updates lost"),
    ("env_steps_lost", "environment steps lost"), ("episodes_cut", "episodes cut"),
    ("env_restarts", "environments restarted"), ("rollouts_cut", "rollouts cut (of the last iteration)"),
)  # fmt: skip


def run_page(run: Run, history: History) -> Page:
    """Returns the page of a run."""
    name = run.folder.resolve().name
    parts: list[tuple[str, Iterable[Any]]] = [
        ("Overview", _overview(run, history)),
        ("Returns", _returns(run, history)),
        ("Cases", _cases(history)),
        ("Learning", _learning(history)),
        ("Time", _time(history)),
        ("Staleness", _staleness(history)),
        ("Deaths and resumes", _events(history)),
        ("Settings", settings_parts(run.config)),
        ("How to repeat it", repeat_parts(run, history)),
        ("Other metrics", _others(history)),
    ]
    sections = [Section(title, made) for title, given in parts if (made := list(given))]
    env = run.summary.get("env") or (run.config.env if run.config else "?")
    return Page(name, f"{env}, {run.state}, {run.folder}", sections)


# -- overview and returns --------------------


def _overview(run: Run, history: History) -> Iterable[Any]:
    if run.reason:
        yield Text([f"{run.state}: {run.reason}"], "bad" if not run.ended else "")
    if history.notes:
        yield Text(history.notes, "bad")
    pairs = [("state", run.state)]
    for key, title in (
        ("return_mean_100", "mean return, last 100"), ("env_steps", STEPS), ("episodes", "episodes"),
        ("updates", "updates"), ("train_s", "training, s"), ("wall_s", "in all, s"), ("steps_per_s", "steps/s"),
        ("world_size", "ranks"), ("attempt", "attempt"),
    ):  # fmt: skip
        value = run.number(key)
        if value is None and (column := history.column(key))[np.isfinite(column)].size:
            value = float(column[np.isfinite(column)][-1])
        if value is not None:
            pairs.append((title, f"{value:,.0f}" if abs(value) >= 100 or value.is_integer() else f"{value:.4g}"))
    if best := _best(history):
        pairs.append(("best evaluation", short_number(float(best["return_mean"]))))
    yield Figures(pairs)


def _returns(run: Run, history: History) -> Iterable[Any]:
    steps = history.steps
    items: list[Item] = []
    if len(history.episode_returns):
        items.append(Points("an episode", history.episode_steps, history.episode_returns, 0))
    for key, name, colour in (
        ("return_mean_100", "mean of the last 100", 1), ("return_mean_100_settled", "mean of the last 100 settled", 3),
    ):  # fmt: skip
        if history.has(key):
            items.append(Line(name, steps, history.column(key), colour, is_dashed=colour == 3))
    items += _evaluation_items(history)
    target = run.config.target_return if run.config else None
    if target is not None and len(steps):
        items.append(Line("target", steps[[0, -1]], np.full(2, target), 6, is_dashed=True))
    if not items:
        yield Text(["No episode has ended."])
        return
    counted = history.column("episodes_ended")
    ended = int(np.nansum(counted)) if np.isfinite(counted).any() else len(history.episode_returns)
    note = ""
    if ended > len(history.episode_returns):
        note = f"{len(history.episode_returns):,} of {ended:,} episodes are known one by one."
    yield Chart("Returns", STEPS, RETURN, items, marks(history), note, is_wide=True, height=330)
    seconds = history.column("train_s")
    if history.has("return_mean_100") and len(steps) > 1:
        lines = [Line("mean of the last 100", seconds, history.column("return_mean_100"), 1)]
        yield Chart("Returns over time", "seconds of training", RETURN, lines)
    if history.has("length_mean_100"):
        lines = [Line("mean of the last 100", steps, history.column("length_mean_100"), 2)]
        yield Chart("Length of episodes", STEPS, "steps", lines)
    if history.evaluations:
        yield Details(f"{len(history.evaluations)} evaluations", [_evaluation_table(history.evaluations)])


def _evaluation_items(history: History) -> list[Item]:
    at, mean, low, high = (
        np.array([_number(line.get(key)) for line in history.evaluations])
        for key in ("env_steps", "return_mean", "return_min", "return_max")
    )
    if not np.isfinite(mean).any():
        return []
    return [Band("evaluation: least to greatest", at, low, high, 2), Line("evaluation: mean", at, mean, 2)]


def _evaluation_table(lines: Sequence[dict[str, Any]]) -> Table:
    keys = [
        key for key in dict.fromkeys(key for line in lines for key in line) if key not in ("checkpoint", "best")
        and any(np.isfinite(_number(line.get(key))) for line in lines)
    ]  # fmt: skip
    rows = []
    for line in lines:
        tone = "strong" if line.get("best") is True else ""
        numbers = [_number(line.get(key)) for key in keys]
        cells = [number_cell(n if np.isfinite(n) else None, f"{n:,.10g}", tone) for n in numbers]
        rows.append([Cell(str(line.get("checkpoint") or ""), None, tone), *cells])
    return Table(["checkpoint", *keys], rows, "Marked: better than all before.")


def _best(history: History) -> dict[str, Any] | None:
    known = [line for line in history.evaluations if np.isfinite(_number(line.get("return_mean")))]
    return max(known, key=lambda line: line["return_mean"], default=None)


def _cases(history: History) -> Iterable[Chart]:
    names = [key.split("/", 1)[1].rpartition("/")[0] for key in history.columns if key.startswith("cases/")]
    lines = [
        Line(name, history.steps, history.column(f"cases/{name}/return_mean_100"), number)
        for number, name in enumerate(dict.fromkeys(names))
    ]
    if lines:
        yield Chart("Returns of each case", STEPS, "mean return of the last 100", lines, is_wide=True)


# -- learning and time --------------------


def _learning(history: History) -> Iterable[Chart]:
    for key, title, unit in LEARNING:
        column = history.column(key)
        known = column[np.isfinite(column)]
        if len(known) and (key not in ("clip_fraction", "minibatches") or len(np.unique(known)) > 1):
            yield Chart(title, STEPS, unit, [Line(key, history.steps, column)], marks(history), is_robust=True)


def time_parts(history: History) -> list[tuple[str, np.ndarray]]:
    """Splits each iteration's seconds by the clock among what the mean worker does in it: name and seconds [I].

    Learning is told in the line after. The seconds of steps and resets follow from their means; where they are not
    known (vector forms), they are in "acting".
    """

    def known(key: str) -> np.ndarray:
        return np.maximum(np.nan_to_num(history.column(key)), 0.0)

    collect, iteration = known("collect_mean_s"), known("iteration_s")
    learn, exchange = (np.append(known(key)[1:], 0.0) for key in ("learn_mean_s", "exchange_mean_s"))
    exchange = np.minimum(exchange, learn)
    workers = np.maximum(known("workers"), 1)
    stepped = np.minimum(known("env_step_mean_s") * np.diff(history.steps, prepend=0.0) / workers, collect)
    reset = np.minimum(known("env_reset_mean_s") * known("episodes_ended") / workers, collect - stepped)
    parts = [
        ("environment steps", stepped), ("resets", reset), ("acting", collect - stepped - reset),
        ("learning", learn - exchange), ("exchange", exchange),
        ("waiting and other", np.maximum(iteration - collect - learn, 0.0)),
    ]  # fmt: skip
    if not history.has("env_step_mean_s"):
        del parts[:2]
        parts[0] = ("stepping and acting", collect)
    return parts


def _time(history: History) -> Iterable[Any]:
    steps = history.steps
    if len(steps) and history.has("collect_mean_s"):
        parts = time_parts(history)
        whole = np.maximum(np.sum([seconds for _, seconds in parts], axis=0), 1e-12)
        layers = [(name, 100 * seconds / whole) for name, seconds in parts]
        yield Chart(
            "Where the time goes", STEPS, "% of an iteration", [Stack(steps, layers)], marks(history), is_wide=True,
            y_range=(0.0, 100.0), note="Of the mean worker. Waiting and other: for slower workers, for rank 0, saving.",
        )  # fmt: skip
        total = max(float(sum(seconds.sum() for _, seconds in parts)), 1e-12)
        rows = [
            [
                Cell(name),
                number_cell(s := float(seconds.sum()), f"{s:,.1f}"),
                number_cell(s / total, f"{s / total:.1%}"),
            ]
            for name, seconds in parts
        ]
        yield Table(["", "seconds", "share"], rows)
    for title, unit, keys in (
        ("Speed", "environment steps/s", ("steps_per_s",)),
        ("Collecting", "s", ("collect_mean_s", "collect_max_s")),
        ("Learning, waiting included", "s", ("learn_mean_s", "learn_max_s")),
        ("Exchange: waiting for other ranks", "s", ("exchange_mean_s", "exchange_max_s")),
        ("A step of an environment", "s", ("env_step_mean_s", "env_step_max_s")),
        ("A reset of an environment", "s", ("env_reset_mean_s", "env_reset_max_s")),
        ("Ranks of an environment wait for their worker", "share of the time", ("env_waiting_per_s",)),
    ):
        lines = [Line(key, steps, history.column(key), n) for n, key in enumerate(keys) if history.has(key)]
        if lines:
            yield Chart(title, STEPS, unit, lines, marks(history), is_robust=True)


# -- what happened --------------------


def _staleness(history: History) -> Iterable[Chart]:
    if len(history.staleness):
        names = (("staleness_mean", "mean"), ("staleness_p95", "95% are below"), ("staleness_max", "greatest"))
        lines = [Line(name, history.steps, history.column(key), n) for n, (key, name) in enumerate(names)]
        yield Chart("Staleness of gradients", STEPS, "versions", lines, marks(history))
        bars = Bars("versions old", np.arange(len(history.staleness), dtype=float), history.staleness)
        yield Chart("Gradients of each staleness", "versions old", "gradients", [bars])


def marks(history: History) -> list[Mark]:
    """Returns the deaths, replacements and resumes of a run, and its best evaluation, by environment steps."""
    found = []
    for key, kind, what in (("ranks_lost", "death", "died"), ("ranks_replaced", "replaced", "replaced")):
        for at, count in _rises(history, key):
            ranks = "rank" if count == 1 else "ranks"
            found.append(Mark(at, kind, f"{count} {ranks} {what}, by step {at:,.0f}"))
    for number, attempt in enumerate(history.attempts[1:], 2):
        at = _number(attempt.get("env_steps"))
        if np.isfinite(at):
            found.append(Mark(at, "resume", f"attempt {number} began at step {at:,.0f}, {attempt.get('time', '')}"))
    if best := _best(history):
        at = float(best["env_steps"])
        found.append(
            Mark(at, "best", f"best evaluation: {short_number(float(best['return_mean']))}, at step {at:,.0f}")
        )
    return sorted(found, key=lambda mark: mark.x)


def _rises(history: History, key: str) -> list[tuple[float, int]]:
    """Returns where a count has risen, and by how much."""
    column = np.nan_to_num(history.column(key))
    rise = np.diff(column, prepend=0.0)
    return [(float(history.steps[i]), int(rise[i])) for i in np.flatnonzero(rise > 0)]


def _events(history: History) -> Iterable[Any]:
    happened = [mark for mark in marks(history) if mark.kind != "best"]
    counts = []
    for key, name in COUNTS:
        column = history.column(key)
        known = column[np.isfinite(column)]
        if len(known) and known[-1]:
            counts.append((name, f"{known[-1]:,.0f}"))
    if not happened and not counts:
        return
    if counts:
        yield Figures(counts)
    if happened:
        rows = [[Cell(mark.text), Cell(mark.kind), number_cell(mark.x, f"{mark.x:,.0f}")] for mark in happened]
        yield Table(["event", "kind", STEPS], rows, num_left=2)
    workers = history.column("workers")
    if len(np.unique(workers[np.isfinite(workers)])) > 1:
        yield Chart("Workers", STEPS, "workers", [Line("workers", history.steps, workers)], marks(history))


# -- the rest --------------------


def _others(history: History) -> Iterable[Details]:
    """Charts of all numbers that are in no other section and that vary."""
    charts = []
    for key, column in sorted(history.columns.items()):
        known = column[np.isfinite(column)]
        if key not in SHOWN_ELSEWHERE and not key.startswith("cases/") and len(known) and known.min() < known.max():
            charts.append(Chart(key, STEPS, key, [Line(key, history.steps, column)], is_robust=True, height=180))
    if charts:
        yield Details(f"{len(charts)} further metrics", charts)


def _number(value: Any) -> float:
    """Returns a number as a float; NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else float("nan")
