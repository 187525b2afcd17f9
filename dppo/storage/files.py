"""Files that appear complete or not at all, and files that grow by whole records.

Uses the standard library only; everything in the run directory is written through it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT})
"""What a disk says that may take the same bytes a little later."""
RETRY_S = 2.0
"""How much later it is asked again."""


def fsync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, *data: bytes | memoryview) -> None:
    """Writes and syncs a new file, in the place of one that is there; for one that becomes visible later."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # a link there is not followed, nor a pipe waited for
    with open(path, "xb") as file:
        for piece in data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def replace_atomically(path: Path, data: bytes) -> None:
    """`path` holds the old content or the new one, never a part of either."""
    part = path.with_name(path.name + ".part")
    try:
        write_durably(part, data)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):  # on a full disk it is what others lack
            part.unlink()
        raise
    fsync_folder(path.parent)


def overwrite(path: Path, data: bytes) -> None:
    """Writes into a file that is there, in the room that it has: on a full disk there is no other. A crash meanwhile
    leaves a mixture.
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


class MovedError(OSError):
    """The path does not lead to the file that was written so far."""


class AppendedFile:
    """A file that grows by whole records, also where the disk is full or fails for a while: a record that could not be
    written is kept, and comes, in its order, before the next.

    Args:
      durable: records are kept until `sync` has them on the disk: a network's disk may take what it cannot store, and
        say so only then. `SYNC_AFTER` bounds them.
    """

    SYNC_AFTER = 1000

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path, self._durable = path, durable
        self._lock = threading.Lock()  # `sync` may be called by another thread
        self._records: list[bytes] = []  # those that were not synced yet
        self._written = 0  # so many of them are in the file
        self._descriptor = self._open(os.O_CREAT)
        self._end = self._synced = os.fstat(self._descriptor).st_size
        self._torn = False

    def _open(self, flags: int = 0) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | flags, 0o666)

    def add(self, record: bytes) -> None:
        """For the next `flush`."""
        self._records.append(record)

    @property
    def is_behind(self) -> bool:
        """Whether records wait."""
        return self._written < len(self._records)

    def flush(self) -> None:
        """Writes what waits.

        Raises:
          MovedError: the file was moved, removed or replaced.
          OSError: it cannot be written now.
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
        """What was flushed survives a crash of the machine. What the disk has lost meanwhile is written again by the
        next `flush`.

        Raises:
          OSError: it has lost something.
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
        """What waits is lost."""
        os.close(self._descriptor)

    def _forget(self, written: int, end: int) -> None:
        del self._records[:written]
        self._written -= written
        self._synced = end

    def _repair(self) -> None:
        """Only whole records stay in the file."""
        if self._torn:
            os.ftruncate(self._descriptor, self._end)
            self._torn = False

    def _find(self) -> None:
        """The path leads to this file; where the server of a network's disk has started anew, it is opened again."""
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
