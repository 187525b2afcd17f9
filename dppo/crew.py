"""Who takes part in a run, and how those that are left go on when one of them has died.

Uses the exchange's recovery, memories, the journal and the workplace; run.py's recovery loop calls `survive`. The
survivors shrink and tell each other how far they are; what the new server lacks, the others give it; then it has the
newest state that is left, and all take that over, as at the start of a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dppo.batch import Report
from dppo.console import Console
from dppo.ending import GIVE_UP, LEAVE
from dppo.exchange.collectives import Comm
from dppo.exchange.memory import Memory, Mirror
from dppo.exchange.recovery import RankFailure, end_job, regroup, sort, spawn, survives_deaths
from dppo.history import History
from dppo.journal import Journal, Summary
from dppo.opening import EXIT_CODES, conclude, open_journal, saved_histories
from dppo.planning import Plan
from dppo.preemption import Preemption
from dppo.rollout import Collector
from dppo.storage.checkpoint import newest_valid, remove_leftovers
from dppo.storage.metrics import read_json
from dppo.synchronous import SyncCoordinator
from dppo.watchdog import Watchdog
from dppo.workplace import Workplace, furnish, make_collector

FAILURE_NOTICE_S = 5.0
"""How long a failing rank waits for the others, so that all end in good order, before it ends the job by force."""
MAX_RESPAWNS = 3
"""Of one worker: what dies again and again is not an accident."""
MAX_MIRROR_AGE = 10
"""In copies that should have come since."""
ENDED_BY_STALL = "ended.txt"
"""In RUN/stalls: written by a rank that ended itself because it made no progress."""


@dataclass(frozen=True)
class Seat:
    """A rank, by what stays the same when others die."""

    rank: int
    """Its number at the start; a replacement has a dead one's."""
    host: str
    pid: int
    worker: int | None
    """None: the server."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass(slots=True)
class Rank:
    """This process: what it has, and with whom it works."""

    plan: Plan
    comm: Comm
    seats: list[Seat]
    """Of `comm`'s ranks, in order; the first is the server."""
    place: Workplace
    console: Console
    preemption: Preemption
    watchdog: Watchdog
    started: float
    threads: int
    num_ranks: int
    """At the start of the run."""
    quiet: bool = False
    collector: Collector | None = None
    memory: Memory | None = None
    """Where deaths can be survived."""
    journal: Journal | None = None
    coordinator: Any = None
    others: list[Comm] = field(default_factory=list)
    """Communicators of the present crew besides `comm`."""
    retired: list[object] = field(default_factory=list)
    """Buffers that messages of an earlier crew might still reach."""
    respawns: dict[int, int] = field(default_factory=dict)
    failure: str | None = None
    """Why this rank cannot go on."""
    fruitless: int = 0
    """Regroupings in a row in which nobody was missing."""
    synchronised: bool = False
    """It has had rank 0's state: before, the state is a fresh one, whatever the run goes on from."""
    ended: Summary | None = None
    """What a server that died has left on disk as the run's end."""
    may_respawn: bool = True
    """Until this MPI has refused to."""

    @property
    def seat(self) -> Seat:
        return self.seats[self.comm.rank]

    @property
    def workers(self) -> list[int]:
        """Their numbers, in the order of their ranks."""
        return [seat.worker for seat in self.seats if seat.worker is not None]


class JobFailure(Exception):
    """All ranks have agreed that the job ends, and why."""


def first_crew(comm: Comm) -> list[Seat]:
    """Collective over `comm`."""
    worker = 0 if comm.size == 1 else comm.rank - 1 if comm.rank else None
    return comm.allgather(Seat(comm.rank, socket.gethostname(), os.getpid(), worker))


# -- what survivors tell each other --------------------


@dataclass(frozen=True)
class _Word:
    """To all."""

    seat: Seat
    is_server: bool
    progress: tuple[int, int]
    """(iteration, version) of the state that it can give."""
    updates_seen: int
    mirror: tuple[int, int] | None
    """(iteration, updates) of the copy that it holds."""
    failure: str | None
    synchronised: bool


@dataclass(frozen=True)
class _Goods:
    """To the new server."""

    reports: list[Report]
    heads: dict[int, np.ndarray]
    state: np.ndarray | None
    totals: np.ndarray | None
    mirror: Mirror | None
    history: History | None
    discarded: int
    """Transitions that this rank will not use."""


