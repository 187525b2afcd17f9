"""Evaluation: the saved policy, its frozen moments, whole episodes, the same for the same seed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dppo
from dppo.errors import UsageError
from dppo.evaluate import main, play_episodes, record
from dppo.rundir.spaces import write_spaces
from dppo.seeding import EpisodeSeeds, Purpose
from dppo.settings.toml import to_toml
from dppo.training.played import Played
from dppo.training.playing import MAX_STEPS
from dppo.training.policy import load_policy
from tests.envs import sims_of_others
from tests.herd import Herd
from tests.parts import make_parts, save


def test_load_policy_is_part_of_the_package(cartpole: Path) -> None:
    assert dppo.load_policy(str(cartpole)).env_steps == 1234


# -- episodes --------------------


def play(policy: Any, env: str, seed: int) -> tuple[float, int]:
    """One greedy episode in a single environment: the oracle."""
    single = gymnasium.make(env)
    observation, _ = single.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while not ended:
        observation, reward, terminated, truncated, _ = single.step(policy.act(observation))
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return total, length


def test_returns_and_lengths_are_those_of_single_environments(cartpole: Path) -> None:
    """23 episodes over 20 environments: the first three play two each, however long the others' take."""
    policy = load_policy(cartpole)
    played = [(p.episode_return, p.length) for p in play_episodes(policy, 23, seed=5)]
    seeds = EpisodeSeeds(5, 0, 20, Purpose.EVALUATION)
    expected = [play(policy, "CartPole-v1", seeds.of(i, e)) for i in range(20) for e in range(2 if i < 3 else 1)]
    assert played == expected


def play_agents(policy: Any, seed: int, max_steps: int = MAX_STEPS) -> list[Played]:
    """One greedy episode of all agents of a herd, by hand: what each of them has played."""
    herd = Herd()
    observations, _ = herd.reset(seed)
    returns, lengths, ended = np.zeros(3), np.zeros(3, int), np.zeros(3, bool)
    for _ in range(max_steps):
        there = [herd.possible_agents.index(a) for a in herd.agents]
        actions = policy.act(np.stack([observations[f"cow_{i}"] for i in there])) if there else ()
        observations, rewards, *_ = herd.step({f"cow_{i}": a for i, a in zip(there, actions, strict=True)})
        for i in there:
            returns[i], lengths[i] = returns[i] + rewards[f"cow_{i}"], lengths[i] + 1
            ended[i] = f"cow_{i}" not in herd.agents
    return [Played(float(r), int(n), bool(e)) for r, n, e in zip(returns, lengths, ended, strict=True)]


@pytest.mark.parametrize("max_steps", [4, 20])
def test_each_agents_episode_is_an_episode(max_steps: int, tmp_path: Path) -> None:
    """Seven episodes of simulators of three agents: the first seven of nine agents play one each."""
    place = make_parts(env="tests.herd:Herd", num_envs=6)
    policy = load_policy(save(place, tmp_path / "run"))
    seeds = EpisodeSeeds(5, 0, 9, Purpose.EVALUATION, agents=3)
    expected = [played for s in range(3) for played in play_agents(policy, seeds.of(3 * s, 0), max_steps)]
    assert play_episodes(policy, 7, 5, max_steps=max_steps) == expected[:7]
    assert any(not played.ended for played in expected) == (max_steps == 4)
    with pytest.raises(UsageError, match=r"no video of tests\.herd:Herd: .*not of agents of a simulator"):
        record(policy, 1, 0, tmp_path / "videos", stochastic=False)


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_same_seed_gives_the_same_episodes(cartpole: Path, stochastic: bool) -> None:
    policy = load_policy(cartpole)
    first, again, other = (play_episodes(policy, 7, seed, stochastic=stochastic) for seed in (1, 1, 2))
    assert first == again != other


# -- episodes that do not end --------------------


