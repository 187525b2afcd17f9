"""The whole configuration of a run, as frozen dataclasses; every default of dppo is written here, once.

Every number has its range beside it (bounds.py). `settings/flags.py` fills it from flags, TOML and presets; every layer
takes the section that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dppo.bounds import (
    LONGEST_S,
    Range,
    Section,
    at_least,
    check_network,
    not_negative,
    positive,
    require,
    require_places,
    settle_schedule,
    settled_cases,
    within,
)  # fmt: skip

VERSION = "0.1.0"
SOLVER = "dppo.envs:Solver"  # the environment that is another program of the same mpirun

MOST_STEPS = 1e15
MOST_SAMPLES = 10**8  # in a worker's rollout
SEED = Range(0, 2**63, "must lie in [0, 2**63)", open_high=True)
Schedule = Literal["constant", "linear", "cosine"]
Share = Annotated[float, within(0, 1)]
Decay = Annotated[float, within(0, 1, open_high=True)]
Weight = Annotated[float, not_negative(1e6)]
Seconds = Annotated[float, not_negative(LONGEST_S)]
Limit = Annotated[float, not_negative(LONGEST_S, zero="never")]


@dataclass(frozen=True)
class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017; Heess et al. 2017)."""

    objective: Literal["clip", "kl"] = "clip"
    """clip: the clipped surrogate; kl: Heess et al.'s adaptive KL penalty with its hinge term."""
    clip: Annotated[float, within(0, 10, open_low=True)] = 0.2
    """Clip range of the probability ratio."""
    clip_schedule: Schedule = "constant"
    """Of the clip range; linear, cosine: to zero over total_steps."""
    value_clip: Annotated[float, not_negative(1e6, zero="off")] = 0.0
    """Clip range of the value's change, in units of the (normalised) return; 0 switches it off."""
    epochs: Annotated[int, at_least(1, 10_000)] = 10
    """Passes over a rollout."""
    minibatches: Annotated[int, at_least(1, MOST_SAMPLES)] = 8
    """Minibatches per epoch and worker; must divide horizon * num_envs."""
    gamma: Share = 0.99
    """Discount per environment step."""
    lam: Share = 0.95
    """Lambda of generalised advantage estimation."""
    entropy_coef: Annotated[float, within(-1e6, 1e6)] = 0.0
    """Weight of the entropy bonus."""
    entropy_schedule: Schedule = "constant"
    """Of the entropy bonus's weight; linear, cosine: to zero over total_steps."""
    value_coef: Weight = 0.5
    """Weight of the value loss."""
    target_kl: Annotated[float, not_negative(1e6, zero="off")] = 0.03
    """Updates of an iteration end before the step whose mean approximate KL exceeds 1.5 times this; 0: never."""
    normalize_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1, over the samples of all ranks (async: of the rollout)."""
    kl_target: Annotated[float, positive(1e6)] = 0.01
    """The KL that objective kl adapts the penalty's weight to, and optim.schedule kl the learning rate."""
    kl_coef: Weight = 1.0
    """objective kl: the penalty's first weight (lambda in Heess et al.)."""
    kl_hinge: Weight = 50.0
    """objective kl: weight of max(0, KL - 2 kl_target)^2 (xi in Heess et al.)."""


@dataclass(frozen=True)
class A3CConfig(Section):
    """Advantage actor-critic with n-step returns (Mnih et al. 2016)."""

    gamma: Share = 0.99
    """Discount per environment step."""
    lam: Share = 1.0
    """1: n-step returns up to the rollout's end, as in the paper; below 1: generalised advantage estimation."""
    entropy_coef: Annotated[float, within(-1e6, 1e6)] = 0.01
    """Weight of the entropy bonus."""
    entropy_schedule: Schedule = "constant"
    """Of the entropy bonus's weight; linear, cosine: to zero over total_steps."""
    value_coef: Weight = 0.5
    """Weight of the value loss."""
    normalize_advantages: bool = False
    """Advantages to mean 0 and standard deviation 1 before the gradient; not in the paper."""


