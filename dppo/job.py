"""python -m dppo.job: does a batch script's work. It tries the settings, trains, and has Slurm start the job again.

    exec python -m dppo.job mpirun --with-ft ulfm python -m dppo.run --run-dir runs/it

The scripts in jobs/ end with this command. `--copy FOLDER` copies these scripts. They come with the package, because an
installation by pip has no checkout with `jobs/`. `--place-groups` places environments of several ranks. `--include`
prints the folder of dppo.h and dppo.f90, for compilers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dppo import requeue, verdict
from dppo.cluster import slurm
from dppo.cluster.layout import lay_out
from dppo.cluster.startup import MPI_PARAMETERS
from dppo.cluster.supervisor import JobEnds, Supervisor
from dppo.errors import EXIT_AGAIN, EXIT_USAGE, UsageError
from dppo.settings.commands import Parser, at_least, integer, not_negative, require, until_its_reader_leaves
from dppo.settings.flags import file_at, flag_value
from dppo.settings.toml import CONFIG_FILE

SCRIPTS = Path(__file__).parent / "cluster" / "jobs"
"""The batch scripts: in a checkout a link to its `jobs/`, in an installed package a folder."""
INCLUDE = Path(__file__).parent / "envs/include"
"""The folder of dppo.h and of what Fortran needs."""
EXIT_CANCELLED = 128 + signal.SIGTERM
DRY_RUN_S = 300.0
"""Seconds that a dry run may take. A longer one is no evidence against the settings: the job is started again."""
KILL_AFTER_S = 90.0
"""The default of --kill-after-s: less than the two minutes between the scripts' advance signal and the job's end."""
STARTS = 3


@dataclass(frozen=True)
class Training:
    """The parts of the command that trains."""

    launcher: list[str]
    """The launcher (mpirun, srun or another) with its options; empty where one process trains."""
    program: list[str]
    """The words `python -m dppo.run`, or `dppo run`."""
    settings: list[str]
    run_dir: Path
    beside: list[str] = field(default_factory=list)
    """The further programs of the same mpirun, from the first `:` on."""
    ranks: int | None = None
    """The number of dppo's ranks; None: the launcher decides."""

    def flags(self) -> list[str]:
        """Returns the settings of the next start. A run that continues has a copy of its settings file, so this leaves
        the file out: it may have been changed for another run.
        """
        if not os.path.exists(self.run_dir / CONFIG_FILE):
            return self.settings
        file = file_at(self.settings)
        return [*(word for place, word in enumerate(self.settings) if place != file), "--resume"]


def take_apart(command: Sequence[str]) -> Training:
    """Returns the parts of `LAUNCHER … python -m dppo.run SETTINGS … [: PROGRAM …]`, or of `LAUNCHER … dppo run …`.
    Raises UsageError where the command does not run dppo.run, or does not name the run directory.
    """
    words = list(command[1:] if command[:1] == ["--"] else command)
    begins = next((at for at in range(len(words)) if _runs_dppo(words[at:])), None)
    if begins is None:
        raise UsageError("the command must have python -m dppo.run or dppo run in it; see python -m dppo.job -h")
    ends = begins + (3 if words[begins + 1] == "-m" else 2)
    end = words.index(":", ends) if ":" in words[ends:] else len(words)
    settings = words[ends:end]
    run_dir = flag_value(settings, "run-dir")
    if not run_dir:
        raise UsageError("dppo.run needs --run-dir here: what became of a run is in its directory")
    return Training(words[:begins], words[begins:ends], settings, Path(run_dir).expanduser(), words[end:])


def _runs_dppo(words: list[str]) -> bool:
    return words[1:3] == ["-m", "dppo.run"] or (Path(words[0]).name == "dppo" and words[1:2] == ["run"])


_PLACES = frozenset(
    [
        "-n",
        "-np",
        "--np",
        "-c",
        "--ntasks",
        "--ntasks-per-node",
        "-N",
        "--nodes",
        "-H",
        "-host",
        "--host",
        "-hostfile",
        "--hostfile",
        "-w",
        "--nodelist",
        "-rf",
        "--rankfile",
    ]
)
"""Options of mpirun and srun that name ranks or nodes."""


def place_groups(training: Training) -> Training:
    """Returns the training with the options of its launcher by which each group of --env-ranks ranks lies on one node.

    Raises:
      UsageError: this is no job of Slurm's, there is no room for a group, or the command names ranks itself.
    """
    env_ranks = flag_value(training.settings, "env-ranks") or ""
    if not (training.launcher and re.fullmatch("[1-9][0-9]{0,6}", env_ranks)):
        raise UsageError("--place-groups needs mpirun or srun, and --env-ranks after python -m dppo.run")
    if named := [word for word in training.launcher[1:] if word.partition("=")[0] in _PLACES]:
        raise UsageError(f"--place-groups says itself which ranks are where: leave out {named[0]}")
    if ":" in training.beside[1:] or (training.beside[1:2] and training.beside[1].startswith("-")):
        raise UsageError("--place-groups wants only one program and its arguments behind the colon, without options")
    if not (room := slurm.room()):
        raise UsageError(
            "--place-groups needs a Slurm job whose nodes scontrol tells: elsewhere place groups by mpirun's --host"
            " (docs/simulators.md)"
        )
    layout = lay_out(training.launcher, room, int(env_ranks), training.beside[1:])
    print(layout.description, flush=True)
    return replace(training, launcher=layout.launcher, beside=layout.beside, ranks=layout.ranks)