def survive(me: Rank, cause: RankFailure) -> None:
    """Collective over the survivors of `me.comm`, each of which has noticed a death. After it `me` is one of a crew
    that can go on; the state that counts is its rank 0's.

    Raises:
      RankFailure: another one has died meanwhile: call it again.
      JobFailure: a rank has failed in a way that ends the job; on all ranks alike.
    """
    since = time.monotonic()
    allreduce = me.plan.config.exchange == "allreduce"
    assert me.memory is not None
    updates_seen = _step_back(me)
    if me.journal is not None and isinstance(me.coordinator, SyncCoordinator):
        me.coordinator.settle()
        me.memory.totals = me.coordinator.totals
    state, memory = me.place.state, me.memory
    mirror = memory.mirror
    word = _Word(
        me.seat, me.journal is not None, (state.iteration, state.version), updates_seen,
        None if mirror is None else (mirror.iteration, mirror.updates), me.failure or _ended_by_stall(me),
        me.synchronised,
    )  # fmt: skip

    def consult(comm: Comm) -> tuple[list[_Word], int, list[_Goods]]:
        words: list[_Word] = comm.allgather(word)
        serving = [i for i, w in enumerate(words) if w.is_server]
        newest = max(range(comm.size), key=lambda i: (words[i].progress, words[i].is_server))
        giver = serving[0] if serving and not allreduce else newest
        if any(w.failure for w in words):
            return words, giver, []
        standby = max(range(comm.size), key=lambda i: words[i].mirror or (-1, -1))
        packed = None
        if comm.rank == giver:
            packed = np.empty(state.all_bytes, np.uint8)
            state.pack(packed)
        goods = _Goods(
            [*memory.reports, *_untold(me, words[giver].progress[0])], memory.heads, packed, memory.totals,
            mirror if comm.rank == standby and not serving else None,
            None if serving else memory.history, _discarded(me, words[giver].progress[0], comm.rank == 0),
        )  # fmt: skip
        return words, giver, comm.gather(goods, root=0) or []

    def meanwhile() -> None:
        me.watchdog.progress("recovery")
        if me.failure is not None and time.monotonic() - since > FAILURE_NOTICE_S:
            print(f"dppo: {me.failure}", file=sys.stderr, flush=True)
            end_job(me.comm, 1)
        if me.journal is not None and me.preemption.past(GIVE_UP) and not me.journal.ended:
            me.journal.finish("preempted")
        if me.journal is not None and me.journal.ended and me.preemption.past(LEAVE):
            leave_alone(me)

    before = me.seats
    me.comm, (words, giver, goods) = regroup(me.comm, me.others, consult, meanwhile)
    me.others = []
    failures = [w.failure for w in words if w.failure is not None]
    if failures:
        raise JobFailure(failures[0])
    me.seats = _dealt([w.seat for w in words])
    present = {(w.seat.host, w.seat.pid) for w in words}
    lost = [seat for seat in before if (seat.host, seat.pid) not in present]
    me.fruitless = 0 if lost else me.fruitless + 1
    if me.fruitless > 5:
        raise JobFailure(f"{me.seat}: MPI reports a death again and again, but nobody is missing: {cause}")
    if me.collector is not None:
        for report in _untold(me, words[giver].progress[0]):
            memory.add_report(report)
        me.collector.keep_last(keep=_is_unused(me, words[giver].progress[0]), as_it_is=_was_told(me))
    if me.comm.rank == 0:
        _serve(me, words, giver, goods, lost, time.monotonic() - since)
    if me.plan.config.respawn:
        _replace_lost(me)
    me.place.worker = me.seat.worker
    if me.seat.worker is None and me.collector is not None:  # a server steps nothing
        me.collector.envs.close()
        me.collector = None


def _step_back(me: Rank) -> int:
    """sync/allreduce: to the last boundary. Returns the updates that this rank knew of."""
    state = me.place.state
    updates = state.updates
    assert me.memory is not None
    if me.plan.config.exchange == "allreduce":
        if me.memory.boundary is not None:
            state.unpack(me.memory.boundary)
        state.forget_unfinished()
    return updates


