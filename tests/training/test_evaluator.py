"""The process beside rank 0: what it plays, what it says, and that it ends when it should."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dppo.cluster.processes import stat
from dppo.config import Config, EvalConfig, LogConfig
from dppo.evaluate import play_episodes
from dppo.rundir.evaluations import write_evaluated
from dppo.seeding import evaluation_seed
from dppo.settings.toml import load_config, to_toml
from dppo.training.evaluation_queue import PlayingError
from dppo.training.evaluator import PlayingProcess, serve
from dppo.training.played import figures
from dppo.training.policy import load_policy
from tests.parts import make_parts, save
from tests.training.test_playing import no_comm

FIGURES = {"return_mean", "return_median", "return_min", "return_max", "return_std", "length_mean", "episodes", "cut"}


def ask(run_dir: Path, *env_steps: int, episodes: int = 3) -> list[dict[str, Any]]:
    """The answers of the process's half to these requests, in this process."""
    requests = b"".join(json.dumps({"env_steps": steps}).encode() + b"\n" for steps in env_steps)
    answers = io.BytesIO()
    serve(run_dir, episodes, no_comm, io.BytesIO(requests), answers)
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    return [answer for answer in told if "steps" not in answer]


def test_the_figures_are_those_of_an_evaluation_of_its_seed(pendulum: Path) -> None:
    first, again = (answer["figures"] for answer in ask(pendulum, 1234, 1234))
    config = load_config(pendulum)
    expected = figures(play_episodes(load_policy(pendulum), 3, evaluation_seed(config.seed)))
    assert set(first) == {*FIGURES, "seconds_s"} and first.pop("seconds_s") > 0 and again.pop("seconds_s") > 0
    assert first == again and first["return_mean"] == expected["mean"] and first["length_mean"] == 200
    assert (first["episodes"], first["cut"]) == (3, 0)


def test_each_case_plays_its_episodes(tmp_path: Path) -> None:
    cases = ({"name": "light", "env_kwargs": {"g": 5.0}}, {"name": "heavy", "env_kwargs": {"g": 15.0}})
    run = save(make_parts(env="Pendulum-v1", cases=cases), tmp_path / "run")
    (answer,) = ask(run, 1234, episodes=2)
    by_case = answer["figures"]["cases"]
    assert list(by_case) == ["light", "heavy"] and set(by_case["light"]) == FIGURES
    assert answer["figures"]["episodes"] == 4 and by_case["heavy"]["episodes"] == 2
    assert by_case["light"]["return_mean"] != by_case["heavy"]["return_mean"]


def test_what_cannot_be_repaired_by_another_try_is_said(cartpole: Path) -> None:
    (answer,) = ask(cartpole, 77)
    assert "has no checkpoint of 77 steps" in answer["refused"]
    (cartpole / "config.toml").write_text(to_toml(replace(load_config(cartpole), env="Nothing-v0")))
    (answer,) = ask(cartpole, 1234)
    assert "Nothing-v0" in answer["refused"]


# -- as a process --------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[PlayingProcess]:
    """Of a run with one checkpoint that waits, at 1234 steps."""
    place = make_parts(env="CartPole-v1")
    run = save(place, tmp_path / "run")
    write_evaluated(run, place.state.as_dict())
    process = PlayingProcess(run, Config(eval=EvalConfig(every=100, episodes=3)))
    yield process
    process.close()


CHECKPOINT = Path("step_000001234")


def wait_for(process: PlayingProcess) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (result := process.result(0.1)) is None:
        assert time.monotonic() < deadline
    return result


def has_ended(pid: int) -> bool:
    return stat(pid)[:1] in ([], ["Z"])


def until_ended(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_plays_comes_last_and_ends_when_it_is_told_to(process: PlayingProcess) -> None:
    assert process.pid is None, "it starts for the first evaluation"
    process.begin(CHECKPOINT)
    pid = process.pid
    assert process.is_busy and pid is not None
    assert set(wait_for(process)) == {*FIGURES, "seconds_s"}
    assert not process.is_busy and os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert os.getpgid(pid) == pid and os.getsid(pid) == os.getsid(0)
    os.kill(pid, signal.SIGTERM)  # as a batch system sends it to all processes of a job
    process.begin(CHECKPOINT)
    wait_for(process)
    assert process.pid == pid
    process.close()
    assert has_ended(pid)


def test_one_that_is_killed_is_told_and_started_again(process: PlayingProcess) -> None:
    process.begin(CHECKPOINT)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(PlayingError, match=r"its process has ended \(signal 9\)") as error:
        wait_for(process)
    assert not error.value.is_final
    process.begin(CHECKPOINT)
    assert wait_for(process)["episodes"] == 3


def test_the_last_words_of_one_that_fails_are_shown(process: PlayingProcess) -> None:
    """A checkpoint's network that does not fit raises what nobody expects."""
    (process._run_dir / "spaces.json").write_text("[" * 100_000)
    process.begin(CHECKPOINT)
    with pytest.raises(PlayingError) as error:
        wait_for(process)
    assert str(error.value).strip()


def test_one_that_does_not_come_back_is_ended(tmp_path: Path) -> None:
    run = save(make_parts(env="CartPole-v1"), tmp_path / "run")
    process = PlayingProcess(run, Config(log=LogConfig(stall_abort_s=0.3), eval=EvalConfig(every=1)))
    process.begin(CHECKPOINT)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(PlayingError, match=r"made no progress for 0.3 s \(--log.stall-abort-s\)"):
        wait_for(process)
    assert has_ended(pid) and process.pid is None


def test_it_ends_with_rank_0(process: PlayingProcess) -> None:
    """However rank 0 ends: here by SIGKILL."""
    program = f"""if True:
        import sys
        from pathlib import Path
        from dppo.config import Config, EvalConfig
        from dppo.training.evaluator import PlayingProcess
        process = PlayingProcess(Path({str(process._run_dir)!r}), Config(eval=EvalConfig(every=1)))
        process.begin(Path("step_000001234"))
        print(process.pid, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None
        pid = int(rank.stdout.readline())
        assert not has_ended(pid)
        rank.kill()
    until_ended(pid)
