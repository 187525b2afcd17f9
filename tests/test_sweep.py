"""python -m dppo.sweep: the list of a sweep's tasks, the flags of one, and the copy that says whose folder it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dppo.settings.flags import parse
from dppo.sweep import main

EXAMPLE = Path(__file__).parent.parent / "jobs" / "sweep.toml"
SWEEP = "[fixed]\nenv = 'CartPole-v1'\n[grid]\nseed = [1, 2]\noptim.lr = [3e-4, 1e-3]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(SWEEP)
    return path


def complaint(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    """What stderr says of wrong use, which is one line; stdout is empty."""
    assert main(list(map(str, argv))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("dppo: ")
    return err


def flags(capsys: pytest.CaptureFixture[str], *argv: Any) -> list[str]:
    assert main(list(map(str, argv))) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


# -- the list --------------------


def test_all_tasks_and_the_line_that_runs_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file)]) == 0
    assert capsys.readouterr() == (
        "fixed: env=CartPole-v1\n"
        "\n"
        "| task | seed | optim.lr |\n"
        "| ---: | ---: | -------: |\n"
        "|    0 |    1 |   0.0003 |\n"
        "|    1 |    1 |    0.001 |\n"
        "|    2 |    2 |   0.0003 |\n"
        "|    3 |    2 |    0.001 |\n"
        "\n"
        "4 task(s)\n"
        f"SWEEP={file} sbatch --array=0-3 jobs/sweep.sbatch\n",
        "",
    )


def test_the_example_has_six_tasks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parent.parent)
    assert main(["jobs/sweep.toml"]) == 0
    assert capsys.readouterr().out.endswith("\n6 task(s)\nsbatch --array=0-5 jobs/sweep.sbatch\n")


def test_the_line_has_the_folder_that_was_given(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), str(tmp_path / "a b")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"SWEEP={file} SWEEP_DIR='{tmp_path}/a b' sbatch --array=0-3 jobs/sweep.sbatch"
    assert not (tmp_path / "a b").exists()


def test_the_examples_random_block_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, _, tail = EXAMPLE.read_text().partition("# [random]")
    block = "".join(line.removeprefix("# ") + "\n" for line in tail.splitlines())
    path = tmp_path / "s.toml"
    path.write_text(head.replace("\noptim.lr", "\n# optim.lr") + "[random]" + block)
    assert main([str(path)]) == 0
    assert "sbatch --array=0-59 " in capsys.readouterr().out


def test_wrong_tasks_are_named_and_the_others_offered(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SWEEP.replace("1e-3]", "-1.0, 1e-3]"))
    assert main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out.endswith(f"\n6 task(s), 2 of them wrong\nSWEEP={file} sbatch --array=0,2-3,5 jobs/sweep.sbatch\n")
    assert err == "dppo: task 1,4: optim.lr=-1.0 must be positive, and at most 1000\n"


def test_where_all_are_wrong_nothing_is_offered(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SWEEP.replace("env", "envv"))
    assert main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert "sbatch" not in out
    assert err == "dppo: task 0-3: envv: no such setting; did you mean env?\n"


# -- one task --------------------


def test_one_flag_or_value_per_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    lines = flags(capsys, file, folder, 2)
    assert lines == [
        "--env", "CartPole-v1", "--seed", "2", "--optim.lr", "0.0003", "--run-dir", f"{folder}/task_002"
    ]  # fmt: skip
    assert (folder / "sweep.toml").read_text() == SWEEP
    assert [p.name for p in folder.iterdir()] == ["sweep.toml"]  # nothing else is made or left


def test_the_run_gets_exactly_these_settings(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of value goes through text and back unchanged."""
    file.write_text("""
        [fixed]
        env = "CartPole-v1"
        target-return = -1e-7
        vtrace = false
        respawn = false
        model.hidden = [32, 16]
        wrappers = ["a:b", "c:d"]
        env-kwargs.its_map = {a_b = [1, "x y"]}
        [fixed.moments]
        returns = false
        [grid]
        optim.lr = [3e-4, 0.1234567890123456]
        ppo.normalize_advantages = [true, false]
    """)
    config, _ = parse(flags(capsys, file, tmp_path / "a folder", 3))
    assert (config.target_return, config.vtrace, config.respawn, config.model.hidden) == (-1e-7, False, False, (32, 16))
    assert (config.moments.returns, config.moments.observations) == (False, True)
    assert (config.wrappers, config.env_kwargs) == (("a:b", "c:d"), {"its_map": {"a_b": [1, "x y"]}})
    assert (config.optim.lr, config.ppo.normalize_advantages) == (0.1234567890123456, False)
    assert config.run_dir == str(tmp_path / "a folder" / "task_003")


