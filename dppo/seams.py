"""Every seam of the package on one page: what each side may rely on, and where each seam is implemented.

| seam | made in |
|---|---|
| `VectorEnv` | envs/vector.py: envs/env_list.py, envs/agents.py, envs/native.py, envs/cartpole.py |
| `Distribution`, `ActionDistribution`, `Network` | models/ |
| `Exchange` | training/sync_allreduce.py, training/sync_p2p.py, training/sync_pooled.py |
| `Coordinator` | training/sync_allreduce.py, training/sync_p2p.py, training/async_loop.py |
| `Dump`, `Standby` | trajectories/writer.py, training/standby.py |

All coordinators extend the one of training/coordinator.py; the synchronous ones also that of training/sync_loop.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dppo.data import ArrayType as ArrayType
from dppo.data import Batch, Report, Rollout

if TYPE_CHECKING:
    import gymnasium

# -- environments --------------------

EpisodeSeed = Callable[[int], int]
"""A function that takes the local index of an environment, returns the seed of its next episode, and counts it."""


NO_ENVS = np.empty(0, np.intp)
NO_ENVS.setflags(write=False)  # shared by every row in which no episode ended


@dataclass(slots=True)
class Step:
    """One row of N environments: the results of one action in each.

    The caller must not write to the arrays. They survive the next `step`, and the step after that overwrites them. So
    "this observation" and "the next" may be held together, but not the observations of a whole rollout. `final_*` are
    never overwritten.
    """

    observations: np.ndarray
    """[N, *obs] of the space's dtype: the observations to act on next. Where an episode ended, this is the first of the
    next one (in a native NEXT_STEP environment still the last of the old one, and the next row is the reset)."""
    rewards: np.ndarray
    """[N] float32 or float64."""
    terminations: np.ndarray
    """[N] bool: the episode reached an end of the task, after which no reward can be earned."""
    truncations: np.ndarray
    """[N] bool: the episode was cut, as a rule by a time limit, so its value does not end. Both can be true."""
    final_envs: np.ndarray
    """[F] intp, ascending: the environments whose episode ended in this row. Nearly always empty."""
    final_observations: np.ndarray
    """[F, *obs]: the true last observations of these episodes."""
    valid: np.ndarray | None = None
    """[N] bool: false where there was no transition (a NEXT_STEP reset, an agent that waits); None: all are true."""


class Closable(Protocol):
    """One environment, or several, that can be closed."""

    def close(self) -> None: ...


class Curriculum(Protocol):
    """Tells environments which share of the run is done (envs/curriculum.py)."""

    def tell(self, fraction: float) -> None: ...
    def plan(self, plans: Sequence[Mapping[int, float]]) -> None: ...


class VectorEnv(Protocol):
    """N environments of one kind that a worker steps together.

    Observations [N, *obs] and actions [N, *act] are arrays of their space's type (dppo/envs/leaves.py): plain arrays,
    or structured arrays [N] of a Dict or a Tuple.
    """

    num_envs: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    """The spaces of one environment."""
    replayable: bool
    """Whether every episode begins with a seed of its own, so that seed and actions restore it."""
    description: str
    """A short phrase for the log."""
    agents: tuple[str, ...]
    """The names of the agents of a simulator, which are environments side by side: they begin together, by the seed of
    the first, and one that has ended waits for the others. (): each environment is a simulator of its own."""

    @property
    def curriculum(self) -> Curriculum | None:
        """None: the environments do not ask for the share of the run that is done."""

    @property
    def mask_size(self) -> int:
        """M, the number of choices in the discrete parts of the action space, in the order of its leaves, if the
        environments say which are legal; else 0. May reset the first environment, without `episode_seed`."""

    @property
    def masks(self) -> np.ndarray | None:
        """[N, M] bool, the legal choices for the observations that were returned last; None if M is 0. Lives as long as
        the arrays of a `Step`, except that `begin_episode` overwrites its row."""

    @property
    def restarts(self) -> int:
        """How often an environment was made anew, because it had raised an error or had returned what is not right. The
        row of such a step is a truncation, its reward 0, its last observation the one before the step."""

    def reset(self) -> np.ndarray:
        """Begins an episode in every environment, seeded by `episode_seed`. Returns [N, *obs]."""

    def step(self, actions: np.ndarray) -> Step:
        """Takes `actions` [N, *act], in the form that the environment expects. Begins new episodes after ended ones."""

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Resets each environment i with `seeds[i]` and takes the actions `actions[i]` [L_i, *act].

        Returns the observations [N, *obs], and the environments whose episode ended on the way, that had to be made
        anew, or whose replay was not done by time.monotonic() `deadline`. The observations of these environments are
        not valid, and each of them needs `begin_episode` before the next step. Agents of one simulator have one seed
        and as many actions; they count as ended together. If `rewards` is given, the rewards of each environment, [L_i]
        float64, are appended to it. Does not call `episode_seed`. Only if `replayable`.
        """

    def begin_episode(self, index: int) -> np.ndarray:
        """Gives up an environment's episode and begins its next one. Returns [*obs], and may overwrite this row of the
        observations that `step` returned last. Only if `replayable`. Of an agent: of its whole simulator, [A, *obs].
        """

    def close(self) -> None: ...


