"""Wrong uses of environments on several ranks and of dppo.h: how each is started, and what its user is told.

benchmarks/wrong_uses.py goes through all of them; tests/mpi/test_wrong_uses.py through some.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.launch import PROGRAMS, Ended, Launcher

INCLUDE = Path(__file__).parents[1] / "dppo" / "envs" / "include"
SMALL = (
    "--num-envs", 1, "--horizon", 8, "--ppo.minibatches", 1, "--ppo.epochs", 1, "--total-steps", 64,
    "--log.no-tensorboard", "--run-dir", "run",
)  # fmt: skip
RING = ("--env", "group_envs:Ring", *SMALL)
PAIR = ("--env", "group_envs:Failing", *SMALL, "--env-ranks", 2, "--env-kwargs", "rank=2")
"""Fails on rank 2, the member of the first group."""
SOLVER = ("--env", "dppo.envs:Solver", *SMALL)


class Use(NamedTuple):
    """A wrong use."""

    said: str
    """What a line of the output says. Where the code is 2, it is dppo's only line."""
    words: Sequence[object] = SOLVER
    """Arguments of dppo.run, or of `program`."""
    code: int | None = 2
    """None: any but 0."""
    ranks: int | None = 1
    beside: Sequence[Sequence[object]] = ()
    """The other programs: their ranks, and their words. `faults` is tests/mpi/programs/simulators.c."""
    survives: bool = False
    program: str | None = None
    first: Sequence[object] = ()
    """Arguments of a run that comes before."""
    first_ranks: int = 1
    file: str = ""
    """A file that is there."""


def faulty(
    fault: str, said: str, code: int | None = None, ranks: int = 1, words: Sequence[object] = (), **other: bool
) -> Use:
    """A simulator with a fault, beside one rank of dppo."""
    return Use(said, (*SOLVER, "--env-ranks", ranks, *words), code, beside=((ranks, "faults", fault),), **other)


GROUPS = {
    "ranks that make no whole groups": Use(
        "start it by mpirun -n 3 or mpirun -n 5", (*RING, "--env-ranks", 2), ranks=4
    ),
    "groups larger than the job": Use("start it by mpirun -n 9", (*RING, "--env-ranks", 8), ranks=3),
    "no ranks": Use("env_ranks", (*RING, "--env-ranks", 0)),
    "a negative number of ranks": Use("env_ranks", (*RING, "--env-ranks", -2)),
    "a number of ranks that is none": Use("env-ranks", (*RING, "--env-ranks", "two")),
    "native vectorization": Use("vectorization", (*RING, "--env-ranks", 2, "--vectorization", "native"), ranks=3),
    "a part of a simulator's agents": Use(
        "5", ("--env", "group_envs:Pack", *SMALL, "--num-envs", 5, "--env-ranks", 2), ranks=3
    ),
    "another number of ranks at a resume": Use(
        "start it by mpirun -n 3",
        ("--resume", "--run-dir", "run", "--total-steps", 128),
        ranks=2,
        first=(*RING, "--env-ranks", 2),
        first_ranks=3,
    ),
    "an evaluation without the members": Use(
        "mpirun -n 2 python -m dppo.evaluate run",
        ("run",),
        ranks=None,
        program="evaluate.py",
        first=(*RING, "--env-ranks", 2),
        first_ranks=3,
    ),
    "an evaluation on too many ranks": Use(
        "mpirun -n 2 python -m dppo.evaluate run",
        ("run",),
        ranks=3,
        program="evaluate.py",
        first=(*RING, "--env-ranks", 2),
        first_ranks=3,
    ),
    "the folders' place is a file": Use(
        "run/envs", ("--env", "group_envs:Filed", *SMALL, "--env-ranks", 2), ranks=3, file="run/envs"
    ),
    "a constructor fails": Use("rank 2 on", (*PAIR, "where=make"), ranks=3),
    "a constructor leaves": Use("the licence has expired", (*PAIR, "where=make", "how=sys.exit"), ranks=3),
    "a reset fails": Use("the flow has diverged", (*PAIR, "where=reset"), 1, 3),
    "a step fails": Use("the flow has diverged", PAIR, 1, 3),
    "the head's step fails": Use("the flow has diverged", (*PAIR[:-1], "rank=1"), 1, 3),
    "a step leaves by sys.exit": Use("the licence has expired", (*PAIR, "how=sys.exit"), 1, 3),
    "a step leaves by os._exit": Use("rank 2", (*PAIR, "how=exit"), None, 3),
    "a step leaves by os._exit(0)": Use("rank 2", (*PAIR, "how=exit with 0"), None, 3),
    "a step leaves by os._exit(0), ULFM": Use("rank 2", (*PAIR, "how=exit with 0"), None, 3, survives=True),
    "a step aborts MPI": Use("rank 2", (*PAIR, "how=abort"), None, 3),
    "a step ends MPI": Use("MPI.Finalize() was called", (*PAIR, "how=finalize"), 1, 3),
    "a member is killed": Use("rank 2", (*PAIR, "how=kill"), None, 3),
    "a member is killed, ULFM": Use("rank 2 on", (*PAIR, "how=kill"), None, 3, survives=True),
    "a member hangs": Use("no progress for", (*PAIR, "how=hang", "--log.stall-abort-s", 5), None, 3),
    "a member hangs, ULFM": Use(
        "no progress for", (*PAIR, "how=hang", "--log.stall-abort-s", 5), None, 3, survives=True
    ),
    "a close fails": Use("close", (*PAIR, "where=close"), 0, 3),
    "a save fails": Use(
        "the flow has diverged",
        (*PAIR, "where=save", "--env", "group_envs:Saving", "--checkpoint.states-s", 0),
        0,
        3,
    ),
}
"""Environments in Python, on several ranks."""

