"""How dead workers are replaced, and how a replacement begins; no process is started here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from mpi4py import MPI

from dppo.run import respawn
from dppo.run.env_group import Seat
from dppo.run.members import MAX_RESPAWNS, Member
from dppo.run.rank import Group, Rank
from dppo.run.respawn import Start, join, replace_lost
from dppo.run.roles import begin_tracking
from tests.ranks import make_members, make_plan, make_rank


def lose(me: Rank, *dead: int) -> Rank:
    """The server's group without those ranks, in a communicator that can be spoken in."""
    members = tuple(member for member in me.group.members if member.rank not in dead)
    me.group = Group(MPI.COMM_SELF, members)
    return me


@pytest.fixture
def me(tmp_path: Path) -> Iterator[Rank]:
    """The server of three ranks, of which rank 2 has died; they were all on one host."""
    me = make_rank(make_plan(tmp_path, num_ranks=3, respawn=True))
    begin_tracking(me)
    members = tuple(replace(member, host="host") for member in make_members(3))
    me.group = Group(me.group.comm, members)
    lose(me, 2)
    yield me
    me.server.tracker.files.close()


class Grown:
    """A communicator with new processes in it, which get what they need to know."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Start]] = []

    def send(self, start: Start, dest: int) -> None:
        self.sent.append((dest, start))


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> Grown:
    """What `spawn` gives; all take their places in it."""
    grown = Grown()
    monkeypatch.setattr(respawn, "spawn", lambda comm, count, ranks_each, meanwhile: grown)
    comm = SimpleNamespace(size=3, rank=0)
    monkeypatch.setattr(respawn, "reorder", lambda grown, mine: (comm, [mine, *make_members(3)[1:]]))
    return grown


def refuse(comm: object, count: int, ranks_each: int, meanwhile: object) -> str:
    return "no free slot"


def never(*arguments: object) -> NoReturn:
    raise AssertionError("nobody is to be replaced")


def test_a_replacement_gets_the_dead_ones_worker_rank_and_environments(
    me: Rank, grown: Grown, capsys: pytest.CaptureFixture[str]
) -> None:
    others = me.group.others
    replace_lost(me)
    ((dest, start),) = grown.sent
    assert dest == 1, "behind those that are left"
    assert (start.member.rank, start.member.worker, start.replaced) == (2, 1, 1)
    assert start.respawns == {1: 1} and start.states[1:] == (0, 0) and start.started_s >= 0
    assert others == [grown], "should one die now, the others are freed from it"
    assert (me.group.comm.size, me.recovery.replaced) == (3, 1)
    losses = me.server.tracker.counters.losses
    assert (losses.ranks_lost, losses.ranks_replaced) == (1, 1)
    assert "1 rank(s) were replaced: 3 again" in capsys.readouterr().err


def test_where_nobody_is_missing_nobody_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = make_rank(make_plan(tmp_path, num_ranks=3, respawn=True))
    begin_tracking(me)
    monkeypatch.setattr(respawn, "spawn", never)
    replace_lost(lose(me))
    me.server.tracker.files.close()


def test_a_run_that_has_ended_replaces_nobody(me: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    me.server.tracker.saver.finish("preempted")
    monkeypatch.setattr(respawn, "spawn", never)
    replace_lost(me)


def test_an_mpi_that_has_refused_is_not_asked_again(
    me: Rank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(respawn, "spawn", refuse)
    replace_lost(me)
    assert "could not be replaced (no free slot): is there a free slot?" in capsys.readouterr().err
    assert me.recovery.respawns == {} and me.recovery.replaced == 0
    monkeypatch.setattr(respawn, "spawn", never)
    replace_lost(me)
    assert capsys.readouterr().err == ""


def test_a_worker_that_dies_whenever_it_is_replaced_is_named_once_and_left_dead(
    me: Rank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(respawn, "spawn", never)
    me.recovery.respawns = {1: MAX_RESPAWNS}
    for _ in range(2):
        replace_lost(me)
    assert capsys.readouterr().err.count("workers [1] have died too often to be replaced again") == 1


def test_on_several_hosts_dead_ranks_are_replaced_once_only(
    me: Rank, grown: Grown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = me.group.members
    me.group = Group(me.group.comm, (first, replace(second, host="elsewhere")))
    replace_lost(me)
    assert len(grown.sent) == 1
    lose(me, 2)
    monkeypatch.setattr(respawn, "spawn", never)
    for _ in range(2):
        replace_lost(me)
    assert capsys.readouterr().err.count("replaces dead ranks only once") == 1


# -- the new process --------------------


class World:
    """The communicator that a replacement joins."""

    def __init__(self, start: Start) -> None:
        self._start = start

    def recv(self, source: int) -> Start:
        assert source == 0
        return self._start


def test_a_replacement_becomes_a_worker_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, num_ranks=3, respawn=True)
    start = Start(plan, Member(2, "", 0, 1), 12.0, replaced=4, respawns={1: 2}, states=({}, 32, 9))
    comm = SimpleNamespace(size=3, rank=2)
    monkeypatch.setattr(respawn.ulfm, "joined", lambda world: (World(start), None))
    monkeypatch.setattr(respawn, "reorder", lambda grown, mine: (comm, [*make_members(3)[:2], mine]))
    me = join(MPI.COMM_SELF)
    assert isinstance(me, Rank)
    try:
        assert (me.group.member.rank, me.group.member.worker, me.group.workers) == (2, 1, [0, 1])
        assert me.group.member.pid > 0 and me.group.member.host != ""
        assert (me.worker.collector.worker, me.worker.collector.row) == (1, 32)
        assert (me.recovery.replaced, me.recovery.respawns) == (4, {1: 2})
        assert me.recovery.standby.replay.next_row == 32
        assert not me.server.is_open
    finally:
        me.services.preemption.uninstall()
        me.services.watchdog.stop()
        me.parts.close()


class Ranks:
    """The communicator of a group of two, seen from its rank `rank`."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_is_replaced_with_the_ranks_that_it_had(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second rank is no member of the run: it follows the first."""
    plan = make_plan(tmp_path, num_ranks=3, respawn=True, env_ranks=2)
    start = Start(plan, Member(3, "", 0, 1), 12.0, replaced=2, respawns={1: 1}, states=({}, 0, 0))
    grown = World(start) if rank == 0 else MPI.COMM_NULL
    given: list[object] = []

    def make_group(ranks: Ranks, *what: object, crowded: bool) -> object:
        given.extend(what)
        return SimpleNamespace(is_head=ranks.rank == 0)

    def build(config: object, worker: int, given: Any, run_dir: Path) -> NoReturn:
        assert worker == 1 and given.group.is_head
        raise InterruptedError("as far as this test goes")

    def die() -> NoReturn:
        raise SystemExit

    monkeypatch.setattr(respawn.ulfm, "joined", lambda world: (grown, Ranks(rank)))
    monkeypatch.setattr(respawn, "from_rank_zero", lambda comm, value: start)
    monkeypatch.setattr(respawn, "look_around", lambda comm: [Seat("node1", frozenset({0}))] * 2)
    monkeypatch.setattr(respawn, "EnvGroup", make_group)
    monkeypatch.setattr(respawn, "build_parts", build)
    monkeypatch.setattr(respawn, "make_watchdog", lambda *what: SimpleNamespace(write_to=lambda path: None))
    monkeypatch.setattr(respawn.leaving, "die", die)
    if rank == 0:
        with pytest.raises(SystemExit):
            join(MPI.COMM_SELF)
    else:
        joined = join(MPI.COMM_SELF)
        assert isinstance(joined, tuple) and joined[0] is plan
    assert given[:2] == [1, 3], "the worker's number and the head's rank"


def test_whatever_goes_wrong_while_it_joins_is_its_death(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(world: object) -> Any:
        raise MPI.Exception(MPI.ERR_PROC_FAILED)

    def die() -> NoReturn:
        raise SystemExit("killed")

    monkeypatch.setattr(respawn.ulfm, "joined", fail)
    monkeypatch.setattr(respawn.leaving, "die", die)
    with pytest.raises(SystemExit, match="killed"):
        join(MPI.COMM_SELF)
    assert "Traceback" in capsys.readouterr().err