def train(training: Training, supervisor: Supervisor, starts: int, kill_after_s: float) -> int:
    """Trains until the run is done, or until the job is to be started again. Asks Slurm for such a start. Returns the
    exit code of the job.

    Args:
      starts: the number of starts in a row without a new checkpoint that are enough.
      kill_after_s: seconds that the launcher gets to end once it was asked to save; later the ranks are stuck.
    """
    try:
        outcome = _start(training, supervisor, [str(training.run_dir), "--starts", str(starts)], kill_after_s)
        supervisor.is_asked()  # raises JobEnds if the job has ended meanwhile; the answer is no longer of interest
    except JobEnds:  # unless the job is cancelled, Slurm starts it again
        requeue.main(["--is-requeued"])
        return EXIT_CANCELLED
    return requeue.main([]) if outcome == EXIT_AGAIN else outcome


def _start(training: Training, supervisor: Supervisor, record: list[str], kill_after_s: float) -> int:
    """Starts the run once. Returns the verdict on that start."""
    run = [*training.program, *training.flags()]
    code = EXIT_AGAIN if supervisor.is_asked() else _try(training, run, supervisor)
    if code == EXIT_USAGE:  # it would not help to start the job again
        return EXIT_USAGE
    if refused := verdict.main([*record, "--begin"]):
        return refused
    if supervisor.is_asked():
        code = EXIT_AGAIN
    elif code == 0:
        code = supervisor.run([*training.launcher, *run, *training.beside], kill_after_s)
    # the run directory says what became of the run; the launcher's code says little about that
    return verdict.main([*record, "--code", str(code)])


def _try(training: Training, run: list[str], supervisor: Supervisor) -> int:
    """Tries the settings; returns the exit code. A run with another program beside it is not tried: only its start has
    both.
    """
    if training.beside:
        return 0
    judged_for = [] if training.ranks is None else ["env", f"{slurm.TASKS}={training.ranks}"]
    return supervisor.check([*judged_for, *run, "--dry-run"], DRY_RUN_S)


def copy_scripts(folder: Path) -> list[Path]:
    """Copies the batch scripts into `folder`, which is made. Returns the copies. Raises UsageError where a file of such
    a name exists already (then nothing is copied), or the folder cannot be written to.
    """
    sources = sorted(path for path in SCRIPTS.iterdir() if path.is_file())
    if held := [path.name for path in sources if (folder / path.name).exists()]:
        raise UsageError(f"{folder} has {', '.join(held)} already: move them away, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copies = [Path(shutil.copyfile(path, folder / path.name)) for path in sources]
        for copy in copies:
            if copy.read_bytes().startswith(b"#!"):
                copy.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to: {error.strerror}: choose another folder") from error
    return copies


def _parser() -> Parser:
    parser = Parser(
        prog="python -m dppo.job",
        usage="%(prog)s [options] LAUNCHER … python -m dppo.run … --run-dir RUN\n       %(prog)s --copy FOLDER\n"
        "       %(prog)s --include | --openmpi",
        description="The last command of a batch script: tries the settings, trains, and has Slurm start the job again"
        " until the run is done. SIGUSR1 to it saves. Or copies dppo's batch scripts, for you to change, or prints"
        " where dppo.h is, or the parameters of Open MPI.",
    )
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="where the copies go, such as jobs")
    parser.add_argument("--include", action="store_true", help="print the folder of dppo.h, for cc -I, and dppo.f90")
    parser.add_argument("--openmpi", action="store_true", help="print the file of Open MPI's parameters, to be sourced")
    parser.add_argument(
        "--place-groups",
        action="store_true",
        help="tell mpirun or srun to place each group of --env-ranks ranks on one node",
    )
    parser.add_argument(
        "--starts",
        type=integer,
        default=STARTS,
        help="so many in a row without a new checkpoint are enough (default: %(default)s)",
    )
    parser.add_argument(
        "--kill-after-s",
        type=float,
        default=KILL_AFTER_S,
        help="what the launcher gets to end once it was asked to save (default: %(default)g)",
    )
    parser.add_argument("--asked", action="store_true", help="the script was asked to save, before this command began")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="mpirun or srun, python -m dppo.run or dppo run, its settings"
    )
    return parser


@until_its_reader_leaves
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        require("--starts", args.starts, at_least(1, 1e6))
        require("--kill-after-s", args.kill_after_s, not_negative(1e6))
        if args.include or args.openmpi:
            print(INCLUDE if args.include else MPI_PARAMETERS)
            return 0
        if args.copy is None:
            training, supervisor = take_apart(args.command), Supervisor(asked=args.asked)
            training = place_groups(training) if args.place_groups else training
            return train(training, supervisor, args.starts, args.kill_after_s)
        copies = copy_scripts(args.copy)
    except UsageError as error:
        print(f"dppo: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"{len(copies)} files in {copies[0].parent}: {', '.join(path.name for path in copies)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