@dataclass(frozen=True)
class OptimConfig(Section):
    """The optimiser on the flat parameter vector."""

    name: Literal["adam", "rmsprop", "sgd"] | None = None
    """None: adam for ppo, rmsprop (shared statistics, not centred) for a3c."""
    lr: Annotated[float | None, positive(1000)] = None
    """Learning rate; None: 7e-4 for adam, 2e-3 for rmsprop, 1e-2 for sgd."""
    schedule: Literal["constant", "linear", "cosine", "kl"] | None = None
    """Of the learning rate; None: linear. linear, cosine: to zero over total_steps; kl: after each iteration lr / 1.5
    where the mean KL of its updates is above twice ppo.kl_target, lr * 1.5 where it is below half of that."""
    anneal: bool | None = None
    """The older name: true is schedule linear, false is constant."""
    max_grad_norm: Annotated[float, not_negative(1e9, zero="off")] = 0.5
    """Global gradient-norm clip, after the average over ranks; 0 switches it off."""
    beta1: Decay = 0.9
    """adam: decay of the first moment."""
    beta2: Decay = 0.999
    """adam: decay of the second moment."""
    eps: Annotated[float, Range(1e-30, 1e3, "must be positive, at least 1e-30, and at most 1000")] = 1e-5
    """adam: added to the root; rmsprop: added inside the root."""
    alpha: Decay = 0.99
    """rmsprop: decay of the squared gradient."""
    momentum: Decay = 0.9
    """sgd: momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_schedule(self)


@dataclass(frozen=True)
class ModelConfig(Section):
    """The actor-critic network."""

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, the same for the policy's tower and the value's."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity of the hidden layers."""
    encoder: Literal["auto", "nature", "impala"] = "auto"
    """Of images: nature (Mnih et al. 2015), impala (Espeholt et al. 2018); auto: nature, but a smaller one below
    36 x 36."""
    shared: bool = True
    """Whether policy and value share encoders and core, which then run once per row."""
    bf16: bool = False
    """Encoders of images compute in bfloat16: measure it first (docs/gpu.md)."""
    core: Literal["gru", "lstm"] | None = None
    """Memory, between encoders and hidden layers, of policy and value; None: the policy sees the present only."""
    core_size: Annotated[int, within(1, 8192)] = 128
    """core: units of the recurrent layer."""
    sequence: Annotated[int | None, at_least(1, 1e7)] = None
    """Of a network with memory: rows through which the gradient passes; None: the horizon."""
    log_std_init: Annotated[float, within(-20, 20)] = 0.0
    """Box actions: initial log standard deviation, in units of half the action range where it is bounded."""
    factory: str | None = None
    """`module:function` of your own torch network: function(observation_size, head_size) -> torch.nn.Module whose
    forward([B, observation_size]) gives (head [B, head_size], value [B]); or function(observation_space, action_heads),
    by these names, whose forward takes observations as the space has them: dicts and tuples of tensors."""
    backend: Literal["auto", "numpy", "torch"] = "auto"
    """auto: the closed-form network for the MLP, in C and NumPy where pip found a compiler, and torch for a factory;
    numpy: in NumPy alone; torch: the MLP through autograd."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_network(self)


@dataclass(frozen=True)
class MomentsConfig(Section):
    """Normalisation by running moments, merged over all ranks and kept in checkpoints."""

    observations: bool = True
    """Observations to mean 0 and standard deviation 1."""
    returns: bool = True
    """Rewards divided by the standard deviation of the running discounted return."""
    clip: Annotated[float, positive(1e6)] = 10.0
    """Normalised observations are clipped to this many standard deviations."""


@dataclass(frozen=True)
class ServerConfig(Section):
    """The parameter server on rank 0 (exchange p2p)."""

    drop: Annotated[int, not_negative(1e6)] = 0
    """sync p2p: an update is made when all but this many workers have sent their gradient (Heess et al. 2017)."""
    staleness: Literal["drop", "scale", "none"] = "drop"
    """async: a gradient older than max_staleness is dropped; scale: those that are not are weighted by 1/(1+staleness);
    none: all are applied as they are."""
    max_staleness: Annotated[int | None, not_negative(1e9)] = None
    """async: in versions of the parameters, of which each update makes one; None: 4 times what is usual for the worker
    that sends it, and at least 4 times the number of workers."""
    mirror_every: Annotated[int, not_negative(1e9, zero="none")] = 50
    """p2p, where deaths can be survived: updates between copies of the server's state to a standby rank; 0: none."""


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """What is saved, and when."""

    every: Annotated[int, not_negative(MOST_STEPS, zero="off")] = 50_000
    """Environment steps between checkpoints; 0: only at the start and at the end."""
    keep: Annotated[int, at_least(1, 1e6)] = 3
    """How many of the newest checkpoints are kept."""
    grace_s: Seconds = 30.0
    """After a signal to save, seconds until the iteration under way is given up and the previous boundary is saved."""
    replay_s: Seconds = 300.0
    """On resume, seconds that replaying a rank's episodes may take; what is not done by then begins a new episode."""
    states_s: Seconds = 10.0
    """Environments that can save their own state do so after a rollout, once so many seconds have passed since the last
    time; a resume loads it and replays the actions since."""
    patience_s: Seconds = 600.0
    """A disk that is full or fails is tried again; the run ends once a checkpoint was due for so many seconds."""


