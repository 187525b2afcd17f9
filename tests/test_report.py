"""python -m dppo.report: its table, what it says of runs that need attention, its files, and its exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dppo.files import replace_atomically
from dppo.report import main, make_report
from tests.fakeruns import CURVE, write_run

SWEEP = "[fixed]\nenv = 'Env-v0'\n[grid]\nseed = [1, 2, 3]\noptim.lr = [3e-4, 1e-3]\n"


def write_sweep(folder: Path, *, without: tuple[int, ...] = (), states: dict[int, str] | None = None) -> Path:
    """Runs of SWEEP's tasks; the larger learning rate does better, later seeds do too."""
    folder.mkdir()
    (folder / "sweep.toml").write_text(SWEEP)
    for task in range(6):
        if task not in without:
            seed, lr = task // 2 + 1, (3e-4, 1e-3)[task % 2]
            end = 10.0 * seed + 100 * (task % 2)
            write_run(
                folder / f"task_{task:03}",
                {"seed": seed, "optim": {"lr": lr}},
                exit=(states or {}).get(task, "finished"),
                curve=((1000, None), (2000, end / 2), (3000 + 100 * seed, end)),
                train_s=float(seed),
            )
    return folder


def report(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    """Standard output without the line that names the page; standard error is empty."""
    assert main(list(map(str, argv))) == 0
    out, err = capsys.readouterr()
    assert err == ""
    page = Path(argv[0]) / "report.html"
    assert page.is_file()
    return str(out).removesuffix(f"\nThe page: {page}\n")


def report_json(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(report(capsys, folder, "--json", "--no-plot"))
    return values


# -- the table --------------------


def test_a_sweep_that_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s")
    out = report(capsys, folder, "--no-plot")
    assert out == (
        "| setting         | runs | median |   IQM |   95% interval | steps | seconds |\n"
        "| --------------- | ---: | -----: | ----: | -------------: | ----: | ------: |\n"
        "| optim.lr=0.001  |  3/3 |  120.0 | 120.0 | [110.0, 130.0] | 3,200 |       2 |\n"
        "| optim.lr=0.0003 |  3/3 |   20.0 |  20.0 |   [10.0, 30.0] | 3,200 |       2 |\n"
        "\n"
        "All runs have ended by themselves.\n"
    )
    text = (folder / "report.md").read_text()
    assert text.startswith("# s\n\n" + out) and "report.svg" not in text
    assert not (folder / "report.svg").exists()


def test_runs_with_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr, states in ((0.1, ("target", "target", "finished")), (0.2, ("finished", "finished", "target"))):
        for seed, state in enumerate(states):
            settings = {"seed": seed, "optim": {"lr": lr}, "target-return": 40.0}
            write_run(tmp_path / f"{lr}-{seed}", settings, exit=state)
    lines = report(capsys, tmp_path, "--no-plot").splitlines()
    assert lines[0].endswith("|   steps to target | seconds |")
    assert lines[2].startswith("| optim.lr=0.1 |  3/3 |") and lines[2].endswith("|       3,000 (2/3) |       2 |")
    assert lines[3].endswith("| not reached (1/3) |       – |")


def test_any_folder_and_a_single_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a" / "b")
    for folder in (tmp_path, tmp_path / "a" / "b"):
        assert "| Env-v0  |  1/1 |   40.0 | 40.0 |            – | 3,000 |       2 |" in report(capsys, folder)


def test_json_is_one_object_without_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", {"target-return": 50.0})
    write_run(tmp_path / "b", {"target-return": 50.0, "loss": "a3c"}, exit="failed")
    out = report_json(capsys, tmp_path)
    one, two = out["settings"]
    assert (one["setting"], one["values"]["loss"], one["ended"], one["runs"]) == ("loss=ppo", "ppo", 1, 1)
    assert (one["env"], one["run_dirs"], one["reached_target"]) == ("Env-v0", [str(tmp_path / "a")], 0)
    assert (one["returns"], one["return_median"], one["return_iqm"], one["return_interval"]) == ([40], 40, 40, None)
    assert (one["env_steps"], one["train_s"]) == (None, None)
    assert (two["returns"], two["return_iqm"], two["env_steps"]) == ([], None, None)
    assert [(p["run"], p["task"], p["state"]) for p in out["problems"]] == [(str(tmp_path / "b"), None, "failed")]
    assert (out["folder"], out["notes"]) == (str(tmp_path), [])


def test_how_long_members_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, share in enumerate((0.1, 0.3, 0.2)):
        write_run(tmp_path / f"{seed}", {"seed": seed, "env-ranks": 2}, metrics={"env_waiting_per_s": share})
    out = report(capsys, tmp_path, "--no-plot")
    assert "\n- Env-v0: the ranks of an environment wait for their worker 20% of the time (medians" in out
    write_run(tmp_path / "one" / "run", metrics={"env_waiting_per_s": None})
    write_run(tmp_path / "old" / "run", {"env-ranks": 2})
    for folder in ("one", "old"):
        assert report_json(capsys, tmp_path / folder)["notes"] == []


# -- runs that need attention --------------------


def test_each_task_that_has_not_ended_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(
        tmp_path / "s", without=(0, 1), states={1: "failed", 2: "failed", 3: "running", 4: "preempted"}
    )
    summary = folder / "task_002" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"error": "rank 1 on n3: no space\nTraceback"}))
    (folder / "task_005" / "config.toml").write_text("[")
    out = report(capsys, folder, "--no-plot")
    assert "| optim.lr=0.0003 |  0/3 |" in out and "| optim.lr=0.001  |  0/3 |" in out
    said = [line for line in out.splitlines() if line.startswith("- ")]
    assert [line.split(":")[0] for line in said] == [
        "- task 0 is missing", "- task 1 is missing", "- task 2 is failed", "- task 3 is running",
        "- task 4 is preempted", "- task 5 is unreadable",
    ]  # fmt: skip
    sweep = f"SWEEP={folder}/sweep.toml SWEEP_DIR={folder}"
    for task, line in enumerate(said):
        assert line.endswith(f" {sweep} sbatch --array={task} jobs/sweep.sbatch")
        assert line.endswith(f". Repair: {sweep} sbatch --array={task} jobs/sweep.sbatch") == (task < 3)
    assert "Repair: look whether its job is still in squeue; only if it is not: SWEEP=" in said[3]
    assert "Repair: its job comes back by itself; only if squeue does not list it: SWEEP=" in said[4]
    assert "rank 1 on n3: no space. Repair" in said[2] and "Traceback" not in out
    assert f"move {folder}/task_005 away, then SWEEP=" in said[5] and "is not valid TOML" in said[5]
    summed = f"All but those that run or come back by themselves: {sweep} sbatch --array=0-2,5 jobs/sweep.sbatch\n"
    assert out.endswith("\n" + summed)