def test_one_wrong_task_leaves_the_others(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SWEEP.replace("1e-3", "-1.0"))
    assert flags(capsys, file, tmp_path / "out", 0)[-1].endswith("task_000")
    said = complaint(capsys, file, tmp_path / "out", 1)
    assert said == f"dppo: {file}: task 1: optim.lr=-1.0 must be positive, and at most 1000\n"
    assert complaint(capsys, file, tmp_path / "out", 4) == "dppo: there is no task 4: the sweep has 4, 0 to 3\n"


def test_wrong_arguments(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "see python -m dppo.sweep -h" in complaint(capsys)
    assert "invalid int value: 'x'" in complaint(capsys, file, tmp_path, "x")
    assert "invalid int value: ''" in complaint(capsys, file, tmp_path, "")  # a job script outside of an array
    assert "cannot be read: No such file" in complaint(capsys, tmp_path / "none.toml")
    assert "choose another SWEEP_DIR" in complaint(capsys, file, file / "below", 0)


def test_the_command(file: Path) -> None:
    """As a job script calls it; how fast it starts is tests/test_layers.py's: it loads neither NumPy nor torch."""
    done = subprocess.run([sys.executable, "-m", "dppo.sweep", file], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"SWEEP={file} sbatch --array=0-3 jobs/sweep.sbatch\n")


# -- the copy --------------------


def run_in(folder: Path, task: int) -> None:
    (folder / f"task_{task:03}").mkdir(parents=True)
    (folder / f"task_{task:03}" / "config.toml").touch()


def test_tasks_that_were_not_run_may_be_repaired_and_others_added(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    flags(capsys, file, folder, 0)
    run_in(folder, 0)
    changed = SWEEP.replace("1e-3", "2e-3").replace("[1, 2]", "[1, 2, 3]")
    file.write_text(changed)
    assert flags(capsys, file, folder, 1)[5] == "0.002"
    assert (folder / "sweep.toml").read_text() == changed


def test_a_setting_may_move_to_another_table(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    flags(capsys, file, folder, 0)
    run_in(folder, 0)
    file.write_text("[fixed]\nseed = 1\n[grid]\nenv = ['CartPole-v1']\noptim.lr = [3e-4]\n")
    flags(capsys, file, folder, 0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("3e-4", "4e-4", "optim.lr was 0.0003, is 0.0004"),
        ("[grid]", "num-envs = 4\n[grid]", "num-envs was not set, is 4"),
        ("[1, 2]", "[1]", "it has no such task now"),
    ],
)
def test_the_folder_of_another_sweep_is_left_alone(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, said: str
) -> None:
    folder = tmp_path / "out"
    flags(capsys, file, folder, 0)
    run_in(folder, 2)
    file.write_text(SWEEP.replace(before, after))
    err = complaint(capsys, file, folder, 1)
    assert said in err and "task_002 is a run of another sweep.toml" in err and "choose another SWEEP_DIR" in err
    assert (folder / "sweep.toml").read_text() == SWEEP


def test_tasks_that_start_together_leave_one_whole_copy(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "dppo.sweep", str(file), str(folder)]
    jobs = [
        subprocess.Popen([*command, str(task)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for task in (0, 1, 2, 3)
    ]
    for task, job in enumerate(jobs):
        out, err = job.communicate(timeout=60)
        assert (job.returncode, err) == (0, "")
        assert out.endswith(f"task_{task:03}\n")
    assert [p.name for p in folder.iterdir()] == ["sweep.toml"]
    assert (folder / "sweep.toml").read_text() == SWEEP
