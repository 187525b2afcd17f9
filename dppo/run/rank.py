"""What a rank consists of: plan, services, the group in which it works, its parts as a worker and as the server, and
what it keeps for a recovery.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dppo.cluster import guard, startup
from dppo.cluster.signals import Preemption
from dppo.cluster.timeline import Timeline
from dppo.cluster.watchdog import Watchdog
from dppo.comm.mpi import Comm
from dppo.config import LogConfig
from dppo.console import Console
from dppo.data import Report
from dppo.errors import Failure
from dppo.run.members import Member
from dppo.run.preflight import Plan
from dppo.run.recorders import Chosen
from dppo.rundir import paths
from dppo.rundir.summary import Summary
from dppo.training.build import Parts
from dppo.training.collector import Collector
from dppo.training.coordinator import BaseCoordinator
from dppo.training.standby import Standby
from dppo.training.tracker import Tracker
from dppo.trajectories.writer import TrajectoryWriter


@dataclass(frozen=True)
class Services:
    """The services that every rank has, whatever its role."""

    console: Console
    preemption: Preemption
    watchdog: Watchdog
    started: float
    """time.monotonic() at the job's start."""
    threads: int
    quiet: bool = False
    """Whether rank 0 prints nothing but warnings."""
    recorders: Chosen = field(default_factory=lambda: Chosen(LogConfig()))


def begin_services(
    plan: Plan,
    console: Console,
    watchdog: Watchdog,
    started: float,
    *,
    recorders: Chosen | None = None,
    quiet: bool = False,
) -> Services:
    """Starts the services: signals ask the run to save and leave, and the watchdog writes into the run directory."""
    config = plan.config
    preemption = Preemption(config.checkpoint.grace_s, config.time_limit_s, started, plan.ends_at, guard.leave_at_once)
    startup.let_children_start_afresh()
    preemption.install()
    if startup.early_signals:
        preemption.request("a signal at start-up")
    watchdog.write_to(plan.run_dir / paths.STALLS)
    return Services(console, preemption, watchdog, started, startup.prepare(), quiet, recorders or Chosen(config.log))


@dataclass(frozen=True)
class Group:
    """The ranks that work together until one of them dies or is replaced. A recovery makes a new group."""

    comm: Comm
    members: tuple[Member, ...]
    """The members, in the order of `comm`'s ranks; the first is the server."""
    others: list[Comm] = field(default_factory=list)
    """Further communicators of the same members."""

    @property
    def member(self) -> Member:
        """The member that this rank is."""
        return self.members[self.comm.rank]

    @property
    def workers(self) -> list[int]:
        """The workers' numbers, in the order of their ranks."""
        return [member.worker for member in self.members if member.worker is not None]

    @property
    def is_alone(self) -> bool:
        """Whether one rank is server and worker at once."""
        return self.comm.size == 1

    @property
    def is_server(self) -> bool:
        """Whether this rank is the server."""
        return self.comm.rank == 0


class Worker:
    """A rank's part as a worker. It is idle until the rank collects, and always idle on a server."""

    def __init__(self) -> None:
        self._collector: Collector | None = None
        self.dump: TrajectoryWriter | None = None
        """The writer of trajectories."""

    @property
    def collects(self) -> bool:
        """Whether this rank steps environments."""
        return self._collector is not None

    @property
    def collector(self) -> Collector:
        assert self._collector is not None, "this rank steps no environments"
        return self._collector

    def start(self, collector: Collector) -> None:
        """Makes this rank step the collector's environments from now on."""
        self._collector = collector

    def stop(self) -> None:
        """Ends this rank's part as a worker, because it becomes the server."""
        self._collector = None

    @property
    def num_last_steps(self) -> int:
        """Number of transitions of the last rollout; 0 if there is none."""
        return self.collector.last.num_steps if self.collects and self.collector.last is not None else 0


class Server:
    """A rank's part as the server. It is idle until the run is opened, and always idle on a worker."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._coordinator: BaseCoordinator | None = None
        self.ended: Summary | None = None
        """The summary of a run that has ended, if a server has written it and died."""

    @property
    def is_open(self) -> bool:
        """Whether this rank keeps track of the run."""
        return self._tracker is not None

    @property
    def tracker(self) -> Tracker:
        assert self._tracker is not None, "this rank does not keep track of the run"
        return self._tracker

    def open(self, tracker: Tracker) -> None:
        """Makes this rank keep track of the run from now on."""
        self._tracker = tracker

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, as far as this rank knows."""
        return self.ended is not None or (self.is_open and self.tracker.saver.has_ended)

    @property
    def summary(self) -> Summary | None:
        """The run's summary; None on a rank that does not keep track of the run."""
        return self.ended or (self.tracker.saver.summary if self.is_open else None)

    @property
    def coordinator(self) -> BaseCoordinator:
        """The coordinator of the present session."""
        assert self._coordinator is not None, "this rank does not serve"
        return self._coordinator

    def begin_session(self, coordinator: BaseCoordinator) -> None:
        """Makes this rank answer messages from now on; time counts as training."""
        self._coordinator = coordinator
        self.tracker.start_training()

    def settle(self) -> np.ndarray | None:
        """Closes what is due without the ranks that have died. Returns the statistics of the iteration under way, if
        the server has added them up. May be called again, if more ranks die before the session is over.
        """
        if self._coordinator is None:
            return None
        self._coordinator.settle()
        return self._coordinator.totals

    @property
    def unclosed(self) -> list[Report]:
        """The reports that wait for their iteration's end."""
        return [] if self._coordinator is None else self._coordinator.unclosed

    def end_session(self) -> None:
        """Drops the coordinator, once everything that it knew has been taken over."""
        self._coordinator = None


@dataclass(slots=True)
class Recovery:
    """A rank's part in recoveries: what it keeps for the case that others die, and what it knows of deaths so far."""

    standby: Standby = field(default_factory=Standby)
    retired: list[object] = field(default_factory=list)
    """Buffers that messages of earlier members might still reach."""
    respawns: dict[int, int] = field(default_factory=dict)
    """Times that each worker was replaced; every rank knows them, because every rank may become the server."""
    given_up: set[int] = field(default_factory=set)
    """Workers of which this server has said that they have died too often."""
    replaced: int = 0
    """Number of ranks that were replaced since the start of the run."""
    failure: Failure | None = None
    """The reason why this rank cannot continue; None: it can."""
    fruitless: int = 0
    """Number of recoveries in a row in which nobody was missing."""
    synchronised: bool = False
    """Whether this rank has taken over rank 0's state. Before that its state is a fresh one, even in a resumed run."""
    may_respawn: bool = True
    """Whether dead ranks may be replaced; False once this MPI has refused to."""


@dataclass(slots=True)
class Rank:
    """This process, with its plan, its group and its roles."""

    plan: Plan
    services: Services
    parts: Parts
    group: Group
    worker: Worker = field(default_factory=Worker)
    server: Server = field(default_factory=Server)
    recovery: Recovery = field(default_factory=Recovery)
    timeline: Timeline | None = None
    """Notes what this rank does; None: nobody asks."""

    @property
    def survives(self) -> bool:
        """Whether the run continues when one of the others dies."""
        return self.plan.survives and not self.group.is_alone
