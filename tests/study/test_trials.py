"""The trials of a study: what each draws, what it is worth, and who makes it when a worker dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dppo.study import trials as trials_module
from dppo.study.journal import Study
from dppo.study.local import BROKEN, CUT, DONE, Job, Outcome
from dppo.study.search import Search, read_search
from dppo.study.spec import read_sweep
from dppo.study.trials import Trials, enlist, is_alive, returns_in, trial_folders, value_of

TEXT = """
[fixed]
env = "X-v0"
total-steps = 1000
[search]
trials = 3
seeds = [5]
[search.space]
optim.lr = {low = 1e-4, high = 1e-2, log = true}
ppo.epochs = {low = 1, high = 9}
"""


def search_in(folder: Path, text: str = TEXT) -> Search:
    folder.mkdir(exist_ok=True)
    (folder / "sweep.toml").write_text(text)
    return read_search(read_sweep(folder / "sweep.toml"), folder)


def worker(folder: Path, name: str = "here", text: str = TEXT) -> Trials:
    search = search_in(folder, text)
    assert enlist(folder, name) is not None
    return Trials(folder, search, name)


def end(job: Job, reached: float | None, exit: str = "finished", steps: int = 1000) -> None:
    """Leaves the run as if it had ended."""
    job.folder.mkdir(parents=True, exist_ok=True)
    line = {"env_steps": steps, "return_mean_100": reached}
    (job.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (job.folder / "summary.json").write_text(json.dumps(line | {"exit": exit}))


def make_all(source: Trials) -> list[dict[str, Any]]:
    """Makes all trials, whose return is their learning rate; what they have drawn."""
    drawn = []
    while (job := source.next()) is not None:
        drawn.append(job.varied)
        end(job, job.varied["optim.lr"])
        source.ended(job, Outcome(DONE))
    return drawn


def states(folder: Path, search: Search) -> list[str]:
    return [trial.state.name for trial in Study(folder, search).trials()]


def test_trials_until_the_study_has_its_number(tmp_path: Path) -> None:
    source = worker(tmp_path)
    drawn = make_all(source)
    assert len(drawn) == 3 and source.left == 0 and not source.failed
    best = max(range(3), key=lambda number: drawn[number]["optim.lr"])
    assert f"3 of 3 trials have ended; the best so far is trial {best} with" in source.counts()
    more = search_in(tmp_path, TEXT.replace("trials = 3", "trials = 4"))
    again = Trials(tmp_path, more, "here")
    assert again.left == 1 and len(make_all(again)) == 1


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_the_same_file_draws_the_same(tmp_path: Path, sampler: str) -> None:
    text = TEXT.replace("trials = 3", f"trials = 8\nsampler = '{sampler}'")
    if sampler == "grid":
        text = text.replace("high = 1e-2, log = true", "high = 1e-3, step = 1e-4")
    first, second = (make_all(worker(tmp_path / name, text=text)) for name in ("a", "b"))
    assert first == second and len({str(drawn) for drawn in first}) == 8
    assert all(isinstance(drawn["ppo.epochs"], int) for drawn in first)


def test_each_trial_is_run_with_each_seed(tmp_path: Path) -> None:
    text = TEXT.replace("trials = 3", "trials = 1").replace("[5]", "[5, 6]")
    source = worker(tmp_path, text=text)
    first = source.next()
    assert first is not None and first.settings["seed"] == 5 and first.folder == tmp_path / "trial_0000" / "seed_5"
    end(first, 1.0)
    source.ended(first, Outcome(DONE))
    second = source.next()
    assert second is not None and second.settings == first.settings | {"seed": 6}
    end(second, 2.0)
    source.ended(second, Outcome(DONE))
    assert source.next() is None
    assert Study(tmp_path, search_in(tmp_path, text)).best().value == 1.5


def test_a_trial_that_fails_counts_and_is_named(tmp_path: Path) -> None:
    source = worker(tmp_path)
    job = source.next()
    assert job is not None
    source.ended(job, Outcome(BROKEN, "it broke"))
    job = source.next()
    assert job is not None
    end(job, None)
    source.ended(job, Outcome(DONE))
    assert source.failed == {"trial 0": "it broke", "trial 1": "no episode has ended, so there is no return"}
    assert source.left == 1 and "2 of 3 trials have ended, 2 failed" in source.counts()


def test_settings_that_do_not_go_together_fail(tmp_path: Path) -> None:
    text = TEXT.replace("trials = 3", "trials = 4\nsampler = 'grid'").replace(
        "optim.lr = {", "horizon = {choices = [10, 64]}\n#"
    )
    text = text.replace("ppo.epochs = {low = 1, high = 9}", "ppo.minibatches = {choices = [64, 8]}")
    source = worker(tmp_path, text=text)
    while (job := source.next()) is not None:
        end(job, 1.0)
        source.ended(job, Outcome(DONE))
    assert set(states(tmp_path, search_in(tmp_path, text))) == {"COMPLETE", "FAIL"}
    assert all("minibatches" in why for why in source.failed.values())


def test_a_trial_that_was_cut_short_is_resumed_by_the_next_command(tmp_path: Path) -> None:
    source = worker(tmp_path)
    first, second = source.next(), source.next()
    assert first is not None and second is not None
    source.ended(first, Outcome(CUT, "was killed by signal 9"))
    source.stopped(second)
    third = source.next()
    assert third is not None and third.name == "trial 2"  # not the first one again
    again = Trials(tmp_path, search_in(tmp_path), "here")
    jobs = [again.next() for _ in range(3)]
    assert jobs == [first, second, third] and again.next() is None


def test_a_worker_takes_over_what_a_dead_one_has_left(tmp_path: Path) -> None:
    """A process that lives has its worker's lock."""
    code = (
        "import sys; from pathlib import Path; from tests.study.test_trials import worker;"
        "job = worker(Path(sys.argv[1]), 'task_000').next(); print(job.name, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "trial 0\n"
    source = worker(tmp_path, "task_001")
    job = source.next()
    assert job is not None and job.name == "trial 1"
    other.communicate("")
    job = source.next()
    assert job is not None and job.name == "trial 0"


def test_a_worker_on_another_host_must_be_silent_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every file system tells one host of another's locks."""
    text = TEXT.replace("trials = 3", "trials = 1")
    worker(tmp_path, "task_000", text).next()
    (tmp_path / "workers" / "task_000").write_text("another-host \n")
    source = worker(tmp_path, "task_001", text)
    monkeypatch.setattr(trials_module, "lock", lambda path: os.open(path, os.O_RDONLY))
    assert source.next() is None
    long_ago = time.time() - trials_module.DEAD_AFTER_S - 5
    os.utime(tmp_path / "workers" / "task_000", (long_ago, long_ago))
    job = Trials(tmp_path, search_in(tmp_path, text), "task_001").next()
    assert job is not None and job.name == "trial 0"


def test_a_worker_whose_job_slurm_starts_again_keeps_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text('#!/bin/sh\ncase "$*" in *19_0*) echo PENDING;; *) exit 1;; esac\n')
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "workers").mkdir()
    for name in ("task_001", "waits", "gone"):
        job = {"waits": "19_0", "gone": "19_7"}.get(name, "")
        (tmp_path / "workers" / name).write_text(f"{socket.gethostname()} {job}\n")
    assert is_alive(tmp_path, "waits", "task_001") and not is_alive(tmp_path, "gone", "task_001")


