"""Checkpoints: what goes in comes out, damage is found and named, and a kill at any moment leaves a valid one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dppo.batch import EnvState
from dppo.storage import checkpoint as module
from dppo.storage.checkpoint import Checkpoint, checkpoint_folders, newest_valid, read_checkpoint, write_checkpoint

FILES = ["manifest.json", "state.pt", "rank_00001.pt", "rank_00002.pt"]


def env_state(number: int, length: int) -> EnvState:
    rng = np.random.default_rng(number)
    return EnvState(
        env=number,
        row=1000,
        episode=3,
        actions=rng.integers(0, 2, length),
        observation=rng.standard_normal(4).astype(np.float32),
        episode_return=1.5 * number,
        episode_length=length,
        discounted_return=0.1 + 0.2,
    )


def make_checkpoint(env_steps: int) -> Checkpoint:
    """Of two ranks with two environments each; the numbers follow `env_steps`."""
    state = {
        "numbers": {"env_steps": env_steps, "iteration": env_steps // 10},
        "kl_coef": 1 / 3,
        "parameters": np.full(50, env_steps, np.float32),
        "moments": np.array([np.pi, -0.0, 1e-300]),
        "shapes": {"policy.0.weight": [10, 5]},
    }
    journal = {"returns": [0.1, -3.0], "lengths": [1, 2], "episodes": 7, "train_s": 12.5}
    ranks = {rank: (1000, [env_state(2 * rank, 5), env_state(2 * rank + 1, 0)]) for rank in (1, 2)}
    return Checkpoint(env_steps, env_steps // 10, state, journal, ranks)


def as_plain(value: Any) -> Any:
    """With arrays as (dtype, shape, bytes), so that == means equal to the bit."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, EnvState):
        return {name: as_plain(getattr(value, name)) for name in EnvState.__slots__}
    if isinstance(value, Checkpoint):
        return {name: as_plain(getattr(value, name)) for name in Checkpoint.__slots__}
    if isinstance(value, dict):
        return {k: as_plain(v) for k, v in value.items()}
    return [as_plain(v) for v in value] if isinstance(value, list | tuple) else value


def names(run_dir: Path) -> list[str]:
    return [folder.name for folder in checkpoint_folders(run_dir)]


# -- there and back --------------------


def test_what_goes_in_comes_out_to_the_bit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    read, skipped = newest_valid(tmp_path)
    assert as_plain(read) == as_plain(make_checkpoint(100))
    assert skipped == []


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5, np.float32),
        np.zeros((2, 0), np.int64),
        np.arange(6).reshape(2, 3).T,
        np.array([True, False]),
        np.array([1, 0], np.int8),
        np.arange(3, dtype=np.uint8),
        np.array([np.nan, np.inf]),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_of_any_kind_come_out_as_they_went_in(tmp_path: Path, array: np.ndarray) -> None:
    """Observations and actions have the shapes and types of any environment; a number alone is one of them."""
    saved = make_checkpoint(100)
    saved.ranks[1][1][0].observation = array
    write_checkpoint(tmp_path, saved, keep=3)
    read = read_checkpoint(checkpoint_folders(tmp_path)[0]).ranks[1][1][0].observation
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


def test_the_folder_holds_what_the_documents_say(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(50_176), keep=3)
    assert folder == tmp_path / "checkpoints" / "step_000050176"
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {*names(tmp_path), "latest"}


def test_a_run_may_outgrow_nine_digits(tmp_path: Path) -> None:
    for env_steps in (999_999_999, 1_000_000_000, 12_000_000_000):
        write_checkpoint(tmp_path, make_checkpoint(env_steps), keep=2)
    read, _ = newest_valid(tmp_path)
    assert read is not None and read.env_steps == 12_000_000_000
    assert names(tmp_path) == ["step_12000000000", "step_1000000000"]


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    again = make_checkpoint(100)
    again.journal["episodes"] = 8
    write_checkpoint(tmp_path, again, keep=3)
    read, _ = newest_valid(tmp_path)
    assert read is not None and read.journal["episodes"] == 8
    assert names(tmp_path) == ["step_000000100"]


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) == (None, [])
    (tmp_path / "checkpoints" / "step_000000100.part").mkdir(parents=True)
    assert newest_valid(tmp_path) == (None, [])


