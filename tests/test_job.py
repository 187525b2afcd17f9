"""What a batch job does, without a Slurm. Its scripts come with the package, and are copied whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dppo.job import main
from tests.jobs import MPIRUN, Stage

ROOT = Path(__file__).parents[1]


def test_the_copies_are_the_scripts_of_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--copy", str(tmp_path / "new" / "jobs")]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "new" / "jobs").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (ROOT / "jobs").iterdir()}
    assert os.access(tmp_path / "new" / "jobs" / "chain", os.X_OK)
    assert "train.sbatch" in capsys.readouterr().out


def test_the_folder_of_the_header_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--include"]) == 0
    assert {path.name for path in Path(capsys.readouterr().out.strip()).iterdir()} >= {
        "dppo.h", "dppo.f90", "dppo_fortran.c"
    }  # fmt: skip


@pytest.mark.parametrize("there", ["sweep.toml", "chain"])
def test_what_is_there_is_not_overwritten(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / there).write_text("mine")
    assert main(["--copy", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"
    assert capsys.readouterr().err == (
        f"dppo: {tmp_path} has {there} already: move them away, or choose another folder\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--copy"], ["--copy", "/dev/null/jobs"], ["--cpoy", "x"]])
def test_wrong_use_is_one_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dppo: ")


def moved_elsewhere(folder: Path) -> None:
    """A virtual environment that was moved: its script still names the place where it was made."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(shutil.which("python3") or "python3")
    (folder / "bin" / "activate").write_text(f"export PATH={folder}-before/bin:$PATH\n")


@pytest.mark.parametrize("script", sorted((ROOT / "jobs").glob("*.sbatch")), ids=lambda path: path.name)
def test_a_job_without_its_virtual_environment_is_wrong_use_and_runs_no_other_python(
    script: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (other / "python").chmod(0o755)
    moved_elsewhere(tmp_path / "moved")
    for venv in ("none", "moved"):
        ended = subprocess.run(
            ["bash", script], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
            env={"PATH": f"{other}:/usr/bin:/bin", "VENV": str(tmp_path / venv), "RUN_DIR": "runs/it"},
        )  # fmt: skip
        assert ended.returncode == 2, ended
        assert f"dppo: VENV={tmp_path / venv} is no virtual environment with dppo in it" in ended.stderr
    assert not (tmp_path / "started").exists() and not (tmp_path / "runs").exists()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


SAVES = ("trap 'save 000064; finish preempted; exit 75' USR1", "wait_for_ever")
BACK = ["scontrol requeue 19", "scontrol update JobId=19 StartTime=now+10"]
BACK_BY_ITSELF = BACK[1:]
RUN = "python -m dppo.run --seed 1 --run-dir runs/it"


def test_settings_that_cannot_work_end_the_job_and_leave_nothing(stage: Stage) -> None:
    stage.plays("dry-run", "echo out; echo 'dppo: no such flag' >&2", "exit 2")
    assert stage.train().end() == (2, "dppo: no such flag\n")
    assert stage.log() == ["dry-run -m dppo.run --run-dir runs/it --dry-run"]
    assert not (stage.folder / "runs").exists()


@pytest.mark.parametrize(
    "launcher", [MPIRUN, ("srun", "--mpi=pmix"), ("mpirun", "apptainer", "exec", "x.sif"), ()], ids=str
)
def test_a_run_is_tried_and_trained_to_its_end(launcher: tuple[str, ...], stage: Stage) -> None:
    for program in ("mpirun", "srun"):
        stage.plays(program, "echo trains", "finish finished")
    stage.plays("dry-run", "case $* in *--dry-run) ;; *) echo trains; finish finished;; esac")
    code, output = stage.train("--seed", "1", "--run-dir", "runs/it", launcher=launcher).end()
    assert (code, output) == (0, "trains\ndppo: runs/it: done (finished) after 64 steps\n")
    trains = " ".join((*launcher, RUN)) if launcher else RUN.replace("python", "dry-run")
    assert stage.log() == ["dry-run -m dppo.run --seed 1 --run-dir runs/it --dry-run", trains]
    assert stage.verdicts() == [0]


def test_a_run_that_goes_on_is_resumed_without_its_settings_file(stage: Stage) -> None:
    (stage.folder / "runs" / "it").mkdir(parents=True)
    (stage.folder / "runs" / "it" / "config.toml").touch()
    for at, file in enumerate(((), ("my.toml",), ("--seed", "1", "my.toml"))):
        stage.train("--log.stall-abort-s", "600", *file, "--run-dir", "elsewhere", "--run-dir=runs/it").end()
        seed = "--seed 1 " if at == 2 else ""
        flags = f"--log.stall-abort-s 600 {seed}--run-dir elsewhere --run-dir=runs/it --resume"
        assert stage.log("mpirun")[at] == f"mpirun --with-ft ulfm python -m dppo.run {flags}"
        assert stage.log("dry-run")[at] == f"dry-run -m dppo.run {flags} --dry-run"
    stage.train("my.toml", "--run-dir", "new").end()
    assert stage.log("mpirun")[-1] == "mpirun --with-ft ulfm python -m dppo.run my.toml --run-dir new"


def test_a_job_that_is_preempted_saves_and_comes_back(stage: Stage) -> None:
    stage.plays("mpirun", *SAVES)
    code, output = stage.train().waits().send(signal.SIGUSR1).end()
    assert code == 75 and "was preempted; newest checkpoint: step_000064: start it again" in output
    assert stage.log("scontrol") == BACK and stage.verdicts() == [75]


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (("kill -KILL $$",), 75, "was cut short"),
        (("exit 0",), 75, "was cut short"),  # as mpirun that has lost a node
        (("exit 2",), 2, "wrong use"),
        (("exit 75",), 75, "was preempted"),
        (("exit 255",), 75, "was cut short"),
        (("finish failed", "exit 1"), 1, "failed: KeyError: 1"),
        (("finish target", "kill -TERM $$"), 0, "done (target)"),
    ],
    ids=str,
)
def test_the_verdict_on_what_became_of_the_run_is_what_the_job_does(
    lines: tuple[str, ...], code: int, words: str, stage: Stage
) -> None:
    stage.plays("mpirun", *lines)
    ended, output = stage.train().end()
    assert ended == code and words in output
    assert stage.log("scontrol") == (BACK if code == 75 else [])


