"""What rank 0 writes on a disk that is full for a while: nothing is lost, it is said once, and patience has an end."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dppo import files
from dppo.config import CheckpointConfig
from dppo.errors import DisplacedError, SavingError
from dppo.rundir import runfiles
from dppo.rundir.recorders import write_json
from dppo.rundir.runfiles import RunFiles
from dppo.rundir.tensorboard import TensorBoard
from dppo.seams import Recorder

Make = Callable[..., RunFiles]


class Disk:
    """Takes everything, or nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: OSError | None = None
        write_all, write_durably = files._write_all, files.write_durably

        def write(descriptor: int, data: bytes) -> None:
            if self.error is not None:
                raise self.error
            write_all(descriptor, data)

        def write_file(path: Path, *data: bytes) -> None:
            if self.error is not None:
                raise self.error
            write_durably(path, *data)

        monkeypatch.setattr(files, "_write_all", write)
        monkeypatch.setattr(files, "write_durably", write_file)

    def fail(self, number: int = errno.ENOSPC) -> None:
        self.error = OSError(number, os.strerror(number))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(runfiles, "RETRY_S", 0.01)
    monkeypatch.setattr(TensorBoard, "FLUSH_S", 0.01)
    return Disk(monkeypatch)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, disk: Disk, said: list[str]) -> Iterator[Make]:
    made: list[RunFiles] = []

    def make(*, patience_s: float = 60.0, tensorboard: bool = False) -> RunFiles:
        config = CheckpointConfig(patience_s=patience_s)
        made.append(RunFiles(tmp_path, config, said.append, last_iteration=0, first_step=0, tensorboard=tensorboard))
        return made[-1]

    yield make
    for each in made:
        each.close()


def save(folder: Path) -> Path:
    """Stands for a checkpoint."""
    files.write_durably(folder / "saved", b"all of it")
    return folder


def iterations(run_dir: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def iterate(these: RunFiles, *numbers: int) -> None:
    for number in numbers:
        these.log({"iteration": number, "env_steps": number})
        these.look()


def test_lines_wait_for_the_disk_and_come_in_their_order(
    make: Make, disk: Disk, said: list[str], tmp_path: Path
) -> None:
    these = make()
    iterate(these, 1)
    disk.fail()
    iterate(these, 2, 3)
    assert iterations(tmp_path) == [1]
    disk.error = None
    iterate(these, 4)
    time.sleep(0.02)
    iterate(these, 5)
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]
    assert said == [
        "metrics.jsonl could not be written: [Errno 28] No space left on device; it is tried again",
        f"{tmp_path} can be written again; what had waited is there",
    ]


def test_a_checkpoint_is_tried_again_and_said_once(make: Make, disk: Disk, said: list[str], tmp_path: Path) -> None:
    these = make()
    disk.fail(errno.EDQUOT)
    these.save_meanwhile(lambda: save(tmp_path))
    while these.is_writing:
        time.sleep(0.001)
    for number in range(1, 4):
        iterate(these, number)
    assert not (tmp_path / "saved").exists()
    time.sleep(0.02)
    assert these.owes_checkpoint
    disk.error = None
    these.save_meanwhile(lambda: save(tmp_path))
    these.close()
    assert (tmp_path / "saved").exists() and not these.owes_checkpoint
    assert len(said) == 2 and "quota" in said[0]


