"""Takes segments to the disk in a thread, one at a time, and asks a disk that refuses one again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from dppo.files import PASSING, RETRY_S, fsync_folder, write_durably
from dppo.trajectories.format import seal_image

LOOK_S = 0.02
"""How often whoever waits for the disk looks whether it refuses."""


class Disk:
    """The segment that is on its way.

    Args:
      is_patient: a disk that is full, or fails, is asked again; else its first error counts.
    """

    def __init__(self, *, is_patient: bool) -> None:
        self._is_patient = is_patient
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")
        self._writing: Future[int] | None = None
        self._gives_up = threading.Event()
        self.refusal: str | None = None
        """What the disk says to the segment that is tried again."""

    @property
    def is_busy(self) -> bool:
        """Whether a segment is on its way."""
        return self._writing is not None and not self._writing.done()

    def start(self, path: Path, image: memoryview) -> None:
        """Sends a segment on its way; `finish` tells what became of it, and comes before the next `start`."""
        assert self._writing is None
        self._writing = self._thread.submit(self._commit, path, image)

    def finish(self) -> int | None:
        """Waits for the segment that is on its way. Returns its bytes, once; None where there is none.

        Raises:
          OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        try:
            return None if writing is None else writing.result()
        finally:
            self.refusal = None
            self._gives_up.clear()

    def refuses(self) -> bool:
        """Whether the disk refuses the segment that is on its way. Waits while it takes its time."""
        writing = self._writing
        while writing is not None and not writing.done() and self.refusal is None:
            wait([writing], LOOK_S)
        return self.is_busy

    def give_up(self) -> None:
        """Does not ask for this segment again."""
        self._gives_up.set()

    def wait(self, deadline: float) -> None:
        """Waits until the disk has taken the segment; gives it up at `deadline`."""
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
    """Makes a segment visible. Returns its bytes."""
    head, body = seal_image(image)
    if not path.parent.is_dir():
        path.parent.parent.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        fsync_folder(path.parent.parent)
    part = path.with_name(path.name + ".part")
    if path.exists():
        raise FileExistsError("it is there already, of another process; segments are never replaced")
    try:
        write_durably(part, head, body)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    fsync_folder(path.parent)
    return len(head) + len(body)
