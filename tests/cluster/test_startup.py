"""Threads and Open MPI's parameters, before anything heavy is imported, and what children inherit."""

from __future__ import annotations

import multiprocessing.spawn
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dppo.cluster import startup

PATH = str(Path(startup.__file__).parents[1])


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty environment in the place of this process's."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", empty)
    return empty


@pytest.mark.parametrize(("cores", "ranks", "share"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 32, 1), (6, 1, 6)])
def test_each_rank_gets_its_share_of_the_cores_that_it_may_run_on(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    environ["OMPI_COMM_WORLD_LOCAL_SIZE"] = str(ranks)
    assert startup.limit_threads() == share
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == str(share)


@pytest.mark.parametrize(
    ("cores", "of_job", "share"),
    [(4, "64", 4), (64, "64", 4), (4, "many", 1), (64, "128", 4), (4, "9" * 5000, 1), (4, "²", 1)],
)
def test_cores_that_srun_has_dealt_out_are_not_shared_again(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, cores: int, of_job: str, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    environ.update(SLURM_STEP_TASKS_PER_NODE="16(x2)", SLURM_CPUS_ON_NODE=of_job)
    assert startup.limit_threads() == share


def test_numpys_blas_gets_one_thread(environ: dict[str, str]) -> None:
    startup.limit_threads()
    assert environ["OPENBLAS_NUM_THREADS"] == "1"


def test_torchs_blas_sums_a_row_in_one_order_in_batches_of_every_size(environ: dict[str, str]) -> None:
    startup.limit_threads()
    assert environ["MKL_CBWR"] == "AUTO,STRICT"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR"])
def test_a_users_thread_setting_stays(environ: dict[str, str], name: str) -> None:
    environ[name] = "17"
    startup.limit_threads()
    assert environ[name] == "17"


def test_han_and_ucx_are_switched_off_everywhere(environ: dict[str, str]) -> None:
    startup.set_mpi_parameters()
    assert environ["OMPI_MCA_coll"] == "^han"
    assert environ["OMPI_MCA_osc"] == "^ucx"


@pytest.mark.parametrize(("size", "local", "one_node"), [("4", "4", True), ("8", "4", False), (None, None, True)])
def test_shared_memory_is_chosen_on_one_node_only(
    environ: dict[str, str], size: str | None, local: str | None, one_node: bool
) -> None:
    if size is not None and local is not None:
        environ.update(OMPI_COMM_WORLD_SIZE=size, OMPI_COMM_WORLD_LOCAL_SIZE=local)
    startup.set_mpi_parameters()
    assert (environ.get("OMPI_MCA_pml") == "ob1") == one_node


def test_a_rank_that_no_launcher_started_needs_no_shared_memory(environ: dict[str, str]) -> None:
    startup.set_mpi_parameters()
    assert environ["OMPI_MCA_btl"] == "self"
    environ.clear()
    environ.update(PMIX_RANK="0")
    startup.set_mpi_parameters()
    assert "sm" in environ["OMPI_MCA_btl"].split(",")


def test_a_users_mpi_parameters_stay(environ: dict[str, str]) -> None:
    mine = {"OMPI_MCA_coll": "^tuned", "OMPI_MCA_osc": "rdma", "OMPI_MCA_pml": "ucx", "OMPI_MCA_btl": "self"}
    environ.update(mine)
    startup.set_mpi_parameters()
    assert environ.items() >= mine.items()


@pytest.mark.parametrize(
    ("variables", "one"),
    [
        ({}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
        ({"PMIX_RANK": "0", "SLURM_STEP_TASKS_PER_NODE": "4"}, True),
        ({"PMIX_RANK": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, False),
        # mpirun's daemons are a step of their own
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, True),
    ],
    ids=str,
)
def test_a_network_is_left_to_open_mpi_where_there_is_one(
    environ: dict[str, str], variables: dict[str, str], one: bool
) -> None:
    environ.update(variables)
    startup.set_mpi_parameters()
    assert (environ.get("OMPI_MCA_pml") == "ob1") == ("OMPI_MCA_btl" in environ) == one


RUN_PY = "/somewhere/site-packages/dppo/run/__main__.py"


@pytest.mark.parametrize(
    ("argv", "tcp"),
    [
        ([RUN_PY, "--env", "CartPole-v1"], False),
        ([RUN_PY, "--respawn"], True),
        ([RUN_PY, "--no-respawn"], True),
        ([RUN_PY, "mine.toml"], True),  # which may ask for it
        ([RUN_PY, "--resume", "--run-dir", "runs/1"], True),
        (["train_it.py"], True),
        (["-c"], True),  # a replacement
        ([], True),
    ],
    ids=str,
)
def test_ranks_of_one_node_open_ports_only_where_dead_ones_may_be_replaced(
    environ: dict[str, str], argv: list[str], tcp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    environ.update({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    startup.set_mpi_parameters()
    assert ("tcp" in environ["OMPI_MCA_btl"]) == tcp


def test_python_and_shell_read_the_same_parameters(environ: dict[str, str], tmp_path: Path) -> None:
    users = {"OMPI_MCA_coll": "^han,tuned", "OMPI_MCA_osc": ""}  # what is set stays, also where it is set to nothing
    command = ["/bin/sh", "-c", f". {startup.MPI_PARAMETERS}; env -u PWD -u SHLVL -u _ -0"]
    shells = subprocess.run(command, env=users, capture_output=True, text=True, check=True).stdout
    environ.update(users, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_LOCAL_SIZE="1")
    before = dict(environ)
    startup.set_mpi_parameters()
    pairs = [line.partition("=") for line in shells.split("\0") if line]
    assert {name: value for name, _, value in pairs} | before == environ
    assert environ["OMPI_MCA_coll"] == "^han,tuned" and "PRTE_MCA_hwloc_default_binding_policy" in environ


def test_scripts_are_told_where_the_parameters_are() -> None:
    command = [sys.executable, "-m", "dppo.job", "--openmpi"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": PATH}).stdout
    assert Path(told.strip()) == startup.MPI_PARAMETERS


def test_where_the_system_knows_no_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert startup.own_cores() == {0, 1, 2}


# -- what processes that environments start inherit --------------------

FORKED = """if True:
    import os, signal, sys, threading, time
    from dppo.cluster import startup
    from dppo.cluster.signals import Preemption
    startup.note_early_signals(os._exit)
    startup.let_children_start_afresh()
    if sys.argv[1] == "training":
        Preemption(60.0, None).install()
    in_main = sys.argv[2] == "main"
    def fork_and_end():
        for number in (signal.SIGTERM, signal.SIGUSR1, *[signal.SIGINT] * (sys.argv[1] == "training")):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(child, number)  # at once: it may not even have come to its first line
            status = os.waitpid(child, 0)[1]
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number, (number, status)  # Python's own, too
    def run():
        fork_and_end()
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if in_main:
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    os.kill(os.getpid(), signal.SIGTERM)  # is still caught here
    print("done")
"""


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize("moment", ["starting", "training"])
def test_a_forked_child_is_not_deaf(moment: str, thread: str) -> None:
    command = [sys.executable, "-c", FORKED, moment, thread]
    environ = {"PYTHONPATH": PATH}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "done\n", done.stderr


def test_a_forked_child_keeps_handlers_that_are_not_ours() -> None:
    code = f"""if True:
        import os, signal
        from dppo.cluster import startup
        startup.let_children_start_afresh()
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), {int(signal.SIGTERM)})
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": PATH}, timeout=20, check=True)


@pytest.mark.parametrize(("error", "code"), [("SystemExit(3)", 3), ("SystemExit", 1), ("RuntimeError('x')", 1)])
def test_an_exception_in_a_forked_child_ends_there(error: str, code: int) -> None:
    program = f"""if True:
        import os
        from dppo.cluster import startup
        startup.let_children_start_afresh()
        try:
            with startup.forks_end_here():
                child = os.fork()
                if child == 0:
                    raise {error}
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {code}
                raise KeyError
        except BaseException as error:
            print(type(error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == "KeyError\n"


def test_children_do_not_get_what_they_would_join_the_job_by(environ: dict[str, str]) -> None:
    kept = {"OMPI_COMM_WORLD_RANK": "2", "PMIX_RANK": "2", "PMI_SIZE": "4", "PATH": "/bin"}
    environ.update(kept, PMIX_NAMESPACE="prterun-vm-1@1", PMIX_SERVER_URI4="…", PMIX_SERVER_URI41="…", PMI_FD="7")
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.get("__file__")
    try:
        startup.keep_children_out()
        assert (
            multiprocessing.spawn.get_preparation_data("child")
            .keys()
            .isdisjoint({"init_main_from_name", "init_main_from_path"})
        )
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file
    assert environ.items() >= kept.items()
    assert not [name for name in environ if name.startswith(("PMIX_N", "PMIX_S", "PMI_F"))]


def test_open_mpi_finds_a_home_where_there_is_none(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = pwd.getpwuid(os.getuid()).pw_dir
    for variables in ({}, {"HOME": ""}):
        environ.clear()
        environ.update(variables)
        startup.set_mpi_parameters()
        assert environ["HOME"] == known
        command = ["/bin/sh", "-c", f'. {startup.MPI_PARAMETERS}; printf %s "$HOME"']
        shells = subprocess.run(
            command, env=variables | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
        )
        assert shells.stdout == known
    environ["HOME"] = "/mine"
    startup.set_mpi_parameters()
    assert environ["HOME"] == "/mine"

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    environ["HOME"] = ""
    startup.set_mpi_parameters()
    assert environ["HOME"] == "/"  # never a folder that others may write to


def test_the_python_that_runs_is_named_as_a_shell_here_finds_it(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / ".venv" / "bin", tmp_path / "a b" / "bin"):
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert startup.this_python() == ".venv/bin/python"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    environ["PATH"] = f"{tmp_path}/a b/bin"
    assert startup.this_python() == f"{tmp_path}/.venv/bin/python"  # the other is a link to the same Python
    environ["PATH"] = f"{tmp_path}/.venv/bin"
    assert startup.this_python() == "python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "a b" / "bin" / "python"))
    assert startup.this_python() == f"'{tmp_path}/a b/bin/python'"


@pytest.mark.parametrize("flags", [["--dry-run"], ["--help"], ["--version"]], ids=str)
def test_without_an_mpi_library_one_message_says_what_to_install(tmp_path: Path, flags: list[str]) -> None:
    command = [sys.executable, "-m", "dppo.run", *flags]
    variables = {"PYTHONPATH": PATH, "MPI4PY_LIBMPI": str(tmp_path / "none.so")}
    ended = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    if flags == ["--dry-run"]:
        assert (ended.returncode, ended.stdout) == (2, "")
        (line,) = ended.stderr.splitlines()
        assert line.startswith("dppo: MPI cannot be loaded (") and "pip install 'dppo[mpi]'" in line
    else:
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "dppo" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_call_without_an_mpi_library_says_the_same() -> None:
    code = """if True:
        import sys
        sys.modules["mpi4py"] = None
        import dppo
        try:
            dppo.train(dppo.Config())
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("MPI cannot be loaded (") and "pip install 'dppo[mpi]'" in done.stdout
    assert done.stderr == ""
