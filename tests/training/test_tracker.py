"""Rank 0's tracker: counts, the window, when a run ends, what is saved, and going on from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import CheckpointConfig, PPOConfig
from dppo.console import Console
from dppo.data import Episode
from dppo.run.preflight import Plan, plan_run
from dppo.rundir.summary import Summary
from dppo.seams import Recorder
from dppo.training.tracker import MOST_RETURNS, WINDOW, Tracker
from tests.parts import Run, make_parts, probe, wait_for_checkpoints


def episode(value: float, row: int = 0, env: int = 0) -> Episode:
    return Episode(row, env, value, 10)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.tracker.files.close()


# -- counting --------------------


def test_env_steps_and_episodes_are_those_of_all_workers(tmp_path: Path) -> None:
    run = Run(tmp_path, workers=3, horizon=40)
    for _ in range(2):
        run.iterate()
    lines, reports = run.lines(), [r for place in run.places for r in place.reports]
    assert [line["env_steps"] for line in lines] == [3 * 2 * 40, 2 * 3 * 2 * 40]
    assert lines[1]["episodes"] == sum(len(r.episodes) for r in reports)
    assert lines[0]["episodes_ended"] + lines[1]["episodes_ended"] == lines[1]["episodes"]
    returns = [e.episode_return for r in reports for e in r.episodes]
    assert lines[1]["return_mean_100"] == pytest.approx(np.mean(returns))
    run.tracker.files.close()


def test_the_window_is_of_the_last_hundred_in_the_order_of_rows_and_environments(run: Run) -> None:
    """However the reports come in: 60 episodes of 1, then 90 of which the last 50 rows are worth 3."""
    run.iterate([episode(1.0)] * 60)
    assert run.lines()[-1]["return_mean_100"] == 1.0
    run.iterate([episode(3.0 if row >= 40 else 2.0, row) for row in reversed(range(90))])
    assert run.lines()[-1]["return_mean_100"] == pytest.approx((10 * 1 + 40 * 2 + 50 * 3) / 100)
    assert run.lines()[-1]["episodes"] == 150
    window = run.tracker.saver.boundary.counters["returns"]
    assert window == [1.0] * 10 + [2.0] * 40 + [3.0] * 50
    assert len(window) == WINDOW


def test_episodes_of_one_row_are_ordered_by_environment(tmp_path: Path) -> None:
    run = Run(tmp_path, workers=2)
    for place, values in zip(run.places, ((1.0, 2.0), (3.0, 4.0)), strict=True):
        first_env = place.collector.first_env
        run.collect(place, [episode(values[1], 5, first_env + 1), episode(values[0], 5, first_env)])
    run.state.finish_iteration(0, 0.0)
    run.tracker.close({})
    assert run.tracker.saver.boundary.counters["returns"] == [1.0, 2.0, 3.0, 4.0]
    run.tracker.files.close()


def test_a_line_has_the_returns_of_its_own_episodes_in_the_order_in_which_they_ended(run: Run) -> None:
    run.iterate([episode(1.0, 5), episode(2.0, 3), episode(3.0, 3, 1)])
    run.iterate([])
    run.iterate([episode(4.0)])
    assert [line["returns"] for line in run.lines()] == [[2.0, 3.0, 1.0], [], [4.0]]


def test_of_very_many_episodes_a_line_has_some_at_even_distances(run: Run) -> None:
    run.iterate([episode(float(row), row) for row in range(MOST_RETURNS)])
    run.iterate([episode(float(row), row) for row in range(2 * MOST_RETURNS + 500)])
    few, many = (line["returns"] for line in run.lines())
    assert few == [float(row) for row in range(MOST_RETURNS)]
    assert len(many) == MOST_RETURNS and many[:3] == [0.0, 2.0, 5.0] and many[-1] == 2497.0


def test_before_an_episode_has_ended_there_is_no_mean(run: Run) -> None:
    run.iterate([])
    assert run.lines()[0]["return_mean_100"] is None
    assert run.summary()["return_mean_100"] is None


def test_a_line_has_counts_metrics_and_clocks(run: Run) -> None:
    for _ in range(3):
        run.iterate()
    lines = run.lines()
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    for name in ("updates", "loss", "policy_loss", "value_loss", "entropy", "approx_kl", "lr", "grad_norm", "extra"):
        assert name in lines[0]
    clocks = {name for name in lines[0] if name.endswith(("_s", "_per_s"))}
    assert {"wall_s", "train_s", "iteration_s", "steps_per_s", "collect_max_s", "exchange_mean_s"} <= clocks


def test_repeated_runs_write_the_same_lines_but_for_the_clocks(tmp_path: Path) -> None:
    texts = []
    for name in ("first", "second"):
        run = Run(tmp_path / name, workers=2)
        for _ in range(3):
            run.iterate()
        run.tracker.files.close()
        texts.append([{k: v for k, v in line.items() if not k.endswith(("_s", "_per_s"))} for line in run.lines()])
    assert texts[0] == texts[1]


# -- when ranks die --------------------


def test_a_report_counts_once_however_often_it_is_told(run: Run) -> None:
    run.collect(run.places[0])
    report = run.places[0].reports[-1]
    assert not run.tracker.add(report)
    assert run.tracker.counters.pending_rollouts == 1
    run.state.finish_iteration(run.tracker.counters.pending_env_steps, 0.0)
    run.tracker.close({})
    assert not run.tracker.add(report), "nor in the next iteration"
    assert run.tracker.counters.pending_rollouts == 0
    assert run.lines()[-1]["env_steps"] == report.env_steps


def test_losses_are_in_every_line_and_go_on_after_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.tracker.counters.losses.ranks_lost, run.tracker.counters.losses.updates_lost = 2, 17
    run.tracker.regroup(world_size=3, workers=[0, 1])
    run.iterate()
    assert [run.lines()[-1][k] for k in ("workers", "ranks_lost", "updates_lost", "env_steps_lost")] == [2, 2, 17, 0]
    run.tracker.saver.finish("preempted")
    assert run.tracker.saver.has_ended and run.summary()["world_size"] == 3
    again = Run(tmp_path, saved=run.saved())
    again.iterate()
    assert (again.lines()[-1]["ranks_lost"], again.lines()[-1]["workers"]) == (2, 1)


def test_a_passing_iteration_has_its_line_and_nothing_else(run: Run) -> None:
    """As where a new server closes what the workers had passed: only the last state is known as a whole."""
    run.collect(run.places[0])
    run.state.finish_iteration(run.tracker.counters.pending_env_steps, 0.0)
    run.tracker.close_passed()
    assert run.tracker.saver.boundary.summary.env_steps == 0
    run.iterate()
    assert [line["iteration"] for line in run.lines()] == [1, 2]
    assert run.lines()[1]["episodes"] == run.lines()[0]["episodes"] + run.lines()[1]["episodes_ended"]
    assert run.tracker.saver.boundary.summary.env_steps == run.state.env_steps > 0


def test_a_new_servers_counters_catch_up_with_the_lines_of_the_old(tmp_path: Path) -> None:
    """The standby's copy is of iteration 1, the file has lines until 3; the reports between are told again."""
    run = Run(tmp_path, horizon=64)
    run.iterate()
    saved = run.tracker.saver.boundary.counters
    for _ in range(2):
        run.iterate()
    line, told = run.lines()[-1], list(run.places[0].reports)
    expected = run.tracker.saver.boundary.counters
    tracker = Tracker(
        tmp_path, run.config, run.state, run.preemption, run.tracker.console, workers=[0], world_size=2, attempt=1,
        wall_s=0.0, started=time.monotonic(), counters=saved,
    )  # fmt: skip
    for report in told:
        tracker.add(report)
    tracker.catch_up(line)
    for name in ("returns", "lengths", "episodes", "next_episode", "rows", "losses"):
        assert tracker.saver.boundary.counters[name] == expected[name], name
    assert len(run.lines()) == 3 and tracker.counters.pending_rollouts == 0
    tracker.files.close()


