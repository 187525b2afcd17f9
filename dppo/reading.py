"""Reads files that others may have made: regular ones only, below the folder that they belong to, of plausible size.

A pipe would be waited for without end, a device or a link may lead anywhere on the machine, and a file of a hundred
gigabytes that takes no room on the disk would fill the memory. Uses the standard library.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MB = 2**20
TOML_BYTES, JSON_BYTES, LINE_BYTES = MB, 32 * MB, MB
"""What settings, a JSON file and one line of a JSON lines file may have at most."""
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


class RefusedFileError(OSError):
    """A file that is not opened, or not read to its end, because of what it is; the message names it."""


def open_regular(path: Path, root: Path | None = None, max_bytes: int = JSON_BYTES) -> BinaryIO:
    """Opens `path` for reading.

    Args:
      root: the folder that it must lie in, whatever links lead to it; None: anywhere.
      max_bytes: that it may have.

    Raises:
      RefusedFileError: it is no regular file, lies outside of `root`, or is larger.
      OSError: it is not there, or may not be read.
    """
    real = os.path.realpath(path)
    if root is not None and not Path(real).is_relative_to(os.path.realpath(root)):
        raise RefusedFileError(f"{path} is a link to {real}, outside of {root}: put a file in its place")
    _refuse(path, os.stat(real), max_bytes)  # before it is opened: some devices act on that alone
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse(path, os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse(path: Path, status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        raise RefusedFileError(f"{path} is no file but {kind}: move it away")
    if status.st_size > max_bytes:
        raise RefusedFileError(
            f"{path} has {status.st_size:,} bytes, at most {max_bytes:,} are plausible: move it away"
        )


def check_regular(path: Path, root: Path | None = None, max_bytes: int = 2**63) -> None:
    """Raises what `open_regular` does; nothing where there is no such file."""
    try:
        open_regular(path, root, max_bytes).close()
    except FileNotFoundError:
        if path.is_symlink():
            raise RefusedFileError(f"{path} is a link to nowhere: remove it") from None


def check_run_files(run_dir: Path, names: Iterable[str]) -> None:
    """Raises RefusedFileError for the first of a run's own files that may not be opened."""
    for name in names:
        check_regular(run_dir / name, run_dir, 2**63 if name.endswith(".jsonl") else JSON_BYTES)


def read_regular(path: Path, root: Path | None = None, max_bytes: int = JSON_BYTES) -> bytes:
    """The whole of `open_regular`."""
    with open_regular(path, root, max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RefusedFileError(f"{path} grows while it is read: more than {max_bytes:,} bytes are not plausible")
    return data


def read_lines(path: Path, root: Path | None = None, *, skip_long: bool = False) -> Iterator[bytes]:
    """The lines of a file of any length, with their ends; the last one may have none.

    Args:
      skip_long: lines that are too long are left out.

    Raises:
      RefusedFileError: it is no regular file, or a line in it has more than LINE_BYTES.
    """
    with open_regular(path, root, 2**63) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), 1):
            if len(line) <= LINE_BYTES:
                yield line
            elif skip_long:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
            else:
                raise RefusedFileError(
                    f"{path} holds no lines of text: line {number} has more than {LINE_BYTES:,} bytes"
                )


def parse_json(text: bytes | str) -> Any:
    """A JSON value in which no object has a key twice. Raises ValueError for anything else, however deep it is."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is there twice")
    return out


def number_in(values: Mapping[str, Any], key: str, default: float = 0) -> Any:
    """A number of at least 0 that is finite, of the type that `default` has, or `default` where there is none."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return default
    return type(default)(value)
