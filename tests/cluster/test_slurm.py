"""What Slurm says of a job. That it says it on a real cluster is in tests/slurm/."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dppo.cluster.slurm import Allocation, ends_at, in_queue, room, this_allocation


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that answers with what is in the file."""
    answer, program = tmp_path / "answer", tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return answer


def test_without_a_batch_system_there_is_nothing_to_say() -> None:
    assert this_allocation({}) == Allocation()
    assert ends_at({}) is None


@pytest.mark.parametrize("text", ["", "many", "-1", "²", "1e3", "9" * 5000, str(10**18)])
def test_nonsense_counts_as_not_said(squeue: Path, text: str) -> None:
    squeue.write_text("no such job")
    names = ("SLURM_NTASKS", "SLURM_RESTART_COUNT", "SLURM_JOB_END_TIME")
    environ = {"SLURM_JOB_ID": "17", **dict.fromkeys(names, text)}
    assert this_allocation(environ) == Allocation("17", restarts=0, num_tasks=1)
    assert ends_at(environ) is None


def test_a_job(squeue: Path) -> None:
    environ = {
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "6",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_JOB_END_TIME": "17000000000",
    }
    assert this_allocation(environ) == Allocation("17", restarts=2, num_tasks=6)
    assert ends_at(environ) == 17000000000
    assert not squeue.with_name("asked").exists()


def test_a_task_of_an_array(squeue: Path) -> None:
    environ = {"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
    assert this_allocation(environ).job_id == "17_3"


def test_an_older_slurm_is_asked_when_the_job_ends(squeue: Path) -> None:
    end = int(time.time()) + 3600
    squeue.write_text(time.strftime("%Y-%m-%dT%H:%M:%S\n", time.localtime(end)))
    environ = {"SLURM_JOB_ID": "17"}
    assert this_allocation(environ) == Allocation("17")
    assert not squeue.with_name("asked").exists()  # only a run needs to know when the job ends
    assert ends_at(environ) == end
    assert squeue.with_name("asked").read_text() == "--noheader --jobs 17 --format %e\n"


def test_a_time_that_has_passed_is_left_over_from_another_job(squeue: Path) -> None:
    environ = {"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": str(int(time.time()) - 60)}
    squeue.write_text("")
    assert ends_at(environ) is None
    squeue.write_text(time.strftime("%Y-%m-%dT%H:%M:%S\n", time.localtime(1700000000)))
    assert ends_at(environ) is None
    end = int(time.time()) + 3600
    squeue.write_text(time.strftime("%Y-%m-%dT%H:%M:%S\n", time.localtime(end)))
    assert ends_at(environ) == end


@pytest.mark.parametrize(
    "answer", ["NONE\n", "N/A\n", "", "slurm_load_jobs error: Unable to contact slurm controller\n"]
)
def test_a_limit_that_is_not_known_is_none(squeue: Path, answer: str) -> None:
    squeue.write_text(answer)
    assert ends_at({"SLURM_JOB_ID": "17"}) is None


def test_numbers_that_are_none_are_left_out(squeue: Path) -> None:
    squeue.write_text("")
    environ = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "many", "SLURM_RESTART_COUNT": "", "SLURM_JOB_END_TIME": "soon"}
    assert this_allocation(environ) == Allocation("17")
    assert ends_at(environ) is None


@pytest.mark.parametrize(
    ("answer", "expected"), [("RUNNING\n", True), ("PENDING\n", True), ("COMPLETED\n", False), ("", False)]
)
def test_a_job_in_the_queue(squeue: Path, answer: str, expected: bool) -> None:
    squeue.write_text(answer)
    assert in_queue("17_3") is expected
    assert squeue.with_name("asked").read_text() == "--noheader --jobs 17_3 --format %T\n"


def test_without_squeue_no_job_is_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not in_queue("17")


@pytest.mark.parametrize(
    ("tasks", "answer", "expected"),
    [
        ("5(x2),3", "n1\nn2\nn9\n", [("n1", 5), ("n2", 5), ("n9", 3)]),
        ("4", "n1\n", [("n1", 4)]),
        ("5(x2)", "n1\n", []),
        ("", "", []),
        ("many", "n1\n", []),
    ],
)
def test_the_room_on_each_node(
    tasks: str, answer: str, expected: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$*" = "show hostnames n[1-9]" ] && printf "{answer}"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-9]")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", tasks)
    assert room() == expected
    scontrol.unlink()
    monkeypatch.setenv("PATH", "")
    assert room() == []