# -- policies --------------------

Pullback = Callable[[np.ndarray, float], np.ndarray]
"""A function (d_log_prob [B], d_entropy) -> d_head [B, K]."""
Evaluation = tuple[np.ndarray, np.ndarray, Pullback]
"""Log-probabilities [B], entropies [B], and the pullback of their gradients to the head."""


NoiseKinds = tuple[tuple[str, int], ...]
"""What the noise of one action consists of, side by side: (kind, how many numbers), as dppo/seeding.py draws it."""


class Distribution(Protocol):
    """The part of an action distribution that a loss needs (dppo/models/distributions.py)."""

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Returns log-probabilities of `actions` [B, *act], entropies, and their pullback."""

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns [B] KL[old | new]."""

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the [B, K] gradient of weight * sum of `kl` with respect to `head`."""


class ActionDistribution(Distribution, Protocol):
    """An action distribution with everything that acting needs. `head` [B, K] has the network's outputs, then the log
    standard deviations, which do not depend on the state.
    """

    network_outputs: int
    log_std_size: int
    """The number of log standard deviations; 0 without a Box of floats."""
    head_size: int
    """K, the sum of both."""
    action_type: ArrayType
    """One action in the policy's units."""
    noise_kinds: NoiseKinds
    noise_size: int
    choices: tuple[int, ...]
    """The number of values of each categorical: its logits lie side by side, and so do its columns of a mask."""
    mask_size: int
    """The sum of `choices`: the number of logits that a mask speaks of."""

    def sample(self, head: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Samples actions [B, *act], in the policy's units, from noise [B, noise_size] float32."""

    def mode(self, head: np.ndarray) -> np.ndarray:
        """Returns the most probable actions [B, *act]."""

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions as the environment wants them: one array of the space (dppo/envs/leaves.py)."""

    def masked(self, head: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Rules out what is not legal in masks [B, mask_size] bool: a copy of `head` with -inf in these logits. Returns
        `head` itself where all is legal.
        """


class Network(Protocol):
    """Maps inputs [B, ...] (models/inputs.py) and states [B, S] float32 to the policy's outputs, to values and to new
    states; its parameters lie in a FlatParameters. States of None are those of an episode's start, 0.
    """

    state_size: int
    """S, the size of the memory of one environment; 0 without, and then states play no part."""

    def act(self, inputs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the policy's outputs [B, K'], and the values [B] where they cost next to nothing then, else None.
        Both are valid until the next call. Overwrites the states with the new ones; keeps nothing for `backward`.
        """

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        """Returns the values [B], valid until the next call. The states stay; keeps nothing for `backward`."""

    def forward(
        self, inputs: np.ndarray, states: np.ndarray | None = None, firsts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps samples in sequences (algo/sequences.py) to the policy's outputs [B, K'] and the values [B]; keeps what
        `backward` needs. Only the states where `firsts` [B] is true are used; None: it is true everywhere.
        """

    def backward(self, d_outputs: np.ndarray, d_value: np.ndarray) -> None:
        """Writes (not adds) the gradient of the last `forward` into the flat gradient."""


# -- what ranks say to each other --------------------


class Tag(IntEnum):
    """Kinds of messages: the first group goes to rank 0, the second comes from rank 0."""

    REPORT = 1
    SUMS = 2
    GRADIENT = 3
    BOUNDARY = 4
    FAILURE = 5
    SIGNAL = 6
    BYE = 7
    SEALED = 8
    FETCH = 9

    REPLY = 11
    CONTINUE = 12
    STOP = 13
    MIRROR = 14
    HURRY = 15
    SEAL = 16


class Answer(NamedTuple):
    """A message from the server to a worker."""

    worker: int
    tag: Tag
    message: np.ndarray
    """uint8; shared by the answers of a round, never written again."""


class Coordinator(Protocol):
    """Rank 0's part of a protocol: it answers messages. All methods are called in rank 0's one thread."""

    @property
    def done(self) -> bool:
        """Whether the run has ended, and every worker has said goodbye or was abandoned."""

    @property
    def abandoned(self) -> bool:
        """Whether some workers did not leave in time."""

    def on_report(self, report: Report) -> list[Answer]: ...
    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]: ...
    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]: ...
    def on_boundary(self, worker: int, message: np.ndarray) -> list[Answer]: ...
    def on_fetch(self, worker: int) -> list[Answer]: ...
    def on_failure(self, worker: int, text: str) -> list[Answer]: ...
    def on_signal(self) -> list[Answer]: ...
    def on_bye(self, worker: int) -> list[Answer]: ...
    def on_sealed(self, answer: Sealed) -> list[Answer]: ...
    def idle(self) -> list[Answer]:
        """Looks at clocks and signals between two messages."""


