"""Every lie that a dump can tell is found."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dppo.rundir.checkpoint import Checkpoint, sealed, write_checkpoint
from dppo.trajectories import validate as module
from dppo.trajectories.format import USER_BLOCK
from dppo.trajectories.validate import Violation, validate
from tests.dumps import FakeWorker, edit, replace, write_dump

SEGMENT = "trajectories/rank_00001/seg_000001.h5"


def found(run_dir: Path) -> list[str]:
    return [str(violation) for violation in validate(run_dir)]


def only(run_dir: Path) -> Violation:
    violations = validate(run_dir)
    assert len(violations) == 1, [str(v) for v in violations]
    return violations[0]


# -- what is sound --------------------


@pytest.mark.parametrize("options", [{}, {"raw": True}, {"resets": True}], ids=["plain", "raw", "resets"])
def test_what_the_writer_writes_is_sound(tmp_path: Path, options: dict[str, Any]) -> None:
    write_dump(tmp_path, **options)
    (tmp_path / "trajectories/rank_00001/seg_000002.h5.part").write_bytes(b"half")
    assert found(tmp_path) == []


def test_gaps_that_the_writer_tells_of_are_sound(tmp_path: Path) -> None:
    FakeWorker(tmp_path).go(4).finish()
    FakeWorker(tmp_path, row=5, attempt=2).go(6).finish()
    every = FakeWorker(tmp_path, [4, 3], rank=2, first_env=2, every=2)
    for _ in range(6):
        every.go(2)
    every.finish()
    assert found(tmp_path) == []


def test_an_environment_that_had_to_begin_anew_is_sound(tmp_path: Path) -> None:
    """After a resume environment 1 (four steps into its first episode) is at the start of another, without a gap."""
    FakeWorker(tmp_path).go(4).finish()
    anew = FakeWorker(tmp_path, row=4, attempt=2)
    rollout = anew._rollout(2, 0)
    rollout.progress.episodes[1], rollout.progress.lengths[1], rollout.progress.returns[1] = 1, 0, 0.0
    rollout.terminations[:, 1] = rollout.truncations[:, 1] = False
    keep = rollout.final_envs == 0
    rollout.final_rows, rollout.final_envs = rollout.final_rows[keep], rollout.final_envs[keep]
    rollout.final_observations = rollout.final_observations[keep]
    anew.writer.add(rollout)
    anew.finish()
    assert found(tmp_path) == []


def test_no_dump_at_all_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no trajectories"):
        validate(tmp_path)


# -- bytes and files --------------------


@pytest.mark.parametrize("where", [0, 30, 511, 512, 530, 2000, -1])
def test_a_flipped_byte(tmp_path: Path, where: int) -> None:
    path = write_dump(tmp_path) / SEGMENT
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)
    violations = validate(tmp_path)
    assert {v.file for v in violations} == {SEGMENT}
    assert "its bytes do not match its checksum" in violations[0].what or "user block" in violations[0].what


def test_a_file_that_was_cut_off_does_not_hide_the_others(tmp_path: Path) -> None:
    path = write_dump(tmp_path) / SEGMENT
    os.truncate(path, 3000)
    edit(tmp_path / "trajectories/rank_00002/seg_000000.h5", lambda file: file["steps/rewards"].__setitem__(0, np.nan))
    lines = found(tmp_path)
    assert any(line.startswith(f"{SEGMENT}: cannot be read as HDF5") for line in lines)
    assert any("rank_00002/seg_000000.h5, steps/rewards, row 0: holds nan" in line for line in lines)


def test_an_empty_file(tmp_path: Path) -> None:
    (write_dump(tmp_path) / SEGMENT).write_bytes(b"")
    assert len(found(tmp_path)) == 2


def test_a_missing_segment(tmp_path: Path) -> None:
    FakeWorker(tmp_path).go(4).seal().go(7).seal().go(3).finish()
    (tmp_path / SEGMENT).unlink()
    violation = only(tmp_path)
    assert violation.file == SEGMENT and "is missing" in violation.what


def test_missing_segments_are_told_of_as_a_range(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, ranks=[1]) / "trajectories/rank_00001"
    shutil.copy(folder / "seg_000001.h5", folder / "seg_30000000.h5")
    first, second = found(tmp_path)
    assert first == (
        "trajectories/rank_00001/seg_000002.h5: is missing, and so are all up to seg_29999999.h5: segments are "
        "numbered without a gap up to 30000000"
    )
    assert "its attribute segment is 1, its path says 30000000" in second


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    write_dump(tmp_path, ranks=[1])
    make(tmp_path / "trajectories/rank_00001/seg_000002.h5")
    assert only(tmp_path).what == "is no file"


def test_a_segment_that_a_resume_sets_aside_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dump(tmp_path, ranks=[1])
    checksum_problem = module.checksum_problem

    def moved(path: Path) -> str | None:
        (tmp_path / SEGMENT).unlink(missing_ok=True)
        return checksum_problem(path)

    monkeypatch.setattr(module, "checksum_problem", moved)
    assert found(tmp_path) == []


def test_swapped_rank_folders(tmp_path: Path) -> None:
    root = write_dump(tmp_path) / "trajectories"
    os.rename(root / "rank_00001", root / "x")
    os.rename(root / "rank_00002", root / "rank_00001")
    os.rename(root / "x", root / "rank_00002")
    assert found(tmp_path) == [
        f"trajectories/rank_{rank:05d}/seg_{n:06d}.h5: its attribute rank is {3 - rank}, its path says {rank}"
        for rank in (1, 2)
        for n in (0, 1)
    ]


def test_swapped_segments(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, ranks=[1]) / "trajectories/rank_00001"
    os.rename(folder / "seg_000000.h5", folder / "x")
    os.rename(folder / "seg_000001.h5", folder / "seg_000000.h5")
    os.rename(folder / "x", folder / "seg_000001.h5")
    text = "\n".join(found(tmp_path))
    assert "its attribute segment is 1, its path says 0" in text
    assert "begins at row 4; the segment before ends before row 0" in text


# -- within a segment --------------------


def put(name: str, at: int | tuple[int, ...], value: float) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(at, value)


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def shortened(name: str) -> Callable[[h5py.File], None]:
    return lambda file: replace(file, name, file[name][:-1])


def without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def retyped(name: str, dtype: type) -> Callable[[h5py.File], None]:
    return lambda file: replace(file, name, file[name][:].astype(dtype))


LIES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "NaN observation": (put("steps/observations", (2, 1, 0), np.nan), "observations, row 2: holds nan at [2, 1, 0]"),
    "NaN reward": (put("steps/rewards", (3, 0), np.nan), "steps/rewards, row 3: holds nan at [3, 0]"),
    "infinite log_prob": (put("steps/log_probs", (0, 1), -np.inf), "steps/log_probs, row 0: holds -inf"),
    "NaN value": (put("steps/values", (6, 1), np.nan), "steps/values, row 6: holds nan"),
    "NaN final": (put("final/observations", (1, 2), np.nan), "final/observations, row 1: holds nan"),
    "NaN return": (put("episodes/return", 2, np.nan), "episodes/return, row 2: holds nan"),
    "short rewards": (shortened("steps/rewards"), "steps/rewards: has the shape (6, 2); it should begin with (7,"),
    "short observations": (shortened("steps/observations"), "has the shape (6, 2, 3); it should begin with (7, 2)"),
    "short episodes": (shortened("episodes/seed"), "episodes/seed: has 5 entries, the others of episodes/ have 6"),
    "missing dataset": (without("steps/values"), "steps/values: is missing"),
    "missing finals": (without("final"), "final/row: is missing"),
    "missing config": (without("config_json"), "config_json: cannot be read"),
    "wrong type": (retyped("steps/rewards", np.float64), "steps/rewards: is of type float64, not float32"),
    "missing attribute": (lambda f: f.attrs.__delitem__("attempt"), "has no attribute attempt that can be read"),
    "attribute of a wrong type": (attribute("rank", "one"), "its attribute rank is 'one', of a wrong type"),
    "wrong segment": (attribute("segment", 5), "its attribute segment is 5, its path says 1"),
    "wrong rank": (attribute("rank", 2), "its attribute rank is 2, its path says 1"),
    "other run": (attribute("run_id", "other"), "its run_id is other, that of the segments before it is run"),
    "earlier attempt": (attribute("attempt", 0), "its attempt is 0, that of the segment before is 1"),
    "recovered": (attribute("complete", False), "its attribute complete is false"),
    "row order": (put("steps/row", 3, 8), "steps/row, row 3: row 8 follows on row 6"),
    "row of the segment before": (
        lambda f: replace(f, "steps/row", f["steps/row"][:] - 1), "begins at row 3; the segment before ends before",
    ),
    "skipped rows": (attribute("skipped_rows", 2), "steps/row, row 0: begins at row 4"),
    "first_env_step": (attribute("first_env_step", 9), "its first_env_step is 9; row 4 of 2 environments makes 8"),
    "version goes back": (put("steps/policy_version", 3, 0), "steps/policy_version, row 3: version 0 follows on 1"),
    "version before the last segment": (
        lambda f: replace(f, "steps/policy_version", f["steps/policy_version"][:] - 2),
        "begins with version -1, the segment before ends with 0",
    ),
    "start": (put("episodes/start", 1, 3), "episodes/start, row 1: is 3; by the steps it is 2"),
    "length": (put("episodes/length", 1, 4), "episodes/length, row 1: is 4; by the steps it is 3"),
    "offset": (put("episodes/offset", 0, 2), "episodes/offset, row 0: is 2; by the steps it is 1"),
    "terminated": (put("episodes/terminated", 0, True), "episodes/terminated, row 0: is True; by the steps it is"),
    "complete": (put("episodes/complete", 0, True), "episodes/complete, row 0: is True; by the steps it is False"),
    "return": (put("episodes/return", 0, 6.01), "episodes/return, row 0: is 6.01; the rewards sum up to 6.0"),
    "id": (put("episodes/id", 1, 1), "episodes/id, row 1: is 1, after 1 in the same environment"),
    "id that goes on": (put("episodes/id", 0, 7), "episodes/id, row 0: is 7; the episode that goes on is 1"),
    "seed that goes on": (put("episodes/seed", 0, 7), "episodes/seed, row 0: is 7; the episode began with 1"),
    "reward": (put("steps/rewards", (0, 0), 3.0), "episodes/return, row 0"),
    "an end that was none": (put("steps/truncations", (2, 0), True), "lists 6 pieces; the steps have 7"),
    "final at no end": (put("final/row", 0, 2), "step 2 of environment 1 ended no episode"),
    "final twice": (
        lambda f: (put("final/row", 1, 0)(f), put("final/env", 1, 1)(f))[0], "step 0 of environment 1 is listed twice",
    ),
    "final out of range": (put("final/env", 0, 9), "step 0 of environment 9 ended no episode"),
    "no JSON": (
        lambda f: (f.__delitem__("config_json"), f.__setitem__("config_json", "{"))[0], "config_json: is no JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_segment_that_lies(tmp_path: Path, lie: str) -> None:
    change, expected = LIES[lie]
    edit(write_dump(tmp_path) / SEGMENT, change)
    lines = found(tmp_path)
    assert any(expected in line for line in lines), lines
    assert not any("checksum" in line for line in lines)


def test_two_lies_are_two_findings(tmp_path: Path) -> None:
    path = write_dump(tmp_path) / SEGMENT
    edit(path, put("steps/values", (0, 0), np.nan))
    edit(path, put("steps/policy_version", 3, 0))
    assert [v.dataset for v in validate(tmp_path)] == ["steps/values", "steps/policy_version"]


def test_the_first_row_begins_an_episode(tmp_path: Path) -> None:
    edit(write_dump(tmp_path) / "trajectories/rank_00001/seg_000000.h5", put("episodes/offset", 0, 2))
    assert any("episodes/offset, row 0: is 2; by the steps it is 0" in line for line in found(tmp_path))


def test_other_shapes_in_another_rank(tmp_path: Path) -> None:
    path = write_dump(tmp_path) / "trajectories/rank_00002/seg_000001.h5"
    edit(path, lambda f: replace(f, "steps/observations", f["steps/observations"][..., :2]))
    text = "\n".join(found(tmp_path))
    assert "steps/observations: holds <f4 (2,) a step, other segments hold <f4 (3,)" in text


# -- checkpoints --------------------


def save(run_dir: Path, rows: dict[int, int], named: dict[int, int], env_steps: int = 100) -> Path:
    state = {"numbers": {"env_steps": env_steps, "iteration": 1}}
    ranks: dict[int, tuple[int, list[object]]] = {rank: (row, []) for rank, row in rows.items()}
    checkpoint = Checkpoint(env_steps, 1, state, {}, ranks, named)  # type: ignore[arg-type]
    return write_checkpoint(run_dir, checkpoint, 5)


def test_a_manifest_that_tells_the_truth(tmp_path: Path) -> None:
    write_dump(tmp_path)
    save(tmp_path, {1: 0, 2: 0}, {}, 0)
    save(tmp_path, {1: 4, 2: 11}, {1: 1, 2: 2}, 50)
    save(tmp_path, {1: 11, 2: 11}, {1: 2, 2: 2})
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "named", "expected"),
    [
        (11, 3, "names segments 0 to 2 of rank 1; missing: 2"),
        (4, 2, "names segment 1 of rank 1, ending before row 11; the checkpoint has seen 4 rows"),
        (11, 1, "names the segments of rank 1 below 1, but that one begins at row 4 already"),
    ],
    ids=["more than there are", "beyond its row", "too few"],
)
def test_a_manifest_that_lies(tmp_path: Path, rows: int, named: int, expected: str) -> None:
    write_dump(tmp_path)
    save(tmp_path, {1: 4, 2: 4}, {1: 1, 2: 1}, 50)
    folder = save(tmp_path, {1: rows, 2: 11}, {1: 1 if rows == 4 else 2, 2: 2})
    rewrite(folder, next_segments={"1": named, "2": 2})
    violation = only(tmp_path)
    assert violation.file == "checkpoints/step_000000100/manifest.json"
    assert expected in violation.what


def rewrite(folder: Path, **changes: Any) -> None:
    """Of the manifest; None takes a key out."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    del manifest["sha256"]
    (folder / "manifest.json").write_bytes(sealed({k: v for k, v in manifest.items() if v is not None}))