def test_of_the_default_folder_the_line_names_the_copy_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    write_sweep(Path("runs/sweep"), without=(1,))
    line = report(capsys, "runs/sweep", "--no-plot").splitlines()[-1]
    assert line.endswith("Repair: SWEEP=runs/sweep/sweep.toml sbatch --array=1 jobs/sweep.sbatch")


def test_where_all_are_at_work_nothing_is_offered_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s", states={0: "running", 1: "preempted", 2: "failed"})
    assert "All but those" not in report(capsys, folder, "--no-plot")


def test_a_task_whose_settings_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s")
    shutil.rmtree(folder / "task_005")
    (folder / "sweep.toml").write_text(SWEEP.replace("[1, 2, 3]", "[1, 2, -3]"))
    (one,) = report_json(capsys, folder)["problems"]
    assert one["reason"] == "its settings are wrong: seed=-3 must lie in [0, 2**63)"
    file = folder / "sweep.toml"
    line = f"SWEEP={file} SWEEP_DIR={folder} sbatch --array=5 jobs/sweep.sbatch"
    assert one["repair"] == f"correct {file}, then {line}"


def test_runs_of_no_sweep_are_repaired_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a b", exit="preempted")
    write_run(tmp_path / "c")
    (tmp_path / "c" / "config.toml").write_text("[")
    write_run(tmp_path / "d", exit="failed")
    write_run(tmp_path / "e", exit=None)
    preempted, damaged, failed, running = (p["repair"] for p in report_json(capsys, tmp_path)["problems"])
    resume = f"python -m dppo.run --resume --run-dir '{tmp_path}/a b'"
    assert preempted.startswith(f"its job comes back by itself; only if squeue does not list it: {resume}")
    assert damaged == "start it again in another --run-dir"
    assert failed.startswith(f"python -m dppo.run --resume --run-dir {tmp_path}/d")
    assert running.startswith("look whether its job is still in squeue; only if it is not: python -m dppo.run --resume")


