"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dppo.storage import files
from dppo.storage.files import replace_atomically, write_durably


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", b"one")
    replace_atomically(tmp_path / "b", b"two")
    replace_atomically(tmp_path / "b", b"three")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b").read_bytes() == b"three"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_content_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write, fsync, rename, fsync of the folder: in another order a crash of the machine could leave an empty file."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        order.append(f"fsync {Path(name).name}")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        order.append(f"rename {source.name} {target.name}")
        assert source.read_bytes() == b"new"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    replace_atomically(tmp_path / "x", b"new")
    assert order == ["fsync x.part", "rename x.part x", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("dies_in", ["write_durably", "replace"])
def test_killed_in_between_the_old_content_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str) -> None:
    replace_atomically(tmp_path / "x", b"old")

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files if dies_in == "write_durably" else os, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            replace_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    replace_atomically(tmp_path / "x", b"newer")
    assert (tmp_path / "x").read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