def test_workers_together_make_each_trial_once(tmp_path: Path) -> None:
    search_in(tmp_path, TEXT.replace("trials = 3", "trials = 9").replace("seeds", "sampler = 'random'\nseeds"))
    code = (
        "import sys; from pathlib import Path; from tests.study.test_trials import *; folder = Path(sys.argv[1]);"
        "search = read_search(read_sweep(folder / 'sweep.toml'), folder); enlist(folder, sys.argv[2]);"
        "print(len(make_all(Trials(folder, search, sys.argv[2]))))"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"task_{k:03}"], stdout=subprocess.PIPE, text=True)
        for k in range(3)
    ]
    assert sum(int(job.communicate(timeout=60)[0]) for job in jobs) == 9
    search = read_search(read_sweep(tmp_path / "sweep.toml"), tmp_path)
    assert states(tmp_path, search) == ["COMPLETE"] * 9
    assert sorted(path.name for path in tmp_path.glob("trial_*")) == [f"trial_000{k}" for k in range(9)]


def test_a_journal_that_a_crash_has_cut_is_repaired(tmp_path: Path) -> None:
    make_all(worker(tmp_path))
    with open(tmp_path / "study.journal", "a") as file:
        file.write('{"op_code": 4, "worker')
    more = Trials(tmp_path, search_in(tmp_path, TEXT.replace("trials = 3", "trials = 4")), "here")
    assert len(make_all(more)) == 1


def test_the_value_of_a_run(tmp_path: Path) -> None:
    def search(what: str) -> Search:
        return Search({}, {}, 1, "tpe", "none", what, [1], 0)

    job = Job("it", tmp_path / "run", {}, {}, None)  # type: ignore[arg-type]
    end(job, 3.0, steps=700)
    with open(job.folder / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 900, "return_mean_100": 2.0}\n{"return_mean_100": null}\n{"retu')
    assert returns_in(job.folder) == [3.0, 2.0]
    assert [value_of(job.folder, search(what)) for what in ("return", "best_return")] == [2.0, 3.0]
    (job.folder / "evaluations.jsonl").write_text(
        "".join(json.dumps({"iteration": k, "env_steps": k, "return_mean": 9.0 - k}) + "\n" for k in (1, 2))
    )
    assert [value_of(job.folder, search(what)) for what in ("return", "best_return")] == [7.0, 8.0]
    assert value_of(job.folder, search("steps_to_target")) == 1400.0  # not reached
    end(job, 3.0, "target", 700)
    assert value_of(job.folder, search("steps_to_target")) == 700.0


def test_the_folders_of_a_trial(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    assert trial_folders(tmp_path, search, 12) == [tmp_path / "trial_0012"]
    assert trial_folders(tmp_path, search._replace(seeds=[1, 2]), 0)[1] == tmp_path / "trial_0000" / "seed_2"