def test_a_worker_is_handed_over_where_it_stands(run: Run) -> None:
    run.iterate()
    states, row, first_free = run.tracker.hand_over(0)
    other = make_parts()
    assert other.collector.restore(states, row, first_free, time.monotonic() + 60) == []
    first = run.places[0].collector.first_observation()
    np.testing.assert_array_equal(other.collector.first_observation(), first)
    run.tracker.add(other.rollout() and other.reports[-1])
    run.state.finish_iteration(32, 0.0)
    run.tracker.close({})
    saved = run.tracker.saver.boundary.replays[0].states()
    third = make_parts()
    assert third.collector.restore({e.env: e for e in saved[1]}, saved[0], 99, time.monotonic() + 60) == []
    assert run.tracker.hand_over(5)[:2] == ({}, saved[0]), "of one that is not known: nothing"


# -- how a run ends --------------------


def assign_roles(values: Sequence[float], first: int = 0, row: int = 0) -> list[Episode]:
    """One episode of each environment from `first` on."""
    return [episode(value, row, first + i) for i, value in enumerate(values)]


def test_the_target_is_reached_by_a_full_window_only(tmp_path: Path) -> None:
    run = Run(tmp_path, target_return=5.0, num_envs=100)
    assert run.iterate(assign_roles([9.0] * 99)) is None
    assert run.iterate(assign_roles([9.0], 99, row=16)) == "target"
    assert run.summary()["exit"] == "target"