def test_a_launcher_that_cannot_be_started_is_named(stage: Stage) -> None:
    code, output = stage.train(launcher=["mpiexec.hydra"]).end()
    assert code == 75 and output.startswith("dppo: mpiexec.hydra cannot be started: No such file or directory\n")


def test_three_starts_that_bring_nothing_are_enough(stage: Stage) -> None:
    stage.plays("mpirun", "exit 1")
    assert [stage.train().end()[0] for _ in range(3)] == [75, 75, 1]
    assert len(stage.log("scontrol requeue")) == 2
    assert stage.train(options=["--starts", "1"]).end()[0] == 1


def test_a_start_whose_predecessors_were_killed_with_their_scripts_is_refused(stage: Stage) -> None:
    stage.plays("mpirun", "wait_for_ever")
    for start in range(3):
        job = stage.train()
        stage.until(lambda start=start: len(stage.log("waits")) > start)  # type: ignore[misc]
        job.send(signal.SIGKILL).end()
    code, output = stage.train().end()
    assert code == 1 and "no start of 3 has brought a new one" in output
    assert len(stage.log("mpirun")) == 3 and stage.log("scontrol") == []


def test_a_program_that_does_not_leave_is_killed(stage: Stage) -> None:
    stage.plays("mpirun", "trap 'echo told >>$LOG' USR1", "save 000064", "wait_for_ever")
    since = time.monotonic()
    code, output = stage.train(options=["--kill-after-s", "0.5"]).waits().send(signal.SIGUSR1).end()
    assert 0.5 < time.monotonic() - since < 10
    assert code == 75 and "mpirun has not ended 0.5 s after it was asked to save: it is killed" in output
    assert "was cut short; newest checkpoint: step_000064" in output and stage.log("told") == ["told"]
    assert stage.log("scontrol") == BACK


def test_a_second_signal_is_passed_on_and_puts_off_nothing(stage: Stage) -> None:
    stage.plays("mpirun", "trap 'echo told >>$LOG' USR1", "wait_for_ever")
    job = stage.train(options=["--kill-after-s", "3"]).waits()
    since = time.monotonic()
    for times in (1, 2, 3):
        job.send(signal.SIGUSR1)
        stage.until(lambda times=times: len(stage.log("told")) == times)  # type: ignore[misc]
        time.sleep(1)
    assert job.end()[0] == 75
    assert 3 < time.monotonic() - since < 5