class Exchange(Protocol):
    """A worker's part of a synchronous protocol: how the sums and gradients of an iteration meet."""

    @property
    def waited_s(self) -> float:
        """Seconds of waiting for other ranks since the start."""

    def meet(self, batch: Batch) -> Batch | None:
        """Returns the samples whose gradients this worker computes, with the statistics of all workers; None if the run
        has ended. If the iteration has passed meanwhile, there is nothing to compute.
        """

    def is_past(self, minibatch: int) -> bool:
        """Returns whether this update of the iteration was made without this worker."""

    def step(self) -> bool:
        """Averages the flat gradient over ranks by samples and makes the update. Returns False if the iteration's
        updates are over.
        """

    def finish_iteration(self, totals: np.ndarray) -> None:
        """Merges moments, moves counters and schedules, and tells rank 0."""


class Sealed(NamedTuple):
    """A worker's answer to `TrajectoryWriter.seal`, or its account of what went wrong meanwhile."""

    rank: int
    row: int | None
    """The row that was asked for; None: nobody asked."""
    next_segment: int | None
    """Number of the next segment: the segments below it hold all rows before `row` that could be written; None: a
    later row is in one of them already.
    """
    end_row: int = 0
    """The row behind the last one in these segments."""
    problem: str | None = None
    """The reason why something is not written, and what; told once."""
    failed: bool = False
    """Whether the problem is an error, not a limit that was set."""
    refusal: str | None = None
    """The error of a disk that is tried again; "": the disk has taken everything."""


class Dump(Protocol):
    """A worker's trajectory writer, as far as rank 0 uses it."""

    def add(self, rollout: Rollout) -> None: ...
    def seal(self, row: int) -> None: ...
    def wait(self) -> None: ...
    def answers(self) -> Sequence[Sealed]: ...


class Standby(Protocol):
    """The part of a worker that keeps what is needed if others die: training/standby.py."""

    totals: np.ndarray | None

    def add_report(self, report: Report) -> None: ...
    def keep_mirror(self, message: np.ndarray) -> None: ...
    def pass_boundary(self, iteration: int, state: np.ndarray, head_bytes: int) -> None: ...
