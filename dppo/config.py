"""The whole configuration of a run, as frozen dataclasses; every default of dppo is written here, once.

Uses the standard library only. `commandline.py` fills it from flags, TOML and presets; every layer takes the section
that it needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    above = value > low if open_low else value >= low
    _require(
        above and value <= high,
        f"{name}={value} must lie in {'(' if open_low else '['}{low:g}, {high:g}]",
    )


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017; Heess et al. 2017)."""

    objective: Literal["clip", "kl"] = "clip"
    """clip: the clipped surrogate; kl: Heess et al.'s adaptive KL penalty with its hinge term."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    value_clip: float = 0.0
    """Clip range of the value's change, in units of the (normalised) return; 0 switches it off."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatches: int = 8
    """Minibatches per epoch and worker; must divide horizon * num_envs."""
    gamma: float = 0.99
    """Discount per environment step."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    target_kl: float = 0.03
    """An iteration's updates end before the step whose approximate KL, averaged over ranks, exceeds 1.5 times this;
    0: never.
    """
    normalize_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1, over the samples of all ranks (async: of the rollout)."""
    kl_target: float = 0.01
    """objective kl: the KL that the penalty's weight is adapted to."""
    kl_coef: float = 1.0
    """objective kl: the penalty's first weight (lambda in Heess et al.)."""
    kl_hinge: float = 50.0
    """objective kl: weight of max(0, KL - 2 kl_target)^2 (xi in Heess et al.)."""

    def __post_init__(self) -> None:
        _require_range("ppo.clip", self.clip, 0, 10, open_low=True)
        _require(self.value_clip >= 0, f"ppo.value_clip={self.value_clip} must be 0 (off) or positive")
        _require(self.epochs >= 1, f"ppo.epochs={self.epochs} must be at least 1")
        _require(self.minibatches >= 1, f"ppo.minibatches={self.minibatches} must be at least 1")
        _require_range("ppo.gamma", self.gamma, 0, 1)
        _require_range("ppo.lam", self.lam, 0, 1)
        _require(self.target_kl >= 0, f"ppo.target_kl={self.target_kl} must be 0 (off) or positive")
        _require(self.kl_target > 0, f"ppo.kl_target={self.kl_target} must be positive")
        _require(self.kl_coef >= 0, f"ppo.kl_coef={self.kl_coef} must not be negative")
        _require(self.kl_hinge >= 0, f"ppo.kl_hinge={self.kl_hinge} must not be negative")


@dataclass(frozen=True)
class A3CConfig:
    """Advantage actor-critic with n-step returns (Mnih et al. 2016)."""

    gamma: float = 0.99
    """Discount per environment step."""
    lam: float = 1.0
    """1: n-step returns up to the rollout's end, as in the paper; below 1: generalised advantage estimation."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    normalize_advantages: bool = False
    """Advantages to mean 0 and standard deviation 1 before the gradient; not in the paper."""

    def __post_init__(self) -> None:
        _require_range("a3c.gamma", self.gamma, 0, 1)
        _require_range("a3c.lam", self.lam, 0, 1)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser on the flat parameter vector."""

    name: Literal["adam", "rmsprop", "sgd"] | None = None
    """None: adam for ppo, rmsprop (shared statistics, not centred) for a3c."""
    lr: float | None = None
    """Learning rate; None: 7e-4 for adam, 2e-3 for rmsprop, 1e-2 for sgd."""
    anneal: bool = True
    """Linear to zero over total_steps."""
    max_grad_norm: float = 0.5
    """Global gradient-norm clip, after the average over ranks; 0 switches it off."""
    beta1: float = 0.9
    """adam: decay of the first moment."""
    beta2: float = 0.999
    """adam: decay of the second moment."""
    eps: float = 1e-5
    """adam: added to the root; rmsprop: added inside the root."""
    alpha: float = 0.99
    """rmsprop: decay of the squared gradient."""
    momentum: float = 0.9
    """sgd: momentum."""

    def __post_init__(self) -> None:
        _require(self.lr is None or self.lr > 0, f"optim.lr={self.lr} must be positive")
        _require(self.max_grad_norm >= 0, f"optim.max_grad_norm={self.max_grad_norm} must be 0 (off) or positive")
        for name in ("beta1", "beta2", "alpha", "momentum"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}={value} must lie in [0, 1)")
        _require(self.eps > 0, f"optim.eps={self.eps} must be positive")


