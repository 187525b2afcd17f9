"""Everything that learning changes: parameters, optimiser, moments, counters; and how it travels in one piece.

In sync/allreduce every worker holds one and all stay equal; in p2p and async the server holds it and workers hold
copies; checkpoints save it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dppo.algo.losses import METRICS, adapted_kl_coef
from dppo.algo.moments import Normaliser
from dppo.algo.optim import annealed, clip_scale, make_optimizer, squared_norm
from dppo.config import Config
from dppo.models.flat import FlatParameters, is_finite

COUNTERS = ("version", "iteration", "ticket", "updates", "env_steps", "steps_learnt_from")
NUMBERS = (*COUNTERS, "optimizer_steps")
ITERATION_METRICS = (*METRICS, "grad_norm", "lr", "explained_variance", "minibatches", "kl_stops")
ROUNDING = 1e-5
"""Relative to the largest entry; a step on a sum that a death has spoilt is beyond it."""
_COUNT, _KL = METRICS.index("count"), METRICS.index("approx_kl")
_SUMMED = len(METRICS)


class Usage:
    """Of a rollout, or of the rollouts of an iteration: how many transitions updates were made from. It is the most
    that one epoch has used, because each epoch sees every transition once.
    """

    def __init__(self, minibatches_per_epoch: int) -> None:
        self._per_epoch = minibatches_per_epoch
        self.begin()

    def begin(self) -> None:
        """Another rollout."""
        self._seen = self._in_epoch = self.most = 0

    def add(self, samples: int, *, used: bool) -> int:
        """The next minibatch. Returns the transitions that were not learnt from before."""
        if self._seen % self._per_epoch == 0:
            self._in_epoch = 0
        self._seen += 1
        self._in_epoch += samples * used
        new = max(0, self._in_epoch - self.most)
        self.most += new
        return new


class TrainingState:
    """The learner's state. `step` and `finish_iteration` are the only ways in which training changes it.

    numbers: version (rounds closed), iteration and ticket (round within it), updates (steps made), env_steps,
    steps_learnt_from (which the server of an asynchronous run counts itself, worker by worker).
    """

    def __init__(self, flat: FlatParameters, normaliser: Normaliser, config: Config) -> None:
        assert config.optim.lr is not None, "an unresolved configuration reached the state"
        self.flat, self.normaliser = flat, normaliser
        self._optim, self._lr, self._total_steps = config.optim, config.optim.lr, config.total_steps
        # in async the workers stop by themselves, each on its own KL
        self._target_kl = 1.5 * config.ppo.target_kl if config.loss == "ppo" and config.mode == "sync" else 0.0
        self._adapts_kl = config.loss == "ppo" and config.ppo.objective == "kl"
        self._kl_target = config.ppo.kl_target
        self.optimizer = make_optimizer(flat.size, config.optim)
        self.version = self.iteration = self.ticket = self.updates = self.env_steps = self.steps_learnt_from = 0
        self._usage = Usage(config.ppo.minibatches if config.loss == "ppo" else 1) if config.mode == "sync" else None
        self.kl_coef = config.ppo.kl_coef
        self.progress = 0.0
        self._last_kl = 0.0
        self._scratch = np.empty(flat.size, np.float32)
        self._metrics = [0.0] * len(ITERATION_METRICS)
        self.last_metrics = np.zeros(len(ITERATION_METRICS))

    def step(self, summed: np.ndarray, weight: float = 1.0) -> bool:
        """One update from `summed` [P + sums] float32: gradient and metric sums over all samples of all ranks.

        The sums become means here, the mean gradient's norm is clipped, and where the mean KL has passed 1.5
        target_kl the step is not made. Nor is it where there is no sample. `weight` scales the step, as staleness asks
        for; a scaled gradient would be clipped, and divided by its own size, all the same.

        Returns:
          False where the KL was too large: the iteration's updates are over.

        Raises:
          FloatingPointError: where gradient or sums are not finite, or the parameters after the step.
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
        self._last_kl = mean * sums[_KL]
        stops = 0 < self._target_kl < self._last_kl
        if self._usage is not None:
            self._usage.add(int(count), used=not stops)
        if stops:
            metrics[-1] += 1
            return False
        gradient = summed[:size]
        square = squared_norm(gradient, self._scratch)
        if not math.isfinite(square + self._last_kl):
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
        return annealed(self._lr, self.progress, self._optim.anneal)

    def finish_iteration(self, env_steps: int, explained_variance: float) -> None:
        """Ends an iteration in which `env_steps` more transitions were counted: schedules, penalty, metrics.

        Raises:
          FloatingPointError: a number of the state is not finite. The run must neither save it nor continue.
        """
        metrics = np.array(self._metrics)
        count, minibatches = metrics[_COUNT], metrics[_SUMMED + 3]
        metrics[1:_SUMMED] /= max(count, 1.0)
        metrics[_SUMMED] /= max(minibatches, 1.0)
        metrics[_SUMMED + 1] = self.lr
        metrics[_SUMMED + 2] = explained_variance
        if self._adapts_kl and count:
            self.kl_coef = adapted_kl_coef(self.kl_coef, self._last_kl, self._kl_target)
        self.last_metrics, self._metrics = metrics, [0.0] * len(ITERATION_METRICS)
        self.env_steps += env_steps
        if self._usage is not None:
            self.steps_learnt_from += self._usage.most
            self._usage.begin()
        self.iteration += 1
        self.ticket = 0
        self.set_progress()
        if (first := self._first_not_finite()) is not None:
            raise FloatingPointError(f"after update {self.updates} the state is not finite: {first}")

    def _first_not_finite(self) -> str | None:
        """What of the state is not finite, with the repair; None where all is."""
        flat, statistics = self.flat, self.optimizer.state
        if not is_finite(flat.vector):
            return f"parameter {flat.first_not_finite(flat.vector)}; a smaller optim.lr may help"
        if not is_finite(statistics.reshape(-1)):
            first = next(bad for row in statistics if (bad := flat.first_not_finite(row)) is not None)
            return f"the optimiser's statistics of {first}; a smaller optim.max_grad_norm, or an optim.lr, may help"
        if not math.isfinite(self.kl_coef):
            return f"kl_coef is {self.kl_coef}"
        return self.normaliser.first_not_finite()

    def set_progress(self) -> None:
        """Schedules stand still within an iteration: they follow the steps counted at its start."""
        self.progress = min(1.0, self.env_steps / self._total_steps)

    def metrics(self) -> dict[str, float]:
        """Of the last finished iteration, by name."""
        named = dict(zip(ITERATION_METRICS, self.last_metrics.tolist(), strict=True))
        named["samples"] = named.pop("count")
        return named | ({"kl_coef": self.kl_coef} if self._adapts_kl else {})

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values and copies of the arrays."""
        return {
            "numbers": {name: int(getattr(self, name)) for name in COUNTERS},
            "optimizer_steps": self.optimizer.steps,
            "kl_coef": self.kl_coef,
            "moments": self.normaliser.pack(),
            "parameters": self.flat.vector.copy(),
            "optimizer": self.optimizer.state.copy(),
            "shapes": {name: list(shape) for name, shape in self.flat.shapes.items()},
        }

    def check(self, saved: dict[str, Any]) -> None:
        """Raises ValueError where the saved network, optimiser or moments are not of this one's shapes."""
        shapes = {name: tuple(shape) for name, shape in saved["shapes"].items()}
        if shapes != self.flat.shapes or saved["optimizer"].shape != self.optimizer.state.shape:
            raise ValueError(f"the checkpoint holds a network of {shapes}, this one is {self.flat.shapes}")
        if saved["parameters"].shape != (self.flat.size,) or saved["moments"].shape != (self.normaliser.num_sums,):
            sizes = len(saved["parameters"]), len(saved["moments"])
            raise ValueError(
                f"the checkpoint holds {sizes} parameters and moments, this network has"
                f" {(self.flat.size, self.normaliser.num_sums)}"
            )
        moments, split = saved["moments"], self.normaliser.num_sums - 3
        size = (split - 1) // 2
        for count, m2 in ((moments[0], moments[1 + size : split]), (moments[split], moments[split + 2 :])):
            if count < 0 or (m2 <= -1e-8 * max(count, 1.0)).any():  # a rounding below 0 is as good as 0
                raise ValueError("the checkpoint holds moments of a negative count or a negative variance")

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of `as_dict`. Raises ValueError where the saved network is another one."""
        self.check(saved)
        for name in COUNTERS:
            setattr(self, name, saved["numbers"][name])
        self.optimizer.steps, self.kl_coef = saved["optimizer_steps"], saved["kl_coef"]
        self.normaliser.unpack(saved["moments"])
        self.normaliser.freeze()
        self.flat.vector[:] = saved["parameters"]
        self.optimizer.state[:] = saved["optimizer"]
        self.set_progress()
        if (first := self._first_not_finite()) is not None:
            raise ValueError(f"the saved state is not finite: {first}")

    # -- one piece: [numbers int64 | reals float64 | parameters float32 | optimiser float32] --------------------

    @property
    def _num_reals(self) -> int:
        return 1 + len(ITERATION_METRICS) + self.normaliser.num_sums

    @property
    def head_bytes(self) -> int:
        """Length of a message's beginning that holds counters, metrics and moments, without the parameters."""
        return 8 * (len(NUMBERS) + self._num_reals)

    @property
    def core_bytes(self) -> int:
        """Length of a message without the optimiser's state, which workers of a server do not need."""
        return self.head_bytes + 4 * self.flat.size

    @property
    def all_bytes(self) -> int:
        """Length of a message with everything."""
        return self.core_bytes + self.optimizer.state.nbytes

    def pack(self, out: np.ndarray) -> None:
        """Writes the state into `out`, uint8 of core_bytes or all_bytes."""
        numbers, reals, parameters, optimizer = self._views(out)
        numbers[:] = [*(getattr(self, name) for name in COUNTERS), self.optimizer.steps]
        reals[0] = self.kl_coef
        reals[1 : 1 + len(ITERATION_METRICS)] = self.last_metrics
        reals[1 + len(ITERATION_METRICS) :] = self.normaliser.pack()
        parameters[:] = self.flat.vector
        optimizer[:] = self.optimizer.state.reshape(-1)[: len(optimizer)]

    def unpack(self, message: np.ndarray) -> None:
        """The inverse of `pack`. Moments are not frozen by it."""
        numbers, reals, parameters, optimizer = self._views(message)
        for name, number in zip(COUNTERS, numbers, strict=False):
            setattr(self, name, int(number))
        self.optimizer.steps = int(numbers[-1])
        self.kl_coef = float(reals[0])
        self.last_metrics = reals[1 : 1 + len(ITERATION_METRICS)].copy()
        self.normaliser.unpack(reals[1 + len(ITERATION_METRICS) :])
        self.flat.vector[:] = parameters
        self.optimizer.state.reshape(-1)[: len(optimizer)] = optimizer
        self.set_progress()

    @staticmethod
    def progress_of(message: np.ndarray) -> tuple[int, int]:
        """(iteration, version) of a packed state."""
        numbers = message[: 8 * len(NUMBERS)].view(np.int64)
        return int(numbers[NUMBERS.index("iteration")]), int(numbers[NUMBERS.index("version")])

    @staticmethod
    def is_boundary(message: np.ndarray) -> bool:
        """Whether a packed state is between two iterations."""
        return not message[: 8 * len(NUMBERS)].view(np.int64)[NUMBERS.index("ticket")]

    def differ_by_rounding(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two packed states are the same, but for last bits that have come out differently on two CPUs."""
        (numbers, reals, *arrays), (other_numbers, other_reals, *others) = self._views(one), self._views(other)
        arrays[1:], others[1:] = (list(a[1].reshape(self.optimizer.state.shape)) for a in (arrays, others))
        return bool(
            np.array_equal(numbers, other_numbers)
            and np.allclose(reals, other_reals, rtol=ROUNDING, equal_nan=True)
            and all(
                np.abs(a - b).max() <= ROUNDING * min(np.abs(a).max(), np.abs(b).max())
                for a, b in zip(arrays, others, strict=True)
            )
        )

    def unpack_head(self, message: np.ndarray) -> None:
        """The same with the first head_bytes of a message: parameters and optimiser stay."""
        whole = np.empty(self.all_bytes, np.uint8)
        self.pack(whole)
        whole[: self.head_bytes] = message
        self.unpack(whole)

    def unpack_optimizer(self, message: np.ndarray) -> None:
        """Takes over only the optimiser's statistics and steps, of a message with everything."""
        numbers, _, _, optimizer = self._views(message)
        self.optimizer.steps = int(numbers[-1])
        self.optimizer.state.reshape(-1)[:] = optimizer

    def forget_unfinished(self) -> None:
        """The iteration under way is given up: its metrics are."""
        self._metrics = [0.0] * len(ITERATION_METRICS)
        if self._usage is not None:
            self._usage.begin()

    def _views(self, message: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        a = 8 * len(NUMBERS)
        b = a + 8 * self._num_reals
        c = b + 4 * self.flat.size
        parts = message[:a].view(np.int64), message[a:b].view(np.float64), message[b:c].view(np.float32)
        return *parts, message[c:].view(np.float32)