def test_a_signal_before_the_launcher_is_started_saves_it_the_start(stage: Stage) -> None:
    stage.plays("dry-run", "wait_for_ever")
    assert stage.train().waits().send(signal.SIGUSR1).end()[0] == 75
    stage.plays("dry-run", "kill -USR1 $PPID", "exit 0")  # while it ends
    assert stage.train().end()[0] == 75
    code, output = stage.train(options=["--asked"]).end()  # the script was
    assert code == 1 and "was preempted" in output and "no start of 3" in output
    assert len(stage.log("dry-run")) == 2 and stage.log("mpirun") == []


def test_a_signal_to_a_launcher_that_has_just_ended_changes_nothing(stage: Stage) -> None:
    stage.plays("mpirun", "finish finished", "kill -USR1 $PPID", "exit 0")
    for _ in range(5):
        assert stage.train().end() == (0, "dppo: runs/it: done (finished) after 64 steps\n")


@pytest.mark.parametrize("during", ["dry-run", "mpirun"])
def test_what_slurm_ends_is_not_requeued_but_comes_back_soon_if_slurm_requeues_it(during: str, stage: Stage) -> None:
    stage.plays(during, "trap 'echo told >>$LOG' TERM USR1", "wait_for_ever")
    assert stage.train().waits().send(signal.SIGTERM).end() == (143, "")
    assert stage.log("scontrol") == BACK_BY_ITSELF
    assert stage.log("told") == []  # Slurm does: a second SIGTERM would have mpirun kill its ranks at once
    assert stage.verdicts() == ([None] if during == "mpirun" else [])


def test_a_job_that_ends_before_its_training_begins_starts_nothing(stage: Stage) -> None:
    """The verdict asks squeue for another job that has had the run directory."""
    stage.train(SLURM_JOB_ID="18").send(signal.SIGTERM).end()
    (stage.folder / "runs" / "it").mkdir(parents=True, exist_ok=True)
    (stage.folder / "runs" / "it" / "starts.jsonl").write_text('{"job_id": "18"}\n')
    stage.plays("squeue", "kill -TERM $PPID", "exit 1")
    before = len(stage.log("mpirun"))
    assert stage.train().end()[0] == 143
    assert len(stage.log("mpirun")) == before and stage.log("squeue")


def test_a_job_that_is_cancelled_while_it_is_requeued_is_left_alone(stage: Stage) -> None:
    stage.plays("scontrol", "case $1 in requeue) kill -TERM $PPID; kill -USR1 $PPID; exit 1;; esac")
    assert stage.train().end()[0] == 75
    assert stage.log("scontrol") == BACK


@pytest.mark.parametrize(("number", "code", "asked"), [("USR1", 75, BACK), ("TERM", 143, BACK_BY_ITSELF)])
def test_a_signal_that_comes_during_the_verdict_waits_for_its_end(
    number: str, code: int, asked: list[str], stage: Stage
) -> None:
    stage.plays("mpirun", "save 000064", """echo '{"job_id": "18"}' >$run/starts.jsonl""")  # it asks squeue
    stage.plays("squeue", f"kill -{number} $PPID", "sleep 0.2", "exit 1")
    assert stage.train().end()[0] == code
    assert stage.log("scontrol") == asked and stage.verdicts() == [75]


def test_tasks_of_an_array_are_jobs_of_their_own(stage: Stage) -> None:
    stage.plays(
        "mpirun",
        "trap 'finish preempted; exit 75' USR1",
        '[ "$RUN" = runs/task_1 ] || wait_for_ever',
        "finish finished",
    )
    jobs = [
        stage.train("--run-dir", run, RUN=run, SLURM_ARRAY_JOB_ID="19", SLURM_ARRAY_TASK_ID=str(task))
        for task, run in enumerate(("runs/task_0", "runs/task_1", "runs/task_2"))
    ]
    stage.until(lambda: len(stage.log("waits")) == 2)
    assert jobs[1].end()[0] == 0
    assert jobs[2].send(signal.SIGUSR1).end()[0] == 75
    assert stage.log("scontrol") == ["scontrol requeue 19_2", "scontrol update JobId=19_2 StartTime=now+10"]
    assert jobs[0].process.poll() is None
    assert [stage.verdicts(f"runs/task_{task}") for task in range(3)] == [[None], [0], [75]]


