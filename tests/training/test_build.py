"""What a rank builds for itself, and how it is closed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dppo.config import Config, EvalConfig, ModelConfig, MomentsConfig, PPOConfig
from dppo.models.gpus import GPU
from dppo.models.policy import make_policy
from dppo.settings.resolve import resolve
from dppo.settings.values import updated
from dppo.training.build import build_parts, close_environments, make_collector
from tests.envs import sims_of_others
from tests.parts import make_parts, probe


class Environments:
    """As far as they are closed."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close


def hang() -> None:
    time.sleep(30)


def hang_stubbornly() -> None:
    while True:
        with contextlib.suppress(Exception):  # as simulators do
            time.sleep(30)


def crash() -> None:
    raise RuntimeError("the simulator has gone")


@pytest.mark.parametrize(
    ("close", "said"),
    [
        (hang, "did not come back within 0.1 s"),
        (hang_stubbornly, "did not come back within 0.1 s"),
        (crash, "raised RuntimeError: the simulator has gone"),
        (lambda: sys.exit(3), "raised SystemExit: 3"),
        (lambda: None, ""),
    ],
)
def test_a_close_that_goes_wrong_is_said_and_keeps_nobody(
    close: Callable[[], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, since = signal.getsignal(signal.SIGALRM), time.monotonic()
    close_environments(Environments(close), 0.1)  # type: ignore[arg-type]
    assert time.monotonic() - since < 5
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said) and all(said in line for line in lines)


def test_another_thread_may_close_them() -> None:
    """There, nobody may handle signals."""
    closed = threading.Event()
    thread = threading.Thread(target=close_environments, args=(Environments(closed.set), 0.1))
    thread.start()
    thread.join()
    assert closed.is_set()


class Counted(gymnasium.Env[Any, Any]):
    """Counts how many are open; the last of them may be impossible to make, or its spaces of no use."""

    open, makeable = 0, 99
    observation_space: Any = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        if Counted.open == Counted.makeable:
            raise RuntimeError("no licence left")
        Counted.open += 1

    def close(self) -> None:
        Counted.open -= 1


gymnasium.register("Counted-v0", Counted)  # type: ignore[arg-type]
CONFIG = resolve(Config(env="Counted-v0", num_envs=3))


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "open", 0)


def test_environments_are_closed_once() -> None:
    place = build_parts(CONFIG, 0)
    assert Counted.open == 3
    place.close()
    place.close()
    assert Counted.open == 0


def test_a_server_keeps_none() -> None:
    build_parts(CONFIG, None)
    assert Counted.open == 0


def test_those_that_were_made_before_one_fails_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "makeable", 2)
    with pytest.raises(ValueError, match="no licence left"):
        build_parts(CONFIG, 0)
    assert Counted.open == 0


def test_those_of_no_use_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "action_space", gymnasium.spaces.Text(5))
    with pytest.raises(ValueError, match="Text"):
        build_parts(CONFIG, 0)
    assert Counted.open == 0


def test_those_whose_observations_cannot_be_taken_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "observation_space", gymnasium.spaces.Text(5))
    with pytest.raises(ValueError, match="Text"):
        build_parts(CONFIG, 0)
    assert Counted.open == 0


def test_where_nothing_can_interrupt_a_close_the_process_ends() -> None:
    """It waits in C for a lock that nobody gives back."""
    code = """if True:
        import ctypes
        from dppo.training import build
        class Stuck:
            def close(self):
                lock = ctypes.create_string_buffer(64)
                pthreads = ctypes.CDLL(None)
                pthreads.pthread_mutex_lock(lock)
                pthreads.pthread_mutex_lock(lock)
        build.LAST_S = 0.2
        build.close_environments(Stuck(), 0.2)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and "close() of an environment does not come back" in done.stderr, done


def test_all_are_closed_where_one_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def close(self: Counted) -> None:
        Counted.open -= 1
        if Counted.open == 1:
            crash()

    monkeypatch.setattr(Counted, "close", close)
    build_parts(CONFIG, 0).close()
    assert Counted.open == 0
    assert "the simulator has gone" in capsys.readouterr().err


# -- the process's own generators --------------------


class Careless(gymnasium.Env[np.ndarray, Any]):
    """Seeds the process's generators when it is made, and draws from all of them."""

    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.draw(), 0.0, False, False, {}

    def draw(self) -> np.ndarray:
        return np.array([random.random(), np.random.random(), float(torch.rand(()))], np.float32)  # noqa: NPY002


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    creator: Any = Careless
    gymnasium.register("Careless-v0", creator)
    yield
    del gymnasium.registry["Careless-v0"]
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def observations(worker: int, seed: int = 3, row: int = 0) -> np.ndarray:
    """[4, 2, 3]: what the policy of `worker` sees, in a run that begins or goes on at `row`."""
    config = resolve(Config(env="Careless-v0", seed=seed, num_envs=2, horizon=4, total_steps=100))
    place = build_parts(config, worker)
    collector = make_collector(config, place, {} if row else None, row)
    return collector.collect(4, 0).observations


