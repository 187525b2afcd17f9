"""What is saved of a run, when, and what becomes of it where the disk refuses or trajectories are not written yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dppo.config import CheckpointConfig, TrajectoriesConfig
from dppo.errors import Failure, SavingError
from dppo.rundir import checkpoint, runfiles
from dppo.rundir.checkpoint import checkpoint_folders
from dppo.seams import Sealed
from dppo.training.saver import SETTLE_S
from tests.parts import Run, wait_for_checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.tracker.files.close()


def test_the_watchdog_is_told_where_rank_0_waits_for_the_disk(run: Run) -> None:
    phases: list[str] = []
    run.tracker.saver.heartbeat = phases.append
    run.iterate()
    assert phases == [], "a checkpoint in the course of training is written by a thread"
    run.tracker.saver.save_at_once()
    run.tracker.saver.finish("preempted")
    assert phases == ["checkpoint", "checkpoint"]


def test_given_up_in_mid_iteration_the_last_boundary_is_what_counts(run: Run) -> None:
    """A report has come in, but its iteration will not be closed."""
    run.iterate()
    expected = run.tracker.saver.boundary.counters
    run.collect(run.places[0])
    run.state.flat.vector += 1.0
    run.tracker.saver.finish("preempted")
    saved = run.saved()
    assert (saved.env_steps, saved.iteration) == (32, 1)
    assert saved.counters["returns"] == expected["returns"]
    assert (saved.state["parameters"] != run.state.flat.vector).all()
    row, envs = saved.ranks[1]
    assert row == 16 and all(len(e.actions) <= 16 for e in envs)
    assert run.summary()["env_steps"] == 32


def test_asked_to_leave_the_last_boundary_is_saved_at_once_and_the_run_goes_on(run: Run) -> None:
    """Whoever asked may not wait for the next boundary."""
    run.iterate()
    run.collect(run.places[0])
    assert (run.tracker.counters.pending_rollouts, run.tracker.counters.pending_env_steps) == (1, 32)
    run.preemption.request("SIGTERM")
    run.tracker.saver.save_at_once()
    assert (run.saved().env_steps, run.summary()["exit"]) == (32, "preempted")
    run.state.finish_iteration(run.tracker.counters.pending_env_steps, 0.0)
    assert run.tracker.close({}) == "preempted"
    assert (run.saved().env_steps, run.summary()["env_steps"]) == (64, 64)
    assert [line["iteration"] for line in run.lines()] == [1, 2]


def test_a_failed_run_says_so_and_keeps_its_checkpoints(run: Run) -> None:
    run.iterate()
    run.tracker.saver.fail(Failure("a rank did not answer", stalled=True))
    summary = run.summary()
    assert (summary["exit"], summary["error"], summary["stalled"]) == ("failed", "a rank did not answer", True)
    assert run.saved().env_steps == 0


def test_a_run_can_be_resumed_from_its_first_moment(run: Run) -> None:
    assert run.saved().env_steps == 0
    assert run.saved().ranks == {1: (0, [])}


def test_a_job_that_is_being_killed_leaves_no_checkpoint_with_some_of_its_ranks_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that comes back then has the numbers of one that was never interrupted."""
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=1))
    run.iterate()
    wait_for_checkpoints(run)
    run.tracker.regroup(2, [0, 1])
    run.iterate()
    wait_for_checkpoints(run)
    assert run.saved().iteration == 1
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + SETTLE_S)
    run.iterate()
    wait_for_checkpoints(run)
    assert run.saved().iteration == 3, "it was due all the time"
    run.tracker.files.close()


def test_checkpoints_come_at_their_interval_and_the_newest_stay(tmp_path: Path) -> None:
    """32 steps an iteration, one every 64."""
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=64, keep=2))
    seen = []
    for _ in range(6):
        run.iterate()
        wait_for_checkpoints(run)
        seen.append(int(checkpoint_folders(tmp_path)[0].name.removeprefix("step_")))
    assert seen == [0, 64, 64, 128, 128, 192]
    assert [f.name for f in checkpoint_folders(tmp_path)] == ["step_000000192", "step_000000128"]
    run.tracker.files.close()


def test_with_an_interval_of_zero_there_are_only_the_first_and_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=0), total_steps=96)
    for _ in range(3):
        run.iterate()
    assert [f.name for f in checkpoint_folders(tmp_path)] == ["step_000000096", "step_000000000"]


def test_a_disk_that_fails_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=32))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dppo.rundir.checkpoint.write_durably", full)
        run.iterate()
        wait_for_checkpoints(run)
    run.iterate()
    wait_for_checkpoints(run)
    assert "a checkpoint could not be written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert run.saved().env_steps == 64
    run.tracker.files.close()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """[True] while the disk has no room for a checkpoint."""
    is_full, write = [True], checkpoint.write_durably

    def write_if(*args: Any) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(checkpoint, "write_durably", write_if)
    yield is_full
    is_full[0] = False


def test_a_checkpoint_that_the_disk_refused_is_tried_again_before_the_next_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: list[bool]
) -> None:
    full[0] = False
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=64))
    monkeypatch.setattr(runfiles, "RETRY_S", 0.0)
    full[0] = True
    for _ in range(2):
        run.iterate()
        wait_for_checkpoints(run)
    full[0] = False
    run.iterate()
    wait_for_checkpoints(run)
    assert run.saved().env_steps == 96
    run.tracker.files.close()