def test_rows_that_a_manifest_knows_to_be_missing(tmp_path: Path) -> None:
    """Rank 1 could not write its last seven rows; rank 2 none at all."""
    FakeWorker(tmp_path).go(4).finish()
    folder = save(tmp_path, {1: 11, 2: 11}, {1: 1, 2: 0})
    rewrite(folder, missing_rows={"1": 7, "2": 11})
    assert found(tmp_path) == []
    rewrite(folder, missing_rows={"1": 6, "2": 11})
    assert "end before row 4; the checkpoint has seen 11 rows and knows 6 of them to be" in only(tmp_path).what
    rewrite(folder, missing_rows={"1": 7})
    assert "rank 2 below 0, which end before row 0; the checkpoint has seen 11 rows" in only(tmp_path).what


def test_one_segment_less_than_the_checkpoint_has_seen(tmp_path: Path) -> None:
    write_dump(tmp_path, ranks=[1])
    rewrite(save(tmp_path, {1: 11}, {1: 1}), missing_rows={})
    (tmp_path / SEGMENT).unlink()
    assert "names the segments of rank 1 below 1, which end before row 4; the checkpoint has" in only(tmp_path).what


def test_rows_that_were_not_to_be_written_are_not_missing(tmp_path: Path) -> None:
    FakeWorker(tmp_path, every=2).go(2).go(2).finish()
    rewrite(save(tmp_path, {1: 4}, {1: 1}), missing_rows={})
    assert found(tmp_path) == []