def test_workers_see_numbers_of_their_own_and_a_run_repeats() -> None:
    first = observations(0)
    np.testing.assert_array_equal(observations(0), first)
    for other in (observations(1), observations(0, seed=4), observations(0, row=8)):
        assert not np.isin(other, first).any()
    np.testing.assert_array_equal(observations(1), observations(1))


def test_what_a_constructor_draws_repeats_and_differs_by_environment_and_worker() -> None:
    def scales(worker: int, seed: int = 3) -> list[float]:
        config = resolve(Config(env=f"{sims_of_others.__name__}:Drawn", seed=seed, num_envs=2, total_steps=100))
        envs: Any = build_parts(config, worker).envs
        return [env.unwrapped.scale for env in envs._envs]

    drawn = [*scales(0), *scales(1), *scales(0, seed=4)]
    assert len(set(drawn)) == len(drawn)
    assert [*scales(0), *scales(1), *scales(0, seed=4)] == drawn


# -- what cannot fit --------------------

PROBE = "dppo.envs.probes:dppo/ProbeConstant-v0"


def test_rollouts_that_are_larger_than_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(updated(Config(env=PROBE), {"num_envs": 4, "horizon": 10**6, "ppo": {"minibatches": 1}}))
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**5}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    build_parts(config, 0).envs.close()  # type: ignore[union-attr]
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    with pytest.raises(
        ValueError, match=r"horizon\*num_envs=1000000\*4 samples take .* GB on each .* 4 rank\(s\), and it"
    ):
        build_parts(config, 0)
    build_parts(config, None)  # a server that steps nothing


def test_more_minibatches_than_sequences_of_a_network_that_remembers_are_refused() -> None:
    own = ModelConfig(factory="tests.models.test_structured:OnVector")
    config = updated(Config(), {"num-envs": 2, "horizon": 16, "ppo": {"minibatches": 4}})
    with pytest.raises(ValueError, match=r"ppo.minibatches=4 are more than the 2 sequences .*model.sequence=16\)"):
        build_parts(resolve(replace(config, model=own)), 0)
    build_parts(resolve(replace(config, model=replace(own, sequence=8))), 0).close()


def test_a_network_that_is_too_large_is_refused_before_it_is_made() -> None:
    observations = gymnasium.spaces.Box(-1, 1, (10**6,), np.float32)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"makes 16,[0-9,]+ parameters with these spaces, and at most 500,000,000"):
        make_policy(observations, gymnasium.spaces.Discrete(2), ModelConfig(hidden=(8192,)), MomentsConfig(), rng)
    core = ModelConfig(core="gru", core_size=8192, shared=False)
    with pytest.raises(ValueError, match=r"with model.core_size=8192 makes 49,[0-9,]+ parameters with these spaces"):
        make_policy(observations, gymnasium.spaces.Discrete(2), core, MomentsConfig(), rng)
    image = gymnasium.spaces.Box(0, 255, (2000, 2000, 3), np.uint8)
    with pytest.raises(ValueError, match=r"makes 1,9[0-9,]+ parameters with these spaces"):
        make_policy(image, gymnasium.spaces.Discrete(2), ModelConfig(), MomentsConfig(), rng)


# -- the device --------------------


def see(monkeypatch: pytest.MonkeyPatch, *gpus: GPU) -> None:
    monkeypatch.setattr("dppo.models.gpus.visible_gpus", lambda: gpus)


CARD = GPU("cuda:0", "a", "NVIDIA H200")
TORCH = ModelConfig(hidden=(4,), backend="torch")