# -- damage --------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_skipped_and_the_file_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    for env_steps in (100, 200):
        folder = write_checkpoint(tmp_path, make_checkpoint(env_steps), keep=3)
    damage(folder / name)
    read, skipped = newest_valid(tmp_path)
    assert as_plain(read) == as_plain(make_checkpoint(100))
    assert len(skipped) == 1
    assert "step_000000200 is damaged and was skipped" in skipped[0]
    assert name in skipped[0]


def test_where_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for env_steps in (100, 200):
        flip(write_checkpoint(tmp_path, make_checkpoint(env_steps), keep=3) / "state.pt")
    read, skipped = newest_valid(tmp_path)
    assert read is None
    assert [line.split()[0] for line in skipped] == ["step_000000200", "step_000000100"]


def test_no_damage_of_the_manifest_gets_past_unnoticed_or_raises_anything_else(tmp_path: Path) -> None:
    """Each of its bytes flipped: another bit of the same kind in a number would be a wrong number."""
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    manifest = folder / "manifest.json"
    data = manifest.read_bytes()
    for position in range(len(data)):
        for bit in (1, 4, 32):
            damaged = bytearray(data)
            damaged[position] ^= bit
            manifest.write_bytes(damaged)
            try:
                read = read_checkpoint(folder)
            except ValueError:
                continue
            assert as_plain(read) == as_plain(make_checkpoint(100)), (position, bit)


@pytest.mark.parametrize("files", ["3", "[3]", "null", '{"state.pt": 3}', '{"state.pt": {"bytes": 3}}', "{}"])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, files: str) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    for content in (f'{{"files": {files}, "env_steps": 100, "iteration": 10, "format": 1}}', files):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match="manifest"):
            read_checkpoint(folder)


def test_a_manifest_of_another_checkpoint_is_damage(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"env_steps": 900}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"does not belong to state\.pt"):
        read_checkpoint(folder)


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="format 2, this dppo reads 1"):
        read_checkpoint(folder)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_forged_checkpoint_runs_nothing(tmp_path: Path, how: str) -> None:
    """Its checksum is right, its content is a pickle that would make a folder."""
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    trap = Trap(tmp_path / "sprung")
    if how == "torch":
        torch.save({"state": trap}, folder / "state.pt")
    else:
        (folder / "state.pt").write_bytes(pickle.dumps(trap, protocol=2))
    data = (folder / "state.pt").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    read, skipped = newest_valid(tmp_path)
    assert read is None and "state.pt" in skipped[0]
    assert not (tmp_path / "sprung").exists()


# -- kills --------------------


class Killed(BaseException):
    """SIGKILL, as far as files are concerned: nothing that stands after it happens."""


def run_and_kill(monkeypatch: pytest.MonkeyPatch, run_dir: Path, checkpoint: Checkpoint, at: int) -> int:
    """Writes a checkpoint; kills it at the change of the disk that has number `at`. Returns how many there are."""
    count = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        changes = [(module, "write_durably"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (Path, "mkdir")]
        for owner, name in changes:
            patch.setattr(owner, name, counting(getattr(owner, name)))
        try:
            write_checkpoint(run_dir, checkpoint, keep=2)
        except Killed:
            assert at
    return count


def assert_valid(run_dir: Path, *env_steps: int) -> None:
    """The newest valid one is whole, and of one of these steps."""
    read, _ = newest_valid(run_dir)
    assert read is not None
    assert read.env_steps in env_steps
    assert as_plain(read) == as_plain(make_checkpoint(read.env_steps))


def count_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: list[int], env_steps: int) -> int:
    run_dir = tmp_path / "counted"
    for steps in before:
        write_checkpoint(run_dir, make_checkpoint(steps), keep=2)
    return run_and_kill(monkeypatch, run_dir, make_checkpoint(env_steps), at=0)


