"""mpirun over hosts without a batch system, joined by a network of 100 Mbit/s."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable

import pytest

from tests.run_directory import checkpoint, count_lines, differences, metric_lines, summary
from tests.slurm.emulation import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
RUN = (
    "-m", "dppo.run", "--num-envs", 8, "--horizon", 16, "--total-steps", 20 * 256, "--log.no-tensorboard", "--seed", 3
)  # fmt: skip
KEEPALIVE = {
    "PRTE_MCA_oob_tcp_keepalive_time": "4",
    "PRTE_MCA_oob_tcp_keepalive_intvl": "2",
    "PRTE_MCA_oob_tcp_keepalive_probes": "2",
}


@pytest.fixture(scope="module")
def slow_hosts(hosts: Cluster) -> Cluster:
    hosts("limit", "100mbit")
    return hosts


@pytest.mark.parametrize("exchange", ["allreduce", "p2p"])
def test_a_synchronous_run_on_two_hosts_is_that_of_one_host(exchange: str, slow_hosts: Cluster) -> None:
    runs = {}
    for where in ("n1:3", "n1:2,n2:1"):
        run_dir = slow_hosts.folder / "runs" / f"{exchange}-{where}"
        slow_hosts.mpirun(where, 3, *RUN, "--exchange", exchange, "--run-dir", run_dir)
        runs[where] = metric_lines(run_dir), checkpoint(run_dir)
    assert json.loads((run_dir / "versions.json").read_text())["hosts"] == ["n1", "n1", "n2"]
    (one, one_end), (two, two_end) = runs.values()
    assert len(one) == 20 and two == one
    assert not differences(two_end, one_end)


def test_an_asynchronous_run_on_two_hosts(slow_hosts: Cluster) -> None:
    run_dir = slow_hosts.folder / "runs" / "async"
    slow_hosts.mpirun("n1:1,n2:2", 3, *RUN, "--mode", "async", "--run-dir", run_dir)
    assert summary(run_dir)["exit"] == "finished"
    assert json.loads((run_dir / "versions.json").read_text())["hosts"] == ["n1", "n2", "n2"]


def test_a_cut_cable_ends_the_job_on_both_hosts(slow_hosts: Cluster) -> None:
    """No batch system ends what is left on the other host."""
    run_dir = slow_hosts.folder / "runs" / "cut"
    program = (*RUN, "--total-steps", 10**9, "--run-dir", run_dir)

    def train() -> None:
        with contextlib.suppress(AssertionError):  # mpirun's code may be anything
            slow_hosts.mpirun("n1:2,n2:1", 3, *program, timeout=60, **KEEPALIVE)

    job = threading.Thread(target=train)
    job.start()
    until(lambda: count_lines(run_dir) > 3)
    slow_hosts("cut", "n2")
    try:
        job.join(30)
        assert not job.is_alive()
        until(lambda: "dppo.run" not in slow_hosts.on("head", "ps", "-eo", "args"))
    finally:
        slow_hosts("heal", "n2")
    slow_hosts.mpirun("n1:2,n2:1", 3, "-m", "dppo.run", "--resume", "--run-dir", run_dir, "--total-steps", 1)


def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
