"""Ports that were open to everybody are open to this node only, and connections to them still come in."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from dppo.exchange import ports

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


def connect(family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(10.0)
        client.connect((host, port))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_listens_everywhere_listens_on_loopback_under_the_same_port(family: int) -> None:
    everywhere, local = ("0.0.0.0", "127.0.0.1") if family == socket.AF_INET else ("::", "::1")

    def work() -> None:
        with listener(family, everywhere) as found:
            port = found.getsockname()[1]
            ports.keep_to_this_node(None)
            assert found.getsockname()[:2] == (local, port)
            for _ in range(3):
                connect(family, local, port)
                found.accept()[0].close()
            for other in addresses(family):
                with pytest.raises(ConnectionRefusedError):
                    connect(family, other, port)

    outcome(work)


def addresses(family: int) -> list[str]:
    """Of this machine, besides loopback; what a packet to the outside would carry."""
    outside = "192.0.2.99" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((outside, 9))
        return [probe.getsockname()[0]]
    return []


def test_all_else_stays() -> None:
    def work() -> None:
        with (
            listener(socket.AF_INET, "127.0.0.1") as local,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound,
            socket.socketpair()[0],
            socket.create_connection(local.getsockname()[:2]) as connected,
        ):
            for one in (datagrams, bound):
                one.bind(("0.0.0.0", 0))
            kept = [one.getsockname() for one in (local, datagrams, bound, connected)]
            ports.keep_to_this_node(None)
            assert [one.getsockname() for one in (local, datagrams, bound, connected)] == kept
            local.accept()[0].close()

    outcome(work)


def test_a_port_is_never_free_for_others_meanwhile() -> None:
    """However many there are."""

    def work() -> None:
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(listener(socket.AF_INET, "0.0.0.0")) for _ in range(100)]
            before = [one.getsockname()[1] for one in found]
            ports.keep_to_this_node(None)
            assert [one.getsockname() for one in found] == [("127.0.0.1", port) for port in before]

    outcome(work)


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
