"""Files that appear complete or not at all, and files that grow by whole records."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dppo import files
from dppo.errors import MovedError
from dppo.files import AppendedFile, overwrite, replace_atomically, write_durably


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


def refuse(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_full_disk_has_no_room_for_is_not_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_atomically(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        replace_atomically(tmp_path / "x", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_a_file_is_overwritten_in_the_room_that_it_has(tmp_path: Path) -> None:
    for content in (b"something long", b"short"):
        (tmp_path / "x").touch()
        overwrite(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        overwrite(tmp_path / "y", b"")
    assert not (tmp_path / "y").exists()


# -- files that grow --------------------


@pytest.fixture
def log(tmp_path: Path) -> AppendedFile:
    return AppendedFile(tmp_path / "log", durable=True)


def content(log: AppendedFile) -> bytes:
    return log._path.read_bytes()


def write(log: AppendedFile, *records: bytes) -> None:
    for record in records:
        log.add(record)
    log.flush()


def test_records_that_could_not_be_written_come_later_in_their_order(
    log: AppendedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes a part of the second record, and then nothing for a while."""
    write(log, b"one\n")

    def take_two_bytes(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:2])
        refuse()

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", take_two_bytes)
        for record in (b"two\n", b"three\n"):
            with pytest.raises(OSError, match="No space"):
                write(log, record)
            assert content(log) == b"one\n", "whole records only"
    assert log.is_behind
    write(log, b"four\n")
    assert content(log) == b"one\ntwo\nthree\nfour\n" and not log.is_behind


def test_what_a_disk_has_lost_is_written_again(log: AppendedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's disk says only when it is asked to sync that it had no room."""
    write(log, b"one\n")
    log.sync()
    write(log, b"two\n", b"three\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            log.sync()
        os.truncate(log._path, 6)
    write(log, b"four\n")
    log.sync()
    assert content(log) == b"one\ntwo\nthree\nfour\n"


def test_records_do_not_stay_in_memory(log: AppendedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppendedFile, "SYNC_AFTER", 10)
    for _ in range(100):
        write(log, b"line\n")
    assert len(log._records) <= 11
    assert content(log) == b"line\n" * 100


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "folder moved"])
def test_a_file_that_was_moved_is_not_begun_anew(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    log = AppendedFile(folder / "log", durable=True)
    write(log, b"one\n")
    if how == "folder moved":
        folder.rename(tmp_path / "elsewhere")
    elif how == "removed":
        (folder / "log").unlink()
    else:
        (folder / "log").rename(folder / "log.1")
    if how == "replaced":
        (folder / "log").write_bytes(b"of another\n")
    with pytest.raises(MovedError, match=r"log was moved, removed or replaced"):
        write(log, b"two\n")
    if how == "replaced":
        assert (folder / "log").read_bytes() == b"of another\n"
        return
    assert not (folder / "log").exists()
    if how == "folder moved":
        (tmp_path / "elsewhere").rename(folder)
        log.flush()
        assert content(log) == b"one\ntwo\n"


def test_after_a_stale_handle_the_file_is_opened_again(log: AppendedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    write(log, b"one\n")

    def stale(*args: object) -> None:
        monkeypatch.undo()  # the next one is that of the file that is opened again
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "fstat", stale)
    write(log, b"two\n")
    assert content(log) == b"one\ntwo\n"


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to(path.parent / "victim")], ids=["pipe", "link"]
)
def test_what_lies_in_the_way_of_a_part_is_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("somebody's")
    make(tmp_path / "file.part")
    replace_atomically(tmp_path / "file", b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "victim").read_text() == "somebody's"
