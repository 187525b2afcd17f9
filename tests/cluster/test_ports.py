"""Ports of a launcher that were open to everybody are open to this node only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from dppo.cluster import ports

FORK = multiprocessing.get_context("fork")
FAMILIES = [socket.AF_INET, socket.AF_INET6]


def listener(family: int, host: str) -> socket.socket:
    out = socket.socket(family, socket.SOCK_STREAM)
    out.bind((host, 0))
    out.listen(5)
    out.settimeout(10.0)
    return out


def in_a_process(work: Any, pipe: Connection) -> None:
    """`work` in a process of its own. It must not touch the sockets of the tests' process, which may speak MPI: what
    one shuts down is shut down for both.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != pipe.fileno():
            with contextlib.suppress(OSError):
                os.close(int(name))
    try:
        pipe.send(work())
    except BaseException as error:
        pipe.send(error)


def outcome(work: Any) -> Any:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=in_a_process, args=(work, theirs), daemon=True)
    process.start()
    assert ours.poll(30)
    result = ours.recv()
    process.join()
    if isinstance(result, BaseException):
        raise result
    return result


def test_no_file_is_left_open() -> None:
    def work() -> None:
        before = os.listdir("/proc/self/fd")
        ports.keep_to_this_node(os.getppid())
        assert os.listdir("/proc/self/fd") == before

    outcome(work)


@contextlib.contextmanager
def another_process() -> Iterator[tuple[int, set[int]]]:
    """One that listens everywhere, twice, and on loopback; its number, and those of its ports."""
    ours, theirs = FORK.Pipe()

    def serve() -> None:
        with (
            listener(socket.AF_INET, "0.0.0.0") as one,
            listener(socket.AF_INET6, "::") as two,
            listener(socket.AF_INET, "127.0.0.1") as three,
        ):
            theirs.send({each.getsockname()[1] for each in (one, two, three)})
            theirs.recv()

    process = FORK.Process(target=serve, daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield process.pid, ours.recv()
    finally:
        ours.send(True)
        process.join()


def test_a_launchers_ports_are_tied_to_the_loopback_device() -> None:
    def devices(pid: int, numbers: set[int]) -> list[tuple[str, bytes]]:
        out = []
        for file in ports._files_of(pid):
            with contextlib.suppress(OSError), socket.socket(fileno=file) as found:
                # not those that it has from this process, which may speak MPI
                if found.family in FAMILIES and found.getsockname()[1] in numbers:
                    name = found.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
                    out.append((found.getsockname()[0], name))
        return sorted(out)

    with another_process() as (pid, numbers):
        before = devices(pid, numbers)
        if not before:
            pytest.skip("this kernel does not let one process look into another's sockets")
        assert before == [("0.0.0.0", b""), ("127.0.0.1", b""), ("::", b"")]
        outcome(lambda: ports.keep_to_this_node(pid))
        assert devices(pid, numbers) == [("0.0.0.0", b"lo"), ("127.0.0.1", b""), ("::", b"lo")]


def test_a_process_that_is_not_there_is_nobody() -> None:
    outcome(lambda: ports.keep_to_this_node(2**22 + 1))
