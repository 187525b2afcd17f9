"""Writes and reads files. A file appears complete or not at all, or grows by whole records. A file that others may have
made is opened only if it is a regular file, below the folder that it belongs to, of plausible size.

A reader would wait for a pipe without end, a device or a link may lead anywhere on the machine, and a file of a hundred
gigabytes that takes no room on the disk would fill the memory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dppo.errors import MovedError, RefusedFileError

# -- writing --------------------

PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT})
"""The errors of a disk that may accept the same bytes a little later."""
RETRY_S = 2.0
"""Seconds from an error in `PASSING` to the next try."""


def fsync_folder(folder: Path) -> None:
    """Makes renames inside `folder`, or the content of a file, survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, *data: bytes | memoryview) -> None:
    """Writes and syncs a new file, which replaces an existing one; for a file that becomes visible later."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # so that no link is followed, and no pipe waited for
    with open(path, "xb") as file:
        for piece in data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def replace_atomically(path: Path, *data: bytes | memoryview) -> None:
    """Replaces the content of a file: `path` holds the old content or the new one, never a part of either."""
    part = path.with_name(path.name + ".part")
    try:
        write_durably(part, *data)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):  # on a full disk others need its room
            part.unlink()
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path, refuse: Callable[[Path], None] = lambda path: None) -> Iterator[Path]:
    """Yields a path to write a file or a folder to. It gets the name `path` when the block ends, unless `refuse`
    raises, and is removed if the block fails.
    """
    part = path.with_name(f".dppo-{secrets.token_hex(8)}.part")  # nothing is there; Minari does not list hidden folders
    try:
        yield part
        for written in (*part.rglob("*"), part):
            fsync_folder(written)  # of a file, this syncs the content
        refuse(path)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # if it is a folder
        with contextlib.suppress(OSError):
            part.unlink()
    fsync_folder(path.parent)


def overwrite(path: Path, data: bytes) -> None:
    """Overwrites an existing file in the room that it has: a full disk has no other room. A crash meanwhile leaves a
    mixture.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        _write_all(descriptor, data)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class AppendedFile:
    """A file that grows by whole records, also where the disk is full or fails for a while. A record that could not be
    written is kept, and is written, in its order, before the next.

    Args:
      durable: whether records are kept until `sync` has them on the disk: a network's disk may accept what it cannot
        store, and say so only then. `SYNC_AFTER` bounds their number.
    """

    SYNC_AFTER = 1000

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path, self._durable = path, durable
        self._lock = threading.Lock()  # `sync` may be called by another thread
        self._records: list[bytes] = []  # not written yet or, if durable, not synced yet
        self._written = 0  # how many of the records are in the file
        self._descriptor = self._open(os.O_CREAT)
        self._end = self._synced = os.fstat(self._descriptor).st_size
        self._torn = False

    def _open(self, flags: int = 0) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | flags, 0o666)

    def add(self, record: bytes) -> None:
        """Keeps a record for the next `flush`."""
        self._records.append(record)

    @property
    def is_behind(self) -> bool:
        """Returns whether records wait to be written."""
        return self._written < len(self._records)

    def flush(self) -> None:
        """Writes the records that wait.

        Raises:
          MovedError: the file was moved, removed or replaced.
          OSError: the file cannot be written now.
        """
        with self._lock:
            self._find()
            self._repair()
            while self.is_behind:
                record = self._records[self._written]
                try:
                    self._torn = True
                    _write_all(self._descriptor, record)
                    self._torn = False
                except OSError:
                    with contextlib.suppress(OSError):
                        self._repair()
                    raise
                self._end += len(record)
                self._written += 1
            if not self._durable:
                self._forget(self._written, self._end)
        if self._written > self.SYNC_AFTER:
            self.sync()

    def sync(self) -> None:
        """Makes flushed records survive a crash of the machine. The next `flush` writes again what the disk has lost
        meanwhile. Raises OSError where the disk has lost something.
        """
        with self._lock:
            written, end = self._written, self._end
        try:
            os.fsync(self._descriptor)
        except OSError:
            with self._lock:
                self._written, self._end, self._torn = 0, self._synced, True
            raise
        with self._lock:
            self._forget(written, end)

    def close(self) -> None:
        """Closes the file. Records that wait are lost."""
        os.close(self._descriptor)

    def _forget(self, written: int, end: int) -> None:
        del self._records[:written]
        self._written -= written
        self._synced = end

    def _repair(self) -> None:
        """Cuts off what is left of a record that was not written whole."""
        if self._torn:
            os.ftruncate(self._descriptor, self._end)
            self._torn = False

    def _find(self) -> None:
        """Checks that the path leads to this file. Opens it again where a network disk's server has restarted."""
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            again = self._open()
            size = os.fstat(again).st_size
            if size >= self._synced:
                os.dup2(again, self._descriptor)
                if size < self._end:
                    self._written, self._end = 0, self._synced
                self._torn = True
            os.close(again)
            if size >= self._synced:
                return
        raise MovedError(f"{self._path} was moved, removed or replaced")