def test_a_second_job_in_the_run_directory_is_refused(stage: Stage) -> None:
    stage.plays("mpirun", "wait_for_ever")
    stage.train().waits()
    stage.plays("squeue", "echo RUNNING")
    code, output = stage.train(SLURM_JOB_ID="20").end()
    assert code == 2 and "job 19 has it, and is still in the queue" in output
    assert len(stage.log("mpirun")) == 1 and stage.log("scontrol") == []


@pytest.mark.usefixtures("hears_ctrl_c")
def test_programs_start_as_if_the_script_had_started_them(stage: Stage) -> None:
    """No signal is held or ignored, and nothing in the environment makes a rank of them."""
    for program in ("dry-run", "mpirun"):
        stage.plays(
            program,
            f"env | grep -v ^_= | sort >{program}.env",
            f"grep -E 'Sig(Blk|Ign)' /proc/self/status >{program}.signals",
        )
    stage.train().end()
    before = stage.start("sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status; env | grep -v ^_= | sort").end()[1]
    for program in ("dry-run", "mpirun"):
        signals, environ = ((stage.folder / f"{program}.{what}").read_text() for what in ("signals", "env"))
        assert signals + environ == before


def test_outside_of_slurm_nothing_is_requeued(stage: Stage) -> None:
    stage.plays("mpirun", "exit 1")
    job = stage.start("env", "-u", "SLURM_JOB_ID", "python", "-m", "dppo.job", *MPIRUN, *RUN.split())
    code, output = job.end()
    assert code == 2 and "start it again" in output and "this is no batch job of Slurm's" in output


# -- groups of ranks, and programs beside dppo --------------------

PLACE = ("--place-groups",)
GROUPS = ("--env-ranks", "2", "--run-dir", "runs/it")
SIMULATOR = (":", "./channel", "case.ini")


def test_a_program_beside_dppo_is_started_with_it_and_not_tried_before(stage: Stage) -> None:
    stage.plays("mpirun", "finish finished")
    beside = (":", "-n", "2", *SIMULATOR[1:])
    assert stage.train("--seed", "1", "--run-dir", "runs/it", *beside).end()[0] == 0
    (stage.folder / "runs" / "it" / "config.toml").touch()
    assert stage.train("--run-dir", "runs/it", *beside).end()[0] == 0
    started = "mpirun --with-ft ulfm python -m dppo.run"
    assert stage.log() == [
        f"{started} --seed 1 --run-dir runs/it : -n 2 ./channel case.ini",
        f"{started} --run-dir runs/it --resume : -n 2 ./channel case.ini",
    ]


def test_groups_are_placed_anew_at_each_start(stage: Stage) -> None:
    stage.plays("dry-run", 'echo "judged for $SLURM_NTASKS" >>"$LOG"')
    stage.plays("scontrol", 'case $1 in show) printf "$HOSTS";; esac')
    two = {"SLURM_TASKS_PER_NODE": "4(x2)", "HOSTS": "n1\\nn2\\n", "SLURM_NTASKS": "8"}
    one = {"SLURM_TASKS_PER_NODE": "4", "HOSTS": "n2\\n", "SLURM_NTASKS": "4"}
    code, output = stage.train(*GROUPS, options=PLACE, **two).end()
    assert code == 75 and output.startswith("groups of 2 ranks, each on one node: 1 on n1, 2 on n2\n")
    assert stage.train(*GROUPS, *SIMULATOR, options=PLACE, **two).end()[0] == 75
    stage.train(*GROUPS, options=PLACE, launcher=("srun",), **one).end()
    assert stage.log("judged") == ["judged for 7", "judged for 3"]
    run = "python -m dppo.run --env-ranks 2 --run-dir runs/it"
    assert stage.log("mpirun") == [
        f"mpirun --with-ft ulfm --host n1:3,n2:4 -n 7 {run}",
        f"mpirun --with-ft ulfm --host n1:2,n2:1 -n 3 {run}"
        " : --host n1:2 -n 2 ./channel case.ini : --host n2:2 -n 2 ./channel case.ini",
    ]
    assert stage.log("srun") == [f"srun --distribution=block --ntasks=3 {run}"]


