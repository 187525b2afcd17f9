"""A worker's trajectory writer: what a segment holds, when it is sealed, and where it cannot be written."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dppo import files as disk_files
from dppo.data import EpisodeProgress, Rollout
from dppo.errors import DumpError
from dppo.seams import Sealed
from dppo.trajectories import disk, segment
from dppo.trajectories.format import (
    checksum_problem,
    compression_filter,
    end_row,
    episode_table,
    next_segments,
    rank_folder,
    segment_files,
    segments_until,
    set_aside_orphans,
)
from dppo.trajectories.writer import Labels, TrajectoryWriter
from tests.parts import Parts, make_parts

Make = Callable[..., TrajectoryWriter]


@pytest.fixture
def place() -> Parts:
    return make_parts(env="CartPole-v1")


@pytest.fixture
def make(tmp_path: Path, place: Parts) -> Iterator[Make]:
    """Makes a writer for `place`, as rank 3; segments of any size but those that a test asks for."""

    def make(**changes: Any) -> TrajectoryWriter:
        labels = Labels(tmp_path, "id", 1, 3, 4, 0, "{}", "{}", "{}", "{}", "0.1")
        settings: dict[str, Any] = {"has_raw_actions": False, "segment_bytes": 10**9} | changes
        return TrajectoryWriter(labels, place.seeds.of, **settings)

    yield make


def files(tmp_path: Path) -> list[Path]:
    return list(segment_files(rank_folder(tmp_path, 3)).values())


def rows(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return [int(row) for row in file["steps/row"]]


def answered(writer: TrajectoryWriter) -> list[Sealed]:
    deadline, out = time.monotonic() + 10, list[Sealed]()
    while not out and time.monotonic() < deadline:
        out = writer.answers()
        time.sleep(0.001)
    return out


# -- what a segment holds --------------------


def test_a_segment_holds_what_the_rollouts_held(make: Make, place: Parts, tmp_path: Path) -> None:
    writer, rollouts = make(), [place.rollout()[0] for _ in range(5)]
    for rollout in rollouts:
        writer.add(rollout)
    assert writer.settle(None) == [Sealed(3, 80, 1, 80)]
    (path,) = files(tmp_path)
    assert checksum_problem(path) is None
    with h5py.File(path) as file:
        steps = {name: data[()] for name, data in file["steps"].items()}
        assert file.attrs["format"] == "dppo-trajectories" and file.attrs["format_version"] == 1
        assert [file.attrs[n] for n in ("rank", "segment", "first_env_step", "skipped_rows")] == [3, 0, 0, 0]
        assert file.attrs["complete"]
        ends = [(r, n, o.tolist()) for r, n, o in zip(*(file[f"final/{k}"] for k in ("row", "env", "observations")))]  # type: ignore[call-overload]  # noqa: B905
    for name, attribute in (
        ("observations", "observations"), ("actions", "env_actions"), ("rewards", "rewards"), ("values", "values"),
        ("log_probs", "log_probs"), ("terminations", "terminations"), ("valid", "valid"),
        ("policy_version", "versions"),
    ):  # fmt: skip
        expected = np.concatenate([getattr(r, attribute) for r in rollouts])
        assert steps[name].dtype == expected.dtype
        np.testing.assert_array_equal(steps[name], expected)
    assert "actions_raw" not in steps
    assert ends == [
        (16 * i + int(r), int(n), o.tolist())
        for i, rollout in enumerate(rollouts)
        for r, n, o in zip(rollout.final_rows, rollout.final_envs, rollout.final_observations, strict=True)
    ]


def test_actions_as_sampled_are_kept_where_they_may_be_clipped(tmp_path: Path) -> None:
    place = make_parts(env="Pendulum-v1")
    labels = Labels(tmp_path, "id", 1, 3, 4, 0, "{}", "{}", "{}", "{}", "0.1")
    writer = TrajectoryWriter(labels, place.seeds.of, has_raw_actions=True, segment_bytes=10**9)
    rollout, _ = place.rollout()
    writer.add(rollout)
    writer.settle(None)
    with h5py.File(files(tmp_path)[0]) as file:
        np.testing.assert_array_equal(file["steps/actions_raw"], rollout.actions)
        np.testing.assert_array_equal(file["steps/actions"], rollout.env_actions)


def test_a_version_for_each_row_also_where_a_rollout_was_gone_on_with(make: Make, place: Parts) -> None:
    collector, left = place.collector, [5]

    def interrupt() -> bool:
        left[0] -= 1
        return left[0] < 0

    collector.collect(16, 7, interrupt)
    collector.keep_last()
    rollout = collector.collect(16, 9)
    assert rollout.versions.tolist() == 5 * [7] + 11 * [9]


# -- episodes --------------------


def table(
    rewards: list[float],
    ends: dict[int, str],
    valid: list[bool] | None = None,
    progress: tuple[int, int, float] = (0, 0, 0),
) -> tuple[list[tuple[Any, ...]], EpisodeProgress]:
    """Of one environment; ends: {row: "terminated" or "truncated"}."""
    t = len(rewards)
    terminations, truncations = (
        np.array([[ends.get(row) == how] for row in range(t)]) for how in ("terminated", "truncated")
    )
    before = EpisodeProgress(*(np.array([value]) for value in progress[:2]), np.array([float(progress[2])]))
    flags = np.ones((t, 1), bool) if valid is None else np.array(valid)[:, None]
    out, after = episode_table(np.array(rewards, np.float32)[:, None], terminations, truncations, flags, before)
    names = ("id", "start", "length", "offset", "return", "terminated", "truncated", "complete")
    return [tuple(out[name][i].item() for name in names) for i in range(len(out["id"]))], after


def test_episodes_begin_go_on_and_end() -> None:
    listed, after = table([1, 2, 3, 4, 5, 6], {1: "terminated", 4: "truncated"}, progress=(7, 10, 100.0))
    assert listed == [
        (7, 0, 2, 10, 103.0, True, False, False),  # began in the segment before
        (8, 2, 3, 0, 12.0, False, True, True),
        (9, 5, 1, 0, 6.0, False, False, False),  # goes on in the next
    ]
    assert (after.episodes[0], after.lengths[0], after.returns[0]) == (9, 1, 6.0)


def test_an_end_in_the_last_row_leaves_nothing_over() -> None:
    listed, after = table([1, 1], {1: "terminated"})
    assert listed == [(0, 0, 2, 0, 2.0, True, False, True)]
    assert (after.episodes[0], after.lengths[0]) == (1, 0)


def test_a_row_that_was_a_reset_is_no_step() -> None:
    listed, _ = table([1, 9, 1, 1], {0: "terminated"}, valid=[True, False, True, True])
    assert listed == [(0, 0, 1, 0, 1.0, True, False, True), (1, 2, 2, 0, 2.0, False, False, False)]


def test_episodes_go_on_over_segments(make: Make, place: Parts, tmp_path: Path) -> None:
    """The tables of two segments, put together, are that of one."""
    writer = make()
    rollouts = [place.rollout()[0] for _ in range(8)]
    for rollout in rollouts:
        writer.add(rollout)
        if rollout is rollouts[3]:
            writer.seal(64)
    writer.settle(None)
    listed: dict[tuple[int, int], list[Any]] = {}
    for path in files(tmp_path):
        with h5py.File(path) as file:
            e = {name: data[()] for name, data in file["episodes"].items()}
        for i in range(len(e["id"])):
            known = listed.setdefault((e["env"][i], e["id"][i]), [0, 0.0, False])
            assert e["offset"][i] == known[0]
            known[:] = [known[0] + e["length"][i], e["return"][i], bool(e["terminated"][i])]
            assert e["seed"][i] == place.seeds.of(int(e["env"][i]), int(e["id"][i]))
    told = [(e.env, e.length, e.episode_return) for r in rollouts for e in r.episodes]
    ended = [(n, length, total) for (n, _), (length, total, end) in sorted(listed.items()) if end]
    assert sorted(told) == sorted(ended)


# -- when --------------------


def test_a_segment_is_sealed_for_its_size_but_for_the_newest_rollouts(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make(segment_bytes=4 * 2000)
    for _ in range(12):
        writer.add(place.rollout()[0])
    writer.seal(12 * 16 - 2 * 16)
    assert answered(writer)[0].next_segment == len(files(tmp_path)) > 1
    writer.settle(None)
    assert [row for path in files(tmp_path) for row in rows(path)] == list(range(12 * 16))


def test_a_checkpoint_gets_exactly_what_it_has_seen(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make()
    for _ in range(4):
        writer.add(place.rollout()[0])
    writer.seal(48)
    assert answered(writer) == [Sealed(3, 48, 1, 48)]
    assert rows(files(tmp_path)[0])[-1] == 47
    writer.seal(48)
    assert answered(writer) == [Sealed(3, 48, 1, 48)], "nothing new: no empty segment"
    for _ in range(2):
        assert writer.settle(48) == [Sealed(3, 48, 1, 48)], "it may be asked again"
    writer.close()
    assert len(files(tmp_path)) == 1


def test_one_that_is_too_far_ahead_says_so(make: Make, place: Parts) -> None:
    writer = make()
    for _ in range(4):
        writer.add(place.rollout()[0])
    writer.seal(64)
    assert answered(writer)[0].next_segment == 1
    writer.seal(48)
    assert answered(writer) == [Sealed(3, 48, None)]


def test_what_is_sealed_for_its_size_later_does_not_spoil_an_answer(
    make: Make, place: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is slower than the dump: the answer is looked at long after it was due."""
    writer = make(segment_bytes=100)
    writer.add(place.rollout()[0])
    writer.seal(16)
    for _ in range(8):
        writer.add(place.rollout()[0])
    writer.wait()
    assert writer.answers() == [Sealed(3, 16, 1, 16)]


