"""Everything that learning changes: parameters, optimiser, moments, counters; and how it travels in one piece.

In sync/allreduce every worker holds a state, and all stay equal. In p2p and async the server holds the state, and
workers hold copies. Checkpoints save the state.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dppo.algo.losses import METRICS, adapted_kl_coef
from dppo.algo.optim import clip_scale, make_optimizer, squared_norm
from dppo.algo.schedules import adapted_lr, scheduled
from dppo.config import Config
from dppo.models.flat import FlatParameters, is_finite
from dppo.training.moments import RunMoments
from dppo.training.packing import COUNTERS, Layout
from dppo.training.soundness import check_shapes, first_not_finite

SCHEDULED = ("clip", "entropy_coef")
"""Metrics that are there only where a schedule moves them."""
ITERATION_METRICS = (*METRICS, "grad_norm", "lr", "explained_variance", "minibatches", *SCHEDULED, "kl_stops")
_COUNT, _KL = METRICS.index("count"), METRICS.index("approx_kl")
_SUMMED = len(METRICS)
_LAST, _UNFINISHED, _MOMENTS = (3 + part * len(ITERATION_METRICS) for part in range(3))
"""Where the reals of a packed state have the last iteration's metrics, the sums of the one under way, the moments."""


class Usage:
    """The number of transitions of one rollout, or of an iteration's rollouts, from which updates were made. It is the
    largest number that one epoch has used, because each epoch sees every transition once.
    """

    def __init__(self, minibatches_per_epoch: int) -> None:
        self._per_epoch = minibatches_per_epoch
        self.begin()

    def begin(self) -> None:
        """Begins to count for another rollout."""
        self._seen = self._in_epoch = self.most = 0

    def add(self, samples: int, *, used: bool) -> int:
        """Counts the next minibatch. Returns how many of its transitions no update was made from before."""
        if self._seen % self._per_epoch == 0:
            self._in_epoch = 0
        self._seen += 1
        self._in_epoch += samples * used
        new = max(0, self._in_epoch - self.most)
        self.most += new
        return new


