"""What rank 0 shows: lines that stay, and progress at the rate that suits a terminal or a file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from dppo.console import Console, escaped, markdown_table

PROGRAM = """if True:
    from dppo.console import Console, escaped, markdown_table
    console = Console(interval_s=60.0)
    console.line("first")
    for i in range(3):
        console.progress(f"at {i}")
    console.line("last")
"""


def test_in_a_file_progress_comes_at_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(interval_s=60.0)
    assert console.progress_due()
    console.progress("10 steps")
    assert not console.progress_due()
    assert capsys.readouterr().out == "10 steps\n"


def test_in_a_file_there_are_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(interval_s=60.0)
    console.progress("10 steps")
    console.line("done")
    console.warn("careful")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("10 steps\ndone\n", "dppo: careful\n")


def test_a_console_that_is_not_enabled_shows_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(interval_s=60.0, enabled=False)
    console.line("nothing")
    assert not console.progress_due()
    console.warn("careful")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "dppo: careful\n")


def run_on_a_terminal(**variables: str) -> str:
    """What PROGRAM writes to a pseudo-terminal."""
    main, side = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OMPI_")} | {"COLUMNS": "40"} | variables
    subprocess.run([sys.executable, "-c", PROGRAM], stdout=side, env=environ, check=True)
    os.close(side)
    out = os.read(main, 10_000).decode()
    os.close(main)
    return out


def test_on_a_terminal_one_line_is_redrawn_and_wiped_before_others() -> None:
    erase = "\r\x1b[2K"
    assert run_on_a_terminal() == f"first\r\n{erase}at 0{erase}at 1{erase}at 2{erase}last\r\n"


def test_under_mpirun_the_pseudo_terminal_of_a_rank_is_not_believed() -> None:
    """Its parent's output says whether a person watches; pytest's is captured in a file here."""
    out = run_on_a_terminal(OMPI_COMM_WORLD_SIZE="4")
    assert "\x1b" not in out or os.readlink("/proc/self/fd/1").startswith(("/dev/pts/", "/dev/tty"))


def test_progress_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second row could not be wiped."""
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", PROGRAM.replace("at {i}", "{'x' * 100}"))
    rows = run_on_a_terminal().split("\x1b[2K")
    assert max(len(row.strip()) for row in rows) <= 40


@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_what_cannot_be_shown_ends_nothing(where: str) -> None:
    """Output may go to a file on a full disk, or to `head`."""
    program = (
        PROGRAM
        + """
    from dppo.console import end_output, say
    say("on stderr")
    end_output()
    """
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") if where == "closed" else open(where, "w") as file:
        done = subprocess.run([sys.executable, "-c", program], stdout=file, stderr=file, check=False)
    assert done.returncode == 0


# -- tables --------------------


def test_a_table_is_markdown_and_reads_well() -> None:
    assert markdown_table(["name", "x"], [["a|b", "1"], ["c", "12345"]], left=1) == [
        "| name |     x |",
        "| ---- | ----: |",
        "| a\\|b |     1 |",
        "| c    | 12345 |",
    ]


def test_a_table_of_no_rows() -> None:
    assert markdown_table(["a"], []) == ["|   a |", "| --: |"]


def test_markdown_of_all_kinds_is_escaped() -> None:
    assert escaped("a~t~ $x$ *b* _c_ [d](e) <f>") == (r"a\~t\~ \$x\$ \*b\* \_c\_ \[d\](e) \<f\>")
