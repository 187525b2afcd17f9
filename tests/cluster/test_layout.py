"""Where groups of ranks are placed. That launchers place them there is in tests/slurm/test_simulator.py."""

from __future__ import annotations

import pytest

from dppo.cluster.layout import groups_by_node, lay_out
from dppo.errors import UsageError

MPIRUN = ("mpirun", "--with-ft", "ulfm")
TWO = (("n1", 5), ("n2", 5))


@pytest.mark.parametrize(
    ("tasks", "ranks_each", "groups"),
    [
        ([5], 2, [2]),
        ([5, 5], 2, [2, 2]),
        ([4, 4], 2, [1, 2]),  # the server takes half of a group's place
        ([3, 7, 2], 4, [0, 1, 0]),
        ([4, 3], 1, [3, 3]),
        ([1], 2, [0]),
        ([0, 2], 2, [0, 1]),
    ],
)
def test_each_node_has_whole_groups(tasks: list[int], ranks_each: int, groups: list[int]) -> None:
    assert groups_by_node(tasks, ranks_each) == groups


def test_mpirun_is_told_the_ranks_of_each_node() -> None:
    layout = lay_out(MPIRUN, TWO, 2)
    assert layout.launcher == [*MPIRUN, "--host", "n1:5,n2:4", "-n", "9"]
    assert (layout.ranks, layout.beside) == (9, [])
    assert layout.description == "groups of 2 ranks, each on one node: 2 on n1, 2 on n2"


def test_a_worker_is_on_the_node_of_its_simulator() -> None:
    layout = lay_out(MPIRUN, (("n1", 7), ("n2", 2), ("n3", 5)), 2, ["./channel", "case.ini"])
    assert layout.launcher == [*MPIRUN, "--host", "n1:3,n3:1", "-n", "4"]
    assert layout.beside == [
        ":", "--host", "n1:4", "-n", "4", "./channel", "case.ini", ":", "--host", "n3:2", "-n", "2", "./channel",
        "case.ini",
    ]  # fmt: skip
    assert layout.ranks == 4


def test_a_first_node_without_room_for_a_group_has_the_server_alone() -> None:
    assert lay_out(MPIRUN, (("n1", 2), ("n2", 2)), 2).launcher[-3:] == ["n1:1,n2:2", "-n", "3"]


def test_srun_is_told_the_node_of_each_rank_where_it_would_choose_another() -> None:
    srun = ["srun", "--mpi=pmix"]
    assert lay_out(srun, (("n1", 4), ("n2", 3)), 2).launcher == [*srun, "--distribution=block", "--ntasks=5"]
    assert lay_out(srun, (("n1", 4), ("n2", 4)), 2).launcher == [
        *srun, "--distribution=arbitrary", "--ntasks=7", "--nodelist=n1,n1,n1,n2,n2,n2,n2"
    ]  # fmt: skip
    assert lay_out(srun, (("n1", 3), ("n2", 1)), 2).launcher[2:] == [
        "--distribution=arbitrary", "--ntasks=3", "--nodelist=n1,n1,n1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "room", "simulator", "message"),
    [
        (MPIRUN, (("n1", 2), ("n2", 1)), (), "ask for --ntasks-per-node=3 at least"),
        (MPIRUN, (("n1", 3), ("n2", 2)), ("./channel",), "ask for --ntasks-per-node=4 at least"),
        (("/usr/bin/srun",), TWO, ("./channel",), "srun starts no simulator beside dppo: use mpirun"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    launcher: tuple[str, ...], room: tuple[tuple[str, int], ...], simulator: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lay_out(launcher, room, 2, simulator)
