"""Whole episodes from a dump, worked out by hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dppo
from dppo.trajectories import catalogue
from dppo.trajectories.reader import open_trajectories
from tests.dumps import FakeWorker, edit, write_dump


def keys(trajectories: dppo.Trajectories) -> list[tuple[int, int, int]]:
    return [(e.rank, e.env, e.id) for e in trajectories]


def test_episodes_are_stitched_over_segments(tmp_path: Path) -> None:
    """Rows 0–3 and 4–10; episodes of 3 and 5 steps: env 0 ends at rows 2, 5, 8, env 1 at 4 and 9."""
    FakeWorker(tmp_path, raw=True).go(4).seal().go(7, 1).finish()
    dump = dppo.open_trajectories(tmp_path)
    assert [(e.env, e.id, e.first_row, e.length, e.complete) for e in dump] == [
        (0, 0, 0, 3, True), (1, 0, 0, 5, True), (0, 1, 3, 3, True), (0, 2, 6, 3, True), (1, 1, 5, 5, True),
        (0, 3, 9, 2, False), (1, 2, 10, 1, False),
    ]  # fmt: skip
    episode = list(dump)[1]  # four steps in segment 0, the last in segment 1
    assert episode.observations.tolist() == [[1, 0, k] for k in range(6)]
    assert episode.rewards.tolist() == [1, 2, 3, 4, 5]
    assert episode.actions.tolist() == [[0, 0], [1, -1], [2, -2], [2, -2], [2, -2]]
    assert episode.actions_raw is not None and episode.actions_raw[-1].tolist() == [4, -4]
    assert episode.terminations.tolist() == [False] * 4 + [True] and not episode.truncations.any()
    assert episode.log_probs.tolist() == [0, -1, -2, -3, -4]
    assert episode.policy_version.tolist() == [0, 0, 0, 0, 1]
    assert (episode.seed, episode.episode_return, episode.attempt) == (1000, 15.0, 1)
    assert episode.terminated and not episode.truncated
    unfinished = list(dump)[-2]
    assert unfinished.observations.tolist() == [[0, 3, 0], [0, 3, 1]]
    assert (unfinished.episode_return, unfinished.terminated, unfinished.truncated) == (3.0, False, False)


def test_one_segment_or_many_are_the_same_episodes(tmp_path: Path) -> None:
    whole = FakeWorker(tmp_path / "whole")
    many = FakeWorker(tmp_path / "many")
    for _ in range(12):
        whole.go(1)
        many.go(1).seal()
    whole.finish()
    many.finish()
    a, b = list(open_trajectories(tmp_path / "whole")), list(open_trajectories(tmp_path / "many"))
    assert len(a) == len(b) == 7
    for one, other in zip(a, b, strict=True):
        for name in one.__slots__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def test_an_episode_goes_on_over_attempts_and_is_of_the_last(tmp_path: Path) -> None:
    FakeWorker(tmp_path).go(4).finish()
    FakeWorker(tmp_path, row=4, attempt=2).go(4).finish()
    episodes = {(e.env, e.id): e for e in open_trajectories(tmp_path)}
    assert episodes[1, 0].length == 5 and episodes[1, 0].complete and episodes[1, 0].attempt == 2
    assert episodes[0, 0].attempt == 1


def test_where_rows_are_missing_another_fragment_begins(tmp_path: Path) -> None:
    """Row 4 is lost: env 1 is at the fifth step of its first episode there, env 0 at the second of its second."""
    FakeWorker(tmp_path).go(4).finish()
    FakeWorker(tmp_path, row=5, attempt=2).go(2).finish()
    table = open_trajectories(tmp_path).table()
    listed = list(zip(*(table[n].tolist() for n in ("env", "id", "first_row", "offset", "length")), strict=True))
    assert listed == [
        (0, 0, 0, 0, 3),
        (0, 1, 3, 0, 1),
        (1, 0, 0, 0, 4),
        (0, 1, 5, 2, 1),
        (0, 2, 6, 0, 1),
        (1, 1, 5, 0, 2),
    ]
    assert table["complete"].tolist() == [True, False, False, False, False, False]
    fragment = list(open_trajectories(tmp_path))[3]
    assert fragment.truncated and not fragment.complete and fragment.episode_return == 6.0
    assert fragment.observations.tolist() == [[0, 1, 2], [0, 1, 3]]


def test_gaps_within_a_segment_cut_episodes_too(tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path, [4], every=2)
    for _ in range(4):
        worker.go(2)  # rows 0–1 and 4–5 are written
    worker.finish()
    table = open_trajectories(tmp_path).table()
    assert table["id"].tolist() == [0, 1] and table["first_row"].tolist() == [0, 4]
    assert table["length"].tolist() == [2, 2] and not table["complete"].any()


def test_rows_that_are_no_steps_are_left_out(tmp_path: Path) -> None:
    """Episodes of 3 steps and a reset: rows 0–2, 4–6, 8–10; a segment ends at each kind of row."""
    worker = FakeWorker(tmp_path, [3], resets=True)
    for rows in (3, 2, 3, 3):
        worker.go(rows).seal()
    worker.finish()
    episodes = list(open_trajectories(tmp_path))
    assert [(e.first_row, e.id, e.length, e.seed, e.complete) for e in episodes] == [
        (0, 0, 3, None, True), (4, 4, 3, None, True), (8, 8, 3, None, True),
    ]  # fmt: skip
    assert all(e.observations[:, 2].tolist() == [0, 1, 2, 3] for e in episodes)


def test_order_is_by_rank_and_then_by_the_end(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path))
    one_rank = [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3), (1, 2)]
    assert keys(dump) == [(r, 2 * (r - 1) + env, i) for r in (1, 2) for env, i in one_rank]
    assert len(dump) == 14


# -- filters --------------------


def test_filters(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path))
    assert len(dump.filter(complete_only=True)) == 10
    assert keys(dump.filter(min_return=15.0)) == [(1, 1, 0), (1, 1, 1), (2, 3, 0), (2, 3, 1)]
    assert keys(dump.filter(ranks=[2])) == [k for k in keys(dump) if k[0] == 2]
    assert keys(dump.filter(policy_version=(None, 0), ranks={1})) == [(1, 0, 0)]
    assert keys(dump.filter(policy_version=(1, None), ranks={1})) == [(1, 0, 2), (1, 1, 1), (1, 0, 3), (1, 1, 2)]
    assert keys(dump.filter(policy_version=(1, 1), complete_only=True, ranks=[1])) == [(1, 0, 2), (1, 1, 1)]
    assert len(dump) == 14  # it is as it was


def test_the_last_are_those_that_ended_last_over_all_ranks(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path))
    ended = dump.filter(complete_only=True)
    assert keys(ended.filter(last=3)) == [(1, 1, 1), (2, 2, 2), (2, 3, 1)]  # rows 9, 8 and 9
    unfinished = {k for e, k in zip(dump, keys(dump), strict=True) if not e.complete}
    assert set(keys(dump.filter(last=4))) == unfinished
    assert keys(dump.filter(complete_only=True, last=3)) == keys(ended.filter(last=3))


def test_filters_compose_in_their_order(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path), complete_only=True)
    assert keys(dump.filter(last=3).filter(min_return=15.0)) == [(1, 1, 1), (2, 3, 1)]
    assert len(dump.filter(min_return=15.0).filter(last=3)) == 3


def test_wrong_filters_say_so(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path))
    with pytest.raises(ValueError, match=r"ranks=\[7\] have no trajectories"):
        dump.filter(ranks=[1, 7])
    with pytest.raises(ValueError, match="last=0 must be at least 1"):
        dump.filter(last=0)


# -- segments, and how much is open --------------------


def test_segments(tmp_path: Path) -> None:
    segments = list(open_trajectories(write_dump(tmp_path)).segments())
    assert [(s.rank, s.number, s.attempt) for s in segments] == [(1, 0, 1), (1, 1, 1), (2, 0, 1), (2, 1, 1)]
    assert segments[1]["row"].tolist() == list(range(4, 11))
    assert segments[1]["observations"].shape == (7, 2, 3)
    assert segments[1]["final/row"].tolist() == [0, 1, 4, 5]
    assert segments[0].episodes["length"].tolist() == [3, 1, 4]
    assert segments[0].attrs["run_id"] == "run" and segments[1].attrs["first_env_step"] == 8
    assert len(list(open_trajectories(tmp_path, ranks=[2]).segments())) == 2


def open_files() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [link for link in links if link.endswith(".h5")]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_more_than_one_file_is_open_and_none_between_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dump(tmp_path)
    opened: list[str] = []
    file_class = h5py.File

    def spy(path: Path, *args: Any, **options: Any) -> h5py.File:
        assert open_files() == []
        assert options["locking"] is False
        opened.append(path.name)
        return file_class(path, *args, **options)

    monkeypatch.setattr(h5py, "File", spy)
    dump = open_trajectories(tmp_path)
    assert opened == []  # nothing was asked for yet
    assert len(dump) == 14
    assert len(opened) == 4
    for episode in dump:
        assert open_files() == []
        if episode.rank == 1 and episode.id == 0 and episode.env == 0:
            assert len(opened) == 5  # the second segment was not needed yet
    assert len(opened) == 8
    next(iter(dump.segments()))
    assert open_files() == []


def test_steps_that_no_chosen_episode_has_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = open_trajectories(write_dump(tmp_path), last=1, complete_only=True)
    assert len(dump) == 1
    paths: list[Path] = []

    def spy(path: Path) -> Any:
        paths.append(path)
        return catalogue.opened(path)

    monkeypatch.setattr("dppo.trajectories.episodes.opened", spy)
    assert keys(dump) == [(2, 3, 1)]
    assert [(p.parent.name, p.name) for p in paths] == [("rank_00002", "seg_000001.h5")]


def test_episodes_are_copies_of_their_own(tmp_path: Path) -> None:
    for episode in open_trajectories(write_dump(tmp_path)):
        assert episode.rewards.base is None and episode.rewards.flags.c_contiguous


# -- all at once --------------------


def test_to_numpy(tmp_path: Path) -> None:
    FakeWorker(tmp_path).go(4).seal().go(7, 1).finish()
    all_steps = open_trajectories(tmp_path).to_numpy()
    assert {name: len(values) for name, values in all_steps.items()} == dict.fromkeys(all_steps, 22)
    assert "actions_raw" not in all_steps
    assert all_steps["episode"].tolist() == [0] * 3 + [1] * 5 + [2] * 3 + [3] * 3 + [4] * 5 + [5] * 2 + [6]
    assert all_steps["row"][:8].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert all_steps["next_observations"][3:8, 2].tolist() == [1, 2, 3, 4, 5]
    assert np.flatnonzero(~all_steps["has_next"]).tolist() == [20, 21]
    assert np.isnan(all_steps["next_observations"][20:]).all()
    assert not np.isnan(all_steps["next_observations"][:20]).any()
    assert all_steps["rewards"].dtype == np.float32 and all_steps["actions"].dtype == np.int64


def test_to_numpy_of_nothing_keeps_its_shapes(tmp_path: Path) -> None:
    nothing = open_trajectories(write_dump(tmp_path), min_return=1e9)
    assert len(nothing) == 0 and list(nothing) == []
    assert nothing.to_numpy()["observations"].shape == (0, 3)
    assert len(nothing.table()["id"]) == 0


def test_to_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    FakeWorker(tmp_path, raw=True).go(6).finish()
    frame = open_trajectories(tmp_path).to_pandas()
    assert len(frame) == 12
    assert {"obs_0", "obs_2", "action_1", "action_raw_0", "rewards", "episode", "row"} <= set(frame.columns)
    assert frame.groupby("episode")["rewards"].sum().tolist() == [6.0, 15.0, 6.0, 1.0]


def test_to_torch(tmp_path: Path) -> None:
    tensors = open_trajectories(write_dump(tmp_path)).to_torch()
    assert tuple(tensors["observations"].shape) == (44, 3)


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"to_pandas needs pandas: pip install 'dppo\[analysis\]'"):
        open_trajectories(write_dump(tmp_path)).to_pandas()


def test_zstd_without_its_filter_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hdf5plugin")
    FakeWorker(tmp_path, compression="zstd").go(3000).finish()
    assert len(list(open_trajectories(tmp_path, complete_only=True))) == 1600
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: False)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(
        ValueError, match=r"compressed with zstd, which needs hdf5plugin: pip install 'dppo\[analysis\]'"
    ):
        len(open_trajectories(tmp_path))


# -- what is no dump --------------------


def test_a_run_without_trajectories_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no trajectories.*--trajectories.enabled"):
        open_trajectories(tmp_path)


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    path = FakeWorker(write_dump(tmp_path)).path(1)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"seg_000001.h5 cannot be read: .*validate"):
        len(open_trajectories(tmp_path))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    edit(FakeWorker(write_dump(tmp_path)).path(0), lambda file: file.attrs.modify("format_version", 2))
    with pytest.raises(ValueError, match="has format"):
        len(open_trajectories(tmp_path))
