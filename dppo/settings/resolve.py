"""Completes a configuration: fills in what depends on other settings, and refuses what is impossible."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from dppo.bounds import require
from dppo.config import MOST_SAMPLES, SOLVER, Config


def check(config: Config) -> None:
    """Checks the settings against each other. Raises ValueError with the repair."""
    require(
        not (config.mode == "async" and config.exchange == "allreduce"),
        "mode=async exchanges gradients p2p with the parameter server: leave exchange out, or set mode=sync",
    )
    require(
        not (config.server.drop and (config.mode == "async" or config.exchange != "p2p")),
        f"server.drop={config.server.drop} needs mode=sync and exchange=p2p, where a server waits for gradients",
    )
    require(
        not (config.preempt_fraction and config.mode == "async"),
        f"preempt_fraction={config.preempt_fraction} needs mode=sync: asynchronous workers never wait for a slow one",
    )
    require(
        not (config.wrappers and config.vectorization == "native"),
        "vectorization=native steps all environments as one, and wrappers go around a single one: set"
        " vectorization=sync, or leave wrappers out",
    )
    require(
        not (config.cases and config.vectorization == "native"),
        "vectorization=native steps all environments as one, and cases make them differ: set vectorization=sync, or"
        " leave cases out",
    )
    require(
        not (config.own_env_ranks > 1 and config.vectorization == "native"),
        f"env_ranks={config.env_ranks} makes single environments of several ranks, which vectorization=native does not"
        " have: leave vectorization out",
    )
    require(
        not (config.device == "cuda" and config.model.backend == "numpy"),
        "device=cuda needs a network of torch: leave model.backend=numpy out",
    )
    assert config.horizon is not None, "an unresolved configuration is checked"
    require(
        config.horizon * config.num_envs <= MOST_SAMPLES,
        f"horizon*num_envs={config.horizon}*{config.num_envs} samples of a worker's rollout must be at most"
        f" {MOST_SAMPLES:g}: lower one of them",
    )
    if config.loss == "ppo":
        _require_divisor(config.ppo.minibatches, config.horizon * config.num_envs)
        if config.model.core:
            require_sequences(config)
    updates = config.ppo.epochs * config.ppo.minibatches if config.loss == "ppo" else 1
    require(
        config.optim.schedule != "kl" or updates > 1,
        f"optim.schedule=kl follows the KL that the updates of a rollout have caused, and with loss={config.loss} and"
        f" {updates} update of each there is none: use optim.schedule=linear, or loss=ppo with more updates",
    )
    _check_evaluation(config)


def _check_evaluation(config: Config) -> None:
    """Checks that evaluations while training are asked for where they are wanted, and that they can be played by one
    process that is no rank of this job.
    """
    settings = config.eval
    wanted = {"target_return": settings.target_return is not None, "patience": settings.patience > 0}
    for name in (name for name, is_wanted in wanted.items() if is_wanted and not settings.every):
        raise ValueError(
            f"eval.{name}={getattr(settings, name)} needs evaluations: set eval.every, in environment steps"
        )
    if not settings.every:
        return
    afterwards = "leave eval.every out, and use python -m dppo.evaluate after the run"
    require(
        config.env != SOLVER and config.env_ranks == 1,
        f"eval.every={settings.every} plays episodes in one process beside rank 0, and an environment of this run is"
        f" {'a simulator beside dppo' if config.env == SOLVER else f'{config.env_ranks} ranks'}: {afterwards}",
    )
    for name in (config.env, *config.wrappers, config.model.factory or ""):
        require(
            not name.startswith("__main__:"),
            f"eval.every={settings.every} plays episodes in a process of its own, which cannot import {name}: move it"
            f" into a module, or {afterwards}",
        )


def _require_divisor(minibatches: int, samples: int) -> None:
    if samples % minibatches == 0:
        return
    small = [d for d in range(1, math.isqrt(samples) + 1) if samples % d == 0]
    divisors = small + [samples // d for d in reversed(small)]
    nearest = min(divisors, key=lambda d: abs(d - minibatches))
    raise ValueError(
        f"ppo.minibatches={minibatches} must divide horizon*num_envs={samples}; the nearest that does is {nearest}"
    )


def require_sequences(config: Config) -> None:
    """Refuses more minibatches than a network with memory has sequences: a minibatch holds whole ones."""
    assert config.horizon is not None, "an unresolved configuration is checked"
    length = config.model.sequence or config.horizon
    sequences = config.num_envs * -(-config.horizon // length)
    require(
        config.loss != "ppo" or config.ppo.minibatches <= sequences,
        f"ppo.minibatches={config.ppo.minibatches} are more than the {sequences} sequences of a worker's rollout"
        f" (num_envs={config.num_envs}, model.sequence={length}), and a minibatch holds whole ones: use"
        f" ppo.minibatches={sequences}, more environments, or a shorter model.sequence",
    )


def resolve(config: Config) -> Config:
    """Replaces every None that means "depends on the rest" by its value, and checks the whole.

    Raises:
      ValueError: a combination is impossible; the message has the repair.
    """
    loss = config.loss or ("ppo" if config.mode == "sync" else "a3c")
    optimiser = config.optim.name or ("adam" if loss == "ppo" else "rmsprop")
    default_lr = {"adam": 7e-4, "rmsprop": 2e-3, "sgd": 1e-2}[optimiser]
    horizon = config.horizon or (64 if loss == "ppo" else 8)
    model = replace(config.model, sequence=config.model.sequence or (horizon if config.model.core else None))
    if config.device == "cuda" and model.backend == "auto" and not config.resume:  # a resumed run keeps its network
        model = replace(model, backend="torch")
    complete = replace(
        config,
        model=model,
        loss=loss,
        run_dir=config.run_dir and os.path.expanduser(config.run_dir),  # bash leaves --run-dir=~/x as it is
        horizon=horizon,
        exchange=config.exchange or ("allreduce" if config.mode == "sync" else "p2p"),
        vtrace=(config.mode == "async" and loss == "ppo") if config.vtrace is None else config.vtrace,
        optim=replace(
            config.optim, name=optimiser, lr=config.optim.lr or default_lr, schedule=config.optim.schedule or "linear"
        ),
    )
    check(complete)
    return complete


def num_workers(config: Config, world_size: int) -> int:
    """Returns the number of workers in a job of so many ranks.

    Raises:
      ValueError: the ranks make no whole groups of `env_ranks`; the message has the nearest numbers that do.
    """
    each, (groups, rest) = config.own_env_ranks, divmod(world_size - 1, config.own_env_ranks)
    if each > 1 and (rest or not groups):
        fit = " or ".join(f"mpirun -n {1 + n * each}" for n in (groups, groups + 1) if n and (n > groups or rest))
        raise ValueError(
            f"env_ranks={each} needs 1 + W*{each} ranks, a server and W groups of {each}, and this job has"
            f" {world_size}: start it by {fit}"
        )
    return max(1, groups)


def check_world(config: Config, world_size: int) -> None:
    """Checks what depends on the number of ranks. Raises ValueError with the repair."""
    workers = num_workers(config, world_size)
    require(
        config.server.drop < workers,
        f"server.drop={config.server.drop} must be smaller than the number of workers, {workers}"
        f" ({world_size} ranks): the quorum would be empty",
    )
    cases, envs = len(config.cases), workers * config.num_envs
    require(
        cases <= envs,
        f"cases: {cases} cases are dealt to {envs} environment(s), {config.num_envs} for each of {workers} worker(s),"
        f" and some would have none: start it by mpirun -n {1 + -(-cases // config.num_envs) * config.own_env_ranks},"
        f" or use num_envs={-(-cases // workers)}",
    )