def test_a_checkpoint_waits_for_the_lines_that_it_has_seen(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a resume from it would miss them for ever."""
    these = make()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        iterate(these, 1)
        assert not these.save(lambda: save(tmp_path))
    assert not (tmp_path / "saved").exists()
    assert these.save(lambda: save(tmp_path)) and iterations(tmp_path) == [1]


@pytest.mark.parametrize("patience_s", [0.0, 0.05])
def test_without_a_checkpoint_that_is_due_patience_ends(
    patience_s: float, make: Make, disk: Disk, tmp_path: Path
) -> None:
    these = make(patience_s=patience_s)
    disk.fail(errno.EIO)
    since = time.monotonic()
    assert not these.save(lambda: save(tmp_path))
    with pytest.raises(SavingError, match=r"patience-s\): a checkpoint could not be written: \[Errno 5\]"):
        while True:
            iterate(these, 1)
            time.sleep(0.005)
    assert patience_s <= time.monotonic() - since < patience_s + 0.5


def test_no_checkpoint_being_due_a_full_disk_ends_nothing(make: Make, disk: Disk) -> None:
    these = make(patience_s=0.01)
    disk.fail()
    iterate(these, 1)
    time.sleep(0.02)
    iterate(these, 2)


def test_a_run_directory_that_was_moved_ends_it_and_is_not_made_again(
    disk: Disk, said: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    these = RunFiles(
        run_dir, CheckpointConfig(patience_s=0.03), said.append, last_iteration=0, first_step=0, tensorboard=True
    )
    iterate(these, 1)
    run_dir.rename(tmp_path / "elsewhere")
    with pytest.raises(SavingError, match="was moved, removed or replaced"):
        for number in range(2, 100):
            iterate(these, number)
            assert not these.save(lambda: save(run_dir))
            time.sleep(0.005)
    these.write_summary({"exit": "failed"})
    these.close()
    assert not run_dir.exists()
    assert iterations(tmp_path / "elsewhere") == [1]
    assert len(said) == 2 and "summary.json could not be written" in said[1]


def test_the_last_checkpoint_waits_for_the_disk(make: Make, disk: Disk, tmp_path: Path) -> None:
    these, waits = make(), []
    disk.fail()

    def may_wait() -> bool:
        waits.append(1)
        disk.error = None
        return True

    these.finish(lambda: save(tmp_path), lambda: these.write_summary({"exit": "finished"}), may_wait)
    assert waits and (tmp_path / "saved").exists()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"exit": "finished"}


def test_a_summary_alone_that_cannot_be_written_is_not_waited_for_without_end(make: Make, tmp_path: Path) -> None:
    these = make(patience_s=0.1)
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(SavingError, match=r"patience-s\): summary.json could not be written"):
        these.finish(lambda: save(tmp_path), lambda: these.write_summary({"exit": "finished"}), lambda: True)


def test_what_was_lost_is_not_said_to_be_there(make: Make, disk: Disk, said: list[str]) -> None:
    these = make()
    disk.fail()
    iterate(these, 1)
    disk.error, these.lacks_steps = None, True
    time.sleep(0.02)
    iterate(these, 2, 3)
    assert said[-1].endswith("can be written again; what had waited is there, but for trajectories")


def test_whoever_has_to_leave_does_not_wait_for_the_disk(make: Make, disk: Disk, tmp_path: Path) -> None:
    these = make()
    disk.fail()
    with pytest.raises(SavingError, match="before it had to leave: a checkpoint could not be written"):
        these.finish(lambda: save(tmp_path), lambda: None, lambda: False)


def test_on_a_full_disk_the_summary_is_written_over_the_old_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, said: list[str], tmp_path: Path
) -> None:
    """There is room in its own block, but for no second file."""
    these = make()
    these.write_summary({"exit": "running"})

    def refuse(path: Path, *data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "write_durably", refuse)
    these.write_summary({"exit": "failed", "error": "x" * 10})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"exit": "failed", "error": "x" * 10}
    assert said == []


def test_a_checkpoint_that_failed_leaves_its_room_to_others(make: Make, tmp_path: Path) -> None:
    these, part = make(), tmp_path / "checkpoints" / "step_000000001.part"

    def half() -> Path:
        part.mkdir(parents=True)
        raise OSError(errno.ENOSPC, "full")

    assert not these.save(half)
    assert not part.exists()


def test_events_wait_for_the_disk_too(make: Make, disk: Disk, said: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    these = make(tensorboard=True)
    disk.fail()
    for number in range(1, 5):
        these.log({"iteration": number, "env_steps": number, "loss": float(number)})
        these.look()
        time.sleep(0.02)
    disk.error = None
    these.close()
    events: Any = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert len(said) == 2, said


def test_where_another_start_has_begun_this_one_ends_and_writes_nothing_more(make: Make, tmp_path: Path) -> None:
    """A node that was cut off went on, and its lines lay between those of the job that had been started again."""
    starts = tmp_path / "versions.json"
    write_json(starts, {"attempts": [{}]})
    run = make()
    run.log({"iteration": 1})
    write_json(starts, {"attempts": [{}]})  # the same start: a server that has taken over does not count
    run.log({"iteration": 2})
    run.write_summary({"exit": "running"})
    write_json(starts, {"attempts": [{}, {}]})
    for _ in range(2):
        with pytest.raises(DisplacedError, match="another start of this run has begun"):
            run.log({"iteration": 3})
    with pytest.raises(DisplacedError):
        run.finish(lambda: save(tmp_path), lambda: run.write_summary({"exit": "finished"}), lambda: True)
    assert not run.save(lambda: save(tmp_path))
    run.write_summary({"exit": "failed"})
    run.close()
    assert [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((tmp_path / "summary.json").read_text())["exit"] == "running"
    assert not (tmp_path / "saved").exists()


class Checkpoints(Recorder):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def checkpoint(self, path: Path) -> None:
        self.heard.append(path)

    def end(self, summary: dict[str, Any]) -> None:
        self.heard.append(summary["exit"])


def test_recorders_hear_of_checkpoints_that_are_written_and_of_the_last_summary(
    make: Make, disk: Disk, tmp_path: Path
) -> None:
    these, recorder = make(), Checkpoints()
    these.recorders.add(recorder)
    assert these.save(lambda: save(tmp_path))
    disk.fail()
    assert not these.save(lambda: save(tmp_path))
    disk.error = None
    these.save_meanwhile(lambda: save(tmp_path))
    for exit_ in ("running", "finished"):
        these.write_summary({"exit": exit_})
    these.close()
    these.close()
    assert recorder.heard == [tmp_path, tmp_path, "finished"]
