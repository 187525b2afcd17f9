"""Which rank's network computes on which GPU, with stand-ins: "cpu:0" and "cpu:1" are devices with memory of their own,
as a network sees them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from dppo.config import ModelConfig
from dppo.models.gpus import GPU
from dppo.run.placement import described, place_network
from dppo.run.rank import Rank
from tests.ranks import make_plan, make_rank

GPUS = (GPU("cpu:0", "a", "Stand-in"), GPU("cpu:1", "b", "Stand-in"))


def rank(tmp_path: Path, gpus: tuple[GPU, ...] = GPUS, **changes: Any) -> tuple[Rank, list[str]]:
    """A rank alone, and the list of the devices on which its network was placed."""
    changes = {"model": ModelConfig(hidden=(4,), backend="torch"), **changes}
    me = make_rank(make_plan(tmp_path, **changes))
    me.parts.gpus = gpus
    me.parts.close()
    placed: list[str] = []
    if me.parts.policy.place is not None:
        me.parts.policy.place = placed.append
    return me, placed


def said(me: Rank) -> str:
    stream = me.services.console._stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_a_rank_that_computes_gets_its_nodes_first_gpu_and_says_so(tmp_path: Path) -> None:
    me, placed = rank(tmp_path)
    place_network(me, MPI.COMM_SELF, computes=True)
    assert placed == ["cpu:0"]
    assert "the network computes on cpu:0 (Stand-in)" in said(me)


@pytest.mark.parametrize(("index", "device"), [(0, "cpu:0"), (1, "cpu:1"), (2, "cpu:0"), (5, "cpu:1")])
def test_the_learners_of_a_node_share_its_gpus_in_order(
    index: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Node:
        rank = 10 + index
        ranks = list(range(10, 16))  # noqa: RUF012

    me, placed = rank(tmp_path)
    monkeypatch.setattr("dppo.run.placement.Neighbours", lambda comm: Node)
    place_network(me, MPI.COMM_SELF, computes=True)
    assert placed == [device]


@pytest.mark.parametrize(("gpus", "computes"), [((), True), (GPUS, False)], ids=["no GPU", "another one computes"])
def test_all_others_compute_on_the_cpu(gpus: tuple[GPU, ...], computes: bool, tmp_path: Path) -> None:
    """Also one that was a learner in the session before."""
    me, placed = rank(tmp_path, gpus)
    place_network(me, MPI.COMM_SELF, computes=computes)
    assert placed == ["cpu"]
    assert "the network computes on the CPU: " in said(me)


def test_a_network_of_numpy_and_one_that_is_to_stay_on_the_cpu_are_left_alone(tmp_path: Path) -> None:
    me, placed = rank(tmp_path, device="cpu")
    place_network(me, MPI.COMM_SELF, computes=True)
    closed_form, _ = rank(tmp_path, model=ModelConfig(hidden=(4,)))
    place_network(closed_form, MPI.COMM_SELF, computes=True)
    assert placed == [] and "computes" not in said(me) + said(closed_form)


def test_the_first_lines_name_the_device_of_each_rank() -> None:
    one = "cuda:0 (NVIDIA H200)"
    assert described([None, None, None]) == ""
    assert described([one]) == "the network computes on cuda:0 (NVIDIA H200)"
    assert described([None, one, "cuda:1 (NVIDIA H200)"]) == (
        "the network computes: of rank 1 on cuda:0 (NVIDIA H200), of rank 2 on cuda:1 (NVIDIA H200)"
    )
    assert described([None, one, None, None]).endswith(
        "of rank 1 on cuda:0 (NVIDIA H200); of 2 other worker(s) on the CPU"
    )
    assert described([None, *[one] * 12]).endswith(f"of rank 8 on {one}, and of 4 more ranks on GPUs")
