"""python -m dppo.report: sums up a run, a sweep, or any folder of runs, as text and as one HTML page."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dppo.console import escaped, markdown_table, say
from dppo.errors import EXIT_USAGE, UsageError, missing_package
from dppo.files import plain, replace_atomically
from dppo.settings.commands import Parser, until_its_reader_leaves
from dppo.study import curves, papers
from dppo.study.folder_page import folder_page
from dppo.study.history import read_history
from dppo.study.overview import AT_WORK, Report, make_report, submit
from dppo.study.page import FILE, Page, render
from dppo.study.papers import require_matplotlib
from dppo.study.results import Curves, Setting, learning_curve
from dppo.study.run_page import run_page
from dppo.study.search_section import text_lines as study_lines

RENEW_S, SHARE = 5.0, 4.0
"""Of --watch: the least seconds between two pages, and the least pause as a multiple of the time that a page takes."""

FIGURES = (
    "Figures are of the runs that ended by themselves: median and interquartile mean (IQM) over runs of the mean return"
    " of the last 100 training episodes, the IQM's 95% bootstrap interval, medians of environment steps and of training"
    " seconds. In the picture a setting has a value where at least half of its runs have one."
)


# -- as text --------------------


def text_lines(report: Report, folder: Path) -> list[str]:
    """Returns the report on `folder` as Markdown that reads well as plain text."""
    steps = "steps to target" if all(setting.has_target for setting in report.settings) else "steps"
    header = ("setting", "runs", "median", "IQM", "95% interval", steps, "seconds")
    lines = markdown_table(header, [_row(setting) for setting in report.settings], left=1)
    if report.study:
        lines = [*(escaped(line) for line in study_lines(report.study)), "", *lines]
    if report.notes:
        lines += ["", *(f"- {escaped(note)}" for note in report.notes)]
    if not report.problems:
        return [*lines, "", "All runs have ended by themselves."]
    lines += ["", f"{len(report.problems)} run(s) have not ended by themselves:", ""]
    for p in report.problems:
        name = p.run if p.task is None else f"task {p.task}"
        lines.append(f"- {escaped(f'{name} is {p.state}: {p.reason}. Repair: {p.repair}')}")
    again = [p.task for p in report.problems if p.task is not None and p.state not in AT_WORK]
    if len(again) > 1:
        lines += ["", f"All but those that run or come back by themselves: {escaped(submit(again, folder))}"]
    return lines


def _row(setting: Setting) -> list[str]:
    interval, steps, seconds = setting.interval(), setting.median("env_steps"), setting.median("train_s")
    reached = f" ({setting.reached}/{len(setting.runs)})" if setting.has_target else ""
    return [
        escaped(setting.label),
        f"{len(setting.ended)}/{len(setting.runs)}",
        _number(setting.median_return()),
        _number(setting.iqm()),
        f"[{_number(interval[0])}, {_number(interval[1])}]" if interval else "–",
        ("not reached" if steps == math.inf else "–" if steps is None else f"{steps:,.0f}") + reached,
        "–" if seconds in (None, math.inf) else _number(seconds),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def as_json(report: Report, folder: Path) -> dict[str, Any]:
    """Returns the report as a JSON object; null for unknown values, and for steps and seconds of a missed target."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    settings = [
        {
            "setting": s.label,
            "values": s.values,
            "env": s.env,
            "ended": len(s.ended),
            "runs": len(s.runs),
            "reached_target": s.reached if s.has_target else None,
            "returns": s.returns.tolist(),
            "return_median": s.median_return(),
            "return_iqm": s.iqm(),
            "return_interval": s.interval(),
            "env_steps": finite(s.median("env_steps")),
            "train_s": finite(s.median("train_s")),
            "run_dirs": [str(run.folder) for run in s.runs],
        }
        for s in report.settings
    ]
    problems = [problem._asdict() for problem in report.problems]
    return {"folder": str(folder), "settings": settings, "problems": problems, "notes": report.notes}


# -- files --------------------


def plot(report: Report, path: Path, read: Curves) -> tuple[bool, list[str]]:
    """Draws the best settings' learning curves. Returns whether that worked, and notes to show."""
    notes, drawn = [], []
    for setting in report.settings[: len(curves.COLOURS)]:
        for folder in (run.folder for run in setting.runs):
            if n := read.damaged(folder):
                notes.append(f"{folder}: {n} damaged line(s) of metrics.jsonl are not in the curve")
        curve = learning_curve([read(run.folder) for run in setting.runs])
        if curve is not None:
            drawn.append((setting.label, curve))
    if not drawn:
        return False, [*notes, "no plot: in no run has an episode ended"]
    try:
        curves.draw(path, drawn)
    except ImportError as error:
        return False, [*notes, f"no plot: {missing_package('Matplotlib', error)}"]
    if len(report.settings) > len(drawn):
        notes.append(f"{path.name} shows {len(drawn)} of {len(report.settings)} settings: the best that have a return")
    return True, notes