def test_a_manifest_that_names_nothing(tmp_path: Path) -> None:
    FakeWorker(tmp_path).go(4).finish()
    save(tmp_path, {1: 0}, {}, 0)
    save(tmp_path, {1: 4}, {})
    violation = only(tmp_path)
    assert violation.file == "checkpoints/step_000000100/manifest.json"
    assert "the checkpoint has seen" in violation.what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("next_segments", {"1": -1}), ("next_segments", {"9": -3}), ("next_segments", {"1": 2.7}),
        ("next_segments", {"x": 2}), ("next_segments", [1]), ("next_segments", None), ("missing_rows", {"1": -1}),
        ("missing_rows", 3), ("missing_rows", None),
    ],
)  # fmt: skip
def test_a_manifest_of_no_sense(tmp_path: Path, key: str, value: Any) -> None:
    write_dump(tmp_path, ranks=[1])
    rewrite(save(tmp_path, {1: 11}, {1: 2}), **{key: value})
    assert "cannot be read" in only(tmp_path).what


def test_a_manifest_that_names_more_than_can_be_counted(tmp_path: Path) -> None:
    write_dump(tmp_path, ranks=[1])
    rewrite(save(tmp_path, {1: 11}, {1: 2}), next_segments={"1": 10**13})
    assert only(tmp_path).what.endswith("of rank 1; missing: 2 to 9999999999999")