class Seldom(gymnasium.Env[np.ndarray, Any]):
    """-1 a step. Every second episode ends after 5 steps, the others never."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.zeros(1, np.float32), -1.0, self.time == 5 and self.ends(), False, {}

    def ends(self) -> bool:
        return self.episode % 2 == 1


class Never(Seldom):
    def ends(self) -> bool:
        return False


class Fragile(Seldom):
    """Fails in the third step of every other episode or so; its seed decides."""

    def ends(self) -> bool:
        return True

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.time == 2 and self.np_random.random() < 0.5:
            raise RuntimeError("the solver diverged")
        return super().step(action)


seldom: Any = Seldom
never: Any = Never
fragile: Any = Fragile
gymnasium.register("Fragile-v0", fragile)
gymnasium.register("Seldom-v0", seldom)
gymnasium.register("Never-v0", never)


def run_of(env: str, folder: Path) -> Path:
    return save(make_parts(env=env), folder)


def test_an_episode_that_does_not_end_is_cut_and_reported_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(run_of("Seldom-v0", tmp_path / "run"))
    assert main([folder, "--episodes", "50", "--max-steps", "40", "--json"]) == 0
    told = capsys.readouterr()
    out = json.loads(told.out)
    assert (out["mean"], out["min"], out["max"], out["length_mean"]) == (-5, -5, -5, 5)
    assert {k: out[k] for k in ("episodes", "ended", "cut", "cut_return_mean", "max_steps")} == {
        "episodes": 50, "ended": 30, "cut": 20, "cut_return_mean": -40, "max_steps": 40,
    }  # fmt: skip
    assert "20 of 50 episodes did not end within 40 steps (--max-steps)" in told.err and "-40.00" in told.err
    policy = load_policy(folder)
    played = play_episodes(policy, 50, max_steps=40)
    assert [p for p in played if p.ended] == [Played(-5.0, 5, True)] * 30
    assert [p for p in played if not p.ended] == [Played(-40.0, 40, False)] * 20
    assert play_episodes(policy, 3, max_steps=40) == [Played(-5.0, 5, True)] * 3


def test_an_environment_that_fails_is_made_anew_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its episode counts as cut, with its return until there; without restarts its error ends the evaluation."""
    run = save(make_parts(env="Fragile-v0", on_env_error="restart"), tmp_path / "run")
    played = play_episodes(load_policy(run), 50)
    whole, broken = Played(-5.0, 5, ended=True), Played(-2.0, 3, ended=False)
    assert len(played) == played.count(whole) + played.count(broken) and 15 < played.count(whole) < 35
    assert main([str(run), "--episodes", "50", "--json"]) == 0
    told = capsys.readouterr()
    out = json.loads(told.out)
    assert (out["ended"], out["mean"], out["cut_return_mean"]) == (played.count(whole), -5, -2)
    assert "or their environment failed" in told.err and "the solver diverged" in told.err
    with pytest.raises(RuntimeError, match="the solver diverged"):
        play_episodes(load_policy(run_of("Fragile-v0", tmp_path / "abort")), 50)


def test_an_episode_that_ends_at_the_limit_has_ended(cartpole: Path) -> None:
    policy = load_policy(cartpole)
    free = play_episodes(policy, 30)
    limit = sorted(p.length for p in free)[15]
    expected = [p if p.length <= limit else Played(limit, limit, ended=False) for p in free]
    assert play_episodes(policy, 30, max_steps=limit) == expected
    assert {p.ended for p in expected} == {True, False}


