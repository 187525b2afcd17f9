"""From a rollout to gradients: advantages, statistics, epochs and minibatches, loss -> gradient in the flat buffer.

No MPI here: sums that ranks have to add up are returned as one float64 vector (`Batch.statistics`) or left in the flat
buffer (`gradient`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from dppo.algo import compiled, losses, returns
from dppo.algo.sequences import Order, first_steps, order_in_sequences, shuffled
from dppo.config import Config
from dppo.data import Batch, Minibatch, Rollout
from dppo.models.flat import first_not_finite, is_finite
from dppo.models.policy import ActorCritic
from dppo.seeding import Purpose, generator
from dppo.training.moments import RunMoments

LARGEST_TARGETS = 1e34
"""The largest sum of squares of a rollout's value targets: above it the loss, summed over all ranks, overflows float32.
"""
STATISTICS = ("samples", "env_steps", "adv", "adv2", "target", "target2", "error", "error2")
"""The first entries of a rollout's statistics; the moments' sums follow."""


def explained_variance(totals: np.ndarray) -> float:
    """Returns the acting critic's explained variance, from the added-up statistics."""
    named = dict(zip(STATISTICS, totals, strict=False))
    return losses.explained_variance(
        (named["target"], named["target2"]), (named["error"], named["error2"]), named["samples"]
    )