@dataclass(frozen=True)
class EvalConfig(Section):
    """Greedy episodes while training, by a process of its own beside rank 0; docs/running.md."""

    every: Annotated[int, not_negative(MOST_STEPS, zero="off")] = 0
    """Environment steps between evaluations, at iteration boundaries; the best checkpoint is kept; 0: off."""
    episodes: Annotated[int, at_least(1, 1e6)] = 10
    """Episodes of an evaluation, of each case; always those of the same seeds."""
    target_return: Annotated[float | None, within(-1e15, 1e15)] = None
    """The run ends when the mean return of an evaluation reaches it."""
    patience: Annotated[int, not_negative(1e9, zero="off")] = 0
    """The run ends after so many evaluations in a row without a better mean return; 0: never."""


@dataclass(frozen=True)
class TrajectoriesConfig(Section):
    """HDF5 trajectory dumps; docs/trajectories.md."""

    enabled: bool = False
    """Every worker writes its rollouts to RUN/trajectories."""
    every: Annotated[int, at_least(1, 1e9)] = 1
    """Record every N-th rollout only."""
    segment_mb: Annotated[float, positive(65536)] = 32.0
    """A segment has at most about so much raw data; a worker needs up to twice that in memory."""
    compression: Literal["gzip", "zstd", "none"] = "gzip"
    """gzip can be read everywhere; zstd is smaller and faster with images, and needs hdf5plugin, to read as well."""
    max_gb: Annotated[float | None, positive(1e9, otherwise=", or left out")] = None
    """Of all workers together; where it is reached no more is written, and training goes on."""
    required: bool = False
    """A write error ends the run; else it is said once, and training goes on."""


