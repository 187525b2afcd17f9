"""A rank of a run, put together as `dppo.run` does it, in this process; deaths of others are played."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mpi4py import MPI

from dppo.cluster.signals import Preemption
from dppo.cluster.watchdog import Watchdog
from dppo.config import LogConfig
from dppo.console import Console
from dppo.run.members import Member
from dppo.run.preflight import Plan
from dppo.run.rank import Group, Rank, Services
from dppo.settings.resolve import resolve
from dppo.training.build import build_parts
from tests.parts import SMALL


def make_plan(run_dir: Path, num_ranks: int = 1, *, survives: bool | None = None, **changes: Any) -> Plan:
    """Of a new run with `changes`; one that survives deaths, where there are several ranks."""
    settings: dict[str, Any] = {"log": LogConfig(tensorboard=False, interval_s=60.0), "total_steps": 96, **changes}
    config = resolve(replace(SMALL, run_dir=str(run_dir), **settings))
    lives = num_ranks > 1 if survives is None else survives
    return Plan(config, run_dir, None, 1, run_id="run", num_ranks=num_ranks, survives=lives)


def make_members(num_ranks: int) -> list[Member]:
    """Of a run's start, each on a node of its own: nobody kills a process that has another's number there."""
    server = [Member(0, "node0", os.getpid(), None if num_ranks > 1 else 0)]
    return server + [Member(rank, f"node{rank}", os.getpid(), rank - 1) for rank in range(1, num_ranks)]


def make_rank(plan: Plan, rank: int = 0) -> Rank:
    """Rank `rank` of a run that begins; where it is not alone, its communicator knows size and rank only."""
    members = make_members(plan.num_ranks)
    comm: Any = SimpleNamespace(size=plan.num_ranks, rank=rank) if plan.num_ranks > 1 else MPI.COMM_SELF.Dup()
    console = Console(60.0, enabled=rank == 0, stream=io.StringIO())
    services = Services(console, Preemption(30.0, None), Watchdog(None, rank, 0.0, 0.0), time.monotonic(), threads=1)
    parts = build_parts(plan.config, members[rank].worker)
    return Rank(plan, services, parts, Group(cast(MPI.Comm, comm), tuple(members)))


def left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others die: whoever recovers is the only one left."""

    def regroup(
        comm: object, others: object, consult: Callable[[MPI.Comm], Any], meanwhile: Callable[[], object]
    ) -> tuple[MPI.Comm, Any]:
        meanwhile()
        shrunk = MPI.COMM_SELF.Dup()
        return shrunk, consult(shrunk)

    monkeypatch.setattr("dppo.run.recover.regroup", regroup)