@dataclass(frozen=True)
class ModelConfig:
    """The actor-critic network."""

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, the same for the policy's tower and the value's."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity of the hidden layers."""
    log_std_init: float = 0.0
    """Box actions: initial log standard deviation, in units of half the action range where it is bounded."""
    factory: str | None = None
    """`module:function` of your own torch network: function(observation_size, head_size) -> torch.nn.Module whose
    forward([B, observation_size]) gives (head [B, head_size], value [B])."""
    backend: Literal["auto", "numpy", "torch"] = "auto"
    """auto: the closed-form NumPy network for the MLP, torch for a factory; torch: the MLP through autograd."""

    def __post_init__(self) -> None:
        _require(all(n >= 1 for n in self.hidden), f"model.hidden={self.hidden} must hold positive sizes")
        _require(
            self.factory is None or ":" in self.factory,
            f"model.factory={self.factory!r} must have the form module:function",
        )
        _require(
            not (self.factory and self.backend == "numpy"),
            "model.backend=numpy cannot run model.factory, which is a torch network: leave model.backend at auto",
        )


@dataclass(frozen=True)
class MomentsConfig:
    """Normalisation by running moments, merged over all ranks and kept in checkpoints."""

    observations: bool = True
    """Observations to mean 0 and standard deviation 1."""
    returns: bool = True
    """Rewards divided by the standard deviation of the running discounted return."""
    clip: float = 10.0
    """Normalised observations are clipped to this many standard deviations."""

    def __post_init__(self) -> None:
        _require(self.clip > 0, f"moments.clip={self.clip} must be positive")