def test_a_checkpoint_of_the_old_form_is_asked_for_the_segments_that_it_names(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, ranks=[1]) / "checkpoints" / "step_000000100"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1, "next_segments": {"1": 2}}')
    assert found(tmp_path) == []
    (folder / "manifest.json").write_text('{"format": 1, "next_segments": {"1": 3}}')
    assert only(tmp_path).what == "names segments 0 to 2 of rank 1; missing: 2"


def test_a_checkpoint_that_vanishes_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run removes its oldest one, file by file, while it is read."""
    write_dump(tmp_path, ranks=[1])
    save(tmp_path, {1: 11}, {1: 2})
    going = save(tmp_path, {1: 4}, {1: 1}, 50)
    (going / "rank_00001.safetensors").unlink()
    remover = threading.Timer(0.3, shutil.rmtree, [going])
    remover.start()
    assert found(tmp_path) == []
    remover.join()
    monkeypatch.setattr(module, "REMOVAL_S", 0.1)
    (save(tmp_path, {1: 4}, {1: 1}, 60) / "rank_00001.safetensors").unlink()
    assert "the checkpoint is damaged: rank_00001.safetensors cannot be read" in only(tmp_path).what


def test_checkpoints_are_read_before_the_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run seals a segment and saves a checkpoint that names it while the segments are listed."""
    worker = FakeWorker(tmp_path).go(4).seal()
    worker.writer.wait()
    save(tmp_path, {1: 4}, {1: 1}, 50)
    listed = module.rank_folders

    def slow(run_dir: Path) -> dict[int, Path]:
        folders = listed(run_dir)
        if not (tmp_path / "checkpoints/step_000000100").exists():
            worker.go(7).finish()
            save(tmp_path, {1: 11}, {1: 2})
        return folders

    monkeypatch.setattr(module, "rank_folders", slow)
    monkeypatch.setattr(module, "segment_files", lambda folder: {0: folder / "seg_000000.h5"})
    assert found(tmp_path) == []


