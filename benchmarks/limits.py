"""How near to the limits? The closed-form network beside eager torch, training beside its environment's own rate.

    .venv/bin/python benchmarks/limits.py [--only updates act share profile] [--repeats 9]

updates: gather, forward, loss, backward, clip and Adam step of a minibatch, against the same in eager torch, as CleanRL
and Stable-Baselines3 write it; both must have the same gradient first. act: a row of environments, against eager torch
that samples. Either has one thread, on the same core. share: training steps per second over those of random actions, in
as many processes as there are workers. profile: where an iteration's time goes, on one rank.

What is compared is measured in turn, in one run. Prints tables and writes them, with every figure, to
benchmarks/results/limits.{md,json}; parts that are not run again keep their last result.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # read when NumPy and torch are imported

import numpy as np
import torch
from common import machine, markdown_table, mpirun, save, spread, stored, train
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal

from dppo.config import Config, ModelConfig, OptimConfig, PPOConfig
from dppo.data import Minibatch
from dppo.envs.vector import make_vector_env
from dppo.seeding import ActionNoise, EpisodeSeeds
from dppo.settings.flags import parse
from dppo.settings.resolve import resolve
from dppo.training.build import build_parts, make_collector

HEADS = {"Categorical, 4 to 2": "CartPole-v1", "DiagGaussian, 17 to 6": "HalfCheetah-v5"}
HIDDEN = (64, 128, 256)
MINIBATCHES = (64, 256, 1024)
ACTING = (1, 8, 64)
ROWS = 256
"""Of a rollout; with eight environments it has 2048 samples."""
WORKERS = 2
EQUAL_WORK = "--num-envs 1 --horizon 2048 --ppo.epochs 10 --ppo.minibatches 32 --ppo.target-kl 0 --optim.lr 3e-4"
SHARES = {  # environment: environments per worker, as in the flags or the preset; what trains
    "HalfCheetah-v5": (1, f"{EQUAL_WORK} --total-steps 81920"),
    "CartPole-v1": (8, "--total-steps 200000"),
    "InvertedPendulum-v5": (4, "--total-steps 100000"),
    "LunarLander-v3": (8, "--total-steps 100000"),
}
PROFILES = {"CartPole-v1": "--total-steps 100000", "HalfCheetah-v5": f"{EQUAL_WORK} --total-steps 20480"}
PROFILE_RUNS = 3
PROFILED = {  # parts of an iteration: the calls that are timed, without those inside that belong to another part
    "collect: environment": "envs.env_list.EnvList.step envs.cartpole.CartPoleVector.step",
    "collect: act": "models.policy.ActorCritic.act",
    "collect: normalise": "models.inputs.Inputs.__call__",
    "collect: values of the rollout": "models.policy.ActorCritic.value",
    "collect: rest": "training.collector.Collector.collect",
    "prepare": "training.learner.Learner.prepare training.learner.Learner.normalise_advantages"
    " training.collector.Collector.discounted_returns",
    "gather": "training.learner.Learner.minibatches",
    "forward": "models.policy.ActorCritic.forward",
    "loss": "training.learner.Learner.gradient",
    "backward": "models.policy.ActorCritic.backward",
    "exchange": "comm.allreduce.Allreduce.add",
    "optimiser": "training.state.TrainingState.step",
    "journal": "comm.link.Link.report comm.link.Link.boundary",
    "asking whether to stop": " ".join(f"comm.link.Link.{n}" for n in ("interrupted", "stop_requested", "verdict")),
    "rest of the loop": "training.sync_loop.train_worker",
}


# -- eager torch, as it is usually written --------------------


def layers(views: dict[str, np.ndarray], tower: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights [in, out] and biases [out] of a closed-form network's policy (0) or value (1), or their gradients."""
    for i in range(sum(name.startswith("hidden") for name in views) // 2):
        yield views[f"hidden.{i}.weight"][tower], views[f"hidden.{i}.bias"][tower, 0]
    name = ("policy", "value")[tower]
    yield views[f"{name}.weight"], views[f"{name}.bias"][0]


class Eager(nn.Module):
    """Two towers of Linear and Tanh with the parameters of a closed-form network."""

    def __init__(self, parameters: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.actor, self.critic = (self._tower(layers(parameters, tower)) for tower in (0, 1))
        self.log_std = nn.Parameter(torch.tensor(parameters["log_std"])) if "log_std" in parameters else None

    @staticmethod
    def _tower(parameters: Iterator[tuple[np.ndarray, np.ndarray]]) -> nn.Sequential:
        modules: list[nn.Module] = []
        for weight, bias in parameters:
            linear = nn.Linear(*weight.shape)
            linear.weight.data, linear.bias.data = torch.tensor(weight.T.copy()), torch.tensor(bias)
            modules += [linear, nn.Tanh()]
        return nn.Sequential(*modules[:-1])

    def policy(self, inputs: Tensor) -> Distribution:
        head = self.actor(inputs)
        return Categorical(logits=head) if self.log_std is None else Normal(head, self.log_std.expand_as(head).exp())

    def loss(self, batch: tuple[Tensor, ...], cfg: PPOConfig) -> Tensor:
        """The same terms as dppo.algo.losses.ppo, as a mean; with the two metrics that every trainer keeps."""
        inputs, actions, old_log_probs, advantages, returns = batch
        policy, value = self.policy(inputs), self.critic(inputs)[:, 0]
        log_prob, entropy = policy.log_prob(actions), policy.entropy()
        if self.log_std is not None:
            log_prob, entropy = log_prob.sum(1), entropy.sum(1)
        log_ratio = log_prob - old_log_probs
        ratio = log_ratio.exp()
        with torch.no_grad():
            ((ratio - 1) - log_ratio).mean().item()
            ((ratio - 1).abs() > cfg.clip).float().mean().item()
        clipped = torch.clamp(ratio, 1 - cfg.clip, 1 + cfg.clip)
        policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
        value_loss = 0.5 * ((value - returns) ** 2).mean()
        return policy_loss + cfg.value_coef * value_loss - cfg.entropy_coef * entropy.mean()

    def furthest(self, gradients: dict[str, np.ndarray]) -> float:
        """The largest difference between any parameter's gradient and that of the closed form."""
        pairs = [(self.log_std, gradients["log_std"])] if self.log_std is not None else []
        for tower, modules in enumerate((self.actor, self.critic)):
            for linear, (weight, bias) in zip(modules[::2], layers(gradients, tower), strict=True):
                pairs += [(linear.weight, weight.T), (linear.bias, bias)]
        return max(float(np.abs(theirs.grad.numpy() - ours).max()) for theirs, ours in pairs)


def tensors(samples: Minibatch) -> tuple[Tensor, ...]:
    arrays = (samples.inputs, samples.actions, samples.log_probs, samples.advantages, samples.returns)
    return tuple(torch.tensor(a) for a in arrays)


# -- updates and acting --------------------


def in_turn(sides: dict[str, Callable[[], None]], calls: int, repeats: int) -> dict[str, list[float]]:
    """µs per call; a side makes `calls` of them. The first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(1 + repeats):
        for name, side in reversed(sides.items()) if repeat % 2 else sides.items():
            since = time.perf_counter()
            side()
            times[name].append(1e6 * (time.perf_counter() - since) / calls)
    return {name: measured[1:] for name, measured in times.items()}


def ratios(times: dict[str, list[float]], ours: str) -> list[float]:
    return [a / b for a, b in zip(times[ours], times["torch"], strict=True)]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Everything within runs on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


def settings(env: str, num_envs: int, hidden: int, minibatch: int) -> Config:
    """An entropy bonus, so that the loss has all its terms; steps so small that timing changes nothing."""
    ppo = PPOConfig(epochs=2, minibatches=max(1, num_envs * ROWS // minibatch), target_kl=0, entropy_coef=0.01)
    model, optim = ModelConfig(hidden=(hidden, hidden)), OptimConfig(lr=1e-7)
    return resolve(Config(env=env, num_envs=num_envs, horizon=ROWS, ppo=ppo, model=model, optim=optim))


def measure_update(head: str, hidden: int, minibatch: int, repeats: int) -> dict[str, Any]:
    """One cell of the table of updates."""
    config = settings(HEADS[head], 8, hidden, minibatch)
    place = build_parts(config, 0)
    collector, policy, learner, state = make_collector(config, place), place.policy, place.learner, place.state
    rollout = collector.collect(ROWS, 0)
    batch = learner.prepare(rollout, collector.discounted_returns(rollout))
    learner.normalise_advantages(batch, batch.statistics)
    moved = np.random.default_rng(0).normal(0.0, 0.05, policy.flat.size)
    policy.flat.vector += moved.astype(np.float32)  # away from ratio 1: some samples are clipped
    eager = Eager(policy.flat.parameters)
    optimiser = torch.optim.Adam(eager.parameters(), lr=1e-7, eps=config.optim.eps)

    samples = next(learner.minibatches(batch, 0))
    eager.loss(tensors(samples), config.ppo).backward()
    learner.gradient(samples)
    policy.flat.gradient /= len(samples)  # dppo's are sums, torch's means
    difference = eager.furthest(policy.flat.gradients)
    assert difference < 2e-5, f"the gradients differ by {difference}"

    def closed_form() -> None:
        for samples in learner.minibatches(batch, 0):
            learner.gradient(samples)
            state.step(policy.flat.summed)

    everything = tensors(batch.samples)

    def autograd() -> None:
        for _ in range(config.ppo.epochs):
            for index in torch.randperm(8 * ROWS).split(minibatch):
                loss = eager.loss(tuple(t[index] for t in everything), config.ppo)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(eager.parameters(), config.optim.max_grad_norm)
                optimiser.step()

    times = in_turn({"dppo": closed_form, "torch": autograd}, learner.updates_per_rollout, repeats)
    collector.envs.close()
    return {"head": head, "hidden": hidden, "minibatch": minibatch, "gradient_difference": difference, "us": times}


def measure_act(head: str, num_envs: int, repeats: int) -> dict[str, Any]:
    """One row of the table of acting, on the observations of a rollout, with noise as the collector draws it."""
    config = settings(HEADS[head], num_envs, HIDDEN[0], num_envs * ROWS)
    place = build_parts(config, 0)
    policy, distribution = place.policy, place.policy.distribution
    collector = make_collector(config, place)
    inputs = collector.collect(ROWS, 0).inputs
    stream = ActionNoise(0, 0, num_envs, distribution.noise_kinds)
    first_rows = itertools.count(0, ROWS)
    eager = Eager(policy.flat.parameters)

    def act() -> tuple[np.ndarray, np.ndarray]:
        noise = stream.rows(next(first_rows), ROWS)
        heads = np.empty((ROWS, num_envs, distribution.head_size), np.float32)
        actions = []
        for t in range(ROWS):
            action, heads[t] = policy.act(inputs[t], noise[t])
            actions.append(action)
        return np.concatenate(actions), heads.reshape(ROWS * num_envs, -1)

    def act_and_judge() -> None:
        actions, heads = act()
        distribution.evaluate(heads, actions)
        policy.value(inputs.reshape(ROWS * num_envs, -1))

    def sample_eagerly() -> None:
        for row in inputs:
            with torch.no_grad():
                observations = torch.from_numpy(row)
                chosen = eager.policy(observations)
                action = chosen.sample()
                log_prob = chosen.log_prob(action) if eager.log_std is None else chosen.log_prob(action).sum(1)
                value = eager.critic(observations)[:, 0]
            action.numpy(), log_prob.numpy(), value.numpy()

    sides = {"act": lambda: act() and None, "act and judge": act_and_judge, "torch": sample_eagerly}
    times = in_turn(sides, ROWS, repeats)
    collector.envs.close()
    return {"head": head, "num_envs": num_envs, "us": times}


def updates(repeats: int) -> list[dict[str, Any]]:
    with one_core():
        return [measure_update(*c, repeats) for c in itertools.product(HEADS, HIDDEN, MINIBATCHES)]


def act(repeats: int) -> list[dict[str, Any]]:
    with one_core():
        return [measure_act(*c, repeats) for c in itertools.product(HEADS, ACTING)]


# -- the share of the environment's own rate --------------------


def share(repeats: int) -> list[dict[str, Any]]:
    """Random actions and training in turn; environments whose package is missing are left out."""
    rows = []
    for env, (num_envs, flags) in SHARES.items():
        try:
            make_vector_env(env, 1, lambda _: 0).close()
        except ValueError as missing:
            print(f"{env} is left out: {missing}", file=sys.stderr)
            continue
        row: dict[str, Any] = {"env": env, "num_envs": num_envs, "flags": flags, "random": [], "training": []}
        for seed in range(1, min(5, repeats) + 1):
            printed = mpirun(WORKERS, [__file__, "--rank-program", "random", env, str(num_envs)], timeout_s=60).stdout
            row["random"].append(float(printed))
            row["training"].append(train(WORKERS + 1, f"--env {env} {flags}", seed, timeout_s=300)["steps_per_s"])
        rows.append(row)
    return rows


def random_program(env: str, num_envs: str, seconds: float = 2.0) -> None:
    """On every rank at the same time; prints their steps per second, added up. Actions were drawn before."""
    from dppo.cluster import startup

    startup.prepare()
    from mpi4py import MPI

    comm, n = MPI.COMM_WORLD, int(num_envs)
    envs = make_vector_env(env, n, EpisodeSeeds(0, comm.rank * n, n).next)
    envs.action_space.seed(comm.rank)
    actions = itertools.cycle([np.array([envs.action_space.sample() for _ in range(n)]) for _ in range(512)])
    envs.reset()
    comm.Barrier()
    rows, since = 0, time.perf_counter()
    while time.perf_counter() - since < seconds:
        for action in itertools.islice(actions, 64):
            envs.step(action)
        rows += 64
    rate = comm.reduce(rows * n / (time.perf_counter() - since))
    if comm.rank == 0:
        print(rate)


# -- where an iteration's time goes --------------------


class Stopwatch:
    """Charges every moment to the innermost of the wrapped calls that are under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack, self._since = ["outside"], time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def call(self, label: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._charge()
        self._stack.append(label)
        result = function(*args, **kwargs)
        self._charge()
        self._stack.pop()
        return self._items(label, result) if isinstance(result, Iterator) else result

    def _items(self, label: str, items: Iterator[Any]) -> Iterator[Any]:
        return iter(lambda: self.call(label, next, items, None), None)

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Replaces a function of a module or a method of a class."""
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: self.call(label, function, *args, **kwargs))


def profile_program(env: str, flags: str) -> None:
    """Trains on this one rank under the stopwatch; prints seconds per part, steps and iterations."""
    from dppo import run

    watch = Stopwatch()
    for label, functions in PROFILED.items():
        for function in functions.split():
            owner, _, name = f"dppo.{function}".rpartition(".")
            watch.wrap(pkgutil.resolve_name(owner), name, label)
    with tempfile.TemporaryDirectory() as scratch:
        config, _ = parse(["--env", env, *flags.split(), "--run-dir", f"{scratch}/run"])
        summary = run.train(config, quiet=True)
    assert config.horizon is not None
    iterations = summary.env_steps // (config.horizon * config.num_envs)
    seconds = {label: watch.seconds[label] for label in PROFILED}
    print(json.dumps({"env": env, "flags": flags, "iterations": iterations, "seconds": seconds}))


def profile(_: int) -> list[dict[str, Any]]:
    """Of several runs in each environment, that of median length."""
    rows = []
    for env, flags in PROFILES.items():
        command = [sys.executable, __file__, "--rank-program", "profile", env, flags]
        ended = [subprocess.run(command, check=True, capture_output=True, timeout=120) for _ in range(PROFILE_RUNS)]
        runs = [json.loads(e.stdout) for e in ended]
        rows.append(sorted(runs, key=lambda run: sum(run["seconds"].values()))[PROFILE_RUNS // 2])
    return rows


# -- tables --------------------


def updates_table(rows: list[dict[str, Any]]) -> str:
    """A row for each head, network and minibatch."""
    head = ["head", "network", "minibatch", "dppo, µs", "eager torch, µs", "dppo / torch"]
    cells = []
    for r in rows:
        times = [spread(r["us"][side], ",.0f") for side in ("dppo", "torch")]
        cells.append([r["head"], f"2 x {r['hidden']}", r["minibatch"], *times, spread(ratios(r["us"], "dppo"), ".2f")])
    difference = max(r["gradient_difference"] for r in rows)
    note = f"{len(rows[0]['us']['dppo'])} repeats. The gradients differ by at most {difference:.0e}, in any parameter."
    return f"## A minibatch update\n\n{markdown_table(head, cells)}\n{note}\n"


def act_table(rows: list[dict[str, Any]]) -> str:
    """A row for each head and number of environments."""
    head = ["head", "environments", "act, µs", "act and judge, µs", "eager torch, µs", "act / torch", "both / torch"]
    cells = []
    for r in rows:
        times = [spread(r["us"][side]) for side in ("act", "act and judge", "torch")]
        shares = [spread(ratios(r["us"], side), ".2f") for side in ("act", "act and judge")]
        cells.append([r["head"], r["num_envs"], *times, *shares])
    note = (
        f"{len(rows[0]['us']['act'])} repeats; for all environments, network 2 x {HIDDEN[0]}. To judge is to compute"
        " log-probabilities and values: dppo does it once per rollout, torch with each act."
    )
    return f"## Acting\n\n{markdown_table(head, cells)}\n{note}\n"


def share_table(rows: list[dict[str, Any]]) -> str:
    """A row for each environment."""
    head = ["environment", "in each process", "flags", "random actions, steps/s", "training, steps/s", "share"]
    cells = []
    for r in rows:
        rates = [spread(r[side], ",.0f") for side in ("random", "training")]
        shares = [t / e for t, e in zip(r["training"], r["random"], strict=True)]
        cells.append([r["env"], r["num_envs"], f"`{r['flags']}`", *rates, spread(shares, ".0%")])
    note = f"{len(rows[0]['random'])} repeats; {WORKERS} processes step environments, in training {WORKERS} of 3 ranks."
    return f"## Training beside random actions\n\n{markdown_table(head, cells)}\n{note}\n"


def profile_table(rows: list[dict[str, Any]]) -> str:
    """A row for each part, two columns for each environment."""
    head = ["part", *(f"{r['env']}, {unit}" for r in rows for unit in ("ms an iteration", "share"))]
    cells = []
    for label in PROFILED:
        line = [label]
        for r in rows:
            seconds = r["seconds"][label]
            line += [f"{1e3 * seconds / r['iterations']:.2f}", f"{seconds / sum(r['seconds'].values()):.1%}"]
        cells.append(line)
    flags = "; ".join(f"{r['env']} `{r['flags']}`" for r in rows)
    note = f"{flags}. One rank, the median of {PROFILE_RUNS} runs by length; a timer adds about 1 µs to each call."
    return f"## Where an iteration's time goes\n\n{markdown_table(head, cells)}\n{note}\n"


PARTS: dict[str, tuple[Callable[[int], list[dict[str, Any]]], Callable[[list[dict[str, Any]]], str]]] = {
    "updates": (updates, updates_table),
    "act": (act, act_table),
    "share": (share, share_table),
    "profile": (profile, profile_table),
}


def main() -> None:
    """Runs the parts asked for and writes the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rank-program", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_program:
        name, *rest = args.rank_program
        return random_program(*rest) if name == "random" else profile_program(*rest)
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(False)  # in torch's favour
    results = stored("limits")
    for part in args.only:
        results[part] = PARTS[part][0](args.repeats)
        results["machine"] = machine()
        tables = [table(results[name]) for name, (_, table) in PARTS.items() if name in results]
        head = f"# Limits\n\nMedians [least, most]; {results['machine']}.\n"
        save("limits", "\n".join([head, *tables]), results)


if __name__ == "__main__":
    main()
