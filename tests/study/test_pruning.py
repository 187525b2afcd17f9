"""The recorder of a trial: it tells the study its return at equal steps, and asks to stop where the pruner says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dppo.study.journal import REPORTS, Study
from dppo.study.local import DONE, Job, Outcome
from dppo.study.pruning import Pruning, trial_of
from dppo.study.search import Search
from dppo.study.trials import Trials
from tests.study.test_trials import TEXT, end, search_in, worker

MEDIAN = TEXT.replace("trials = 3", "trials = 8\npruner = 'median'")


def info(job: Job, env_steps: int = 0, **config: Any) -> Any:
    return SimpleNamespace(run_dir=job.folder, env_steps=env_steps, config={"total_steps": 1000} | config)


def record(job: Job, reached: float, env_steps: int = 0) -> list[int]:
    """The steps at which the run was asked to end."""
    recorder = Pruning()
    recorder.start(info(job, env_steps))
    lines = [{"env_steps": steps, "return_mean_100": reached} for steps in range(env_steps + 20, 1001, 20)]
    return [line["env_steps"] for line in lines if recorder.iteration(line)]


def begun(source: Trials) -> Job:
    job = source.next()
    assert job is not None
    job.folder.mkdir(parents=True)
    return job


@pytest.fixture
def source(tmp_path: Path) -> Trials:
    """Four trials with a return of 10 have ended."""
    source = worker(tmp_path, text=MEDIAN)
    for _ in range(4):
        job = begun(source)
        assert record(job, 10.0) == []
        end(job, 10.0)
        source.ended(job, Outcome(DONE))
    return source


def study(folder: Path) -> Study:
    return Study(folder, search_in(folder, MEDIAN))


def test_a_worse_trial_is_stopped_and_the_study_knows_it(tmp_path: Path, source: Trials) -> None:
    job = begun(source)
    asked = record(job, 5.0)
    assert asked[0] == 100  # at the second report: each is of 50 steps, and none is stopped at the first
    assert asked == list(range(100, 1001, 20))  # and it does not change its mind
    assert record(job, 50.0, 160)[0] == 180  # nor where it is resumed
    end(job, 5.0)
    source.ended(job, Outcome(DONE))
    trial = study(tmp_path).trial(4)
    assert trial.state.name == "PRUNED" and trial.value == 5.0
    assert "5 of 8 trials have ended, 1 pruned" in source.counts()


def test_a_better_trial_goes_on_also_after_a_resume(tmp_path: Path, source: Trials) -> None:
    job = begun(source)
    assert record(job, 20.0, 400) == []
    assert list(study(tmp_path).trial(4).intermediate_values) == list(range(9, REPORTS))
    end(job, 20.0)
    source.ended(job, Outcome(DONE))
    assert study(tmp_path).best().number == 4


def test_with_evaluations_each_is_a_report(tmp_path: Path, source: Trials) -> None:
    job = begun(source)
    recorder = Pruning()
    recorder.start(info(job, eval={"every": 100}))
    assert not recorder.iteration({"env_steps": 900, "return_mean_100": -5.0})
    assert [recorder.evaluation({"env_steps": 100 * k, "return_mean": 1.0}) for k in (1, 2, 3)] == [False, True, True]
    assert recorder.iteration({"env_steps": 320, "return_mean_100": 1.0})
    assert study(tmp_path).trial(4).intermediate_values == {1: 1.0, 2: 1.0}


def test_the_second_seed_reports_the_mean_over_both(tmp_path: Path) -> None:
    text = MEDIAN.replace("[5]", "[5, 6]")
    source = worker(tmp_path, text=text)
    first = begun(source)
    record(first, 10.0)
    end(first, 10.0)
    source.ended(first, Outcome(DONE))
    record(begun(source), 20.0)
    search: Search = search_in(tmp_path, text)
    values = Study(tmp_path, search).trial(0).intermediate_values
    assert values == {k: 10.0 for k in range(1, 20)} | {20 + k: 15.0 for k in range(1, 20)}


def test_fewer_steps_are_better_but_a_higher_return_too(tmp_path: Path) -> None:
    text = MEDIAN.replace("[search]", "target-return = 9.0\n[search]\noptimise = 'steps_to_target'")
    job = begun(worker(tmp_path, text=text))
    record(job, 10.0)
    assert set(Study(tmp_path, search_in(tmp_path, text)).trial(0).intermediate_values.values()) == {-10.0}


def test_a_run_of_its_own_has_no_trial(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run of a search"):
        trial_of(tmp_path / "trial_0001")
