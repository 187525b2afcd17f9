"""dppo.run on a disk without room for a checkpoint."""

from __future__ import annotations

import dppo.run  # first: it sets threads and MPI's parameters

# isort: split
from pathlib import Path
from typing import Any

import dppo.storage.checkpoint


def refuse(path: Path, *data: Any) -> None:
    raise OSError(28, "No space left on device")


if __name__ == "__main__":
    dppo.storage.checkpoint.write_durably = refuse
    dppo.run._command()
