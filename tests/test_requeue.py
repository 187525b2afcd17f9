"""What Slurm is asked for. That jobs come back by it is in tests/slurm/."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dppo import requeue
from dppo.errors import EXIT_AGAIN, EXIT_FAILED, EXIT_USAGE
from dppo.requeue import changes

NODES = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "16"}


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that notes what it is asked, and fails as often as there are lines in the file `failures`."""
    program, asked = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    program.parent.mkdir()
    failures = tmp_path / "failures"
    failures.touch()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n'
        f"[ -s {failures} ] || exit 0\nsed -i 1d {failures}\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "19")
    monkeypatch.setattr(requeue, "BETWEEN_S", 0.0)
    return asked


@pytest.mark.parametrize(
    ("environ", "tasks"),
    [
        ({"SLURM_NTASKS": "32"}, ["NumTasks=16"]),
        ({"SLURM_NTASKS": "20"}, []),  # given by --ntasks
        ({"SLURM_NTASKS": "16", "SLURM_NNODES": "1"}, []),
        ({"SLURM_NTASKS": "32", "SLURM_NTASKS_PER_NODE": ""}, []),
    ],
    ids=str,
)
def test_a_job_does_not_insist_on_its_number_of_nodes(environ: dict[str, str], tasks: list[str]) -> None:
    assert changes(NODES | environ) == ["StartTime=now+10", *tasks]


def test_a_task_of_an_array_comes_back_alone(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "19")  # of one task it is the number of the whole array
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue.main([]) == EXIT_AGAIN
    assert scontrol.read_text().splitlines() == ["requeue 19_3", "update JobId=19_3 StartTime=now+10"]


def test_what_slurm_requeues_is_not_requeued_twice(scontrol: Path) -> None:
    assert requeue.main(["--is-requeued"]) == EXIT_AGAIN
    assert scontrol.read_text().splitlines() == ["update JobId=19 StartTime=now+10"]


def test_a_controller_that_is_away_is_waited_for(
    scontrol: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (scontrol.parent / "failures").write_text("\n" * 2)
    assert requeue.main([]) == EXIT_AGAIN
    assert scontrol.read_text().splitlines() == [*3 * ["requeue 19"], "update JobId=19 StartTime=now+10"]
    assert capsys.readouterr().err.count("Unable to contact slurm controller") == 2

    monkeypatch.setattr(requeue, "PATIENCE_S", 0.2)
    (scontrol.parent / "failures").write_text("\n" * 9999)
    assert requeue.main([]) == EXIT_FAILED
    assert "submit it again with RUN_DIR=" in capsys.readouterr().err


def test_outside_of_a_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue.main([]) == EXIT_USAGE
    assert "SLURM_JOB_ID" in capsys.readouterr().err


def test_a_job_that_is_cancelled_meanwhile_is_left_alone(scontrol: Path) -> None:
    program = scontrol.parent / "bin" / "scontrol"
    (scontrol.parent / "failures").write_text("\n" * 9)
    program.write_text(program.read_text().replace("exit 1", "kill -TERM $PPID; exit 1"))
    assert requeue.main([]) == EXIT_AGAIN
    assert [line.split()[0] for line in scontrol.read_text().splitlines()] == ["requeue", "update"]


def test_slurms_variables_without_a_slurm_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "19")  # left over, or passed into a container
    monkeypatch.setenv("PATH", "")
    assert requeue.main([]) == EXIT_USAGE
    assert "there is no scontrol on this machine" in capsys.readouterr().err