def _was_told(me: Rank) -> bool:
    """Whether rank 0 was sent a report of the last rollout."""
    assert me.collector is not None and me.memory is not None
    last, reports = me.collector.last, me.memory.reports
    return last is None or bool(reports and reports[-1].first_row == last.first_row)


def _is_unused(me: Rank, iteration: int) -> bool:
    """Whether the last rollout can still be learnt from, if the run goes on in `iteration`. In async one that was told
    of counts as used: its gradients may have been.
    """
    assert me.collector is not None
    if me.collector.last is None:
        return False
    if me.plan.config.mode == "sync":
        return me.collector.last_iteration == iteration
    return not _was_told(me)


def _untold(me: Rank, iteration: int) -> list[Report]:
    """Of a rollout that was cut short and comes too late for its iteration (`--server.drop`): its steps were made."""
    collector = me.collector
    if collector is None or collector.last is None or _was_told(me) or _is_unused(me, iteration):
        return []
    collector.discounted_returns(collector.last)
    return [collector.report(collector.last, 0.0, 0.0, 0.0)]


def _discarded(me: Rank, iteration: int, becomes_server: bool) -> int:
    """Transitions of the last rollout that nobody will learn from because of the death: of a worker that becomes the
    server, and of one that comes too late.
    """
    if me.collector is None or me.collector.last is None:
        return 0
    lost = becomes_server if _is_unused(me, iteration) else not _was_told(me)
    return me.collector.last.num_steps if lost else 0


def _dealt(seats: list[Seat]) -> list[Seat]:
    """The lowest rank is the server; one that is left alone is a worker, too."""
    first, *rest = seats
    if rest:
        return [replace(first, worker=None), *rest]
    return [first if first.worker is not None else replace(first, worker=0)]


def _ended_by_stall(me: Rank) -> str | None:
    try:
        return (me.plan.run_dir / "stalls" / ENDED_BY_STALL).read_text().strip()
    except OSError:
        return None


# -- the new server --------------------


def _serve(me: Rank, words: list[_Word], giver: int, goods: list[_Goods], lost: list[Seat], took_s: float) -> None:
    """Rank 0: has the newest state after it and, where the server has died, its books."""
    config, state = me.plan.config, me.place.state
    allreduce = config.exchange == "allreduce"
    packed = goods[giver].state
    assert packed is not None and me.memory is not None and config.horizon is not None
    told = [report for g in goods for report in g.reports]
    took_over = me.journal is None
    if not me.quiet:
        me.console.enable()
    if me.journal is None:
        said = read_json(me.plan.run_dir / "summary.json")
        if said.get("exit") in EXIT_CODES and said.get("attempt") == me.plan.attempt:
            me.ended = Summary(**said)  # the server died when it had just ended the run: all is on disk
            return
        if not any(
            w.synchronised for w in words
        ):  # it died before anyone had the run's state, fresh or of a checkpoint
            hosts = [seat.host for seat in me.seats]
            me.journal = open_journal(me.plan, me.place.state, hosts, me.preemption, me.console, me.started, me.threads)
            me.journal.losses.ranks_lost += len(lost)
            me.journal.regrouped(me.comm.size, len(me.workers))
            for seat in lost:
                me.console.warn(f"{seat} has died at the start")
            return
        me.journal, known_updates, closed = _take_over(me, words, packed, goods, told)
    else:
        if allreduce and me.coordinator is not None:
            told += me.coordinator.unclosed
        closed, known_updates = state.iteration, state.updates
    journal, losses = me.journal, me.journal.losses
    if journal.ended:
        state.unpack(packed)
    elif allreduce:
        _close_passed(journal, closed, packed, [g.heads for g in goods], told, me.place)
        known_updates = state.updates
    else:
        for report in told:
            if journal.add(report) and report.moment_sums is not None and report.moment_means and not took_over:
                state.normaliser.merge(report.moment_sums, *report.moment_means)
        me.memory.totals = goods[giver].totals
    losses.ranks_lost += len(lost)
    losses.updates_lost += max(0, max(w.updates_seen for w in words) - known_updates)
    losses.env_steps_lost += sum(g.discarded for g in goods)
    losses.env_steps_lost += config.horizon * config.num_envs * sum(seat.worker is not None for seat in lost)
    journal.regrouped(me.comm.size, len(me.workers))
    me.coordinator = me.memory.boundary = None  # from here on this rank has the newest state
    for seat in lost:
        me.console.warn(f"{seat} has died in iteration {state.iteration + 1}")
    server = f"; {me.seat} is the server now" if took_over else ""
    me.console.warn(f"{me.comm.size} rank(s) go on after {took_s:.2f} s{server}")