@pytest.mark.parametrize(
    ("launcher", "settings", "message"),
    [
        (MPIRUN, ("--run-dir", "runs/it"), "needs mpirun or srun, and --env-ranks after python -m dppo.run"),
        ((), GROUPS, "needs mpirun or srun"),
        (MPIRUN, GROUPS, "needs a Slurm job"),
        ((*MPIRUN, "-n", "9"), GROUPS, "says itself which ranks are where: leave out -n"),
        (("srun", "--ntasks=9"), GROUPS, "leave out --ntasks=9"),
        (MPIRUN, (*GROUPS, ":", "--host", "n1", "./channel"), "only one program and its arguments behind the colon"),
        (MPIRUN, (*GROUPS, ":", "-n", "4", "./channel"), "only one program and its arguments behind the colon"),
    ],
)
def test_groups_that_cannot_be_placed_are_one_message(
    launcher: tuple[str, ...], settings: tuple[str, ...], message: str, stage: Stage
) -> None:
    code, output = stage.train(*settings, options=PLACE, launcher=launcher).end()
    assert code == 2 and message in output and output.count("\n") == 1
    assert not (stage.folder / "runs").exists()


# -- the scripts --------------------


@pytest.mark.parametrize("script", ["train.sbatch", "train-srun.sbatch", "sweep.sbatch"])
def test_a_script_trains_is_told_and_comes_back(script: str, stage: Stage) -> None:
    sweep = {"SWEEP": str(ROOT / "jobs" / "sweep.toml"), "SWEEP_DIR": "runs/all", "SLURM_ARRAY_TASK_ID": "3"}
    where = sweep | {"SLURM_ARRAY_JOB_ID": "19"} if script == "sweep.sbatch" else {"RUN_DIR": "runs/it"}
    run, number = ("runs/all/task_003", "19_3") if script == "sweep.sbatch" else ("runs/it", "19")
    launcher = "srun --mpi=pmix --kill-on-bad-exit=1" if script == "train-srun.sbatch" else "mpirun --with-ft ulfm"
    stage.plays(launcher.split()[0], *SAVES)
    job = stage.start("bash", str(ROOT / "jobs" / script), "--horizon", "8", RUN=run, **where)
    assert job.waits().send(signal.SIGUSR1).end()[0] == 75
    (trains,) = stage.log(launcher)
    assert trains.startswith(f"{launcher} python -m dppo.run ")
    assert trains.endswith(f"--log.stall-abort-s 600 --horizon 8 --run-dir {run}")
    assert ("--optim.lr 0.002" in trains) == (script == "sweep.sbatch")
    assert stage.log("scontrol") == [line.replace("19", number) for line in BACK]
    assert stage.verdicts(run) == [75]

    (stage.folder / run / "config.toml").touch()
    stage.plays(launcher.split()[0], "finish finished")
    assert stage.start("bash", str(ROOT / "jobs" / script), RUN=run, **where).end()[0] == 0
    assert stage.log(launcher)[-1].endswith(f"--log.stall-abort-s 600 --run-dir {run} --resume")


def test_the_script_of_a_search_comes_back_to_its_trial(stage: Stage) -> None:
    """tests/slurm/test_search.py has the whole of it."""
    text = (ROOT / "jobs" / "search.toml").read_text().replace("[1, 2]", "[7]")
    (stage.folder / "search.toml").write_text(text)
    where = {"SWEEP": "search.toml", "SWEEP_DIR": "runs/all", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "19"}
    script = str(ROOT / "jobs" / "search.sbatch")
    stage.plays("mpirun", *SAVES)
    job = stage.start("bash", script, RUN="runs/all/trial_0000", **where)
    assert job.waits().send(signal.SIGUSR1).end()[0] == 75
    (trains,) = stage.log("mpirun")
    assert "mpirun --with-ft ulfm " in trains and "--log.stall-abort-s 600 --env CartPole-v1 " in trains
    assert trains.endswith("--seed 7 --run-dir runs/all/trial_0000")
    assert stage.log("scontrol") == [line.replace("19", "19_3") for line in BACK]