@pytest.mark.parametrize(
    ("device", "model", "expected"),
    [
        ("auto", TORCH, (CARD,)),
        ("cuda", TORCH, (CARD,)),
        ("cuda", ModelConfig(hidden=(4,)), (CARD,)),  # which is then torch's
        ("cpu", TORCH, ()),
        ("auto", ModelConfig(hidden=(4,)), ()),  # NumPy's is faster where it is
    ],
)
def test_a_network_of_torch_may_use_the_gpus_that_are_there(
    device: Any, model: ModelConfig, expected: tuple[GPU, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, CARD)
    parts = build_parts(resolve(Config(device=device, model=model)), 0)
    parts.close()
    assert parts.gpus == expected


def test_a_worker_without_the_gpu_that_is_asked_for_is_refused_and_a_server_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch)
    monkeypatch.setattr("dppo.training.build.make_vector_env", lambda *a, **k: pytest.fail("too early"))
    config = resolve(Config(device="cuda"))
    with pytest.raises(ValueError, match="--device cuda: torch sees no GPU on "):
        build_parts(config, 0)
    monkeypatch.undo()
    see(monkeypatch)
    assert build_parts(config, None).gpus == ()
    parts = build_parts(resolve(Config(device="auto", model=TORCH)), 0)
    parts.close()
    assert parts.gpus == () and parts.why_no_gpu


def test_a_resumed_run_of_the_network_in_numpy_keeps_it_and_so_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, CARD)
    with pytest.raises(ValueError, match=r"--device cuda: this run's network is the closed-form one .*: leave it out"):
        build_parts(resolve(Config(device="cuda", resume=True)), 0)


def test_encoders_in_bfloat16_learn_the_same_each_time() -> None:
    """To the bit, and not what encoders in float32 learn."""
    learnt = []
    for bf16 in (True, True, False):
        place = make_parts(env=probe("Inputs"), model=ModelConfig(hidden=(8,), bf16=bf16))
        for _ in range(3):
            place.iterate()
        learnt.append(place.policy.flat.vector.tobytes())
    assert learnt[0] == learnt[1] != learnt[2]


# -- environments of the user's --------------------

OURS = sims_of_others.__name__


def test_a_class_of_the_users_is_trained_on_with_its_arguments_and_wrappers() -> None:
    place = make_parts(env=f"{OURS}:Tank", env_kwargs={"scale": 3.0, "length": 5}, wrappers=(f"{OURS}:negated",))
    rollout, _ = place.rollout()
    assert set(np.unique(rollout.rewards)) == {-3.0}
    assert rollout.truncations[4].all() and rollout.truncations.sum() == 2 * (16 // 5)
    place.iterate()


def test_a_user_who_gives_wrong_arguments_gets_one_message() -> None:
    for worker in (None, 0):
        config = resolve(Config(env=f"{OURS}:double_tank", env_kwargs={"deep": 2.0}))
        with pytest.raises(ValueError, match=r"it takes no argument 'deep'; did you mean 'depth'\? The constructor"):
            build_parts(config, worker)


class Stuck(gymnasium.Env[Any, Any]):
    """Breaks once, and then does not close."""

    observation_space, action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,)), gymnasium.spaces.Discrete(2)
    broken = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        if Stuck.broken == 0:
            Stuck.broken += 1
            raise OSError("solver lost")
        return np.zeros(1, np.float32), 1.0, False, False, {}

    def close(self) -> None:
        if Stuck.broken == 1:
            Stuck.broken += 1
            time.sleep(60)


def test_a_broken_environment_that_does_not_close_does_not_stop_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    place, started = make_parts(env=f"{__name__}:Stuck", on_env_error="restart"), time.monotonic()
    rollout, _ = place.rollout()
    assert rollout.truncations[0, 0] and rollout.truncations.sum() == 1 and Stuck.broken == 2
    assert time.monotonic() - started < 30
    assert (place.reports[-1].env_restarts, place.reports[-1].episodes[0].length) == (1, 1)
    assert "solver lost" in (said := capsys.readouterr().err) and "did not come back within 2 s" in said


class Made(Stuck):
    """Of the program that runs, as a class of a notebook is."""


Made.__module__ = "__main__"
made: Any = Made
gymnasium.register("Made-v0", made)


def test_an_environment_of_this_program_is_not_evaluated_by_another_process() -> None:
    build_parts(resolve(Config(env="Made-v0", num_envs=1, ppo=PPOConfig(minibatches=1))), 0).close()
    with pytest.raises(ValueError, match="cannot make Made-v0: this program has registered it; move its class into a"):
        build_parts(resolve(Config(env="Made-v0", eval=EvalConfig(every=9))), 0)