def _write(report: Report, folder: Path, read: Curves, *, with_plot: bool) -> list[str]:
    """Writes report.md and report.svg in `folder`. Returns notes to show."""
    drawn, notes = plot(report, folder / "report.svg", read) if with_plot else (False, [])
    text = [f"# {escaped(folder.resolve().name)}", "", *text_lines(report, folder), "", FIGURES, ""]
    if drawn:
        text += ["![Learning curves](report.svg)", ""]
    replace_atomically(folder / "report.md", "\n".join(text).encode())
    return notes


def make_page(reports: Sequence[tuple[Path, Report]], read: Curves, path: Path) -> Page:
    """Returns the page of a run where its run directory alone was given, else that of the folders."""
    runs = [run for _, report in reports for setting in report.settings for run in setting.runs]
    if len(reports) == len(runs) == 1 and runs[0].folder == reports[0][0]:
        return run_page(runs[0], read_history(runs[0].folder))
    return folder_page(reports, read, path)


# -- the command --------------------


def _parser() -> Parser:
    parser = Parser(
        prog="python -m dppo.report",
        description="Sums up a run, the runs of a sweep, or of any folder of runs, as text and as one HTML page.",
    )
    parser.add_argument(
        "folder", metavar="RUN|FOLDER", type=Path, nargs="+",
        help="a run directory, or a folder that is searched for run directories at any depth; several are compared",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the page, by default RUN|FOLDER/report.html")
    parser.add_argument("--figures", metavar="DIR", type=Path, help="the page's charts as PNG and PDF files as well")
    parser.add_argument("--watch", action="store_true", help="renew the page until the run has ended, or Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--no-plot", action="store_true", help="no report.svg")
    parser.add_argument("--no-page", action="store_true", help="no report.html")
    return parser


def _page_path(args: argparse.Namespace) -> Path:
    """Returns where the page goes. Raises UsageError where no page can be there."""
    path = args.output or (args.folder[0] if len(args.folder) == 1 else Path()) / FILE
    if path.suffix not in (".html", ".htm"):
        raise UsageError(f"-o {path}: the page is HTML, and the name of its file must end in .html")
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise UsageError(f"-o {path} is a folder: name a file")
    return Path(path)


@until_its_reader_leaves
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        reports = [(folder, make_report(folder)) for folder in args.folder]
        path = _page_path(args)
        if args.figures is not None:
            require_matplotlib()
        if args.watch:
            if args.no_page:
                raise UsageError("--watch renews the page, and --no-page asks for none: leave one out")
            reports = watch(args.folder, path)
    except UsageError as error:
        say(plain(error))
        return EXIT_USAGE
    if args.json:
        objects = [as_json(report, folder) for folder, report in reports]
        print(json.dumps(objects[0] if len(objects) == 1 else {"folders": objects}), flush=True)
    else:
        print("\n".join(_text(reports)), flush=True)
    notes = []
    read = Curves()
    try:
        for folder, report in reports:
            notes += _write(report, folder, read, with_plot=not args.no_plot)
    except OSError as error:
        notes += [f"report.md and report.svg cannot be written: {error}"]
    try:
        if not args.no_page or args.figures is not None:
            page = make_page(reports, read, path)
            if not args.no_page:
                write_page(page, path)
                if not args.json:
                    print(f"\nThe page: {plain(path)}", flush=True)
            if args.figures is not None:
                papers.write(page.charts(), args.figures)
    except (UsageError, OSError) as error:
        notes += [f"{path} cannot be written: {error}"]
    for note in notes:
        say(plain(note))
    return 0


def _text(reports: Sequence[tuple[Path, Report]]) -> Iterator[str]:
    for number, (folder, report) in enumerate(reports):
        if len(reports) > 1:
            yield from ([""] * bool(number) + [f"# {escaped(folder)}", ""])
        yield from text_lines(report, folder)


def write_page(page: Page, path: Path, reload_s: float | None = None) -> None:
    """Replaces the page's file. Raises UsageError where Jinja is missing, OSError where it cannot be written."""
    replace_atomically(path, render(page, made=time.strftime("%Y-%m-%d %H:%M:%S"), reload_s=reload_s))


def watch(folders: Sequence[Path], path: Path) -> list[tuple[Path, Report]]:
    """Renews the page until no run is under way, or Ctrl-C. Returns the last reports; the page of these is not written
    yet. Raises UsageError where the runs are gone, or there is no Jinja.
    """
    say(plain(f"{path} is renewed until the run ends; Ctrl-C stops"))
    reports: list[tuple[Path, Report]] = []
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            reports = [(folder, make_report(folder)) for folder in folders]
            if not any(report.is_under_way for _, report in reports):
                return reports
            try:
                write_page(make_page(reports, Curves(), path), path, RENEW_S)
            except OSError as error:  # a disk that is full for a while
                say(plain(f"{path} cannot be written: {error}; it is tried again"))
            time.sleep(max(RENEW_S, SHARE * (time.monotonic() - began)))
    return reports or [(folder, make_report(folder)) for folder in folders]


if __name__ == "__main__":
    sys.exit(main())
