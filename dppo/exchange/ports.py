"""On one node nobody outside it has to reach the ports that Open MPI opens on all of its networks.

Uses the standard library and Linux; run.py calls it once MPI has started. Open MPI listens on all interfaces whatever
it is told, and has no setting against it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
from collections.abc import Iterator

_PIDFD_GETFD = 438
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def keep_to_this_node(launcher: int | None) -> None:
    """What this process has opened to everybody listens on the loopback addresses afterwards. What `launcher` has is
    tied to the loopback device, where the kernel lets one process do that for another: it waits for connections in a
    thread, which would complain of a socket that is taken away for a moment.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), _listening(os.dup(int(name))) as found:
            _listen_locally(found)
    if launcher is not None:
        for file in _files_of(launcher):
            with contextlib.suppress(OSError), _listening(file) as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")


@contextlib.contextmanager
def _listening(file: int) -> Iterator[socket.socket]:
    """The socket of a file; OSError where it is none that listens everywhere. Closes the file."""
    if not stat.S_ISSOCK(os.fstat(file).st_mode):
        os.close(file)
        raise OSError
    with socket.socket(fileno=file) as found:
        is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
        if not is_tcp or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError
        if found.getsockname()[0] not in _EVERYWHERE:
            raise OSError
        yield found


def _listen_locally(found: socket.socket) -> None:
    """The same socket under the same port of the loopback address. Another one holds the port meanwhile."""
    host, port = found.getsockname()[:2]
    address = (_EVERYWHERE[host], port)
    with socket.socket(found.family, socket.SOCK_STREAM) as holder:
        for each in (found, holder):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        found.shutdown(socket.SHUT_RDWR)
        found.bind(address)
        found.listen(128)


def _files_of(pid: int) -> Iterator[int]:
    """Copies of another process's open files; none where that is not allowed."""
    system = ctypes.CDLL(None).syscall
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                if (file := system(_PIDFD_GETFD, process, int(name), 0)) >= 0:
                    yield file
        finally:
            os.close(process)
