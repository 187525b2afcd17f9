"""What a program of these tests imports before anything else: threads, MPI's parameters, MPI."""

from __future__ import annotations

from dppo.cluster import startup

startup.prepare()


def start() -> None:
    from dppo.run.command import start_mpi

    start_mpi()


start()
