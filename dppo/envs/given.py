"""What a constructor is given that takes arguments of these names: the communicator of its group, its number, and a
folder of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dppo.envs.group_link import HeadLink

NAMES = ("comm", "env_number", "workdir")
"""The arguments."""


class Workdirs:
    """The folders of environments, `root/env_00007`. Each is made when its environment is, and kept for a resume.

    Args:
      root: the folder around them; None: a temporary one, which `remove_new` removes, or else the end of this process.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root, self._is_temporary = root, root is None
        self._new: list[Path] = []

    def of(self, number: int) -> Path:
        """Returns the folder of an environment, which is there afterwards. Raises ValueError if it cannot be made."""
        try:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="dppo-envs-"))
                atexit.register(_remove_at_end, self._root, os.getpid())
            folder = self._root / f"env_{number:05d}"
            if not folder.is_dir():
                folder.mkdir(parents=True)
                self._new.append(folder)
        except OSError as error:
            raise ValueError(
                f"the folder of environment {number} cannot be made ({error}): make room there, or choose another"
                " --run-dir"
            ) from error
        return folder

    def remove_new(self) -> None:
        """Removes the folders that were made here, because what needed them is over or was refused."""
        for folder in self._new:
            shutil.rmtree(folder, ignore_errors=True)
        self._new.clear()
        if self._root is not None:
            with contextlib.suppress(OSError):  # other environments may have theirs in it
                self._root.rmdir()
        if self._is_temporary:
            self._root = None


def _remove_at_end(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork may end earlier
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Given:
    """What the environments of a process are given.

    Args:
      comm: the communicator of their group.
      workdirs: their folders.
      group: the other ranks of which each environment consists; it makes its communicators. None: there are none.
    """

    comm: Any = None
    workdirs: Workdirs = field(default_factory=Workdirs)
    group: HeadLink | None = None

    def arguments(self, names: frozenset[str], number: int) -> dict[str, Any]:
        """Returns those of the arguments that `names` has, for the environment with the global number `number`."""
        out: dict[str, Any] = {}
        if "comm" in names:
            out["comm"] = self.comm if self.group is None else None
        if "env_number" in names:
            out["env_number"] = number
        if "workdir" in names:
            out["workdir"] = self.workdirs.of(number)
        return out
