"""Keeps a second process out of a folder, as long as the first one lives."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""The errors of a file system without locks."""


def lock(path: Path, *, shared: bool = False) -> int | None:
    """Locks the file `path`, which is made if it is missing, until the process ends or closes what is returned: the
    file's descriptor, which programs that inherit it hold as well. Returns None where another process has the lock.
    Where the file system knows no locks, nobody is kept out.

    Args:
      shared: let others in that want the lock shared as well.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return descriptor
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return descriptor
