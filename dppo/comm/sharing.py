"""Memory that some ranks of a node share, with counters: a rank that waits for one sleeps until it is counted up.

Nobody else can open the memory or write to it, so other users of the node can neither wake a rank nor keep it asleep.
The counter decides; a wake-up only makes a rank look at it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dppo.comm.collectives import all_have, gather_all
from dppo.comm.mpi import MPI

PAGE = mmap.PAGESIZE
_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX = _NUMBERS.get(platform.machine(), 0)
"""The number of the system call futex; 0 if it is not known."""
_WAIT, _WAKE, _WAKE_OP = 0, 1, 5
_ADD_ONE = 1 << 28 | 1 << 12
_EVERYONE = 2**31 - 1


class _Timespec(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]


_call = ctypes.CDLL(None).syscall
_call.restype = ctypes.c_long
_call.argtypes = (
    ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong,
)  # fmt: skip


class Counters:
    """Numbers modulo 2^32 in shared memory, all 0 at first.

    Args:
      memory: uint8, shared, a multiple of 4 bytes.

    Source: Linux, futex(2).
    """

    def __init__(self, memory: np.ndarray) -> None:
        self._numbers = memory.view(np.uint32)
        self._view = self._numbers.data  # read several times as fast
        self._address = self._numbers.ctypes.data
        # kept: after a sleep all caches are cold, and making an object costs many times what it costs otherwise
        self._limit, self._limit_s = _Timespec(), 0.0
        self._limit_at = ctypes.byref(self._limit)

    def __getitem__(self, index: int) -> int:
        number: int = self._view[index]
        return number

    def count_up(self, index: int) -> None:
        """Adds 1 and wakes all ranks that sleep on the counter. The kernel does this atomically, and other ranks see it
        only after everything that was written before.
        """
        at = self._address + 4 * index
        _call(_FUTEX, at, _WAKE_OP, _EVERYONE, None, at, _ADD_ONE)

    def wake(self, index: int) -> None:
        """Wakes all ranks that sleep on the counter, so that they look at it."""
        _call(_FUTEX, self._address + 4 * index, _WAKE, _EVERYONE, None, None, 0)

    def sleep(self, index: int, seen: int, longest_s: float) -> None:
        """Sleeps until the counter is not `seen`, or a rank calls `wake`, or a signal comes, or for `longest_s`."""
        if longest_s != self._limit_s:
            self._limit_s, self._limit.s = longest_s, int(longest_s)
            self._limit.ns = int(1e9 * (longest_s - self._limit.s))
        _call(_FUTEX, self._address + 4 * index, _WAIT, seen, self._limit_at, None, 0)

    def is_at(self, index: int, number: int) -> bool:
        """Returns whether the counter has been counted up to `number`, or further."""
        return (self[index] - number) % 2**32 < 2**31

    def comes_to(self, index: int, number: int, longest_s: float) -> bool:
        """Returns True if `is_at` does. Else sleeps until that may have changed, and returns False."""
        seen = self[index]
        if (seen - number) % 2**32 < 2**31:
            return True
        self.sleep(index, seen, longest_s)
        return False


def share(comm: MPI.Comm, ranks: Sequence[int], num_bytes: int) -> np.ndarray | None:
    """Collective over `comm`. Returns zeros, [num_bytes] uint8, that this rank shares with `ranks` of its node, itself
    among them; None, on all ranks of `comm`, if one of them cannot have its memory.

    The memory is a file in /dev/shm of mode 0600, which loses its name as soon as all have opened it. So nothing is
    left, however the job ends.
    """
    path, file = "", -1
    memory: mmap.mmap | None = None
    if comm.rank == ranks[0] and _FUTEX:
        with contextlib.suppress(OSError):
            file, path = tempfile.mkstemp(prefix="dppo-", dir="/dev/shm")
    try:
        with contextlib.suppress(OSError):
            if path:
                os.posix_fallocate(file, 0, num_bytes)  # else a full /dev/shm would be a bus error later
                memory = mmap.mmap(file, num_bytes)
        path = gather_all(comm, path if memory is not None else "")[ranks[0]] or path
        with contextlib.suppress(OSError):
            if path and comm.rank != ranks[0]:
                file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                memory = mmap.mmap(file, num_bytes)
        complete = all_have(comm, memory)
    finally:
        if file >= 0:
            os.close(file)
        if path:
            Path(path).unlink(missing_ok=True)
    return np.frombuffer(memory, np.uint8) if memory is not None and complete else None
