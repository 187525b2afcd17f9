"""How a run ends: everyone is told to stop, everyone says goodbye, and nobody is waited for beyond the grace period."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from dppo.errors import WorkerError
from dppo.seams import Tag
from dppo.training.coordinator import BaseCoordinator
from dppo.training.standby import Mirror
from tests.parts import Run

GRACE_S = 30.0  # the default


def asked_ago(run: Run, share: float) -> None:
    """The request to leave came this share of the grace period ago."""
    run.preemption.request("SIGUSR1")
    run.preemption.requested_at = time.monotonic() - share * GRACE_S


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """After one boundary of 32 steps, with a rollout of the next iteration reported."""
    run = Run(tmp_path)
    run.iterate()
    run.collect(run.places[0])
    return run


def test_a_run_is_over_when_everyone_has_said_goodbye(run: Run) -> None:
    ending = BaseCoordinator(run.tracker, run.state, workers=range(3))
    answers = ending.begin("finished")
    assert [(a.worker, a.tag) for a in answers] == [(w, Tag.STOP) for w in range(3)]
    seen = []
    for worker in (2, 0, 1):
        ending.on_bye(worker)
        seen.append(ending.done)
    assert seen == [False, False, True]
    assert not ending.abandoned


def test_who_has_left_is_not_told_to_stop(run: Run) -> None:
    ending = BaseCoordinator(run.tracker, run.state, workers=range(2))
    ending.on_bye(0)
    assert [a.worker for a in ending.begin("finished")] == [1]


def test_a_signal_to_one_worker_holds_for_all(run: Run) -> None:
    ending = BaseCoordinator(run.tracker, run.state, workers=range(2))
    assert ending.on_signal() == []
    assert run.preemption.requested


def test_asked_to_leave_it_saves_at_once_and_gives_the_iteration_up_when_time_runs_out(run: Run) -> None:
    """The first boundary is saved, not the half of the second."""
    ending = BaseCoordinator(run.tracker, run.state, workers=range(2))
    assert ending.idle() == []
    assert run.saved().env_steps == 0
    asked_ago(run, 0.1)
    assert ending.idle() == []
    assert run.saved().env_steps == 32
    asked_ago(run, 0.75)
    assert [(a.worker, a.tag) for a in ending.idle()] == [(0, Tag.STOP), (1, Tag.STOP)]
    assert ending.begun and not ending.done
    assert run.summary()["exit"] == "preempted"
    assert run.saved().env_steps == 32


def test_a_copy_goes_to_the_standbys_when_it_is_due_and_before_all_else(run: Run) -> None:
    ending = BaseCoordinator(run.tracker, run.state, workers=range(3), mirror_every=4)
    assert [(a.worker, a.tag) for a in ending.idle()] == [(0, Tag.MIRROR), (1, Tag.MIRROR)], "one at the start"
    assert ending.idle() == []
    for updates, due in ((1, False), (3, False), (4, True), (5, False), (9, True)):
        run.state.updates = updates
        answers = ending.mirror()
        assert bool(answers) == due
        if due:
            mirror = Mirror.from_message(answers[0].message)
            assert (mirror.updates, len(mirror.state)) == (updates, run.state.layout.all_bytes)
            assert mirror.counters == run.tracker.saver.boundary.counters
    assert len(BaseCoordinator(run.tracker, run.state, workers=range(1), mirror_every=4).idle()) == 1
    assert BaseCoordinator(run.tracker, run.state, workers=range(3)).idle() == []


def test_in_allreduce_only_the_counters_are_copied(run: Run) -> None:
    ending = BaseCoordinator(run.tracker, run.state, workers=range(3), mirror_every=50, mirrors_state=False)
    assert len(Mirror.from_message(ending.idle()[0].message).state) == 0
    assert ending.mirror() == []
    run.state.iteration += 1
    assert len(ending.mirror()) == 2


class Waiting(BaseCoordinator):
    """Waits for worker 1 for ever."""

    def waits_for(self) -> set[int]:
        return {1}


def test_who_is_waited_for_is_named_and_at_last_ends_the_job(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(run.tracker.config, log=replace(run.tracker.config.log, stall_after_s=10, stall_abort_s=20))
    run.tracker.config = config
    ending = Waiting(run.tracker, run.state, workers=range(2), names=["rank 1 on a", "rank 2 on b"])
    heard = time.monotonic()

    def after(seconds: float) -> str:
        monkeypatch.setattr(time, "monotonic", lambda: heard + seconds)
        ending.idle()
        return capsys.readouterr().err

    assert after(9) == ""
    assert after(11) == "dppo: rank 0 waits for rank 2 on b: no rollout for 11 s\n"
    assert after(12) == "", "once is enough"
    ending.heard(1)
    assert after(21) == ""
    assert after(23) == "dppo: rank 0 waits for rank 2 on b: no rollout for 11 s\n"
    with pytest.raises(WorkerError, match="rank 2 on b: no rollout for 26 s"):
        after(38)


def test_workers_that_do_not_leave_in_time_are_abandoned(run: Run) -> None:
    ending = BaseCoordinator(run.tracker, run.state, workers=range(2))
    asked_ago(run, 0.75)
    ending.idle()
    ending.on_bye(0)
    ending.idle()
    before = ending.done
    asked_ago(run, 0.95)
    ending.idle()
    assert (before, ending.done, ending.abandoned) == (False, True, True)
