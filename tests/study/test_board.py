"""What is shown of runs: lines in a file, a table on a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from dppo.settings.flags import from_values
from dppo.study import board as board_module
from dppo.study.board import Board, last_metrics
from dppo.study.local import Job

CONFIG = from_values({"env": "X-v0", "total-steps": 1000})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def job(folder: Path) -> Job:
    (folder / "metrics.jsonl").write_text(json.dumps({"env_steps": 250, "return_mean_100": 12.34}) + '\n{"env_st')
    return Job("task 3", folder, {}, {"optim.lr": 1e-3, "wrappers": ["a\x1b[31m", "[red]"]}, CONFIG)


def test_lines_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Board(lambda: "0 of 1", stream) as board:
        board.began(job(tmp_path))
        board.draw([job(tmp_path)])  # not so soon
        monkeypatch.setattr(board_module, "LINES_EVERY_S", 0.0)
        board.began(job(tmp_path))
        board.draw([job(tmp_path)])
    starts = "task 3 starts: optim.lr=0.001, wrappers=a\\x1b[31m [red]\n"
    assert stream.getvalue() == 2 * starts + "task 3: 25%, 250 steps, return 12.3, 0:00:00\n"


def test_a_table_on_a_terminal(tmp_path: Path) -> None:
    stream = Terminal()
    with Board(lambda: "0 of 1 tasks have ended", stream) as board:
        board.began(job(tmp_path))
        board.draw([job(tmp_path)])
        board.say("a line that stays")
    shown = stream.getvalue()
    assert "0 of 1 tasks have ended" in shown and "25%" in shown and "a line that stays" in shown
    assert "\x1b[31m" not in shown and "[red]" in shown


def test_an_output_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    board = Board(lambda: "", stream)
    stream.close()
    board.say("nobody reads this")


def test_a_run_without_metrics(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text("{")
    assert last_metrics(tmp_path) == {}