def _take_over(
    me: Rank, words: list[_Word], packed: np.ndarray, goods: list[_Goods], told: list[Report]
) -> tuple[Journal, int, int]:
    """(the journal, the updates that the optimiser's statistics know of, the iteration of the last line of metrics)."""
    config, state, plan = me.plan.config, me.place.state, me.plan
    state.unpack(packed)
    state.forget_unfinished()
    mirror = next((g.mirror for g in goods if g.mirror is not None), None)
    if mirror is not None and _is_old(mirror, me):
        mirror = None  # of a rank that was a standby once: the last checkpoint is newer
    # reading a checkpoint takes a second, for torch has to be imported
    saved = newest_valid(plan.run_dir)[0] or plan.saved if mirror is None else None
    if mirror is None and saved is None:  # the server died before it had opened the run
        hosts = [w.seat.host for w in words]
        journal = open_journal(plan, state, hosts, me.preemption, me.console, me.started, me.threads)
        return journal, state.updates, 0
    remove_leftovers(plan.run_dir)
    updates = state.updates
    histories: dict[int, History] = {}
    if mirror is not None:
        books, books_iteration = mirror.books, mirror.iteration
        if len(mirror.state):
            state.unpack_optimizer(mirror.state)
            updates = mirror.updates
    else:
        assert saved is not None
        books, books_iteration = saved.journal, saved.iteration
        histories = saved_histories(saved, range(max(1, me.num_ranks - 1)), config.num_envs)
        if config.exchange != "allreduce":
            state.optimizer.steps, state.optimizer.state[:] = saved.state["optimizer_steps"], saved.state["optimizer"]
            updates = saved.state["numbers"]["updates"]
    for w, g in zip(words, goods, strict=True):
        if w.seat.worker is not None and g.history is not None and not g.history.is_empty:
            histories[w.seat.worker] = g.history
    line = _last_line(plan.run_dir / "metrics.jsonl", state.iteration)
    journal = Journal(
        plan.run_dir, config, state, me.preemption, me.console,
        workers=me.workers, world_size=me.comm.size, attempt=plan.attempt, started=me.started,
        wall_s=plan.wall_s,
        books=books, histories=histories, first_rank=int(me.num_ranks > 1),
    )  # fmt: skip
    journal.start_training()
    if line.get("iteration", 0) > books_iteration:
        for report in told:
            if report.iteration < line["iteration"]:
                journal.add(report)
        journal.catch_up(line)
    return journal, updates, int(line.get("iteration", 0))


def _is_old(mirror: Mirror, me: Rank) -> bool:
    state = me.place.state
    if me.plan.config.exchange == "allreduce":
        return state.iteration - mirror.iteration > MAX_MIRROR_AGE
    return state.updates - mirror.updates > MAX_MIRROR_AGE * max(1, me.plan.config.server.mirror_every)


def _last_line(path: Path, iteration: int) -> dict[str, Any]:
    """Of metrics.jsonl, up to this iteration; {} where there is none."""
    if not path.exists():
        return {}
    last: dict[str, Any] = {}
    for text in path.read_bytes().splitlines(keepends=True)[::-1]:
        try:
            last = json.loads(text) if text.endswith(b"\n") else {}
        except ValueError:
            continue
        if last and last["iteration"] <= iteration:
            return last
    return {}


def _close_passed(
    journal: Journal,
    closed: int,
    packed: np.ndarray,
    heads: list[dict[int, np.ndarray]],
    told: list[Report],
    place: Workplace,
) -> None:
    """sync/allreduce: the workers were ahead of the books, which follow here."""
    state = place.state
    state.unpack(packed)
    newest = state.iteration
    for iteration in range(closed + 1, newest + 1):
        for report in told:
            if report.iteration == iteration - 1:
                journal.add(report)
        head = next((h[iteration] for h in heads if iteration in h), None)
        if head is not None and iteration < newest:
            state.unpack_head(head)
        elif iteration == newest:
            state.unpack(packed)
        journal.close({}, passing=iteration < newest)