def test_others_in_a_sweeps_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s")
    shutil.copytree(folder / "task_000", folder / "task_000.old")
    out = report(capsys, folder, "--no-plot")
    assert "| optim.lr=0.0003 |  4/4 |" in out
    assert f"- {folder}/task_000.old is no task of {folder}/sweep.toml; it counts all the same\n" in out


def test_a_sweep_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s", without=(5,))
    (folder / "sweep.toml").write_text("[")
    out = report_json(capsys, folder)
    assert len(out["notes"]) == 1 and "so nobody knows which tasks are missing" in out["notes"][0]
    assert out["problems"] == []


def test_runs_in_which_no_episode_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", {"seed": 1})
    write_run(tmp_path / "b", {"seed": 2}, curve=((1000, None),))
    out = report(capsys, tmp_path, "--no-plot")
    assert "| Env-v0  |  2/2 |   40.0 |" in out
    assert "- Env-v0: in 1 of the runs that ended no episode did; they have no return\n" in out


# -- files --------------------


def test_the_picture_is_drawn_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = write_sweep(tmp_path / "s")
    report(capsys, folder)
    before = (folder / "report.svg").read_bytes()
    assert b"optim.lr=0.0003" in before and b"optim.lr=0.001" in before
    assert "![Learning curves](report.svg)" in (folder / "report.md").read_text()
    report(capsys, folder)
    assert (folder / "report.svg").read_bytes() == before
    assert list(folder.glob("*.part")) == []


def test_of_many_settings_the_best_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for k in range(10):
        write_run(tmp_path / f"r{k}", {"num-envs": k + 1, "loss": "a3c"}, curve=((1000, 0.0), (2000, float(k))))
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "dppo: report.svg shows 8 of 10 settings: the best that have a return\n"
    picture = (tmp_path / "report.svg").read_text()
    assert [f"num-envs={k + 1} " in picture for k in range(10)] == [False, False] + [True] * 8
    assert out.count("num-envs=") == 10


def test_without_matplotlib_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_run(tmp_path / "r")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("dppo: no plot: ") and "pip install 'dppo[analysis]'" in err
    assert "| Env-v0 " in out and "report.svg" not in (tmp_path / "report.md").read_text()


def test_no_return_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "r", curve=((1000, None),))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == "dppo: no plot: in no run has an episode ended\n"


def test_cut_and_damaged_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = write_run(tmp_path / "r", curve=(*CURVE, (4000, 50.0)))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 50')
    report(capsys, tmp_path)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("\n")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"dppo: {folder}: 1 damaged line(s) of metrics.jsonl are not in the curve\n"


def test_where_nothing_can_be_written_the_table_is_still_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dppo.report.replace_atomically", full)
    write_run(tmp_path / "r")
    assert main([str(tmp_path), "--no-plot"]) == 0
    out, err = capsys.readouterr()
    assert "| Env-v0 " in out
    assert err.startswith("dppo: report.md and report.svg cannot be written: ") and "No space left" in err


def test_a_report_is_no_run_and_changes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s")
    first = report(capsys, folder, "--no-plot")
    replace_atomically(folder / "config.toml", b"mine")
    assert report(capsys, folder, "--no-plot") == first


# -- the page --------------------


def test_a_runs_page_is_its_own_and_a_folders_is_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "s" / "r")
    for folder, heading in ((run, ">How to repeat it</h2>"), (tmp_path / "s", ">Runs</h2>")):
        assert main([str(folder), "--no-plot"]) == 0
        assert capsys.readouterr().out.endswith(f"\nThe page: {folder}/report.html\n")
        assert heading in (folder / "report.html").read_text()
    assert main([str(run), "--no-plot", "--no-page", "-o", str(tmp_path / "not.html")]) == 0
    assert "The page" not in capsys.readouterr().out and not (tmp_path / "not.html").exists()