C_API = {
    "no simulator": Use("needs the simulator as the second program: mpirun -n 1+W"),
    "too few ranks of it": Use(
        "need 2 rank(s) of the simulator, and 1 were started", (*SOLVER, "--env-ranks", 2), beside=((1, "faults"),)
    ),
    "too many ranks of it": Use("need 1 rank(s) of the simulator, and 2 were started", beside=((2, "faults"),)),
    "several environments": Use("set --num-envs 1", (*SOLVER, "--num-envs", 2), beside=((1, "faults"),)),
    "--respawn": Use("cannot be started anew", (*SOLVER, "--respawn"), beside=((1, "faults"),)),
    "--on-env-error restart": Use(
        "cannot be started anew", (*SOLVER, "--on-env-error", "restart"), beside=((1, "faults"),)
    ),
    "another environment": Use("set --env dppo.envs:Solver", ("--env", "CartPole-v1", *SMALL), beside=((1, "faults"),)),
    "wrong flags": Use("did you mean --seed?", (*SOLVER, "--sed", 1), beside=((1, "faults"),)),
    "two simulators": Use("declared different things", beside=((1, "faults"), (1, "faults", "differs")), ranks=3),
    "dppo twice": Use(
        "with different arguments", beside=((1, sys.executable, "-m", "dppo.run", *SOLVER, "--seed", 7),)
    ),
    "the header of another version": Use("another version: compile it anew", beside=((1, "older"),)),
    "never begins": Use(
        "has not called dppo_begin within 3 s", program="hasty.py", beside=((1, "faults", "never begins"),)
    ),
    "an evaluation without it": Use(
        "mpirun -n 1 python -m dppo.evaluate run : -n 1 ./simulator", ("run",), program="evaluate.py", first=SOLVER
    ),
    "does not start MPI": faulty("leaves at once", "must call MPI_Init, then dppo_begin"),
    "begins before MPI_Init": faulty("begins before MPI", "dppo_begin comes after MPI_Init"),
    "finalizes at once": faulty("finalizes at once", "dppo_begin", 2),
    "begins twice": faulty("begins twice", "dppo_begin was called twice"),
    "declares first": faulty("declares first", "dppo_begin must come before dppo_declare"),
    "declares twice": faulty("declares twice", "dppo_declare was called twice"),
    "declares nothing": faulty("declares nothing", "dppo_declare must come first"),
    "dies undeclared": Use(
        "has ended before it called dppo_declare", SOLVER, None, 3, ((2, "faults", "dies undeclared"),), survives=True
    ),
    "other sizes in a group": Use(
        "declared different things, their number of observations: 4 and 3", SOLVER, 2, 3, ((2, "faults", "differs"),)
    ),
    "bounds in the wrong order": faulty("bounds", "the lower bound must be below the upper one", 2),
    "bounds that are no numbers": faulty("bounds of NaN", "the lower bound must be below the upper one", 2),
    "no actions": faulty("no actions", "at least one observation and one action"),
    "fewer than no observations": faulty("fewer than no observations", "at least one observation and one action"),
    "no name": faulty("no name", "the name in dppo_declare needs 1 to 1000 characters"),
    "a long name": faulty("long name", "the name in dppo_declare needs 1 to 1000 characters"),
    "NULL as the communicator": faulty("no communicator", "dppo_begin was given NULL"),
    "NULL as the seed": faulty("no seed", "dppo_wait_reset was given NULL"),
    "NULL as the action": faulty("no action", "dppo_receive_action was given NULL"),
    "NULL as the observation": faulty("no observation", "dppo_send_state was given NULL"),
    "a state before the reset": faulty("sends before a reset", "dppo waits for no state"),
    "no state after an action": faulty("sends nothing", "dppo waits for a state"),
    "two states after an action": faulty("sends twice", "dppo waits for no state"),
    "a first state that ends": faulty("begins at an end", "the first state of an episode must be DPPO_RUNNING"),
    "an answer that nobody asked for": faulty("answers unasked", "dppo waits for no answer"),
    "a reset awaited in an episode": faulty("waits for a reset in an episode", "an episode is under way"),
    "an unknown status": faulty("status", "the simulator sent the status 7", 1),
    "an observation that is no number": faulty("no number", "not finite", 1),
    "a reward that is no number": faulty("no number as reward", "not finite", 1),
    "a save fails": faulty(
        "fails to save", "the simulator could not write its state", 0, words=("--checkpoint.states-s", 0)
    ),
    "a save that writes nothing": faulty(
        "saves nothing", "has written no file into the folder", 0, words=("--checkpoint.states-s", 0)
    ),
    "a save without an answer": faulty(
        "never answers a save", "dppo waits for an answer", words=("--checkpoint.states-s", 0)
    ),
    "a load fails": Use(
        "the simulator could not read its state",
        ("--resume", "--run-dir", "run", "--total-steps", 128),
        0,
        beside=((1, "faults", "fails to load"),),
        first=(*SOLVER, "--checkpoint.states-s", 0),
    ),
    "ends before a reset": faulty("ends at once", "dppo_end before DPPO_END"),
    "ends in an episode": faulty("ends in an episode", "dppo_end before DPPO_END"),
    "MPI_Finalize in an episode": faulty("finalizes", "MPI_Finalize before DPPO_END"),
    "exit in an episode": faulty("exits", "it exits before DPPO_END", ranks=2),
    "exit(0) in an episode, ULFM": faulty("exits with 0", "it exits before DPPO_END", ranks=2, survives=True),
    "MPI_Abort": faulty("aborts", "MPI_ABORT was invoked", ranks=2),
    "a wrong call of MPI": faulty("wrong MPI", "MPI_ERR_RANK: invalid rank", ranks=2),
    "a segmentation fault": faulty("segfaults", "signal 11", ranks=2),
    "a segmentation fault, ULFM": faulty("segfaults", "has died", ranks=2, survives=True),
    "the last one is killed, ULFM": Use(
        "simulator 0 (rank 2 of the job) has died", SOLVER, None, 2, ((1, "faults", "is killed"),), survives=True
    ),
    "is killed, ULFM": faulty("is killed", "has died", ranks=2, survives=True),
    "hangs": faulty("hangs", "no progress for", ranks=2, words=("--log.stall-abort-s", 5)),
    "hangs, ULFM": faulty("hangs", "no progress for", ranks=2, words=("--log.stall-abort-s", 5), survives=True),
    "never leaves": faulty("never leaves", "have it call dppo_end once", None),
    "never leaves, ULFM": faulty("never leaves", "did not call dppo_end within", 0, survives=True),
    "an evaluation after which it never leaves": Use(
        "the simulator must call dppo_end once dppo_wait_reset returns DPPO_END",
        ("run", "--episodes", 1),
        1,
        beside=((1, "faults", "never leaves"),),
        program="evaluate.py",
        first=SOLVER,
    ),
}
"""Programs that own their loop."""