@dataclass(frozen=True)
class ServerConfig:
    """The parameter server on rank 0 (exchange p2p)."""

    drop: int = 0
    """sync p2p: an update is made when all but this many workers have sent their gradient (Heess et al. 2017)."""
    staleness: Literal["drop", "scale", "none"] = "drop"
    """async: a gradient older than max_staleness is dropped; scale: besides, each is weighted by 1/(1+staleness);
    none: all are applied as they are."""
    max_staleness: int | None = None
    """async: in versions of the parameters, of which each update makes one; None: 4 times what is usual for the worker
    that sends it, and at least 4 times the number of workers."""
    mirror_every: int = 50
    """p2p, where deaths can be survived: updates between copies of the server's state to a standby rank; 0: none."""

    def __post_init__(self) -> None:
        _require(self.drop >= 0, f"server.drop={self.drop} must not be negative")
        _require(self.mirror_every >= 0, f"server.mirror_every={self.mirror_every} must be 0 (none) or positive")
        _require(
            self.max_staleness is None or self.max_staleness >= 0,
            f"server.max_staleness={self.max_staleness} must not be negative",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and when."""

    every: int = 50_000
    """Environment steps between checkpoints; 0: only at the start and at the end."""
    keep: int = 3
    """How many of the newest checkpoints are kept."""
    grace_s: float = 30.0
    """After a signal to save, seconds until the iteration under way is given up and the previous boundary is saved."""
    replay_s: float = 300.0
    """On resume, seconds that replaying a rank's episodes may take; what is not done by then begins a new episode."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"checkpoint.every={self.every} must be 0 (off) or positive")
        _require(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1")
        _require(self.grace_s >= 0, f"checkpoint.grace_s={self.grace_s} must not be negative")
        _require(self.replay_s >= 0, f"checkpoint.replay_s={self.replay_s} must not be negative")


@dataclass(frozen=True)
class TrajectoriesConfig:
    """HDF5 trajectory dumps; docs/trajectories.md."""

    enabled: bool = False
    """Every worker writes its rollouts to RUN/trajectories."""
    every: int = 1
    """Only every so-manieth rollout."""
    segment_mb: float = 32.0
    """A segment has at most about so much raw data; a worker needs up to twice that in memory."""
    compression: Literal["gzip", "zstd", "none"] = "gzip"
    """gzip can be read everywhere; zstd is smaller and faster with images, and needs hdf5plugin, to read as well."""
    max_gb: float | None = None
    """Of all workers together; where it is reached no more is written, and training goes on."""
    required: bool = False
    """A write error ends the run; else it is said once, and training goes on."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"trajectories.every={self.every} must be at least 1")
        _require(self.segment_mb > 0, f"trajectories.segment_mb={self.segment_mb} must be positive")
        _require(
            self.max_gb is None or self.max_gb > 0, f"trajectories.max_gb={self.max_gb} must be positive, or left out"
        )


@dataclass(frozen=True)
class LogConfig:
    """What is shown and written while training."""

    interval_s: float = 5.0
    """Seconds between progress lines where the output is a file; on a terminal one line is redrawn."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    stall_after_s: float = 300.0
    """A rank without progress for so long writes its Python stack to RUN/stalls/; 0: never."""
    stall_abort_s: float = 0.0
    """A rank without progress for so long ends the job; 0: never."""
    trace: bool = False
    """Write RUN/trace.json, a timeline per rank for Perfetto."""

    def __post_init__(self) -> None:
        _require(self.interval_s > 0, f"log.interval_s={self.interval_s} must be positive")
        for name in ("stall_after_s", "stall_abort_s"):
            value = getattr(self, name)
            _require(value >= 0, f"log.{name}={value} must be 0 (never) or positive")


@dataclass(frozen=True)
class Config:
    """Trains a policy by reinforcement learning on all ranks of an MPI job."""

    env: str = "CartPole-v1"
    """Gymnasium id, or `module:Id` where importing the module registers the id."""
    mode: Literal["sync", "async"] = "sync"
    """sync: distributed PPO, all workers step together; async: A3C, each gradient is applied as it comes."""
    exchange: Literal["allreduce", "p2p"] | None = None
    """How gradients meet: allreduce among the workers (the default in sync) or p2p through rank 0 (always in async)."""
    loss: Literal["ppo", "a3c"] | None = None
    """None: ppo in sync, a3c in async."""
    seed: int = 0
    """Every random stream of the run is derived from it."""
    total_steps: int = 10_000_000
    """Environment steps over all ranks; the run ends at the first iteration boundary at or past it."""
    num_envs: int = 8
    """Environments per worker."""
    horizon: int | None = None
    """Rows (steps of every environment) in a rollout; None: 64 for ppo, 8 for a3c."""
    target_return: float | None = None
    """The run ends when the mean return of the last 100 episodes reaches it."""
    run_dir: str | None = None
    """Where the run's files go; None: runs/ENV-MODE-LOSS-SEED-TIME."""
    resume: bool = False
    """Go on from the newest valid checkpoint in run_dir, with the settings stored there."""
    device: Literal["cpu"] = "cpu"
    """Where the network computes."""
    vtrace: bool | None = None
    """Correct for the lag between acting and learning policy (Espeholt et al. 2018); None: in async + ppo only."""
    vectorization: Literal["auto", "sync", "native"] = "auto"
    """auto: a native vector form where dppo has an adapter (CartPole), else one environment after another; native:
    the environment's own vector form, which gives up exact resume and independence of the layout over ranks."""
    preempt_fraction: float = 0.0
    """sync: once this share of the workers has its rollout, the others stop where they have at least a quarter of
    theirs (Wijmans et al. 2020); 0: never."""
    respawn: bool = False
    """Where deaths can be survived (mpirun --with-ft ulfm): start a new worker in place of each that died."""
    on_worker_error: Literal["abort", "continue"] = "abort"
    """A rank's own exception, or its stall past log.stall_abort_s, ends the job; continue: it is a death like any
    other, which the others survive (mpirun --with-ft ulfm)."""
    time_limit_s: float | None = None
    """Save and exit with code 75 before this many seconds have passed since the start."""
    dry_run: bool = False
    """Check everything, train nothing."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    a3c: A3CConfig = field(default_factory=A3CConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    moments: MomentsConfig = field(default_factory=MomentsConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trajectories: TrajectoriesConfig = field(default_factory=TrajectoriesConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _require(bool(self.env), "env must name an environment")
        _require(0 <= self.seed < 2**63, f"seed={self.seed} must lie in [0, 2**63)")
        _require(self.total_steps >= 1, f"total_steps={self.total_steps} must be at least 1")
        _require(self.num_envs >= 1, f"num_envs={self.num_envs} must be at least 1")
        _require(self.horizon is None or self.horizon >= 1, f"horizon={self.horizon} must be at least 1")
        _require_range("preempt_fraction", self.preempt_fraction, 0, 1)
        _require(
            self.time_limit_s is None or self.time_limit_s > 0,
            f"time_limit_s={self.time_limit_s} must be positive",
        )


def check(config: Config) -> None:
    """What only shows when the settings are seen together. Raises ValueError with the repair."""
    _require(
        not (config.mode == "async" and config.exchange == "allreduce"),
        "mode=async exchanges gradients p2p with the parameter server: leave exchange out, or set mode=sync",
    )
    _require(
        not (config.server.drop and (config.mode == "async" or config.exchange != "p2p")),
        f"server.drop={config.server.drop} needs mode=sync and exchange=p2p, where a server waits for gradients",
    )
    _require(
        not (config.preempt_fraction and config.mode == "async"),
        f"preempt_fraction={config.preempt_fraction} needs mode=sync: asynchronous workers never wait for a slow one",
    )
    _require(
        not (config.server.drop and config.ppo.objective == "kl"),
        "server.drop needs ppo.objective=clip: the KL penalty's hinge averages over all workers",
    )
    if config.loss == "ppo":
        assert config.horizon is not None, "an unresolved configuration is checked"
        _require_divisor(config.ppo.minibatches, config.horizon * config.num_envs)
    _refuse_unavailable(config)


def _refuse_unavailable(config: Config) -> None:
    """Names of the contract whose machinery is not in this version: refused, rather than silently ignored."""
    unavailable = {
        "log.trace": config.log.trace,
    }
    for name, asked in unavailable.items():
        _require(not asked, f"{name} is not available in this version of dppo: leave it out")


def _require_divisor(minibatches: int, samples: int) -> None:
    if samples % minibatches == 0:
        return
    divisors = [d for d in range(1, samples + 1) if samples % d == 0]
    nearest = min(divisors, key=lambda d: abs(d - minibatches))
    raise ValueError(
        f"ppo.minibatches={minibatches} must divide horizon*num_envs={samples}; the nearest that does is {nearest}"
    )


def resolve(config: Config) -> Config:
    """Replaces every None that stands for "depends on the rest" by what it means, and checks the whole.

    Raises:
      ValueError: for an impossible combination, with the repair.
    """
    loss = config.loss or ("ppo" if config.mode == "sync" else "a3c")
    optimiser = config.optim.name or ("adam" if loss == "ppo" else "rmsprop")
    default_lr = {"adam": 7e-4, "rmsprop": 2e-3, "sgd": 1e-2}[optimiser]
    complete = replace(
        config,
        loss=loss,
        horizon=config.horizon or (64 if loss == "ppo" else 8),
        exchange=config.exchange or ("allreduce" if config.mode == "sync" else "p2p"),
        vtrace=(config.mode == "async" and loss == "ppo") if config.vtrace is None else config.vtrace,
        optim=replace(config.optim, name=optimiser, lr=config.optim.lr or default_lr),
    )
    check(complete)
    return complete


def check_world(config: Config, world_size: int) -> None:
    """What depends on the number of ranks. Raises ValueError with the repair."""
    workers = max(1, world_size - 1)
    _require(
        config.server.drop < workers,
        f"server.drop={config.server.drop} must be smaller than the number of workers, {workers}"
        f" ({world_size} ranks): the quorum would be empty",
    )


def as_dict(config: Any) -> dict[str, Any]:
    """Nested plain values, in the order of the fields; None is left out (TOML has none)."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            out[f.name] = as_dict(value)
        elif value is not None:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def updated(config: C, values: dict[str, Any], where: str = "") -> C:
    """`config` with nested `values` put in; keys are field names with - or _.

    Raises:
      ValueError: for an unknown key (with the nearest right one) or a value of the wrong type, naming `where`.
    """
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise ValueError(f"{where}{key}: no such setting{nearest(name, hints)}")
        current = getattr(config, name)
        if is_dataclass(current) and not isinstance(current, type):
            _require(isinstance(value, dict), f"{where}{key} is a section, but {value!r} was given")
            changes[name] = updated(current, value, f"{where}{key}.")
        else:
            changes[name] = _checked(hints[name], value, f"{where}{key}")
    return replace(config, **changes)  # type: ignore[type-var]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _checked(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type that `hint` asks for; int is taken for float, a list for a tuple, nothing else is
    converted.
    """
    if get_origin(hint) in (Union, UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _checked(next(o for o in options if o is not type(None)), value, name)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        _require(value in choices, f"{name}={value!r} must be one of {', '.join(map(str, choices))}")
        return value
    if get_origin(hint) is tuple:
        _require(isinstance(value, list | tuple), f"{name}={value!r} must be a list")
        return tuple(_checked(get_args(hint)[0], v, name) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    _require(right, f"{name}={value!r} must be of type {hint.__name__}")
    return value