@pytest.mark.parametrize(
    ("variables", "launcher", "beside"),
    [
        ({}, "mpirun --with-ft ulfm --host n1:3,n2:4 -n 7", ""),
        ({"MPI": "pmix"}, "srun --mpi=pmix --kill-on-bad-exit=1 --distribution=arbitrary --ntasks=7"
         " --nodelist=n1,n1,n1,n2,n2,n2,n2", ""),
        ({"SIMULATOR": "./channel case.ini"}, "mpirun --with-ft ulfm --host n1:2,n2:1 -n 3",
         " --env dppo.envs:Solver --num-envs 1 : --host n1:2 -n 2 ./channel case.ini : --host n2:2 -n 2 ./channel"
         " case.ini"),
    ],
    ids=["python", "srun", "program"],
)  # fmt: skip
def test_the_script_for_simulators_places_groups(
    variables: dict[str, str], launcher: str, beside: str, stage: Stage
) -> None:
    stage.plays("scontrol", 'case $1 in show) printf "n1\\nn2\\n";; esac')
    stage.plays("dry-run", "case $* in *--dry-run) ;; *) exit 9;; esac")
    stage.plays(launcher.split()[0], "trap 'save 000064; finish preempted; exit 75' USR1", "wait_for_ever")
    where = {"RUN_DIR": "runs/it", "ENV_RANKS": "2", "SLURM_TASKS_PER_NODE": "4(x2)", **variables}
    job = stage.start("bash", str(ROOT / "jobs" / "simulator.sbatch"), "--horizon", "8", **where)
    assert job.waits().send(signal.SIGUSR1).end()[0] == 75
    flags = "--log.stall-abort-s 600 --horizon 8 --env-ranks 2 --run-dir runs/it"
    assert stage.log(launcher) == [f"{launcher} python -m dppo.run {flags}{beside}"]
    assert len(stage.log("dry-run")) == (not beside) and stage.verdicts() == [75]


@pytest.mark.parametrize("script", ["train.sbatch", "train-srun.sbatch", "sweep.sbatch"])
def test_a_signal_while_a_script_begins_is_not_lost(script: str, stage: Stage) -> None:
    stage.activate("kill -USR1 $$")
    where = {"SWEEP": str(ROOT / "jobs" / "sweep.toml"), "SLURM_ARRAY_TASK_ID": "3", "RUN_DIR": "runs/it"}
    code, output = stage.start("bash", str(ROOT / "jobs" / script), **where).end()
    assert code == 75 and "was preempted" in output
    assert stage.log() == BACK


def test_a_signal_while_the_script_of_a_search_begins_is_not_lost(stage: Stage) -> None:
    stage.activate("kill -USR1 $$")
    where = {"SWEEP": str(ROOT / "jobs" / "search.toml"), "SWEEP_DIR": "runs/all", "SLURM_ARRAY_TASK_ID": "3"}
    code, output = stage.start("bash", str(ROOT / "jobs" / "search.sbatch"), **where).end()
    assert code == 75 and "stopped by SIGUSR1: 20 are left" in output
    assert stage.log() == BACK


def test_a_signal_while_python_starts_ends_nothing(stage: Stage) -> None:
    """It comes too late for the script and too early for the job, and is the only one that is lost."""
    tell = "import os, signal, sys; '--starts' in sys.orig_argv and os.kill(os.getpid(), signal.SIGUSR1)"
    (stage.folder / "sitecustomize.py").write_text(tell)
    stage.plays("mpirun", "finish finished")
    where = {"PYTHONPATH": f"{stage.folder}:{ROOT}", "RUN_DIR": "runs/it"}
    assert stage.start("bash", str(ROOT / "jobs" / "train.sbatch"), **where).end()[0] == 0


def test_a_job_trains_by_the_command_dppo_as_well(stage: Stage) -> None:
    stage.plays("dppo", "exit 0")
    stage.plays("mpirun", "finish finished")
    job = stage.start("python", "-m", "dppo.job", *MPIRUN, "dppo", "run", "--seed", "1", "--run-dir", "runs/it")
    assert job.end()[0] == 0
    assert stage.log("dppo") == ["dppo run --seed 1 --run-dir runs/it --dry-run"]
    assert stage.log("mpirun") == ["mpirun --with-ft ulfm dppo run --seed 1 --run-dir runs/it"]
