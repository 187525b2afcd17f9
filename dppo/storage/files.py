"""Files that appear complete or not at all.

Uses the standard library only; everything in the run directory that is not a log is written through it.
"""

from __future__ import annotations

import os
from pathlib import Path


def fsync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, *data: bytes | memoryview) -> None:
    """Writes and syncs; for a file in a folder that becomes visible later."""
    with open(path, "wb") as file:
        for piece in data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def replace_atomically(path: Path, data: bytes) -> None:
    """`path` holds the old content or the new one, never a part of either."""
    part = path.with_name(path.name + ".part")
    write_durably(part, data)
    os.replace(part, path)
    fsync_folder(path.parent)