def test_a_rank_that_is_named_but_not_there(tmp_path: Path) -> None:
    write_dump(tmp_path)
    save(tmp_path, {1: 11, 2: 11, 3: 11}, {1: 2, 2: 2, 3: 1})
    assert "names segments 0 to 0 of rank 3; missing: 0" in only(tmp_path).what


def test_a_rank_that_is_not_named(tmp_path: Path) -> None:
    write_dump(tmp_path)
    save(tmp_path, {1: 11, 2: 11}, {1: 2})
    assert "names the segments of rank 2 below 0, but that one begins at row 0 already" in only(tmp_path).what


def test_damaged_checkpoints(tmp_path: Path) -> None:
    write_dump(tmp_path)
    (save(tmp_path, {1: 4}, {1: 1}, 50) / "rank_00001.safetensors").write_bytes(b"x")
    (save(tmp_path, {1: 11}, {1: 2}) / "manifest.json").write_text("{")
    first, second = found(tmp_path)
    assert first.startswith("checkpoints/step_000000100/manifest.json: cannot be read")
    assert "the checkpoint is damaged: rank_00001.safetensors does not match" in second


def test_many_flipped_bits_never_raise(tmp_path: Path) -> None:
    path = write_dump(tmp_path, ranks=[1]) / SEGMENT
    data = path.read_bytes()
    rng = np.random.default_rng(3)
    for where in rng.integers(USER_BLOCK, len(data), 60).tolist():
        damaged = bytearray(data)
        damaged[where] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert any("checksum" in line for line in found(tmp_path))
