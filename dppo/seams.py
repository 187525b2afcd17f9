"""Every seam of the package on one page: what each side may rely on, and where each seam is implemented.

| seam | made in |
|---|---|
| `VectorEnv` | envs/vector.py: envs/env_list.py, envs/agents.py, envs/native.py, envs/cartpole.py |
| `Distribution` | models/; what models/ has of its own for acting is in models/seams.py |
| `Recorder` | rundir/metrics_file.py, rundir/tensorboard.py, training/progress.py |
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
from pathlib import Path
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


class Distribution(Protocol):
    """The part of an action distribution that a loss needs (dppo/models/distributions.py)."""

    compiled_loss: Callable[..., None] | None
    """The kernel (algo/kernels.c) that computes losses of this distribution; None: there is none."""

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Returns log-probabilities of `actions` [B, *act], entropies, and their pullback."""

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns [B] KL[old | new]."""

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the [B, K] gradient of weight * sum of `kl` with respect to `head`."""


# -- recorders --------------------


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that its recorders receive at the start."""

    run_dir: Path
    run_id: str
    """The same for all attempts of the run."""
    config: dict[str, Any]
    """Every setting, as `dataclasses.asdict` gives it."""
    world_size: int
    resumed: bool
    """Whether the run went on before: from a checkpoint, or under a server that has died."""
    env_steps: int
    """Environment steps done so far: those of the checkpoint from which the run continues."""


class Recorder:
    """Is told on rank 0 how a run goes: a class that extends this one and has those of the methods that it needs.

    All are called in rank 0's one thread, which workers wait for: long work needs a thread of its own. A recorder that
    raises is named in a warning and hears nothing more; the run goes on. What a method is given is shared: it must not
    be changed.
    """

    def start(self, run: RunInfo) -> None:
        """Begins: before the first iteration of an attempt, and on the new server if the server has died."""

    def iteration(self, line: dict[str, Any]) -> bool | None:
        """Takes in a line of metrics.jsonl. True asks the run to end here."""

    def evaluation(self, line: dict[str, Any]) -> bool | None:
        """Takes in a line of evaluations.jsonl. True asks the run to end at the next iteration's end."""

    def checkpoint(self, path: Path) -> None:
        """Takes in the folder of a checkpoint that is written."""

    def end(self, summary: dict[str, Any]) -> None:
        """Takes in RUN/summary.json, when this attempt ends by itself, in whatever way."""


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