class TrainingState:
    """The learner's state. Training changes it only by `begin_iteration`, `merge`, `step`, `close_round` and
    `finish_iteration`.

    numbers: version (rounds closed), iteration, round (of messages, within the iteration), updates (steps made),
    env_steps, steps_learnt_from (which the server of an asynchronous run counts itself, worker by worker).
    """

    def __init__(self, flat: FlatParameters, moments: RunMoments, config: Config) -> None:
        assert config.optim.lr is not None, "an unresolved configuration reached the state"
        self.flat, self.moments = flat, moments
        self._config, self._optim, self._total_steps = config, config.optim, config.total_steps
        self._lr = config.optim.lr
        """The rate that the schedule begins with, or the rate that follows the KL."""
        # in async each worker stops by itself, by its own KL
        self._target_kl = 1.5 * config.ppo.target_kl if config.loss == "ppo" and config.mode == "sync" else 0.0
        self._adapts_kl = config.loss == "ppo" and config.ppo.objective == "kl"
        self._kl_target = config.ppo.kl_target
        self.optimizer = make_optimizer(flat.size, config.optim)
        self.layout = Layout(_MOMENTS + moments.num_sums, self.optimizer.state.shape)
        self.version = self.iteration = self.round = self.updates = self.env_steps = self.steps_learnt_from = 0
        self._usage = Usage(config.ppo.minibatches if config.loss == "ppo" else 1) if config.mode == "sync" else None
        self.kl_coef = config.ppo.kl_coef
        self.fraction_done = 0.0
        self.last_kl = 0.0
        """Mean KL of the last update of this iteration; 0 before the first."""
        self._scratch = np.empty(flat.size, np.float32)
        self._metrics = [0.0] * len(ITERATION_METRICS)
        self.last_metrics = np.zeros(len(ITERATION_METRICS))

    def begin_iteration(self) -> None:
        """Freezes the moments that acting, advantages and gradients of the next rollout use."""
        self.moments.freeze()

    def merge(self, sums: np.ndarray, means: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Adds moment sums of rollouts, taken about the fixed means or about `means` (of observations, of returns)."""
        self.moments.merge(sums, means)

    def close_round(self, version: int, *, is_within_iteration: bool = True) -> None:
        """Closes a round of messages; the state is now `version`. The rounds of an asynchronous run are not within an
        iteration, because the run can continue from any state.
        """
        self.version = version
        self.round += is_within_iteration

    def count_learnt_from(self, env_steps: int) -> None:
        """Counts transitions that an asynchronous server has used for the first time."""
        self.steps_learnt_from += env_steps

    def step(self, summed: np.ndarray, weight: float = 1.0) -> bool:
        """Makes one update from `summed` [P + sums] float32: gradient and metric sums over all samples of all ranks.

        The sums become means here, and the mean gradient's norm is clipped. The step is not made if the mean KL has
        passed 1.5 target_kl, or if there is no sample. `weight` scales the step, as staleness requires. Scaling the
        gradient would not do: clipping, and the optimiser's division by the gradient's size, would undo it.

        Returns:
          False if the KL was too large, so that the iteration's updates are over.

        Raises:
          FloatingPointError: the gradient, the sums, or the parameters after the step are not finite.
        """
        size = self.flat.size
        sums = summed[size:].tolist()
        count = sums[_COUNT]
        if not count:
            if self._usage is not None:
                self._usage.add(0, used=False)
            return True
        mean = 1.0 / max(count, 1.0)
        metrics = self._metrics
        for i, value in enumerate(sums):
            metrics[i] += value
        self.last_kl = mean * sums[_KL]
        stops = 0 < self._target_kl < self.last_kl
        if self._usage is not None:
            self._usage.add(int(count), used=not stops)
        if stops:
            metrics[-1] += 1
            return False
        gradient = summed[:size]
        square = squared_norm(gradient, self._scratch)
        if not math.isfinite(square + self.last_kl):
            bad = self.flat.first_not_finite(gradient) or "its metric sums are not"
            raise FloatingPointError(
                f"update {self.updates + 1} was not made: the gradient summed over all ranks is not finite: {bad}"
            )
        norm = mean * math.sqrt(square)
        metrics[_SUMMED] += norm
        scale = mean * clip_scale(norm, self._optim.max_grad_norm)
        self.optimizer.step(self.flat.vector, gradient, self.lr * weight, scale)
        if not is_finite(self.flat.vector):
            raise FloatingPointError(
                f"update {self.updates + 1} has left a parameter that is not finite:"
                f" {self.flat.first_not_finite(self.flat.vector)}; a smaller optim.lr (now {self.lr:g}) may help"
            )
        self.flat.keep_within_bounds()
        self.updates += 1
        metrics[_SUMMED + 3] += 1
        return True

    @property
    def lr(self) -> float:
        """The learning rate of this iteration."""
        return scheduled(self._lr, self.fraction_done, self._optim.schedule or "linear")

    @property
    def _follows_kl(self) -> bool:
        return self._optim.schedule == "kl"

    def _scheduled_weights(self) -> tuple[float, float]:
        """Returns the clip range (0 for a3c) and the entropy bonus's weight of this iteration."""
        config, done = self._config, self.fraction_done
        if config.loss != "ppo":
            return 0.0, scheduled(config.a3c.entropy_coef, done, config.a3c.entropy_schedule)
        ppo = config.ppo
        return scheduled(ppo.clip, done, ppo.clip_schedule), scheduled(ppo.entropy_coef, done, ppo.entropy_schedule)

    def finish_iteration(self, env_steps: int, explained_variance: float) -> None:
        """Ends an iteration in which `env_steps` more transitions were counted: moves schedules, penalty and metrics.

        Raises:
          FloatingPointError: a number of the state is not finite. The run must neither save it nor continue.
        """
        metrics = np.array(self._metrics)
        count, minibatches = metrics[_COUNT], metrics[_SUMMED + 3]
        metrics[1:_SUMMED] /= max(count, 1.0)
        metrics[_SUMMED] /= max(minibatches, 1.0)
        metrics[_SUMMED + 1] = self.lr
        metrics[_SUMMED + 2] = explained_variance
        metrics[_SUMMED + 4 : _SUMMED + 6] = self._scheduled_weights()
        if self._follows_kl and count:
            self._lr = adapted_lr(self._lr, float(metrics[_KL]), self._kl_target)
        if self._adapts_kl and count:
            self.kl_coef = adapted_kl_coef(self.kl_coef, self.last_kl, self._kl_target)
        self.last_metrics, self._metrics = metrics, [0.0] * len(ITERATION_METRICS)
        self.last_kl = 0.0
        self.env_steps += env_steps
        if self._usage is not None:
            self.steps_learnt_from += self._usage.most
            self._usage.begin()
        self.iteration += 1
        self.round = 0
        self.set_fraction_done()
        if (first := first_not_finite(self.flat, self.optimizer, self.moments, self.kl_coef)) is not None:
            raise FloatingPointError(f"after update {self.updates} the state is not finite: {first}")

    def set_fraction_done(self) -> None:
        """Sets the share of the run that is done, by the steps counted so far. Schedules follow it, so they do not move
        within an iteration.
        """
        self.fraction_done = min(1.0, self.env_steps / self._total_steps)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the last finished iteration, by name."""
        named = dict(zip(ITERATION_METRICS, self.last_metrics.tolist(), strict=True))
        named["samples"] = named.pop("count")
        loss = self._config.ppo if self._config.loss == "ppo" else self._config.a3c
        for name, setting in zip(SCHEDULED, ("clip_schedule", "entropy_schedule"), strict=True):
            if getattr(loss, setting, "constant") == "constant":
                del named[name]
        return named | ({"kl_coef": self.kl_coef} if self._adapts_kl else {})

    def as_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as plain values and copies of the arrays."""
        saved: dict[str, Any] = {
            "numbers": {name: int(getattr(self, name)) for name in COUNTERS},
            "optimizer_steps": self.optimizer.steps,
            "kl_coef": self.kl_coef,
            **({"lr": self._lr} if self._follows_kl else {}),
            "moments": self.moments.pack(),
            "parameters": self.flat.vector.copy(),
            "optimizer": self.optimizer.state.copy(),
            "shapes": {name: list(shape) for name, shape in self.flat.shapes.items()},
        }
        if self.flat.constants:
            saved["constants"] = {name: array.copy() for name, array in self.flat.constants.items()}
        return saved

    def check(self, saved: dict[str, Any]) -> None:
        """Raises ValueError if the saved network, optimiser or moments have other shapes than this state's."""
        check_shapes(saved, self.flat, self.optimizer, self.moments)

    def load(self, saved: dict[str, Any]) -> None:
        """Takes over what `as_dict` has returned. Raises ValueError if the saved network is another one."""
        self.check(saved)
        for name in COUNTERS:
            setattr(self, name, saved["numbers"][name])
        self.optimizer.steps, self.kl_coef = saved["optimizer_steps"], saved["kl_coef"]
        self._lr = saved.get("lr", self._lr)
        self.moments.unpack(saved["moments"])
        self.begin_iteration()
        self.flat.assign(saved["parameters"])
        self.flat.set_constants(saved.get("constants", {}))
        self.optimizer.state[:] = saved["optimizer"]
        self.set_fraction_done()
        if (first := first_not_finite(self.flat, self.optimizer, self.moments, self.kl_coef)) is not None:
            raise ValueError(f"the saved state is not finite: {first}")

    # -- in one piece: training/packing.py --------------------

    def packed(self) -> np.ndarray:
        """Returns a copy of everything, [layout.all_bytes] uint8."""
        message = np.empty(self.layout.all_bytes, np.uint8)
        self.pack(message)
        return message

    def pack(self, out: np.ndarray) -> None:
        """Writes the state into `out`, uint8 of core_bytes or all_bytes."""
        parts = self.layout.parts(out)
        parts.numbers[:] = [*(getattr(self, name) for name in COUNTERS), self.optimizer.steps]
        parts.reals[:_LAST] = self.kl_coef, self.last_kl, self._lr
        parts.reals[_LAST:_UNFINISHED] = self.last_metrics
        parts.reals[_UNFINISHED:_MOMENTS] = self._metrics
        parts.reals[_MOMENTS:] = self.moments.pack()
        parts.parameters[:] = self.flat.vector
        parts.optimizer[:] = self.optimizer.state.reshape(-1)[: len(parts.optimizer)]

    def unpack(self, message: np.ndarray) -> None:
        """Takes over what `pack` has written. Does not freeze the moments."""
        parts = self.layout.parts(message)
        for name, number in zip(COUNTERS, parts.numbers, strict=False):
            setattr(self, name, int(number))
        self.optimizer.steps = int(parts.numbers[-1])
        self.kl_coef, self.last_kl, self._lr = parts.reals[:_LAST].tolist()
        self.last_metrics = parts.reals[_LAST:_UNFINISHED].copy()
        self._metrics = parts.reals[_UNFINISHED:_MOMENTS].tolist()
        self.moments.unpack(parts.reals[_MOMENTS:])
        self.flat.assign(parts.parameters)
        self.optimizer.state.reshape(-1)[: len(parts.optimizer)] = parts.optimizer
        self.set_fraction_done()

    def unpack_head(self, message: np.ndarray) -> None:
        """Takes over the head of a packed state, [head_bytes] uint8; parameters and optimiser stay."""
        whole = self.packed()
        whole[: self.layout.head_bytes] = message
        self.unpack(whole)

    def unpack_optimizer(self, message: np.ndarray) -> None:
        """Takes over only the optimiser's statistics and steps, from a message with everything."""
        parts = self.layout.parts(message)
        self.optimizer.steps = int(parts.numbers[-1])
        self.optimizer.state.reshape(-1)[:] = parts.optimizer

    def forget_unfinished(self) -> None:
        """Drops the metrics of the iteration under way, which is given up."""
        self._metrics, self.last_kl = [0.0] * len(ITERATION_METRICS), 0.0
        if self._usage is not None:
            self._usage.begin()
