"""Hides the ports that Open MPI opens on all networks: nobody outside the node has to reach those of a job on one node.

The launcher listens on all interfaces, and no setting changes that. Ranks of one node open ports only where dead ranks
may have to be replaced; otherwise startup.py leaves TCP out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
from collections.abc import Iterator

_PIDFD_GETFD = 438


def keep_to_this_node(process: int) -> None:
    """Ties the sockets on which a process listens on all networks to the loopback device, where the kernel lets one
    process do that for another. The sockets listen all the while.
    """
    for file in _files_of(process):
        with contextlib.suppress(OSError), _listening(file) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")


@contextlib.contextmanager
def _listening(file: int) -> Iterator[socket.socket]:
    """Yields the socket of a file, then closes it. Raises OSError where it is no socket that listens everywhere."""
    if not stat.S_ISSOCK(os.fstat(file).st_mode):
        os.close(file)
        raise OSError
    with socket.socket(fileno=file) as found:
        is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
        if not is_tcp or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError
        if found.getsockname()[0] not in ("0.0.0.0", "::"):
            raise OSError
        yield found


def _files_of(pid: int) -> Iterator[int]:
    """Yields copies of another process's open files; none where that is not allowed."""
    system = ctypes.CDLL(None).syscall
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                if (file := system(_PIDFD_GETFD, process, int(name), 0)) >= 0:
                    yield file
        finally:
            os.close(process)
