"""dppo.run on a disk without room for a checkpoint."""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import time
from pathlib import Path
from typing import Any

import dppo.rundir.checkpoint
from dppo.run import command


def refuse(path: Path, *data: Any) -> None:
    raise OSError(28, "No space left on device")


if __name__ == "__main__":
    dppo.rundir.checkpoint.write_durably = refuse
    command.run(time.monotonic())
