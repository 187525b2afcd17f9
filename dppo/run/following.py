"""The life of a follower: a rank of an environment's group that is not its head, and takes no part in training."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from dppo.cluster import guard
from dppo.cluster.launcher import survives_deaths
from dppo.cluster.watchdog import Watchdog
from dppo.comm.leaving import end_job
from dppo.comm.mpi import MPI
from dppo.console import say
from dppo.envs.groups import Follower
from dppo.envs.maker import EnvMaker
from dppo.errors import EXIT_FAILED, Failure, JobFailure, UsageError, WorkerError
from dppo.run.env_group import EnvGroup
from dppo.run.leave import make_watchdog
from dppo.run.loop import LEAVE_TOGETHER_S, SAID
from dppo.run.preflight import Plan
from dppo.run.setup import say_failed
from dppo.rundir import paths
from dppo.rundir.summary import EXIT_CODES, Summary
from dppo.training.build import CLOSE_S, LAST_S, close_environments


class Following:
    """The life of a follower: from its head's first call to the end of the run."""

    def __init__(self, plan: Plan, group: EnvGroup, world: MPI.Comm) -> None:
        self._plan, self._group, self._world = plan, group, world
        config = plan.config
        self._watchdog: Watchdog = make_watchdog(plan, world, group.rank)
        group.heartbeat = self._watchdog.heartbeat
        self._follower = Follower(
            lambda: EnvMaker(config.env, config.env_kwargs, config.wrappers),
            group,
            lambda env: close_environments(env, CLOSE_S),
        )
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, _leave_it_to_the_head)

    def through_the_start(self) -> Following | Summary:
        """Follows until all is prepared. Returns the summary if nothing is to be trained.

        Raises:
          UsageError, RankFailure: as on the head.
        """
        outcome = self._follow()
        if outcome is None:
            return self
        self._stop()
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, Summary)
        return outcome

    def to_the_end(self, *, is_command: bool) -> Summary:
        """Follows until the run has ended. Returns its summary.

        Raises:
          JobFailure: the run has failed, as the head or rank 0 has said.
        """
        self._watchdog.write_to(self._plan.run_dir / paths.STALLS)
        outcome = self._follow()
        if is_command:
            guard.announce(EXIT_CODES[outcome.exit] if isinstance(outcome, Summary) else EXIT_FAILED)
        self._stop(uninstall=not is_command)
        if isinstance(outcome, UsageError):
            raise outcome
        if isinstance(outcome, Failure):
            error = JobFailure(outcome)
            setattr(error, SAID, True)
            raise error
        assert isinstance(outcome, Summary)
        if not survives_deaths():
            self._group.free()
            self._world.Free()
        elif is_command:
            self._group.wait_for_goodbye(CLOSE_S + LAST_S)
        return outcome

    def _follow(self) -> Any:
        try:
            return self._follower.follow()
        except WorkerError as error:
            say(error.failure.text)
            say_failed(self._plan, error.failure)
            time.sleep(LEAVE_TOGETHER_S)  # so that the launcher passes on the error before it adds its own lines
            end_job(self._world, EXIT_FAILED)

    def _stop(self, *, uninstall: bool = True) -> None:
        self._watchdog.stop()
        while uninstall and self._before:
            signal.signal(*self._before.popitem())


def _leave_it_to_the_head(number: int, frame: FrameType | None) -> None:
    """Ignores a signal to save and leave: the head, or rank 0, gets it too. A handler, because processes that an
    environment starts would inherit that a signal is ignored.
    """
