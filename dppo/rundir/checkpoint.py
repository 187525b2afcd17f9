"""Checkpoints: atomic, complete, resumable.

    RUN/checkpoints/step_000050176/{manifest.json, state.safetensors, rank_00001.safetensors, …, states/}
    RUN/checkpoints/latest

Arrays are in the safetensors files, all else is JSON in the manifest (tensors.py); nothing is a pickle. A folder is
built under another name: every file is synced, the manifest (sizes and checksums) is written last, and then the folder
is renamed. Files are read as if others had made them: files.py says what may be opened, contents.py what the values
must be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dppo.data import EnvState, SavedState
from dppo.errors import OldFormError
from dppo.files import (
    MB,
    fsync_folder,
    open_regular,
    parse_json,
    plain,
    read_regular,
    replace_atomically,
    write_durably,
)
from dppo.rundir import paths
from dppo.rundir.contents import check_count, check_values, env_arrays, envs_of
from dppo.rundir.recorders import read_json
from dppo.rundir.states import check_state, find_state, link_state
from dppo.rundir.tensors import check_head, from_bytes, join, split, to_bytes, to_json

FORMAT, OLD_FORMAT = 2, 1
MANIFEST_BYTES, FILE_BYTES = 16 * MB, 4096 * MB
"""The most bytes of a manifest and of any other file; a run with larger files learns that from its first checkpoint."""
_NAME = re.compile(r"step_(\d+)(\.old)?")
_STATE_NAME = re.compile(r"env_\d{5,12}-[0-9a-z-]{1,60}")
_STATE, _RANK = "state.safetensors", re.compile(r"rank_(\d{5,9})\.safetensors")


@dataclass(slots=True)
class Checkpoint:
    """Everything that a run needs to continue. `state` and `counters` hold plain values and NumPy arrays."""

    env_steps: int
    iteration: int
    state: dict[str, Any]
    """The learner's state: parameters, optimiser, moments, counters."""
    counters: dict[str, Any]
    """Rank 0's counters: the window of episodes, counts, seconds."""
    ranks: dict[int, tuple[int, list[EnvState]]]
    """rank -> (rows of noise drawn, its environments)."""
    next_segments: dict[int, int] = field(default_factory=dict)
    """rank -> number of its next trajectory segment; lower ones hold rows that this checkpoint has seen."""
    missing_rows: dict[int, int] = field(default_factory=dict)
    """rank -> number of rows after its last named segment that no segment holds; only ranks that have such rows."""


