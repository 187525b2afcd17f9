"""The folders of a run's environments, and how a run that is refused leaves none behind."""

from __future__ import annotations

import contextlib
from typing import Any

from dppo.envs.given import Given, Workdirs
from dppo.envs.group_link import HeadLink
from dppo.run.preflight import Plan
from dppo.rundir import paths


def given_to_envs(plan: Plan, comm: Any, group: HeadLink | None = None) -> Given:
    """Returns what this rank's environments are given: their communicator `comm`, or their group where they have
    several ranks, and folders in the run directory. A dry run writes nothing, so that its folders are temporary ones.
    """
    return Given(comm, Workdirs(None if plan.config.dry_run else plan.run_dir / paths.ENVS), group)


def leave_no_trace(plan: Plan, given: Given) -> None:
    """Removes what was made for a run that was refused: the new folders of this rank's environments, and folders that
    are empty then. Called on each rank, of which the last one finds them empty.
    """
    given.workdirs.remove_new()
    folder = plan.run_dir.absolute()
    with contextlib.suppress(OSError):
        while plan.was_there is not None and folder != plan.was_there:
            folder.rmdir()
            folder = folder.parent
