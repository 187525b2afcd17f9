"""States that environments save themselves, as folders: whole or not there, checked, linked, removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dppo.rundir.states import check_state, find_state, link_state, read_about, remove_states, write_state

NAME = "env_00003-000000016-0a1b2c3d"


def save(folder: Path) -> None:
    (folder / "mesh" / "fine").mkdir(parents=True)
    (folder / "mesh" / "fine" / "a.bin").write_bytes(b"\1" * 5)
    (folder / "b.txt").write_text("b")


def written(run_dir: Path) -> tuple[Path, str]:
    write_state(run_dir, NAME, save, {"length": 7})
    folder = find_state(run_dir, NAME, ())
    return folder, read_about(folder)[1]


def test_what_is_written_is_found_with_its_files_and_their_checksums(tmp_path: Path) -> None:
    folder, checksum = written(tmp_path)
    assert folder == tmp_path / "checkpoints" / "states" / NAME
    about, _ = read_about(folder)
    assert about["length"] == 7 and {name: entry[0] for name, entry in about["files"].items()} == {
        "mesh/fine/a.bin": 5, "b.txt": 1,
    }  # fmt: skip
    check_state(folder, checksum)
    with pytest.raises(FileNotFoundError):
        find_state(tmp_path, NAME.replace("3", "4"), ())


def test_a_checkpoints_own_comes_first(tmp_path: Path) -> None:
    folder, checksum = written(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step_000000016"
    assert link_state(folder, checkpoint / "states" / NAME) == checksum
    assert find_state(tmp_path, NAME, (checkpoint,)) == checkpoint / "states" / NAME
    remove_states(tmp_path)
    check_state(checkpoint / "states" / NAME, checksum)


def fails(folder: Path) -> None:
    save(folder)
    raise RuntimeError("no licence")


def links(folder: Path) -> None:
    save(folder)
    (folder / "mesh" / "out").symlink_to("/etc")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (fails, "no licence"),
        (links, "mesh/out is a link, and a saved state holds files of its own only"),
        (lambda folder: None, "has written no file into the folder path"),
    ],
)
def test_what_fails_leaves_nothing(broken: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, ValueError), match=says):
        write_state(tmp_path, NAME, broken, {})
    assert list((tmp_path / "checkpoints" / "states").iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "files" / "b.txt").write_text("c"), "b.txt does not match its checksum"),
        (lambda folder: (folder / "files" / "b.txt").unlink(), "cannot be read"),
        (lambda folder: (folder / "about.json").write_text("{}"), "about.json does not name the state's files"),
        (lambda folder: (folder / "about.json").write_text('{"files": {}}'), "about.json does not match its checksum"),
        (
            lambda folder: (folder / "about.json").write_text(json.dumps({"files": {"../x": [1, ""]}})),
            "does not name the state's files",
        ),
    ],
)  # fmt: skip
def test_damage_is_found(damage: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder, checksum = written(tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=says):
        check_state(folder, checksum)


def test_some_or_all_are_removed(tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    remove_states(tmp_path, ["another"])
    assert folder.exists()
    remove_states(tmp_path, [NAME])
    assert not folder.exists() and folder.parent.exists()
    remove_states(tmp_path)
    remove_states(tmp_path)
    assert not folder.parent.exists()
