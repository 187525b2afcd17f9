"""Writes segments to the disk in a thread, one at a time, and tries again where the disk refuses one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from dppo.files import PASSING, RETRY_S, fsync_folder, replace_atomically
from dppo.trajectories.format import seal_image

LOOK_S = 0.02
"""Seconds between two checks whether the disk refuses."""


class Disk:
    """Writes one segment at a time.

    Args:
      is_patient: whether to try again where the disk is full or fails; otherwise the first error counts.
    """

    def __init__(self, *, is_patient: bool) -> None:
        self._is_patient = is_patient
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")
        self._writing: Future[int] | None = None
        self._gives_up = threading.Event()
        self.refusal: str | None = None
        """The disk's error for the segment that is tried again."""

    @property
    def is_busy(self) -> bool:
        """Whether a segment is being written."""
        return self._writing is not None and not self._writing.done()

    def start(self, path: Path, image: memoryview) -> None:
        """Begins to write a segment. `finish` gives the result, and must come before the next `start`."""
        assert self._writing is None
        self._writing = self._thread.submit(self._commit, path, image)

    def finish(self) -> int | None:
        """Waits for the segment that is being written. Returns its number of bytes, once; None where there is none.
        Raises OSError where the segment could not be written.
        """
        writing, self._writing = self._writing, None
        try:
            return None if writing is None else writing.result()
        finally:
            self.refusal = None
            self._gives_up.clear()

    def refuses(self) -> bool:
        """Waits until the segment is written or refused. Returns whether the disk refuses it."""
        writing = self._writing
        while writing is not None and not writing.done() and self.refusal is None:
            wait([writing], LOOK_S)
        return self.is_busy

    def give_up(self) -> None:
        """Does not try this segment again."""
        self._gives_up.set()

    def wait(self, deadline: float) -> None:
        """Waits until the segment is written; gives it up at `deadline`."""
        while self.refuses():
            if time.monotonic() > deadline:
                self.give_up()
                return
            time.sleep(LOOK_S)

    def close(self) -> None:
        self._thread.shutdown()

    def _commit(self, path: Path, image: memoryview) -> int:
        while True:
            try:
                return _commit(path, image)
            except OSError as error:
                if not self._is_patient or error.errno not in PASSING or self._gives_up.is_set():
                    raise
                self.refusal = f"{path}: {error}"
            self._gives_up.wait(RETRY_S)


def _commit(path: Path, image: memoryview) -> int:
    """Makes a segment visible. Returns its number of bytes."""
    head, body = seal_image(image)
    if not path.parent.is_dir():
        path.parent.parent.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        fsync_folder(path.parent.parent)
    if path.exists():
        raise FileExistsError("it is there already, of another process; segments are never replaced")
    replace_atomically(path, head, body)
    return len(head) + len(body)