def test_what_is_told_twice_is_written_once(make: Make, place: Parts, tmp_path: Path) -> None:
    writer, rollout = make(), place.rollout()[0]
    writer.add(rollout)
    writer.add(rollout)
    writer.add(place.rollout()[0])
    writer.settle(None)
    assert rows(files(tmp_path)[0]) == list(range(32))


def test_every_so_manieth_rollout(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make(every=3)
    for _ in range(7):
        writer.add(place.rollout()[0])
    writer.settle(None)
    (path,) = files(tmp_path)
    assert rows(path) == [*range(16), *range(48, 64), *range(96, 112)]
    with h5py.File(path) as file:
        assert file.attrs["every"] == 3
        e = {name: data[()] for name, data in file["episodes"].items()}
        observations = file["steps/observations"][()]
    whole = np.flatnonzero(e["complete"])
    assert all(e["offset"][i] == 0 for i in whole)
    assert ((e["start"] + e["length"] - 1) // 16 == e["start"] // 16).all(), "none goes over what is missing"
    assert len(observations) == 48


def test_a_writer_goes_on_behind_what_is_visible(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make()
    writer.add(place.rollout()[0])
    writer.settle(None)
    place.rollout()  # lost with a rank that died
    again = make()
    again.add(place.rollout()[0])
    assert again.settle(None) == [Sealed(3, 48, 2, 48)]
    with h5py.File(files(tmp_path)[1]) as file:
        assert (file.attrs["segment"], file.attrs["skipped_rows"]) == (1, 16)
    assert end_row(rank_folder(tmp_path, 3)) == 48
    assert next_segments(tmp_path) == {3: 2}


# -- where it cannot be written --------------------


def test_a_write_error_is_told_once_and_the_next_segment_takes_the_number(
    make: Make, place: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no patience helps against."""

    def too_large(path: Path, *data: bytes) -> None:
        path.write_bytes(b"a part")
        raise OSError(errno.EFBIG, "File too large")

    writer = make()
    with monkeypatch.context() as patch:
        patch.setattr(disk_files, "write_durably", too_large)
        for row in (16, 32):
            writer.add(place.rollout()[0])
            writer.seal(row)
        told = told_until(writer, lambda told: any(s.row == 32 for s in told))
    assert [s.problem for s in told if s.problem] == [
        f"trajectories: {rank_folder(tmp_path, 3)}/seg_000000.h5 could not be written: [Errno 27] File too large"
    ]
    assert Sealed(3, 32, 0, 0) in told, "a checkpoint names what there is"
    writer.add(place.rollout()[0])
    writer.settle(None)
    assert rows(files(tmp_path)[0])[0] == 32
    with h5py.File(files(tmp_path)[0]) as file:
        assert file.attrs["skipped_rows"] == 32
    assert not list(tmp_path.rglob("*.part"))


class FullDisk:
    """Refuses every segment until it has room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full, self.asked, self._write = True, 0, disk_files.write_durably
        monkeypatch.setattr(disk_files, "write_durably", self)
        monkeypatch.setattr(disk, "RETRY_S", 0.01)

    def __call__(self, path: Path, *data: bytes) -> None:
        self.asked += 1
        if self.is_full:
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        self._write(path, *data)


def told_until(writer: TrajectoryWriter, condition: Callable[[list[Sealed]], bool]) -> list[Sealed]:
    """All answers until it holds of them."""
    told, deadline = list[Sealed](), time.monotonic() + 10
    while not condition(told) and time.monotonic() < deadline:
        told += answered(writer)
    return told


def test_a_full_disk_is_asked_again_and_nothing_is_lost(
    make: Make, place: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint meanwhile names what is there; every row is there once in the end."""
    full, writer = FullDisk(monkeypatch), make()
    for row in (16, 32, 48):
        writer.add(place.rollout()[0])
        writer.seal(row)
    told = told_until(writer, lambda told: any(s.row == 48 for s in told))
    assert [s.refusal for s in told if s.refusal is not None] == [
        f"{rank_folder(tmp_path, 3)}/seg_000000.h5: [Errno 28] No space left on device"
    ]
    assert [s[:4] for s in told if s.row is not None] == [(3, row, 0, 0) for row in (16, 32, 48)]
    full.is_full = False
    told = told_until(writer, lambda told: bool(told))
    writer.add(place.rollout()[0])
    told += writer.settle(None)
    assert Sealed(3, 64, len(files(tmp_path)), 64) in told and Sealed(3, None, None, refusal="") in told
    assert not any(s.problem for s in told) and full.asked > 1
    assert [row for path in files(tmp_path) for row in rows(path)] == list(range(64))


def test_what_waits_for_a_full_disk_has_a_bound(
    make: Make, place: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, writer = FullDisk(monkeypatch), make(segment_bytes=10_000)
    most = 0
    for _ in range(100):
        writer.add(place.rollout()[0])
        most = max(most, writer._buffer.num_bytes)
    assert most < 1.5 * writer.KEPT_WAITING * 7000
    full.is_full = False
    told = writer.settle(None)
    (problem,) = [s.problem for s in told if s.problem]
    assert problem.endswith("seg_000000.h5 could not be written: [Errno 28] No space left on device")
    held = [row for path in files(tmp_path) for row in rows(path)]
    assert held == list(range(held[0], 1600)) and held[0] > 0
    assert max(len(rows(path)) for path in files(tmp_path)) < 300, "what has waited is not one large segment"


def test_in_the_end_a_full_disk_is_not_waited_for_for_ever(
    make: Make, place: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch)
    writer = make(segment_bytes=4000, wait_s=0.1)
    for _ in range(12):
        writer.add(place.rollout()[0])
    since = time.monotonic()
    told = writer.settle(None)
    assert time.monotonic() - since < 2
    assert told[-1][:4] == (3, 192, 0, 0) and any(s.failed for s in told)
    writer.close()


def test_where_dumps_are_required_a_full_disk_is_not_asked_again(
    make: Make, place: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch)
    writer = make(required=True)
    writer.add(place.rollout()[0])
    writer.seal(16)
    assert answered(writer)[0].failed
    with pytest.raises(DumpError, match="No space left"):
        writer.add(place.rollout()[0])


def test_a_run_directory_that_was_moved_is_not_made_again(place: Parts, tmp_path: Path) -> None:
    labels = Labels(tmp_path / "run", "id", 1, 3, 4, 0, "{}", "{}", "{}", "{}", "0.1")
    writer = TrajectoryWriter(labels, None, has_raw_actions=False, segment_bytes=10**9, wait_s=0.0)
    (tmp_path / "run").rename(tmp_path / "moved")
    writer.add(place.rollout()[0])
    assert any(s.failed for s in writer.settle(None))
    assert not (tmp_path / "run").exists()


def test_any_error_is_the_dumps_and_not_the_runs(make: Make, place: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    for module, name in ((disk_files, "write_durably"), (segment, "write_dataset")):
        writer = make()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            writer.add(place.rollout()[0])
            told = writer.settle(None)
        assert told[0].failed and str(told[0].problem).endswith("could not be written: MemoryError")


def test_a_segment_is_never_replaced(make: Make, place: Parts, tmp_path: Path) -> None:
    """Where a folder's listing was old."""
    writer, other = make(), make()
    rollout = place.rollout()[0]
    for each in (writer, other):
        each.add(rollout)
    writer.settle(None)
    before = files(tmp_path)[0].read_bytes()
    assert other.settle(None)[0].failed
    assert files(tmp_path)[0].read_bytes() == before


def test_the_segments_that_end_before_a_row(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make()
    for row in (16, 32, 48):
        writer.add(place.rollout()[0])
        writer.seal(row)
    writer.settle(None)
    folder = rank_folder(tmp_path, 3)
    assert [segments_until(folder, row) for row in (0, 16, 31, 32, 99)] == [(0, 0), (1, 16), (1, 16), (2, 32), (3, 48)]
    files(tmp_path)[2].write_bytes(b"damaged")
    assert end_row(folder) == 32


def test_a_write_error_ends_the_run_where_dumps_are_required(make: Make, place: Parts, tmp_path: Path) -> None:
    (tmp_path / "trajectories").write_text("in the way")
    writer = make(required=True)
    writer.add(place.rollout()[0])
    writer.seal(16)
    assert answered(writer)[0].failed
    with pytest.raises(DumpError, match=r"rank_00003/seg_000000\.h5 could not be written"):
        writer.add(place.rollout()[0])


def test_the_dump_stops_where_it_is_large_enough(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make(max_bytes=100_000)
    for i in range(10):
        writer.add(place.rollout()[0])
        writer.seal(16 * (i + 1))
    told = writer.settle(None)
    (problem,) = [s.problem for s in told if s.problem]
    assert problem.endswith("would pass --trajectories.max-gb; no more are written")
    assert not any(s.failed for s in told)
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) <= 100_000


def test_zstd_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    with pytest.raises(ValueError, match="needs hdf5plugin"):
        compression_filter("zstd")


# -- resume --------------------


def test_what_no_checkpoint_names_is_set_aside(make: Make, place: Parts, tmp_path: Path) -> None:
    writer = make()
    for row in (16, 32, 48):
        writer.add(place.rollout()[0])
        writer.seal(row)
    writer.settle(None)
    (rank_folder(tmp_path, 3) / "seg_000003.h5.part").write_bytes(b"half")
    assert set_aside_orphans(tmp_path, {3: 1}, attempt=2) == 2
    assert [path.name for path in files(tmp_path)] == ["seg_000000.h5"]
    orphans = tmp_path / "trajectories" / "orphaned" / "attempt_00002" / "rank_00003"
    assert sorted(p.name for p in orphans.iterdir()) == ["seg_000001.h5", "seg_000002.h5"]
    assert not list(tmp_path.rglob("*.part"))
    assert set_aside_orphans(tmp_path, {3: 1}, attempt=3) == 0


def test_joined_rollouts_stand_where_the_first_stood(place: Parts) -> None:
    a, b = place.rollout()[0], place.rollout()[0]
    assert isinstance(a.joined(b), Rollout)
    assert a.joined(b).progress is a.progress