def write_checkpoint(run_dir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `checkpoint`, points `latest` at it and removes all but the `keep` newest. Returns its folder."""
    root = run_dir / paths.CHECKPOINTS
    folder = write_folder(root, checkpoint, run_dir)
    replace_atomically(run_dir / paths.LATEST, (folder.name + "\n").encode())
    others = [p for p in checkpoint_folders(run_dir) if p != folder]
    # newer ones were damaged, or a resume has undone their steps: they must not push out whole ones
    dead = [p for p in others if p.name.removesuffix(".old") > folder.name]
    for surplus in (*dead, *[p for p in others if p not in dead][keep - 1 :], *root.glob("*.removed")):
        remove_folder(surplus)
    return folder


def write_folder(root: Path, checkpoint: Checkpoint, run_dir: Path) -> Path:
    """Writes `checkpoint` into a folder of its own below `root`, whole or not at all. Returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / paths.checkpoint_name(checkpoint.env_steps)
    part = root / (folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    ranks, states = _with_states(run_dir, checkpoint.ranks, part)
    arrays: dict[str, np.ndarray] = {}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "env_steps": checkpoint.env_steps,
        "iteration": checkpoint.iteration,
        "next_segments": {str(rank): number for rank, number in sorted(checkpoint.next_segments.items())},
        "missing_rows": {str(rank): number for rank, number in sorted(checkpoint.missing_rows.items())},
        "rows": {str(rank): row for rank, (row, _) in sorted(ranks.items())},
        "state": split(checkpoint.state, arrays),
        "counters": split(checkpoint.counters, arrays, "counters"),
        **({"states": states} if states else {}),
        "files": {},
    }
    files = {_STATE: arrays}
    files |= {f"{paths.rank_name(rank)}.safetensors": env_arrays(envs) for rank, (_, envs) in ranks.items()}
    for name, content in files.items():
        data = to_bytes(content)
        if len(data) > FILE_BYTES:
            raise OSError(f"{name} would have {len(data):,} bytes; a checkpoint's files may have {FILE_BYTES:,}")
        write_durably(part / name, data)
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_durably(part / paths.MANIFEST, sealed(manifest))
    fsync_folder(part)
    before = root / (folder.name + ".old")
    if folder.exists():  # a damaged one that a resume had to skip, or the same boundary saved twice
        shutil.rmtree(before, ignore_errors=True)
        os.rename(folder, before)  # under this name it still counts if this process is killed now
    os.rename(part, folder)
    fsync_folder(root)
    shutil.rmtree(before, ignore_errors=True)
    return folder


def _with_states(
    run_dir: Path, ranks: dict[int, tuple[int, list[EnvState]]], part: Path
) -> tuple[dict[int, tuple[int, list[EnvState]]], dict[str, list[Any]]]:
    """Links the states that environments have saved themselves into the checkpoint's folder `part`. Returns the ranks
    without the environments whose state is lost, which only a death can cause; and the manifest's table of states.
    """
    folders, found = checkpoint_folders(run_dir), dict[str, list[Any]]()
    out: dict[int, tuple[int, list[EnvState]]] = {}
    for rank, (row, envs) in ranks.items():
        kept = []
        for env in envs:
            if env.saved is not None:
                try:
                    source = find_state(run_dir, env.saved.name, folders)
                except FileNotFoundError:
                    continue
                found[str(env.env)] = [*env.saved, link_state(source, part / paths.STATES_IN_CHECKPOINT / source.name)]
            kept.append(env)
        out[rank] = row, kept
    if found:
        fsync_folder(part / paths.STATES_IN_CHECKPOINT)
    return out, found


def remove_folder(folder: Path) -> None:
    """Renames the folder, then removes it: a process killed meanwhile leaves nothing like a damaged checkpoint."""
    doomed = folder if folder.suffix == ".removed" else folder.with_name(folder.name + ".removed")
    with contextlib.suppress(OSError):
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(run_dir: Path) -> None:
    """Removes what a killed or failed write left half done. Call it only while nothing writes a checkpoint."""
    for root in (run_dir / paths.CHECKPOINTS, run_dir / paths.EVALUATED):
        for leftover in (*root.glob("*.part"), *root.glob("*.removed")):
            shutil.rmtree(leftover, ignore_errors=True)


def checkpoint_folders(run_dir: Path, where: str = paths.CHECKPOINTS) -> list[Path]:
    """Returns the folders of complete checkpoints, newest first; `where` is the folder around them in `run_dir`."""
    root = run_dir / where
    if not root.is_dir():
        return []
    found = {p: _NAME.fullmatch(p.name) for p in root.iterdir() if p.is_dir()}
    ages = {p: (int(match[1]), match[2] is None) for p, match in found.items() if match}
    return sorted(ages, key=lambda p: ages[p], reverse=True)


def number_of(folder: Path) -> int:
    """Returns the environment steps that the name of a checkpoint's folder says."""
    found = _NAME.fullmatch(folder.name)
    assert found is not None, folder
    return int(found[1])


def sealed(manifest: dict[str, Any]) -> bytes:
    """Returns the file of a manifest: one key a line; the last one is the checksum of all others."""
    lines = [f"{json.dumps(key)}: {to_json(value).decode()}" for key, value in manifest.items()]
    checksum = hashlib.sha256(to_json(manifest)).hexdigest()
    return ("{\n" + ",\n".join([*lines, f'"sha256": "{checksum}"']) + "\n}\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint. Raises OldFormError where that is of an earlier form, ValueError where the
    manifest is damaged.
    """
    try:
        manifest = parse_json(read_regular(folder / paths.MANIFEST, folder.parent.parent, MANIFEST_BYTES))
        if not isinstance(manifest, dict):
            raise ValueError("it holds no table")
    except (OSError, ValueError) as error:
        if (folder / "state.pt").exists():
            raise OldFormError("it has a state.pt and no manifest.json that can be read") from error
        raise ValueError(f"manifest.json cannot be read: {error}") from error
    if manifest.get("format") == OLD_FORMAT:
        raise OldFormError("its manifest.json has format 1")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"manifest.json has format {manifest.get('format')!r:.40}, this dppo reads {FORMAT}")
    checksum = manifest.pop("sha256", None)
    if checksum != hashlib.sha256(json.dumps(manifest, separators=(",", ":")).encode()).hexdigest():
        raise ValueError("manifest.json does not match its checksum")
    return manifest


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint. Raises ValueError that says which file is damaged or what is wrong; OldFormError is one."""
    try:
        manifest = read_manifest(folder)
        return _checkpoint_of(folder, manifest)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"manifest.json does not hold what this dppo expects: {error!r:.200}") from error


def _checkpoint_of(folder: Path, manifest: dict[str, Any]) -> Checkpoint:
    for name in ("env_steps", "iteration"):
        check_count(name, manifest[name])
    listed = dict(manifest["files"])
    if _STATE not in listed:
        raise ValueError(f"manifest.json names no {_STATE}")
    arrays = _arrays(folder, _STATE, listed.pop(_STATE))
    state, counters = join(manifest["state"], arrays), join(manifest["counters"], arrays)
    if arrays:
        raise ValueError(f"{_STATE} holds {min(arrays)!r:.60}, which manifest.json does not name")
    check_values(state, counters)
    numbers = state["numbers"]["env_steps"], state["numbers"]["iteration"]
    if numbers != (manifest["env_steps"], manifest["iteration"]):
        raise ValueError("manifest.json does not belong to its state")
    rows, segments, missing = (numbers_by_rank(manifest, key) for key in ("rows", "next_segments", "missing_rows"))
    ranks: dict[int, tuple[int, list[EnvState]]] = {}
    for name, entry in listed.items():
        found = _RANK.fullmatch(name)
        if found is None or int(found[1]) not in rows:
            raise ValueError(f"manifest.json names a file {name!r:.60}, which is none of a checkpoint's")
        try:
            ranks[int(found[1])] = rows[int(found[1])], envs_of(_arrays(folder, name, entry))
        except ValueError as error:
            raise ValueError(str(error) if name in str(error) else f"{name}: {error}") from error
    _attach_states(folder, manifest.get("states", {}), ranks)
    if len(ranks) < len(rows):
        raise ValueError(f"manifest.json names no file of rank {min(set(rows) - set(ranks))}")
    return Checkpoint(*numbers, state, counters, ranks, segments, missing)


def _attach_states(folder: Path, states: Any, ranks: dict[int, tuple[int, list[EnvState]]]) -> None:
    """Gives the environments the states that the manifest names."""
    envs = {str(env.env): env for _, listed in ranks.values() for env in listed}
    if not isinstance(states, dict) or not all(isinstance(e, list) and len(e) == 4 for e in states.values()):
        raise ValueError("manifest.json does not name the states of environments as it should")
    for number, (name, row, episode, _) in states.items():
        if number not in envs or not (isinstance(name, str) and _STATE_NAME.fullmatch(name)):
            raise ValueError(f"manifest.json names a state {name!r:.60} of environment {number:.40}, which is none")
        check_count("the row of a state", row)
        env = envs[number]
        if episode != env.episode or row + len(env.actions) != env.row:
            raise ValueError(f"manifest.json names a state of environment {number} that does not fit to its actions")
        env.saved = SavedState(name, row, episode)


def check_states(folder: Path) -> None:
    """Raises ValueError if a state that environments have saved themselves is not what was written into this
    checkpoint. Reads all their files, however large.
    """
    for name, _, _, checksum in read_manifest(folder).get("states", {}).values():
        check_state(folder / paths.STATES_IN_CHECKPOINT / name, checksum)


def numbers_by_rank(manifest: dict[str, Any], key: str) -> dict[int, int]:
    """Returns a table {rank: number} of the manifest. Raises ValueError where a number is not whole or is below 0."""
    table = manifest[key]
    if not isinstance(table, dict):
        raise ValueError(f"{key} is no table")
    for rank, number in table.items():
        if not (rank.isascii() and rank.isdecimal() and len(rank) < 10 and type(number) is int and 0 <= number < 2**63):
            raise ValueError(f"{key} says {number!r:.40} of rank {rank:.40}; whole numbers of at least 0 are expected")
    return {int(rank): number for rank, number in table.items()}


def _arrays(folder: Path, name: str, entry: Any) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, after a check of its size and checksum against manifest.json."""
    size, checksum = entry["bytes"], entry["sha256"]
    try:
        with open_regular(folder / name, folder.parent.parent, FILE_BYTES) as file:
            head = file.read(8)
            if os.fstat(file.fileno()).st_size != size:
                raise ValueError("does not match its checksum in manifest.json: it has another size")
            check_head(head, size)  # before a file that takes no room on the disk fills the memory
            data = head + file.read(size)
        if (len(data), hashlib.sha256(data).hexdigest()) != (size, checksum):
            raise ValueError("does not match its checksum in manifest.json")
        return from_bytes(data)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def newest_valid(
    run_dir: Path, check: Callable[[Checkpoint], None] | None = None, *, with_states: bool = False
) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest whole checkpoint, and a line for each newer one that was skipped, with the reason. `check`
    raises ValueError for a whole checkpoint that the caller cannot use. `with_states` also checks the files of the
    states that environments have saved themselves.
    """
    skipped: list[str] = []
    old = 0
    for folder in checkpoint_folders(run_dir):
        try:
            checkpoint = read_checkpoint(folder)
            if check is not None:
                check(checkpoint)
            if with_states:
                check_states(folder)
            return checkpoint, skipped
        except OldFormError as error:
            old += 1
            skipped.append(f"{folder.name} is of an old form and was skipped: {error}; {_who_reads(run_dir)}")
        except ValueError as error:
            skipped.append(f"{folder.name} is damaged and was skipped: {error}")
    if old and old == len(skipped):
        return None, [f"its checkpoints are of an old form (state.pt, a pickle); {_who_reads(run_dir)}"]
    return None, skipped


def _who_reads(run_dir: Path) -> str:
    """Says what to do with a checkpoint of the old form."""
    said = read_json(run_dir / paths.VERSIONS)
    packages, git = said.get("packages"), said.get("git")
    version = packages.get("dppo") if isinstance(packages, dict) else None
    writer = f"dppo {plain(version)[:40]}" if isinstance(version, str) else "an earlier dppo"
    writer += f" (git {plain(git)[:60]})" if isinstance(git, str) else ""
    return (
        f"{writer} wrote it, this dppo reads safetensors only: finish the run with that version, or start it anew in"
        " another --run-dir"
    )
