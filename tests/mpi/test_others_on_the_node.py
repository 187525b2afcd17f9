"""Other users of a node, and other nodes, find nothing of a job that they could write to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from dppo.cluster import ports
from tests.launch import Job, Launcher
from tests.run_directory import count_lines

RANKS = 4
FLAGS = (
    "--num-envs", 2, "--horizon", 32, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--total-steps", 10**8,
    "--log.no-tensorboard",
)  # fmt: skip
LISTENS, LOOPBACK = "0A", {"0100007F", "00000000000000000000000001000000"}


def sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(file)
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def reachable(job: Job, *, may_be_tied: bool = False) -> list[str]:
    """Named Unix sockets of the ranks, and addresses outside loopback on which they listen."""
    out = []
    for rank in range(RANKS):
        pid = job.rank_pid(rank)
        mine = sockets(pid)
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[6] in mine and len(fields) > 7:
                out.append(fields[7])
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in mine and fields[3] == LISTENS and fields[1].partition(":")[0] not in LOOPBACK:
                    out.append(fields[1])
        everywhere = [address for address in out if not int(address.partition(":")[0], 16)] if may_be_tied else []
        if len(everywhere) <= tied_to_loopback(pid):
            out = [address for address in out if address not in everywhere]
    return out


def tied_to_loopback(pid: int) -> int:
    """How many sockets of a process listen on all networks and are tied to the loopback device all the same."""
    count = 0
    for file in ports._files_of(pid):
        with contextlib.suppress(OSError), ports._listening(file) as found:
            count += found.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
    return count


@pytest.mark.parametrize("survives", [False, True], ids=["plain", "ulfm"])
def test_a_job_on_one_node_can_be_reached_by_its_own_ranks_alone(
    survives: bool, launch: Launcher, tmp_path: Path
) -> None:
    """On two cores, so that workers are pooled."""
    run_dir = tmp_path / "run"
    flags = (*FLAGS, "--run-dir", run_dir)
    job = launch.start(RANKS, "dppo.run", *flags, program="on_two_cores.py", survives=survives)
    job.until(lambda: count_lines(run_dir) > 3)
    assert reachable(job) == []
    for path in Path("/dev/shm").glob("dppo-*"):
        assert path.stat().st_mode & 0o077 == 0
    job.send(signal.SIGUSR1)
    assert job.wait(20).code == 75
    # where dead ranks may have to be replaced MPI opens ports; so a settings file might say, or the run that goes on
    job = launch.start(
        RANKS, "dppo.run", "--resume", "--run-dir", run_dir, program="on_two_cores.py", survives=survives
    )
    lines = count_lines(run_dir)
    job.until(lambda: count_lines(run_dir) > lines + 3)
    assert reachable(job, may_be_tied=True) == []
    job.send(signal.SIGUSR1)
    assert job.wait(20).code == 75