@pytest.mark.parametrize(
    ("before", "env_steps"),
    [([0], 100), ([0, 100], 200), ([0], 0), ([0, 100], 100)],
    ids=["second", "one is removed", "the only one again", "the newest again"],
)
def test_a_kill_at_any_moment_leaves_a_valid_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[int], env_steps: int
) -> None:
    """Before each change of the disk in turn; the next attempt then writes the same checkpoint without trouble."""
    changes = count_changes(monkeypatch, tmp_path, before, env_steps)
    assert changes >= 6
    for at in range(1, changes + 1):
        run_dir = tmp_path / f"killed_{at}"
        for steps in before:
            write_checkpoint(run_dir, make_checkpoint(steps), keep=2)
        run_and_kill(monkeypatch, run_dir, make_checkpoint(env_steps), at)
        assert_valid(run_dir, before[-1], env_steps)
        write_checkpoint(run_dir, make_checkpoint(env_steps), keep=2)
        assert_valid(run_dir, env_steps)
        expected = sorted({*before, env_steps})[-2:]
        assert names(run_dir) == [f"step_{steps:09d}" for steps in reversed(expected)]
        leftovers = {p.name for p in (run_dir / "checkpoints").iterdir()} - {*names(run_dir), "latest"}
        assert not leftovers


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    """A resume had to skip it; the run comes by again."""
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    flip(write_checkpoint(tmp_path, make_checkpoint(200), keep=3) / "state.pt")
    write_checkpoint(tmp_path, make_checkpoint(200), keep=3)
    assert_valid(tmp_path, 200)


@pytest.mark.parametrize("at", ["write_durably", "fsync_folder"])
def test_a_full_disk_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, at, full)
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(tmp_path, make_checkpoint(200), keep=3)
    assert_valid(tmp_path, 100)


def test_contents_are_on_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        order.append(f"{source.name} -> {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    part = "step_000000100.part"
    assert order == [
        "state.pt", "rank_00001.pt", "rank_00002.pt", "manifest.json", part,
        f"{part} -> step_000000100", "checkpoints", "latest.part", "checkpoints",
    ]  # fmt: skip


# -- numbers that nothing can be learnt from --------------------


@pytest.mark.parametrize(
    ("name", "index", "value", "what"),
    [
        ("parameters", 12, np.nan, r"parameters, policy\.0\.weight\[2, 2\] is nan"),
        ("parameters", 0, -np.inf, r"parameters, policy\.0\.weight\[0, 0\] is -inf"),
        ("optimizer", (1, 49), np.inf, r"optimizer, policy\.0\.weight\[9, 4\] is inf"),
        ("moments", 2, np.nan, "moments, entry 2 is nan"),
        ("kl_coef", None, np.inf, "kl_coef, entry 0 is inf"),
    ],
)
def test_a_state_that_is_not_finite_is_skipped_like_a_damaged_one(
    tmp_path: Path, name: str, index: Any, value: float, what: str
) -> None:
    """An older dppo may have written it."""
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    spoilt = make_checkpoint(200)
    spoilt.state["optimizer"] = np.zeros((2, 50), np.float32)
    if index is None:
        spoilt.state[name] = value
    else:
        spoilt.state[name][index] = value
    write_checkpoint(tmp_path, spoilt, keep=3)
    read, skipped = newest_valid(tmp_path)
    assert read is not None and read.env_steps == 100
    assert len(skipped) == 1
    assert re.search(f"step_000000200 is damaged and was skipped: .* not finite: {what}", skipped[0])