def test_without_patience_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path, full: list[bool]) -> None:
    full[0] = False
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=32, patience_s=0))
    full[0] = True
    with pytest.raises(SavingError, match="No space left on device") as raised:
        for _ in range(3):
            run.iterate()
            wait_for_checkpoints(run)
    run.tracker.saver.fail(Failure(str(raised.value)))
    assert run.summary()["exit"] == "failed" and "No space left" in run.summary()["error"]
    assert [line["iteration"] for line in run.lines()] == list(range(1, run.state.iteration + 1))


def test_asked_to_leave_on_a_full_disk_it_fails_within_the_grace_period(tmp_path: Path, full: list[bool]) -> None:
    full[0] = False
    run = Run(tmp_path)
    run.iterate()
    full[0] = True
    run.preemption.grace_s = 0.5
    run.preemption.request("SIGUSR1")
    since = time.monotonic()
    run.tracker.saver.save_at_once()
    with pytest.raises(SavingError, match="before it had to leave"):
        run.iterate()
    assert time.monotonic() - since < 0.5
    assert run.summary()["exit"] == "running", "not before it is known how it ends"
    run.tracker.saver.fail(Failure("x"))
    assert run.summary()["exit"] == "failed"


def test_a_run_that_is_done_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: list[bool]
) -> None:
    full[0] = False
    run = Run(tmp_path, total_steps=32)
    monkeypatch.setattr(runfiles, "RETRY_S", 0.01)
    full[0] = True
    run.tracker.saver.heartbeat = lambda phase: full.__setitem__(0, False)
    assert run.iterate() == "finished"
    assert (run.summary()["exit"], run.saved().env_steps) == ("finished", 32)


# -- where trajectories are written --------------------


@pytest.fixture
def dumping(tmp_path: Path) -> Iterator[Run]:
    """Two workers that write trajectories; a checkpoint after each iteration."""
    trajectories, every = TrajectoriesConfig(enabled=True), CheckpointConfig(every=1)
    run = Run(tmp_path, workers=2, trajectories=trajectories, checkpoint=every)
    yield run
    run.tracker.files.close()


def seal(run: Run, worker: int, row: int) -> None:
    run.tracker.saver.on_sealed(Sealed(worker + 1, row, next_segment=1, end_row=row))
    wait_for_checkpoints(run)


def test_a_checkpoint_waits_until_every_worker_has_sealed_what_it_has_seen(dumping: Run) -> None:
    dumping.iterate()
    saver = dumping.tracker.saver
    assert saver.take_seal_orders() == {0: 16, 1: 16}
    assert saver.take_seal_orders() == {}, "each is sent once"
    seal(dumping, 0, row=16)
    assert dumping.saved().env_steps == 0
    seal(dumping, 1, row=16)
    assert (dumping.saved().env_steps, dumping.saved().next_segments) == (64, {1: 1, 2: 1})


def test_nobody_waits_for_what_the_dead_have_not_sealed_the_next_boundary_is_saved_instead(
    dumping: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumping.iterate()
    saver = dumping.tracker.saver
    saver.take_seal_orders()
    dumping.tracker.regroup(2, [0])
    seal(dumping, 0, row=16)
    assert dumping.saved().env_steps == 0
    dumping.iterate()
    assert saver.take_seal_orders() == {}, "the others may be dying as well"
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + SETTLE_S)
    dumping.iterate()
    assert saver.take_seal_orders() == {0: 48}
    seal(dumping, 0, row=48)
    assert dumping.saved().env_steps == 192


def test_a_run_that_has_ended_is_saved_once_when_that_is_concluded(dumping: Run) -> None:
    dumping.iterate()
    saver = dumping.tracker.saver
    saver.finish("preempted")
    assert dumping.saved().env_steps == 0 and dumping.summary()["exit"] == "running"
    saver.conclude()
    assert dumping.saved().env_steps == 64 and dumping.summary()["exit"] == "preempted"
    saver.update_summary("failed")
    saver.conclude()
    assert dumping.summary()["exit"] == "failed"


def test_a_run_whose_required_trajectories_are_lost_keeps_its_last_whole_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, trajectories=TrajectoriesConfig(enabled=True, required=True))
    run.iterate()
    saver = run.tracker.saver
    saver.on_sealed(Sealed(1, None, None, problem="row 3 cannot be written", failed=True))
    saver.finish("finished")
    saver.conclude()
    assert run.saved().env_steps == 0
    assert (run.summary()["exit"], run.summary()["error"]) == ("failed", "row 3 cannot be written")


def test_segments_of_ranks_that_are_gone_stay_named(tmp_path: Path) -> None:
    """A resume on fewer ranks writes none for them; unnamed, the next resume would set them aside."""
    saved = Run(tmp_path / "before").saved()
    saved.next_segments = {9: 4}
    run = Run(tmp_path / "after", saved=saved, trajectories=TrajectoriesConfig(enabled=True))
    run.tracker.saver.write(run.tracker.saver.boundary)
    assert run.saved().next_segments == {1: 0, 9: 4}, "that of worker 0, too"