class Learner:
    """Turns rollouts into gradients of the configured loss.

    Args:
      worker: stable number of the worker, which decides the shuffling stream.
    """

    def __init__(self, policy: ActorCritic, moments: RunMoments, config: Config, worker: int) -> None:
        self.policy, self.moments, self.config, self._worker = policy, moments, config, worker
        self._ppo = config.loss == "ppo"
        self._losses = losses if config.model.backend == "numpy" else compiled
        self.gamma = config.ppo.gamma if self._ppo else config.a3c.gamma
        self._lam = config.ppo.lam if self._ppo else config.a3c.lam
        self._normalizes = config.ppo.normalize_advantages if self._ppo else config.a3c.normalize_advantages
        assert config.horizon is not None, "an unresolved configuration reached the learner"
        # what has memory is known by its state: a core, or a network of the user's own
        self._sequence = (config.model.sequence or config.horizon) if policy.state_size else 1
        self.epochs, self.minibatches_per_epoch = (config.ppo.epochs, config.ppo.minibatches) if self._ppo else (1, 1)

    @property
    def updates_per_rollout(self) -> int:
        """Number of gradients that a rollout gives, unless the KL stops earlier."""
        return self.epochs * self.minibatches_per_epoch

    def one_sample(self) -> Minibatch:
        """Returns a minibatch of one sample, which shows shapes and types; its values mean nothing."""
        number = np.zeros((1, 1), np.float32)
        computed = {"advantages": number, "returns": number, "firsts": np.ones((1, 1), bool)}
        return Minibatch.of(self.policy.blank_rollout(0, 1, 1), **computed)

    @property
    def num_statistics(self) -> int:
        """Length of `Batch.statistics`."""
        return len(STATISTICS) + self.moments.num_sums

    def prepare(self, rollout: Rollout, discounted_returns: np.ndarray) -> Batch:
        """Computes advantages, value targets and statistics of a rollout.

        Args:
          rollout: T rows of N environments; T may be 0 if it was given up.
          discounted_returns: [T, N] float64, from the raw rewards.

        Raises:
          FloatingPointError: the value targets are too large for float32, or not finite; the text says why.
        """
        rewards = rollout.rewards * np.float32(self.moments.rewards.scale)
        dones = rollout.terminations | rollout.truncations
        values = rollout.values
        order = order_in_sequences(len(rewards), rollout.rewards.shape[1], self._sequence)
        firsts = first_steps(dones, rollout.valid, self._sequence)
        if len(rewards) and self.config.vtrace:
            advantages, targets, values = self._vtrace(rollout, rewards, dones, firsts, order)
        else:
            advantages, targets = returns.gae(rewards, values, rollout.next_values, dones, self.gamma, self._lam)

        samples = Minibatch.of(rollout, order, values=values, advantages=advantages, returns=targets, firsts=firsts)
        adv, target = samples.advantages.astype(np.float64), samples.returns.astype(np.float64)
        error = target - rollout.valid_steps(rollout.values, order=order)[0]
        sums = [float(len(samples)), rollout.num_steps]
        sums += [x for a in (adv, target, error) for x in (a.sum(), np.dot(a, a))]
        if not sums[STATISTICS.index("target2")] <= LARGEST_TARGETS:
            raise FloatingPointError(self._too_large(rollout, values))
        observations, discounted = rollout.valid_steps(rollout.observations, discounted_returns)
        moments = self.moments.deltas(observations, discounted[:, None])
        return Batch(samples, np.concatenate((sums, moments)), ((self._worker, len(samples)),))

    def _vtrace(
        self, rollout: Rollout, rewards: np.ndarray, dones: np.ndarray, firsts: np.ndarray, order: Order
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns advantages, targets and values of the present policy, which may be newer than the one that acted."""
        columns = rollout.inputs, rollout.masks, rollout.states, firsts, rollout.actions
        inputs, masks, states, firsts, actions = [rollout.all_steps(column)[order] for column in columns]
        head, value = self.policy.forward(inputs, masks, states, firsts)
        log_probs, values = np.empty_like(rollout.log_probs), np.empty_like(rollout.values)
        rollout.all_steps(log_probs)[order] = self.policy.distribution.evaluate(head, actions)[0]
        rollout.all_steps(values)[order] = value
        # where the next value is that of the next row, it is the present critic's, too; elsewhere it remains the acting
        # critic's
        next_values = rollout.next_values.copy()
        inside = ~dones[:-1]
        next_values[:-1][inside] = values[1:][inside]
        advantages, targets = returns.vtrace(
            rewards, values, next_values, dones, log_probs - rollout.log_probs, self.gamma, self._lam
        )
        return advantages, targets, values

    def normalise_advantages(self, batch: Batch, totals: np.ndarray) -> None:
        """Brings advantages to mean 0 and deviation 1 over the samples of `totals`, the added-up statistics."""
        if not self._normalizes:
            return
        count, _, total, square = totals[:4]
        mean = total / max(count, 1.0)
        std = np.sqrt(max(square / max(count, 1.0) - mean * mean, 0.0))
        batch.samples.advantages = ((batch.samples.advantages - mean) / (std + 1e-6)).astype(np.float32)

    def minibatches(self, batch: Batch, iteration: int) -> Iterator[Minibatch]:
        """Yields epochs x minibatches of whole sequences, shuffled anew in each epoch by each worker's stream of this
        iteration.
        """
        if self.updates_per_rollout == 1:
            yield batch.samples
            return
        firsts = batch.samples.firsts
        parts, first = [], 0
        for worker, count in batch.parts:
            parts.append((first, count, generator(self.config.seed, Purpose.SHUFFLE, worker, iteration)))
            first += count
        for _ in range(self.epochs):
            pieces = [
                [first + piece for piece in shuffled(firsts[first : first + count], self.minibatches_per_epoch, rng)]
                for first, count, rng in parts
            ]
            chosen = list(zip(*pieces, strict=True))  # for each minibatch, a piece from each part
            samples = batch.samples[np.concatenate([piece for minibatch in chosen for piece in minibatch])]
            edges = itertools.accumulate((sum(map(len, minibatch)) for minibatch in chosen), initial=0)
            for start, end in itertools.pairwise(edges):
                yield samples[start:end]

    def gradient(
        self, samples: Minibatch, kl_coef: float = 0.0, last_kl: float = 0.0, fraction_done: float = 0.0
    ) -> None:
        """Writes the loss's gradient and metric sums, both summed over the samples, into `flat.summed`.

        Args:
          kl_coef: the KL penalty's present weight.
          last_kl: mean KL of the update before, over all ranks; the penalty has a hinge on it.
          fraction_done: share of the run that is done; schedules follow it.

        Without samples the gradient is zero, and the network is not called.

        Raises:
          FloatingPointError: the loss or its gradient is not finite.
        """
        flat, distribution = self.policy.flat, self.policy.distribution
        if not len(samples):
            flat.summed[:] = 0.0
            return
        head, value = self.policy.forward(samples.inputs, samples.masks, samples.states, samples.firsts)
        if self._ppo:
            loss = self._losses.ppo(
                distribution, head, value, samples, self.config.ppo, kl_coef, last_kl, fraction_done
            )
        else:
            loss = self._losses.a3c(distribution, head, value, samples, self.config.a3c, fraction_done)
        if not math.isfinite(loss.sums.sum()):
            raise FloatingPointError(_first_bad(head, value, samples))
        self.policy.backward(loss.d_head, loss.d_value)
        flat.sums[:] = loss.sums
        if not is_finite(flat.summed):
            names = flat.shapes | {f"the sum of {name}": () for name in losses.METRICS}
            raise FloatingPointError(
                f"worker {self._worker}: the gradient is not finite, though the loss is, and is not used:"
                f" {first_not_finite(names, flat.summed)}; a network that divides by what may be 0, or takes its root,"
                " does this"
            )

    def _too_large(self, rollout: Rollout, values: np.ndarray) -> str:
        """Returns a text on what makes the value targets too large: rewards or critic."""
        rewards, scale = np.abs(rollout.rewards), self.moments.rewards.scale
        row, env = np.unravel_index(int(np.argmax(rewards)), rewards.shape)
        largest_value = float(np.abs(values).max())
        if not largest_value < 0.01 * scale * float(rewards[row, env]):
            return f"the critic's values reach {largest_value:g}: a smaller optim.lr may help"
        where = f"row {rollout.first_row + row} of environment {self._worker * self.config.num_envs + env}"
        return (
            f"rewards are too large: {rollout.rewards[row, env]:g} in {where}, times {scale:g} for their deviation so"
            " far, gives value targets whose loss float32 cannot hold: have the environment give smaller ones, or a"
            " wrapper such as gymnasium.wrappers.TransformReward"
        )


def _first_bad(head: np.ndarray, value: np.ndarray, samples: Minibatch) -> str:
    rate, reward = "a smaller optim.lr may help", "look at the environment's rewards"
    # a logit of -inf is an action that a mask rules out
    arrays = {
        "inputs": (samples.inputs, "look at the environment's observations"),
        "the network's head": (np.where(np.isneginf(head), 0.0, head), rate),
        "the network's value": (value, rate),
        "value targets": (samples.returns, reward),
        "advantages": (samples.advantages, reward),
    }
    for name, (array, repair) in arrays.items():
        if not np.isfinite(array).all():
            index = np.argwhere(~np.isfinite(array))[0].tolist()
            return f"the loss is not finite: first bad array is {name}, at {index}; {repair}"
    return f"the loss is not finite, though its inputs are: {rate}"