def test_a_mean_just_below_the_target_is_not_enough(tmp_path: Path) -> None:
    run = Run(tmp_path, target_return=5.0, num_envs=100)
    assert run.iterate(assign_roles([4.999] * 100)) is None
    assert run.iterate(assign_roles([5.05], row=16)) is None
    assert run.iterate(assign_roles([5.0] * 99, 1, row=32)) == "target"


def resumed(run: Run) -> Plan | Summary:
    """What a resume would do."""
    config = replace(run.config, run_dir=str(run.run_dir), resume=True)
    return plan_run(config, 1 + len(run.places), Console(60.0, enabled=False))


def test_a_target_is_not_decided_before_every_environment_has_ended_an_episode(tmp_path: Path) -> None:
    """However many the others have ended; of two workers, the last environment of the second is late."""
    run = Run(tmp_path, target_return=5.0, num_envs=60, workers=2)
    for number in range(3):
        for place in run.places:
            first = place.collector.first_env
            run.collect(place, assign_roles([9.0] * (60 - (first > 0)), first, row=16 * number))
        run.state.finish_iteration(0, 0.0)
        assert run.tracker.close({}) is None
    assert run.lines()[-1]["return_mean_100"] == 9.0
    assert run.lines()[-1]["return_mean_100_settled"] is None
    run.tracker.saver.finish("preempted")
    first = run.saved()
    assert isinstance(resumed(run), Plan)
    again = Run(tmp_path, target_return=5.0, num_envs=60, workers=2, saved=first)
    for place in again.places:
        last = place.collector.first_env > 0
        again.collect(place, assign_roles([9.0], 119, row=48) if last else [])
    again.state.finish_iteration(0, 0.0)
    assert again.tracker.close({}) == "target"
    assert again.lines()[-1]["return_mean_100_settled"] == 9.0
    ended = resumed(again)
    assert isinstance(ended, Summary) and ended.exit == "target"


def test_an_environment_that_never_ends_is_named_where_it_keeps_a_target_from_being_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, target_return=5.0, num_envs=60, total_steps=10**6)
    for number in range(30):
        run.iterate(assign_roles([9.0 if number > 20 else 1.0] * 59, row=16 * number))
    told = capsys.readouterr().err
    run.tracker.files.close()
    assert told.count("environment 59 (worker 0) has been in one episode since iteration 1") == 1


def test_the_run_ends_at_the_first_boundary_at_or_past_its_steps(tmp_path: Path) -> None:
    """32 steps an iteration."""
    for total, iterations in ((64, 2), (65, 3)):
        run = Run(tmp_path / str(total), total_steps=total)
        reasons = [run.iterate() for _ in range(iterations)]
        assert reasons == [None] * (iterations - 1) + ["finished"]
        assert run.summary()["exit"] == "finished"
        assert run.summary()["env_steps"] == 32 * iterations
        assert run.saved().env_steps == 32 * iterations


def test_a_target_reached_with_the_last_step_is_a_target(tmp_path: Path) -> None:
    run = Run(tmp_path, total_steps=1600, target_return=1.0, num_envs=100)
    assert run.iterate(assign_roles([2.0] * 100)) == "target"


def test_a_request_to_leave_is_granted_at_the_next_boundary(run: Run) -> None:
    assert run.iterate() is None
    run.preemption.request("SIGUSR1")
    assert run.iterate() == "preempted"
    assert run.summary()["exit"] == "preempted"
    assert run.saved().iteration == 2


def test_the_summary_is_there_from_the_start(run: Run) -> None:
    summary = run.summary()
    assert (summary["exit"], summary["env_steps"], summary["attempt"], summary["world_size"]) == ("running", 0, 1, 2)
    keys = {"env_steps", "updates", "episodes", "return_mean_100", "wall_s", "train_s", "steps_per_s", "exit"}
    assert keys <= set(summary)
    assert summary["env"] == "CartPole-v1"
    assert asdict(run.tracker.saver.summary) == summary


