"""dppo.run on a disk that takes 0.2 s for each segment. Lists its checkpoints in RUN/checkpoints.txt."""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import sys
import time
from pathlib import Path
from typing import Any

import dppo.training.saver
import dppo.trajectories.disk as disk
from dppo.run import command


def main() -> int:
    write, save = disk.replace_atomically, dppo.training.saver.write_checkpoint

    def slowly(path: Path, *data: Any) -> None:
        time.sleep(0.2)
        write(path, *data)

    def noted(run_dir: Path, checkpoint: Any, keep: int) -> Path:
        with open(run_dir / "checkpoints.txt", "a") as file:
            file.write(f"{checkpoint.env_steps}\n")
        return save(run_dir, checkpoint, keep)

    disk.replace_atomically = slowly
    dppo.training.saver.write_checkpoint = noted
    return command.main()


if __name__ == "__main__":
    code = main()
    sys.exit(code)