# -- leaving --------------------


def leave_alone(me: Rank) -> NoReturn:
    """Rank 0: everything is saved, but workers are stuck in an environment: the job ends without them."""
    assert me.journal is not None
    code = EXIT_CODES[me.journal.summary.exit]
    conclude(me.journal.summary, me.console)
    me.console.warn(f"some workers did not leave in time: the job ends without them, exit code {code}")
    sys.stdout.flush()
    if not survives_deaths():
        me.comm.Abort(code)
    for seat in me.seats:  # those on other nodes end with the launcher
        if seat.host == me.seat.host and seat.pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(seat.pid, signal.SIGKILL)
    time.sleep(0.1)
    os._exit(code)


# -- replacements --------------------


@dataclass(frozen=True)
class Start:
    """What a replacement needs to know."""

    plan: Plan
    seat: Seat
    num_ranks: int
    started_s: float
    """Seconds since the job's start."""
    states: Any
    """As `make_collector` takes them."""


def _replace_lost(me: Rank) -> None:
    """Collective over `me.comm`. New processes for the workers that are missing."""
    missing: list[int] = []
    if me.comm.rank == 0:
        missing = [] if me.journal is None or me.journal.ended else _to_replace(me)
    missing = me.comm.bcast(missing, root=0)
    if not missing:
        return
    me.fruitless = 0  # those that die before they have a seat are missed by nobody
    grown = spawn(me.comm, len(missing), lambda: me.watchdog.progress("recovery"))
    if isinstance(grown, str):
        me.may_respawn = False
        if me.comm.rank == 0:
            me.console.warn(
                f"a dead rank could not be replaced ({grown}): is there a free slot? mpirun --oversubscribe allows it"
            )
        return
    me.others = [grown]
    count = me.comm.size
    if me.comm.rank == 0:
        assert me.journal is not None
        free = sorted(set(range(me.num_ranks)) - {seat.rank for seat in me.seats})
        for i, (worker, rank) in enumerate(zip(missing, free, strict=True)):
            me.respawns[worker] = me.respawns.get(worker, 0) + 1
            seat = Seat(rank, "", 0, worker)
            states = me.journal.hand_over(worker)
            start = Start(me.plan, seat, me.num_ranks, time.monotonic() - me.started, states)
            grown.send(start, dest=count + i)
    mine = replace(me.seat, worker=None) if me.comm.rank == 0 else me.seat
    me.comm, me.seats = take_seats(grown, mine)
    me.others = []
    if me.comm.rank == 0:
        assert me.journal is not None
        me.journal.losses.ranks_replaced += len(missing)
        me.journal.regrouped(me.comm.size, len(me.workers))
        me.console.warn(f"{len(missing)} rank(s) were replaced: {me.comm.size} again")


def take_seats(grown: Comm, mine: Seat) -> tuple[Comm, list[Seat]]:
    """Collective over `grown`. Its ranks in the order of their workers, the server first."""
    return sort(grown, 0 if mine.worker is None else 1 + mine.worker, mine)


def _to_replace(me: Rank) -> list[int]:
    missing = [w for w in range(me.num_ranks - 1) if w not in me.workers or me.comm.size == 1]
    wanted = [w for w in missing if me.respawns.get(w, 0) < MAX_RESPAWNS]
    if len(wanted) < len(missing):
        me.console.warn(f"workers {sorted(set(missing) - set(wanted))} have died too often to be replaced again")
    if not me.may_respawn:
        return []
    if wanted and me.respawns and len({seat.host for seat in me.seats}) > 1:
        me.may_respawn = False
        me.console.warn("on several hosts Open MPI replaces dead ranks only once: from here on, the others go on")
        return []
    return wanted


def furnish_alone(me: Rank) -> None:
    """The only rank left needs environments: those of a worker that has died, where they stood when it last told."""
    assert me.journal is not None
    worker = me.seats[0].worker
    assert worker is not None
    furnish(me.place, me.plan.config, worker)
    me.collector = make_collector(me.plan.config, me.place, *me.journal.hand_over(worker))