def test_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write_sweep(tmp_path / "one"), write_sweep(tmp_path / "two")
    assert main(["one", "two", "--no-plot"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# one\n\n| setting ") and "\n\n# two\n\n| setting " in out
    assert out.endswith("\nThe page: report.html\n") and (tmp_path / "report.html").is_file()
    assert (one / "report.md").is_file() and (two / "report.md").is_file()
    assert main(["one", "two", "--no-plot", "--json"]) == 0
    assert [of["folder"] for of in json.loads(capsys.readouterr().out)["folders"]] == ["one", "two"]


def test_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "r")
    report(capsys, tmp_path / "r", "--no-plot", "--figures", tmp_path / "figures")
    assert {"01-returns.png", "01-returns.pdf"} <= {path.name for path in (tmp_path / "figures").iterdir()}


def test_watch_renews_the_page_until_the_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "r", exit="running")
    pages = []

    def sleep(seconds: float) -> None:
        assert seconds >= 5
        pages.append((run / "report.html").read_text())
        if len(pages) == 2:
            shutil.rmtree(run)
            write_run(run, curve=((1000, 77.0),))

    monkeypatch.setattr("dppo.report.time.sleep", sleep)
    assert main([str(run), "--watch", "--no-plot"]) == 0
    out, err = capsys.readouterr()
    assert err == f"dppo: {run}/report.html is renewed until the run ends; Ctrl-C stops\n"
    assert "| Env-v0  |  1/1 |   77.0 |" in out
    assert len(pages) == 2 and all('data-reload-s="5.0"' in page for page in pages)
    assert "data-reload-s" not in (run / "report.html").read_text()


def test_ctrl_c_ends_a_watch_with_a_page_that_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dppo.report.time.sleep", interrupt)
    run = write_run(tmp_path / "r", exit="running")
    assert main([str(run), "--watch", "--no-plot"]) == 0
    assert "is running" in capsys.readouterr().out and "data-reload-s" not in (run / "report.html").read_text()


def test_without_jinja_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    write_run(tmp_path / "r")
    assert main([str(tmp_path), "--no-plot"]) == 0
    out, err = capsys.readouterr()
    assert "no page can be made" in err and err.count("\n") == 1 and "| Env-v0 " in out
    assert (tmp_path / "report.md").exists() and not (tmp_path / "report.html").exists()


# -- wrong use --------------------


def complaint(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    assert main(list(map(str, argv))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("dppo: ")
    return str(err)


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in complaint(capsys, tmp_path / "none")
    assert "holds no run" in complaint(capsys, tmp_path)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    assert "holds no run" in complaint(capsys, tmp_path)
    assert "see python -m dppo.report -h" in complaint(capsys, tmp_path, "--plot")
    assert list(tmp_path.iterdir()) == [tmp_path / "sweep.toml"]


def test_no_run_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "r")
    (tmp_path / "r" / "config.toml").write_text("[")
    assert "no run in" in complaint(capsys, tmp_path)


def test_the_order_of_runs_is_that_of_the_tasks(tmp_path: Path) -> None:
    found = make_report(write_sweep(tmp_path / "s", without=(2,)))
    assert [run.folder.name for run in found.settings[1].runs] == ["task_000", "task_002", "task_004"]


def test_where_no_page_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "r")
    (tmp_path / "x.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert "must end in .html" in complaint(capsys, run, "-o", run / "metrics.jsonl")
    assert "make it first" in complaint(capsys, run, "-o", tmp_path / "none" / "x.html")
    assert "is a folder" in complaint(capsys, run, "-o", tmp_path / "x.html")
    assert "leave one out" in complaint(capsys, run, "--watch", "--no-page")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'dppo[analysis]'" in complaint(capsys, run, "--figures", tmp_path / "f")
    assert sorted(tmp_path.rglob("*")) == before
