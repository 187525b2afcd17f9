"""Checkpoints: what goes in comes out, damage is found and named, and a kill at any moment leaves a valid one."""

from __future__ import annotations

import dataclasses
import functools
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
import safetensors.torch
import torch

from dppo.data import EnvState
from dppo.envs.leaves import are_equal
from dppo.rundir import checkpoint as module
from dppo.rundir.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    newest_valid,
    read_checkpoint,
    sealed,
    write_checkpoint,
)
from dppo.rundir.contents import env_arrays
from dppo.rundir.tensors import to_bytes

FILES = ["manifest.json", "state.safetensors", "rank_00001.safetensors", "rank_00002.safetensors"]


def env_state(number: int, length: int) -> EnvState:
    rng = np.random.default_rng(number)
    return EnvState(
        env=number,
        row=1000,
        episode=3,
        actions=rng.integers(0, 2, length),
        observation=rng.standard_normal(4).astype(np.float32),
        network_state=rng.standard_normal(5).astype(np.float32),
        episode_return=1.5 * number,
        episode_length=length,
        discounted_return=0.1 + 0.2,
        last_actions=rng.integers(0, 2, 3),
        last_return=0.1 * number,
        last_reward=1 / 3,
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
    counters = {"returns": [0.1, -3.0], "lengths": [1, 2], "episodes": 7, "train_s": 12.5}
    ranks = {rank: (1000, [env_state(2 * rank, 5), env_state(2 * rank + 1, 0)]) for rank in (1, 2)}
    return Checkpoint(env_steps, env_steps // 10, state, counters, ranks)


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


def test_constants_of_any_type_come_out_as_they_went_in(tmp_path: Path) -> None:
    """A mask of attention holds infinities."""
    saved = make_checkpoint(100)
    saved.state["constants"] = {
        "mask": np.array([0.0, -np.inf, np.nan]), "on": np.array(True), "order": np.arange(3), "none": np.zeros((0, 2)),
    }  # fmt: skip
    write_checkpoint(tmp_path, saved, keep=3)
    assert as_plain(read_checkpoint(checkpoint_folders(tmp_path)[0])) == as_plain(saved)


def test_values_of_dicts_and_tuples_come_out_leaf_by_leaf(tmp_path: Path) -> None:
    """As plain tensors, which any reader of safetensors opens."""
    dtype = np.dtype([("camera", np.uint8, (2, 2)), ("arm", [("0", np.float32), ("1", np.int64)])], align=True)
    observation, actions = np.zeros((), dtype), np.zeros(3, dtype)
    observation["camera"], observation["arm"]["0"], actions["arm"]["1"] = 7, 0.5, [1, 2, 3]
    saved = make_checkpoint(100)
    env = saved.ranks[1][1][0]
    env.observation, env.actions, env.last_actions = observation, actions, actions[:0]
    folder = write_checkpoint(tmp_path, saved, keep=3)
    names = set(safetensors.torch.load_file(folder / "rank_00001.safetensors"))
    assert {"observation/0/camera", "observation/0/arm/0", "actions/0/arm/1", "last_actions/0/camera"} <= names
    read = read_checkpoint(folder).ranks[1][1][0]
    for name in ("observation", "actions", "last_actions"):
        assert are_equal(getattr(read, name), getattr(env, name)), name
        assert getattr(read, name).shape == getattr(env, name).shape


def test_fields_come_out_in_their_order(tmp_path: Path) -> None:
    """NumPy assigns structured arrays to each other by position: another order would mix the parts of an action up."""
    parts = [(name, np.int64) for name in "hgfedcba"]
    dtype = np.dtype([*parts, ("deep", [(str(i), np.float32) for i in range(12)])], align=True)
    saved = make_checkpoint(100)
    env = saved.ranks[1][1][0]
    env.actions, env.last_actions, env.observation = np.zeros(3, dtype), np.zeros(0, dtype), np.zeros((), dtype)
    read = read_checkpoint(write_checkpoint(tmp_path, saved, keep=3)).ranks[1][1][0]
    assert read.actions.dtype == read.last_actions.dtype == read.observation.dtype == dtype


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
    again.counters["episodes"] = 8
    write_checkpoint(tmp_path, again, keep=3)
    read, _ = newest_valid(tmp_path)
    assert read is not None and read.counters["episodes"] == 8
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
        flip(write_checkpoint(tmp_path, make_checkpoint(env_steps), keep=3) / "state.safetensors")
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


Manifest = dict[str, Any]


def forge(folder: Path, change: Callable[[Manifest], object], files: dict[str, bytes] | None = None) -> None:
    """Changes a checkpoint and gives it the checksums of what it holds now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    for name, data in (files or {}).items():
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(manifest)
    (folder / "manifest.json").write_bytes(sealed(manifest))


@pytest.mark.parametrize(
    "files", ["3", "[3]", "null", '{"state.safetensors": 3}', '{"state.safetensors": {"bytes": 3}}', "{}"]
)
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, files: str) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    forge(folder, lambda manifest: manifest.update(files=json.loads(files)))
    with pytest.raises(ValueError, match="manifest"):
        read_checkpoint(folder)
    (folder / "manifest.json").write_text(files)
    with pytest.raises(ValueError, match="manifest"):
        read_checkpoint(folder)


def test_a_manifest_of_another_checkpoint_is_damage(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    forge(folder, lambda manifest: manifest.update(env_steps=900))
    with pytest.raises(ValueError, match="does not belong to its state"):
        read_checkpoint(folder)


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    forge(folder, lambda manifest: manifest.update(format=3))
    with pytest.raises(ValueError, match="format 3, this dppo reads 2"):
        read_checkpoint(folder)


# -- the old form --------------------


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def write_old(run_dir: Path, env_steps: int, *, with_manifest: bool = True) -> Path:
    """A checkpoint as dppo wrote it before; its pickle would make a folder."""
    folder = run_dir / "checkpoints" / f"step_{env_steps:09d}"
    folder.mkdir(parents=True)
    torch.save({"state": Trap(run_dir / "sprung")}, folder / "state.pt")
    data = (folder / "state.pt").read_bytes()
    listed = {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    manifest = {"format": 1, "env_steps": env_steps, "iteration": 1, "files": listed, "next_segments": {}}
    if with_manifest:
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


@pytest.mark.parametrize("with_manifest", [True, False])
def test_the_old_form_is_refused_once_and_runs_nothing(tmp_path: Path, with_manifest: bool) -> None:
    for env_steps in (0, 100, 200):
        write_old(tmp_path, env_steps, with_manifest=with_manifest)
    (tmp_path / "versions.json").write_text('{"packages": {"dppo": "0.0.9"}, "git": "abc123"}')
    read, (line,) = newest_valid(tmp_path)
    assert read is None and not (tmp_path / "sprung").exists()
    assert "dppo 0.0.9 (git abc123) wrote it" in line and "finish the run with that version, or start it anew" in line


@pytest.mark.parametrize("said", [None, "[]", '{"packages": 3, "git": null}', '{"packages": {"dppo": null}}'])
def test_who_wrote_the_old_form_may_be_unknown(tmp_path: Path, said: str | None) -> None:
    write_old(tmp_path, 0)
    if said is not None:
        (tmp_path / "versions.json").write_text(said)
    assert "an earlier dppo wrote it" in newest_valid(tmp_path)[1][0]


def test_of_both_forms_the_new_one_is_taken(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    write_old(tmp_path, 200)
    read, (line,) = newest_valid(tmp_path)
    assert read is not None and read.env_steps == 100
    assert line.startswith("step_000000200 is of an old form and was skipped")


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_with_the_right_checksum_runs_nothing(tmp_path: Path, protocol: int) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    data = pickle.dumps(Trap(tmp_path / "sprung"), protocol)
    forge(folder, lambda manifest: None, {"state.safetensors": data})
    read, skipped = newest_valid(tmp_path)
    assert read is None and "state.safetensors" in skipped[0]
    assert not (tmp_path / "sprung").exists()


# -- right checksums, wrong contents --------------------


def with_arrays(**changes: np.ndarray) -> dict[str, bytes]:
    """The file of the learner's arrays; those of `make_checkpoint` where they are not given."""
    state = make_checkpoint(100).state
    return {"state.safetensors": to_bytes({n: state[n] for n in ("parameters", "moments")} | changes)}


def tensors(header: bytes, data: bytes = b"") -> dict[str, bytes]:
    return {"state.safetensors": len(header).to_bytes(8, "little") + header + data}


def set_in(*path: str | int, to: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


ONE = b'"parameters":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DEEP: Any = functools.reduce(lambda inner, _: [inner], range(400), 0)
FORGED: dict[str, tuple[Callable[[Manifest], object], dict[str, bytes], str]] = {
    "NaN": (
        dict.copy,
        with_arrays(parameters=np.full(50, np.nan, np.float32)),
        "parameters holds numbers that are not",
    ),
    "type": (dict.copy, with_arrays(parameters=np.zeros(50)), "parameters is an array of float64"),
    "axes": (dict.copy, with_arrays(parameters=np.zeros((5, 10), np.float32)), "an array of float32 with 1 axes"),
    "size": (dict.copy, with_arrays(parameters=np.zeros(49, np.float32)), "has 49 numbers, its shapes name 50"),
    "one more": (dict.copy, with_arrays(more=np.zeros(3)), "holds 'more', which manifest.json does not name"),
    "one less": (set_in("state", "more", to={"$array": "more"}), {}, "stands for nothing"),
    "twice": (dict.copy, tensors(b"{" + ONE + b"," + ONE + b"}", b"1234"), "a key is there twice"),
    "overlap": (dict.copy, tensors(b"{" + ONE + b"," + ONE.replace(b"par", b"pra") + b"}", b"1234"), "invalid offset"),
    "header": (dict.copy, {"state.safetensors": (2**40).to_bytes(8, "little") + b"{}"}, "its header 1,099,511,627,776"),
    "deep header": (dict.copy, tensors(b'{"a":' * 100_000), "nested too deeply"),
    "huge shape": (
        dict.copy,
        tensors(b'{"parameters":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}}'),
        "no file of tensors",
    ),
    "odd type": (dict.copy, tensors(ONE.join((b"{", b"}")).replace(b"F32", b"F8_E8M0"), b"1234"), "no file of tensors"),
    "negative": (set_in("state", "numbers", "env_steps", to=-1), {}, r"numbers\['env_steps'\] is -1"),
    "enormous": (set_in("state", "numbers", "iteration", to=10**30), {}, r"numbers\['iteration'\] is 10000"),
    "text": (set_in("iteration", to="10"), {}, "iteration is '10'"),
    "bool": (set_in("iteration", to=True), {}, "iteration is True"),
    "infinite": (set_in("state", "kl_coef", to={"$float": "inf"}), {}, "kl_coef is inf"),
    "unknown": (set_in("state", "kl_coef", to={"$code": "x"}), {}, r"\$code is not known"),
    "constants": (set_in("state", "constants", to=[1]), {}, "state.constants is a list"),
    "a constant": (
        set_in("state", "constants", to={"x": 1.5}),
        {},
        r"state.constants\['x'\] is 1.5; an array of numbers",
    ),
    "not a dict": (set_in("counters", to=[1]), {}, "counters is a list"),
    "returns": (set_in("counters", "returns", to=["1"]), {}, r"returns\[0\] is '1'"),
    "too large for a float": (set_in("counters", "train_s", to=10**400), {}, "train_s is 1000000"),
    "axes without end": (set_in("state", "shapes", "x", to=[2**62] * 100_000), {}, "has 100000 axes"),
    "deep": (set_in("counters", "extra", to=DEEP), {}, ""),
    "another path": (set_in("files", "../../x", to={"bytes": 1, "sha256": ""}), {}, "none of a checkpoint's"),
    "rank of no file": (set_in("rows", "7", to=1), {}, "names no file of rank 7"),
    "negative row": (set_in("rows", "1", to=-1), {}, "rows says -1 of rank 1"),
    "negative segment": (set_in("next_segments", "1", to=-1), {}, "next_segments says -1 of rank 1"),
    "envs": (dict.copy, {"rank_00001.safetensors": to_bytes({})}, "rank_00001.safetensors: .* is missing"),
    "episode": (
        dict.copy,
        {"rank_00001.safetensors": to_bytes(env_arrays([dataclasses.replace(env_state(0, 5), episode=-2)]))},
        "rank_00001.safetensors: episode holds -2",
    ),
    "columns": (
        dict.copy,
        {"rank_00001.safetensors": to_bytes(env_arrays([env_state(0, 5)]) | {"row": np.zeros(1)})},
        "rank_00001.safetensors: row is an array of float64",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_named_and_skipped(tmp_path: Path, name: str) -> None:
    change, files, expected = FORGED[name]
    write_checkpoint(tmp_path, make_checkpoint(50), keep=3)
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    forge(folder, change, files)
    if name == "deep":
        assert read_checkpoint(folder).counters["extra"] == DEEP  # within what Python can read
        return
    with pytest.raises(ValueError, match=expected):
        read_checkpoint(folder)
    read, skipped = newest_valid(tmp_path)
    assert read is not None and read.env_steps == 50 and len(skipped) == 1


@pytest.mark.parametrize("depth", [900, 5000, 100_000])
def test_a_manifest_that_is_nested_deeply(tmp_path: Path, depth: int) -> None:
    folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
    (folder / "manifest.json").write_text('{"format": 2, "a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_checkpoint(folder)


def test_a_giant_that_takes_no_room_is_not_read(tmp_path: Path) -> None:
    for name in FILES:
        folder = write_checkpoint(tmp_path, make_checkpoint(100), keep=3)
        os.truncate(folder / name, 10 * 2**30)
        if name != "manifest.json":
            forge(folder, set_in("files", name, "bytes", to=10 * 2**30))
        with pytest.raises(ValueError, match=f"{name} .*plausible"):
            read_checkpoint(folder)
        shutil.rmtree(folder)


def test_the_values_of_numbers_stay_as_they_are(tmp_path: Path) -> None:
    """NaN and infinity, which JSON lacks; whole numbers of 63 bits; keys that are no texts."""
    saved = make_checkpoint(100)
    values = {"nan": np.nan, "inf": [np.inf, -np.inf], "zero": -0.0, "third": 1 / 3, "tiny": 5e-324, "int": 2**63 - 1}
    saved.counters |= {
        "rows": {0: 5, 12: 7},
        "$x": values,
        "text": "\ud800 ü\n",
        "nested": {"a/b": [{}, [], None, True]},
    }
    write_checkpoint(tmp_path, saved, keep=3)
    read, _ = newest_valid(tmp_path)
    assert read is not None and repr(read.counters) == repr(saved.counters)


def test_other_programs_read_it(tmp_path: Path) -> None:
    """Standard JSON, and tensors for torch."""
    saved = make_checkpoint(100)
    saved.counters["odd"] = np.nan
    folder = write_checkpoint(tmp_path, saved, keep=3)
    assert safetensors.torch.load_file(folder / "state.safetensors")["parameters"].tolist() == [100.0] * 50

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((folder / "manifest.json").read_text(), parse_constant=refuse)


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
    flip(write_checkpoint(tmp_path, make_checkpoint(200), keep=3) / "state.safetensors")
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
        "state.safetensors", "rank_00001.safetensors", "rank_00002.safetensors", "manifest.json", part,
        f"{part} -> step_000000100", "checkpoints", "latest.part", "checkpoints",
    ]  # fmt: skip


# -- numbers that nothing can be learnt from --------------------


@pytest.mark.parametrize(
    ("name", "index", "value", "what"),
    [
        ("parameters", 12, np.nan, "parameters holds numbers that are not finite"),
        ("parameters", 0, -np.inf, "parameters holds numbers that are not finite"),
        ("optimizer", (1, 49), np.inf, "optimizer holds numbers that are not finite"),
        ("moments", 2, np.nan, "moments holds numbers that are not finite"),
        ("kl_coef", None, np.inf, "kl_coef is inf; a finite number is expected"),
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
    assert re.search(f"step_000000200 is damaged and was skipped: state.{what}", skipped[0])
