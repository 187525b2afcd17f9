"""A lock keeps other processes out as long as its own, or a program that inherits it, lives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from dppo.study.lock import lock


def test_one_at_a_time(tmp_path: Path) -> None:
    first = lock(tmp_path / "it")
    assert first is not None and lock(tmp_path / "it") is None and lock(tmp_path / "it", shared=True) is None
    os.close(first)
    again = lock(tmp_path / "it")
    assert again is not None
    os.close(again)


def test_several_that_share_it(tmp_path: Path) -> None:
    held = [lock(tmp_path / "it", shared=True) for _ in range(2)]
    assert None not in held and lock(tmp_path / "it") is None
    for descriptor in held:
        os.close(descriptor or 0)


def test_a_program_that_inherits_it_keeps_it(tmp_path: Path) -> None:
    own = lock(tmp_path / "it")
    assert own is not None
    program = subprocess.Popen(["sleep", "60"], pass_fds=[own])
    os.close(own)
    assert lock(tmp_path / "it") is None
    program.kill()
    program.wait()
    assert lock(tmp_path / "it") is not None