# -- going on --------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", probe("Truncation"), probe("Bits")])
@pytest.mark.parametrize("stops", [[3], [1, 2], [2, 4]], ids=str)
def test_a_resumed_run_has_the_lines_and_checkpoints_of_one_that_never_stopped(
    tmp_path: Path, env: str, stops: list[int]
) -> None:
    """Stopped twice in the second and third case, the actions of the first attempt being needed by the third."""
    changes: dict[str, Any] = {"env": env, "workers": 2, "horizon": 7, "ppo": PPOConfig(minibatches=1)}
    whole = Run(tmp_path / "whole", **changes)
    for _ in range(6):
        whole.iterate()
    whole.tracker.saver.finish("preempted")

    part = Run(tmp_path / "parts", **changes)
    for number in range(6):
        if number in stops:
            part.tracker.saver.finish("preempted")
            part = Run(tmp_path / "parts", saved=part.saved(), **changes)
        part.iterate()
    part.tracker.saver.finish("preempted")
    assert without_clocks(part.lines()) == without_clocks(whole.lines())
    first, second = whole.saved(), part.saved()
    assert first.counters["returns"] == second.counters["returns"]
    assert first.state["numbers"] == second.state["numbers"]
    for rank in (1, 2):
        assert first.ranks[rank][0] == second.ranks[rank][0]
        for a, b in zip(first.ranks[rank][1], second.ranks[rank][1], strict=True):
            for name in type(a).__slots__:
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_run_may_go_on_with_another_number_of_workers(tmp_path: Path) -> None:
    """Environments go by their global numbers: one worker, then three, then two; what is saved is always whole."""
    run, expected = Run(tmp_path, workers=1), {0, 1}
    for workers in (3, 2, 2):
        for _ in range(3):
            run.iterate()
        run.tracker.saver.finish("preempted")
        saved = run.saved()
        states = [e for _, envs in saved.ranks.values() for e in envs]
        assert {e.env for e in states} == expected
        assert {len(e.actions) for e in states} != {0}
        run, expected = Run(tmp_path, workers=workers, saved=saved), set(range(2 * workers))
    run.tracker.files.close()


def test_episode_numbers_of_dropped_environments_are_remembered(tmp_path: Path) -> None:
    """Should they come back, they begin above every number that was used: no seed is played twice."""
    run = Run(tmp_path, workers=3)
    for _ in range(3):
        run.iterate()
    run.tracker.saver.finish("preempted")
    wide = run.saved()
    used = max(e.episode for _, envs in wide.ranks.values() for e in envs)
    assert wide.counters["next_episode"] == used + 1
    narrow = Run(tmp_path, workers=1, saved=wide)
    narrow.iterate()
    narrow.tracker.saver.finish("preempted")
    assert narrow.saved().counters["next_episode"] > used


def test_stopped_again_before_its_first_report_a_run_stands_where_it_stood(tmp_path: Path) -> None:
    run = Run(tmp_path, workers=2)
    for _ in range(3):
        run.iterate()
    run.tracker.saver.finish("preempted")
    first = run.saved()
    again = Run(tmp_path, workers=2, saved=first)
    again.tracker.saver.finish("preempted")
    for rank, (row, envs) in again.saved().ranks.items():
        assert row == first.ranks[rank][0] == 48
        for a, b in zip(envs, first.ranks[rank][1], strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)
            assert (a.env, a.episode, a.episode_return) == (b.env, b.episode, b.episode_return)
    assert again.saved().counters == first.counters


def without_clocks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "_per_s"))} for line in lines]


def test_seconds_of_training_add_up_over_attempts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.iterate()
    time.sleep(0.05)
    run.iterate()
    run.tracker.saver.finish("preempted")
    first = run.summary()["train_s"]
    assert first > 0.05
    again = Run(tmp_path, saved=run.saved())
    again.iterate()
    assert first < again.lines()[-1]["train_s"] < first + 0.05 + again.lines()[-1]["iteration_s"]
    again.tracker.saver.finish("preempted")
    assert again.summary()["attempt"] == 2