def test_where_none_ends_there_are_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run_of("Never-v0", tmp_path / "run"))
    assert main([folder, "--episodes", "3", "--max-steps", "40", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["mean"], out["std"], out["ended"], out["cut"]) == (None, None, 0, 3)
    assert main([folder, "--episodes", "3", "--max-steps", "40"]) == 0
    told = capsys.readouterr()
    assert "returns of 0 greedy episodes" in told.out and "3 of 3 episodes did not end" in told.err


def test_the_limit_has_a_default_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"(default: {MAX_STEPS})" in " ".join(capsys.readouterr().out.split())


def test_whoever_waits_sees_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file a line every 10 s, from the third second on; standard output stays as it is."""
    now = [0.0]

    def later() -> float:
        now[0] += 0.1
        return now[0]

    folder = str(run_of("Never-v0", tmp_path / "run"))
    monkeypatch.setattr(time, "monotonic", later)
    assert main([folder, "--episodes", "2", "--max-steps", "300", "--json"]) == 0
    told = capsys.readouterr()
    lines = told.err.splitlines()[:-1]
    assert 3 <= len(lines) <= now[0] / 10 + 1
    assert all(line.startswith("0 of 2 episodes, ") and "at 300 it is cut (--max-steps)" in line for line in lines)
    assert told.out.count("\n") == 1


# -- the command --------------------


def test_json_is_one_object_with_the_promised_keys(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cartpole), "--episodes", "12", "--seed", "3", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    returns, lengths, _ = zip(*play_episodes(load_policy(cartpole), 12, 3), strict=True)
    assert out["mean"] == pytest.approx(np.mean(returns))
    assert out["median"] == pytest.approx(np.median(returns))
    assert (out["min"], out["max"]) == (min(returns), max(returns))
    assert out["length_mean"] == pytest.approx(np.mean(lengths))
    assert (out["episodes"], out["seed"], out["env"], out["env_steps"]) == (12, 3, "CartPole-v1", 1234)


def test_the_command_says_the_same_in_a_process_of_its_own(cartpole: Path) -> None:
    command = [sys.executable, "-m", "dppo.evaluate", str(cartpole), "--episodes", "12", "--seed", "3", "--json"]
    out = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert out["mean"] == pytest.approx(
        np.mean([p.episode_return for p in play_episodes(load_policy(cartpole), 12, 3)])
    )


def test_without_json_it_is_a_table(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cartpole), "--episodes", "3", "--stochastic"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in ("mean", "median", "min", "max", "3 stochastic episodes", "1,234 steps"):
        assert word in out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--episodes", "0"], "--episodes 0 must be at least 1"),
        (["--seed", "-1"], "--seed -1 must lie in"),
        (["--max-steps", "0"], "--max-steps 0 must lie in [1, 1e+09]"),
        (["--max-steps", str(10**10)], "must lie in [1, 1e+09]"),
        (["--seed", str(2**63)], "must lie in"),
    ],
    ids=str,
)
def test_wrong_flags_are_one_message_and_code_2(
    cartpole: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    assert main([str(cartpole), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err and captured.err.count("\n") == 1


def test_what_is_no_run_is_said_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run: there is no config.toml in it" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text(to_toml(make_parts().config))
    assert main([str(tmp_path)]) == 2
    assert "has no valid checkpoint: there is none" in capsys.readouterr().err


def test_an_environment_that_is_gone_or_has_changed_is_said(cartpole: Path) -> None:
    config = make_parts(env="CartPole-v1").config
    for env, message in (("Gone-v0", "no environment 'Gone-v0'"), ("Pendulum-v1", "the checkpoint holds a network of")):
        (cartpole / "config.toml").write_text(to_toml(replace(config, env=env)))
        with pytest.raises(UsageError, match=message):
            load_policy(cartpole)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Gone-v0", "no environment 'Gone-v0'"),
        ("no_such_module:Gone-v0", "cannot import 'no_such_module'"),
        ("Pendulum-v1", "Pendulum-v1 observes"),
    ],
)
def test_an_environment_that_cannot_be_played_is_one_message_and_code_2(
    env: str, message: str, cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has the spaces that its policy was trained with."""
    trained = gymnasium.make("CartPole-v1")
    write_spaces(cartpole, trained.observation_space, trained.action_space)
    (cartpole / "config.toml").write_text(to_toml(replace(make_parts(env="CartPole-v1").config, env=env)))
    assert main([str(cartpole), "--episodes", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


class ClosesBadly(gymnasium.Env[Any, Any]):
    """Its episodes have one step; `closing` says what comes of close()."""

    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)
    closing, closed, bug = "", 0, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if ClosesBadly.bug:
            raise RuntimeError("a bug")
        return np.zeros(4, np.float32), 1.0, True, False, {}

    def close(self) -> None:
        ClosesBadly.closed += 1
        if ClosesBadly.closing == "raises":
            raise RuntimeError("the simulator has gone")
        while ClosesBadly.closing == "hangs":
            time.sleep(0.1)


@pytest.mark.parametrize("closing", ["raises", "hangs"])
def test_what_was_played_is_shown_whatever_closing_does(
    closing: str, cartpole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gymnasium.register("ClosesBadly-v0", ClosesBadly)  # type: ignore[arg-type]
    monkeypatch.setattr(ClosesBadly, "closing", closing)
    monkeypatch.setattr("dppo.training.build.close_environments.__defaults__", (0.2,))
    config = replace(make_parts(env="CartPole-v1").config, env="ClosesBadly-v0", vectorization="sync")
    (cartpole / "config.toml").write_text(to_toml(config))
    assert main([str(cartpole), "--episodes", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["mean"] == 1.0 and "close() of an environment" in err
    del gymnasium.registry["ClosesBadly-v0"]


def test_environments_are_closed_after_an_exception(cartpole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("ClosesBadly-v0", ClosesBadly)  # type: ignore[arg-type]
    config = replace(make_parts(env="CartPole-v1").config, env="ClosesBadly-v0", vectorization="sync")
    (cartpole / "config.toml").write_text(to_toml(config))
    monkeypatch.setattr(ClosesBadly, "bug", True)
    policy = load_policy(cartpole)
    monkeypatch.setattr(ClosesBadly, "closed", 0)
    with pytest.raises(RuntimeError, match="a bug"):
        play_episodes(policy, 3)
    assert ClosesBadly.closed == 3
    del gymnasium.registry["ClosesBadly-v0"]


def test_standard_output_has_the_result_alone_whatever_environments_print(tmp_path: Path) -> None:
    run_dir = save(make_parts(env=f"{sims_of_others.__name__}:Talkative"), tmp_path / "talkative")
    command = [sys.executable, "-m", "dppo.evaluate", str(run_dir), "--episodes", "2", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout)["episodes"] == 2
    for printed in ("a licence was found", "the level was rejected", "the solver has started"):
        assert printed in ended.stderr


def test_an_evaluation_makes_the_same_environments_again(tmp_path: Path) -> None:
    policy = load_policy(save(make_parts(env=f"{sims_of_others.__name__}:Drawn"), tmp_path / "drawn"))
    first, again, other = (play_episodes(policy, 3, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_each_case_is_evaluated(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seeds in all cases; a case's figures are those that it has alone."""
    cases = tuple({"name": f"limit{n}", "env_kwargs": {"max_episode_steps": n}} for n in (3, 7))
    config = replace(make_parts(env="CartPole-v1").config, cases=cases)
    (cartpole / "config.toml").write_text(to_toml(config))
    flags = [str(cartpole), "--episodes", "4", "--json"]
    assert main(flags) == 0
    out = json.loads(capsys.readouterr().out)
    assert {name: (case["episodes"], case["mean"]) for name, case in out["cases"].items()} == {
        "limit3": (4, 3.0), "limit7": (4, 7.0),
    }  # fmt: skip
    assert (out["episodes"], out["mean"], out["min"], out["max"]) == (8, 5.0, 3.0, 7.0)
    assert main([*flags, "--case", "limit7"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["cases"] == {"limit7": out["cases"]["limit7"]} and alone["mean"] == 7.0
    assert main(flags[:-1]) == 0
    words = capsys.readouterr().out.split()
    assert [words[words.index(name) + 2] for name in ("limit3", "limit7", "all")] == ["3.00", "7.00", "5.00"]
    assert main([*flags, "--case", "limit9"]) == 2
    assert capsys.readouterr().err == "dppo: there is no case 'limit9': the run has limit3, limit7\n"


def test_a_run_without_cases_has_none(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cartpole), "--case", "hot"]) == 2
    assert "the run has no cases: leave --case out" in capsys.readouterr().err


@pytest.fixture
def tank(tmp_path: Path) -> Path:
    """Of a class that is not registered, with arguments and a wrapper."""
    config: dict[str, Any] = {
        "env_kwargs": {"scale": 3.0, "length": 9},
        "wrappers": (f"{sims_of_others.__name__}:limited",),
    }
    return save(make_parts(env=f"{sims_of_others.__name__}:Tank", **config), tmp_path / "tank")


def test_evaluation_uses_the_arguments_and_wrappers_of_the_run(
    tank: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tank), "--episodes", "3", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["mean"], out["length_mean"], out["ended"]) == (9.0, 3.0, 3), "3 steps of 3.0, until the wrapper's limit"
    (tank / "config.toml").write_text(to_toml(replace(load_policy(tank).config, wrappers=("no_such_module:f",))))
    write_spaces(tank, sims_of_others.Tank.observation_space, sims_of_others.Tank.action_space)
    assert main([str(tank), "--episodes", "3"]) == 2
    assert "wrappers='no_such_module:f': cannot import 'no_such_module'" in capsys.readouterr().err


def test_a_video_shows_the_arguments_and_wrappers_of_the_run(
    tank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("moviepy")
    (video,) = record(load_policy(tank), 1, 0, tmp_path / "videos", stochastic=False)
    assert video.name.startswith("Tank-episode-0")
    from moviepy import VideoFileClip

    with VideoFileClip(str(video)) as clip:
        assert round(clip.duration * clip.fps) == 4, "3 steps, until the wrapper's limit"


def test_a_constructor_that_knows_no_render_mode_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_parts(env=f"{sims_of_others.__name__}:double_tank", env_kwargs={"depth": 1.0})
    run = save(place, tmp_path / "run")
    assert main([str(run), "--episodes", "1", "--video", str(tmp_path / "videos")]) == 2
    assert "no video of tests.envs.sims_of_others:double_tank: " in (said := capsys.readouterr().err)
    assert "it takes no argument 'render_mode'" in said


def test_a_video_is_recorded_by_gymnasium(cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    folder = tmp_path / "videos"
    assert main([str(cartpole), "--episodes", "1", "--json", "--video", str(folder)]) == 0
    videos = json.loads(capsys.readouterr().out)["videos"]
    assert [Path(v).parent for v in videos] == [folder]
    assert Path(videos[0]).stat().st_size > 1000
