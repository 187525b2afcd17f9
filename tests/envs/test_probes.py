"""Every probe has the values that it says, is deterministic, and fails where it should."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dppo.envs import probes
from dppo.envs.vector import make_vector_env

NAMES = [probe.__name__ for probe in probes.TIME_LIMITS]
LASTING = [name for name in NAMES if name != "ProbeHang"]

Policy = Callable[[np.ndarray], Any]


def make(name: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(f"dppo/{name}-v0", **kwargs)


def episode(env: gymnasium.Env[Any, Any], policy: Policy, seed: int) -> tuple[list[float], bool, bool]:
    """Rewards of one episode, and how it ended."""
    observation, _ = env.reset(seed=seed)
    rewards: list[float] = []
    terminated = truncated = False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        rewards.append(float(reward))
    return rewards, terminated, truncated


def copy_targets(observation: np.ndarray) -> np.ndarray:
    return np.array([observation[:3].argmax(), observation[3:].argmax()])


OPTIMAL: list[tuple[str, Policy, list[float]]] = [
    ("ProbeConstant", lambda observation: 0, [1.0]),
    ("ProbeAction", lambda observation: 1, [1.0]),
    ("ProbeContext", lambda observation: int(observation[0] > 0), [1.0]),
    ("ProbeCopy", copy_targets, [1.0]),
    ("ProbeBits", lambda observation: observation.astype(np.int8), [1.0]),
    ("ProbeTarget", lambda observation: observation, [0.0]),
    ("ProbeDiscount", lambda observation: 0, [0.0, 1.0]),
    ("ProbeCorridor", lambda observation: 1, [-0.1, -0.1, -0.1, 1.0]),
]


@pytest.mark.parametrize(("name", "policy", "rewards"), OPTIMAL)
def test_the_optimal_policy_earns_the_optimal_value(name: str, policy: Policy, rewards: list[float]) -> None:
    env = make(name)
    for seed in range(20):
        assert episode(env, policy, seed) == (rewards, True, False)


WRONG: list[tuple[str, Policy, float]] = [
    ("ProbeAction", lambda observation: 0, -1.0),
    ("ProbeContext", lambda observation: int(observation[0] < 0), -1.0),
    ("ProbeCopy", lambda observation: (copy_targets(observation) + np.array([1, 0])) % [3, 4], 0.5),
    ("ProbeTarget", lambda observation: observation + 0.5, -0.25),
]


@pytest.mark.parametrize(("name", "policy", "value"), WRONG)
def test_a_wrong_policy_earns_what_it_deserves(name: str, policy: Policy, value: float) -> None:
    env = make(name)
    for seed in range(20):
        assert episode(env, policy, seed)[0] == pytest.approx([value], abs=1e-6)


def test_each_wrong_bit_costs_a_quarter() -> None:
    env = make("ProbeBits")
    for wrong in range(5):
        bits, _ = env.reset(seed=wrong)
        _, reward, _, _, _ = env.step(np.abs(bits - (np.arange(4) < wrong)))
        assert reward == 1.0 - wrong / 4


def test_the_reward_of_probe_observation_is_its_observation() -> None:
    env = make("ProbeObservation")
    seen = set()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        _, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert terminated
        assert reward == observation[0]
        seen.add(reward)
    assert seen == {-1.0, 1.0}


def test_probe_truncation_is_only_cut() -> None:
    assert episode(make("ProbeTruncation"), lambda observation: 0, 0) == ([1.0] * 10, False, True)


def test_the_corridor_has_a_wall_and_a_time_limit() -> None:
    rewards, terminated, truncated = episode(make("ProbeCorridor"), lambda observation: 0, 0)
    assert (rewards, terminated, truncated) == ([-0.1] * 20, False, True)


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_the_corridors_formula_is_its_discounted_return(gamma: float) -> None:
    rewards, _, _ = episode(make("ProbeCorridor"), lambda observation: 1, 0)
    for cell in range(4):
        value = sum(reward * gamma**k for k, reward in enumerate(rewards[cell:]))
        k = 3 - cell
        assert value == pytest.approx(gamma**k - 0.1 * (1 - gamma**k) / (1 - gamma))


def test_probe_slow_takes_its_time() -> None:
    env = make("ProbeSlow", step_s=0.0)
    assert episode(env, lambda observation: 0, 0) == ([1.0] * 50, False, True)
    assert probes.ProbeSlow().step_s == 0.005


def test_probe_crash_raises_at_its_step() -> None:
    env = make_vector_env("dppo/ProbeCrash-v0", 2, lambda index: index)
    env.reset()
    for _ in range(99):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(RuntimeError, match="probe: simulated bug in the environment"):
        env.step(np.zeros(2, np.int64))


def test_probe_nan_observes_nan_at_its_step_only() -> None:
    env = make("ProbeNaN", at=3)
    env.reset(seed=0)
    assert [bool(np.isnan(env.step(0)[0]).any()) for _ in range(5)] == [False, False, True, False, False]


def test_probe_hang_never_returns() -> None:
    code = """if True:
        from dppo.envs.probes import ProbeHang
        env = ProbeHang(at=2)
        env.reset()
        env.step(0)
        print("stepped once", flush=True)
        env.step(0)
    """
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"stepped once\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
        finally:
            process.kill()


@pytest.mark.parametrize("name", LASTING)
def test_gymnasium_accepts_it(name: str) -> None:
    env = make(name) if name != "ProbeSlow" else make(name, step_s=0.0)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_by_its_full_id_and_repeats_by_its_seed(name: str) -> None:
    streams = []
    for _ in range(2):
        env = make_vector_env(f"dppo.envs.probes:dppo/{name}-v0", 3, lambda index: 10 + index)
        env.action_space.seed(0)
        rows: list[Any] = [env.reset().tolist()]
        for _ in range(12):
            step = env.step(np.stack([np.array(env.action_space.sample()) for _ in range(3)]))
            rows += [step.observations.tolist(), step.rewards.tolist(), step.final_observations.tolist()]
        streams.append(rows)
    assert streams[0] == streams[1]