def test_an_episode_that_a_resume_cuts_is_in_no_figure_but_that_of_the_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Episodes of 25 rows, each worth 25; stopped in row 40, of a native form and without time to replay."""
    for name, vectorization in (("late", "sync"), ("native", "native")):
        changes: dict[str, Any] = {"env": "Lasting-v0", "vectorization": vectorization, "horizon": 20, "workers": 2}
        run = Run(tmp_path / name, **changes)
        for _ in range(2):
            run.iterate()
        run.tracker.saver.finish("preempted")
        again = Run(tmp_path / name, saved=run.saved(), restored=False, **changes)
        for place in again.places:
            states = {e.env: e for _, envs in run.saved().ranks.values() for e in envs}
            assert place.collector.restore(states, 40, 10_000, -1.0) != []
        for _ in range(3):
            again.iterate()
        assert [line["return_mean_100"] for line in again.lines()] == [None, 25.0, 25.0, 25.0, 25.0]
        assert {line["return_mean_100_settled"] for line in again.lines()} == {None, 25.0}
        assert [line["episodes_cut"] for line in again.lines()] == [0, 0, 4, 4, 4]
        assert again.lines()[-1]["episodes"] == 4 + 8
        told = capsys.readouterr().err
        assert told.count("4 episode(s) could not be restored and are left out of all figures") == 1
        assert "not those of a run that was never stopped" in told
        again.tracker.files.close()


class Lasting(gymnasium.Env[np.ndarray, Any]):
    """25 steps, each worth 1."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.full(1, self.time / 25, np.float32), 1.0, self.time == 25, False, {}


class LastingTogether(gymnasium.vector.SyncVectorEnv):
    """Its native form: Gymnasium's own, which resets in the step after an end."""

    def __init__(self, num_envs: int = 1) -> None:
        super().__init__([Lasting] * num_envs)


lasting: Any = Lasting
together: Any = LastingTogether
gymnasium.register("Lasting-v0", lasting, vector_entry_point=together)


def test_iterations_after_the_checkpoint_are_written_again_and_once(tmp_path: Path) -> None:
    """Killed after iteration 5, the last checkpoint being of iteration 4."""
    run = Run(tmp_path, checkpoint=CheckpointConfig(every=128))
    for _ in range(5):
        run.iterate()
        wait_for_checkpoints(run)
    saved = run.saved()
    assert saved.iteration == 4
    again = Run(tmp_path, saved=saved)
    for _ in range(2):
        again.iterate()
    assert [line["iteration"] for line in again.lines()] == [1, 2, 3, 4, 5, 6]
    for each in (run, again):
        each.tracker.files.close()


def test_a_replacement_starts_beyond_all_rows_that_were_counted(run: Run) -> None:
    """The dead worker was ahead, and its replay went with the server."""
    run.iterate()
    run.tracker.counters.rows[5] = 1000
    _, row, _ = run.tracker.hand_over(5)
    assert row == 1000


# -- recorders --------------------


class Stopping(Recorder):
    """Asks to stop in an iteration, or at an evaluation."""

    def __init__(self, iteration: int = 0) -> None:
        self.at = iteration
        self.lines: list[dict[str, Any]] = []

    def iteration(self, line: dict[str, Any]) -> bool:
        self.lines.append(line)
        return line["iteration"] == self.at

    def evaluation(self, line: dict[str, Any]) -> bool:
        return True


def test_a_recorder_hears_the_lines_of_metrics_and_may_end_the_run(run: Run) -> None:
    recorder = Stopping(iteration=2)
    run.tracker.files.recorders.add(recorder)
    assert [run.iterate(), run.iterate()] == [None, "finished"]
    assert [line["iteration"] for line in recorder.lines] == [1, 2]
    assert {**recorder.lines[1]} == run.lines()[1]
    ended = run.summary()
    assert (ended["exit"], ended["stopped_by"], ended["env_steps"]) == ("finished", "Stopping", 64)
    assert run.saved().iteration == 2


def test_after_an_evaluation_the_run_ends_with_the_next_iteration(run: Run) -> None:
    run.tracker.files.recorders.add(Stopping())
    assert run.iterate() is None
    run.tracker.files.recorders.evaluation({"env_steps": 16, "return_mean": 1.0})
    assert run.iterate() == "finished" and run.summary()["stopped_by"] == "Stopping"


def test_a_run_that_ends_anyway_was_not_stopped_by_a_recorder(tmp_path: Path) -> None:
    run = Run(tmp_path, total_steps=16)
    run.tracker.files.recorders.add(Stopping(iteration=1))
    assert run.iterate() == "finished" and run.summary()["stopped_by"] is None


def test_metrics_are_the_same_with_recorders_that_fail_and_without(tmp_path: Path) -> None:
    texts = []
    for name in ("with", "without"):
        run = Run(tmp_path / name)
        if name == "with":
            run.tracker.files.recorders.add(Stopping(), Failing())
        for _ in range(3):
            run.iterate()
        run.tracker.files.close()
        texts.append([{k: v for k, v in line.items() if not k.endswith(("_s", "_per_s"))} for line in run.lines()])
    assert texts[0] == texts[1]


class Failing(Recorder):
    def iteration(self, line: dict[str, Any]) -> None:
        line.clear()
        raise OSError("my disk is full")