@dataclass(frozen=True)
class LogConfig(Section):
    """What is shown and written while training."""

    interval_s: Annotated[float, positive(LONGEST_S)] = 5.0
    """Seconds between progress lines where the output is a file; on a terminal one line is redrawn."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    recorder: tuple[str, ...] = ()
    """`module:callable` of each recorder of yours: called without arguments, it returns one. docs/recorders.md."""
    wandb: str | None = None
    """A project of Weights & Biases that is told everything; needs the extra wandb."""
    mlflow: str | None = None
    """An experiment of MLflow that is told everything; needs the extra mlflow."""
    stall_after_s: Limit = 300.0
    """A rank without progress for so long writes its Python stack to RUN/stalls/; 0: never."""
    stall_abort_s: Limit = 0.0
    """A rank without progress for so long ends the job; 0: never."""
    trace: bool = False
    """Write RUN/trace.json, a timeline of all ranks for Perfetto."""


@dataclass(frozen=True)
class Config(Section):
    """Trains a policy by reinforcement learning on all ranks of an MPI job."""

    env: str = "CartPole-v1"
    """Gymnasium id, `module:Id` where importing the module registers the id, or `module:callable`: a class or function
    that returns a gymnasium.Env, or the agents of a simulator as a gymnasium.vector.VectorEnv or a ParallelEnv."""
    env_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the environment's constructor as KEY=VALUE: numbers, true, false, texts, [lists], {a = table}."""
    wrappers: tuple[str, ...] = ()
    """`module:callable` of each wrapper around the environment, innermost first; it is given the environment alone."""
    cases: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    """Tables of a name and env-kwargs, over those of all, dealt to environments in turn. docs/simulators.md"""
    mode: Literal["sync", "async"] = "sync"
    """sync: distributed PPO, all workers step together; async: A3C, each gradient is applied as it comes."""
    exchange: Literal["allreduce", "p2p"] | None = None
    """How gradients meet: allreduce among the workers (the default in sync) or p2p through rank 0 (always in async)."""
    loss: Literal["ppo", "a3c"] | None = None
    """None: ppo in sync, a3c in async."""
    seed: Annotated[int, SEED] = 0
    """Every random stream of the run is derived from it."""
    total_steps: Annotated[int, at_least(1, MOST_STEPS)] = 10_000_000
    """Environment steps over all ranks; the run ends at the first iteration boundary at or past it."""
    num_envs: Annotated[int, at_least(1, 100_000)] = 8
    """Environments per worker; where the agents of a simulator share the policy, agents."""
    horizon: Annotated[int | None, at_least(1, 1e7)] = None
    """Rows (steps of every environment) in a rollout; None: 64 for ppo, 8 for a3c."""
    target_return: Annotated[float | None, within(-1e15, 1e15)] = None
    """The run ends when the mean return of the last 100 episodes reaches it, once all environments have ended one."""
    run_dir: str | None = None
    """Where the run's files go; None: runs/ENV-MODE-LOSS-SEED-TIME."""
    init_from: str | None = None
    """A run directory, or a checkpoint in it, whose parameters and moments the run begins with."""
    init_from_partial: bool = False
    """init_from: where parts of the network or of the observations differ, take over those that fit."""
    resume: bool = False
    """Go on from the newest valid checkpoint in run_dir, with the settings stored there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network computes; auto: on a GPU if it is torch's and torch sees a GPU. docs/gpu.md."""
    vtrace: bool | None = None
    """Correct for the lag between acting and learning policy (Espeholt et al. 2018); None: in async + ppo only."""
    env_ranks: Annotated[int, at_least(1, 1e6)] = 1
    """Ranks that are one environment together: mpirun -n 1+W*env_ranks. docs/simulators.md."""
    env_ranks_span_nodes: bool = False
    """The ranks of an environment may be on several nodes."""
    vectorization: Literal["auto", "sync", "native"] = "auto"
    """auto: dppo's own native form (CartPole), else one environment after another; native: the environment's own vector
    form, which gives up exact resume and independence of the layout over ranks."""
    preempt_fraction: Share = 0.0
    """sync: once this share of the workers has its rollout, the others stop where they have at least a quarter of
    theirs (Wijmans et al. 2020); 0: never."""
    respawn: bool = False
    """Where deaths can be survived (mpirun --with-ft ulfm): start a new worker, with its group, for each that died."""
    on_worker_error: Literal["abort", "continue"] = "abort"
    """A rank's own exception, or its stall past log.stall_abort_s, ends the job; continue: it is a death like any
    other, which the others survive (mpirun --with-ft ulfm)."""
    on_env_error: Literal["abort", "restart"] = "abort"
    """An environment that raises in reset or step, or returns what is not right, ends the run; restart: it is made
    anew, and its episode counts as truncated."""
    max_env_restarts: Annotated[int, at_least(1, 1e6)] = 10
    """on_env_error restart: so many restarts of an environment in a row, without a step between, end the run."""
    time_limit_s: Annotated[float | None, positive(LONGEST_S)] = None
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
    eval: EvalConfig = field(default_factory=EvalConfig)
    trajectories: TrajectoriesConfig = field(default_factory=TrajectoriesConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def own_env_ranks(self) -> int:
        """The ranks of dppo's own program that are one environment; those of SOLVER are another program's."""
        return 1 if self.env == SOLVER else self.env_ranks

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.env), "env must name an environment")
        object.__setattr__(self, "cases", settled_cases(self.cases))
        require_places("wrappers", self.wrappers)
        require_places("log.recorder", self.log.recorder)