def build(folder: Path) -> None:
    """Compiles the simulators, once as they are and once with the header of another version."""
    mpicc = shutil.which("mpicc", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if mpicc is None or shutil.which("cc") is None:
        raise FileNotFoundError("there is no C compiler, or no mpicc")
    header = (INCLUDE / "dppo.h").read_text()
    assert "DPPO_PROTOCOL_ = 2," in header
    (folder / "dppo.h").write_text(header.replace("DPPO_PROTOCOL_ = 2,", "DPPO_PROTOCOL_ = 1,"))
    for name, include in (("faults", INCLUDE), ("older", folder)):
        subprocess.run([mpicc, "-std=c99", f"-I{include}", PROGRAMS / "simulators.c", "-o", folder / name], check=True)


def start(use: Use, folder: Path, built: Path) -> Ended:
    """Runs a use in an empty folder, to its end: it must come within a time limit, and leave no process behind."""
    launcher = Launcher(folder)
    beside = [(count, built / str(name), *words) for count, name, *words in use.beside]
    if use.file:
        (folder / use.file).parent.mkdir(parents=True)
        (folder / use.file).touch()
    try:
        if use.first:
            trains_beside = beside if beside and use.program is None else [(1, built / "faults")]
            others = trains_beside if "dppo.envs:Solver" in use.first else ()
            launcher.run(use.first_ranks, *use.first, timeout=200, beside=others)
        return launcher.run(
            use.ranks, *use.words, code=None, program=use.program, beside=beside, survives=use.survives, timeout=150
        )  # fmt: skip
    finally:
        launcher.close()


def problem(use: Use, ended: Ended) -> str:
    """Returns what is wrong with the end of a use; "" if nothing is."""
    if ended.code != use.code if use.code is not None else ended.code == 0:
        return f"code {ended.code}"
    if use.code == 2 and len(ended.messages) != 1:
        return f"{len(ended.messages)} messages"
    if (use.code == 2 and use.said not in ended.messages[0]) or use.said not in ended.stderr:
        return "another message"
    return "a traceback" if use.code == 2 and "Traceback" in ended.stderr else ""