# -- reading --------------------

MB = 2**20
TOML_BYTES, JSON_BYTES, LINE_BYTES = MB, 32 * MB, MB
"""The most bytes of a file of settings, of a JSON file, and of one line of a JSON lines file."""
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def open_regular(path: Path, root: Path | None = None, max_bytes: int = JSON_BYTES) -> BinaryIO:
    """Opens `path` for reading.

    Args:
      root: the folder that the file must lie in, whatever links lead to it; None: anywhere.
      max_bytes: the most bytes that the file may have.

    Raises:
      RefusedFileError: the file is not a regular one, lies outside of `root`, or is larger.
      OSError: the file does not exist, or may not be read.
    """
    real = os.path.realpath(path)
    if root is not None and not Path(real).is_relative_to(os.path.realpath(root)):
        raise RefusedFileError(f"{path} is a link to {real}, outside of {root}: put a file in its place")
    _refuse(path, os.stat(real), max_bytes)  # before it is opened: some devices act on opening alone
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse(path, os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse(path: Path, status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        raise RefusedFileError(f"{path} is no file but {kind}: move it away")
    if status.st_size > max_bytes:
        raise RefusedFileError(
            f"{path} has {status.st_size:,} bytes, at most {max_bytes:,} are plausible: move it away"
        )


def check_regular(path: Path, root: Path | None = None, max_bytes: int = 2**63) -> None:
    """Raises what `open_regular` raises, except where there is no such file."""
    try:
        open_regular(path, root, max_bytes).close()
    except FileNotFoundError:
        if path.is_symlink():
            raise RefusedFileError(f"{path} is a link to nowhere: remove it") from None


def check_run_files(run_dir: Path, names: Iterable[str]) -> None:
    """Raises RefusedFileError for the first of a run's own files that may not be opened."""
    for name in names:
        check_regular(run_dir / name, run_dir, 2**63 if name.endswith(".jsonl") else JSON_BYTES)


def read_regular(path: Path, root: Path | None = None, max_bytes: int = JSON_BYTES) -> bytes:
    """Reads a whole file that `open_regular` opens; raises what that raises."""
    with open_regular(path, root, max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RefusedFileError(f"{path} grows while it is read: more than {max_bytes:,} bytes are not plausible")
    return data


def read_lines(path: Path, root: Path | None = None, *, skip_long: bool = False) -> Iterator[bytes]:
    """Yields the lines of a file of any length, with their line ends; the last line may have none.

    Args:
      skip_long: whether to leave out lines that are too long.

    Raises:
      RefusedFileError: the file is not a regular one, or a line in it has more than LINE_BYTES.
    """
    with open_regular(path, root, 2**63) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), 1):
            if len(line) <= LINE_BYTES:
                yield line
            elif skip_long:
                while line and not line.endswith(b"\n"):
                    _skip_hole(file)
                    line = file.readline(LINE_BYTES)
            else:
                raise RefusedFileError(
                    f"{path} holds no lines of text: line {number} has more than {LINE_BYTES:,} bytes"
                )


def _skip_hole(file: BinaryIO) -> None:
    """Moves on to where the file has data again: a crash of the machine may leave gigabytes of zeros that are nowhere
    on the disk, and take half a minute to read.
    """
    try:
        file.seek(os.lseek(file.fileno(), file.tell(), os.SEEK_DATA))
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but zeros
            file.seek(0, os.SEEK_END)


def parse_json(text: bytes | str) -> Any:
    """Parses JSON in which no object has a key twice. Raises ValueError for anything else, however deeply nested."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is there twice")
    return out


def number_in(values: Mapping[str, Any], key: str, default: float = 0) -> Any:
    """Returns the number at `key` as the type of `default`, or `default` where there is no finite one of at least 0."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return default
    return type(default)(value)


def plain(text: object) -> str:
    """Returns one line that commands nothing: line breaks become spaces, and what cannot be seen (a terminal's codes,
    marks that reverse the order of letters, bytes that are no text) is spelt out.
    """
    line = " ".join(str(text).splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
