"""The moments of a run: of the observations that its policy sees, and of the returns that scale its rewards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dppo.algo.moments import RewardScale
from dppo.models.inputs import Inputs


@dataclass(frozen=True, slots=True)
class RunMoments:
    """The moments of both kinds, which travel, freeze and merge together: those of the inputs come first."""

    inputs: Inputs
    rewards: RewardScale

    @property
    def num_sums(self) -> int:
        """The length of their sums, and of what `pack` returns."""
        return self.inputs.num_sums + self.rewards.num_sums

    @property
    def are_empty(self) -> bool:
        """Whether no sample of observations was merged yet."""
        return self.inputs.now.count == 0

    @property
    def frozen_means(self) -> tuple[np.ndarray, np.ndarray]:
        """The fixed means of observations and of discounted returns, about which a rollout's sums are taken."""
        return self.inputs.frozen_mean, self.rewards.frozen_mean

    def freeze(self) -> None:
        """Fixes both as they are now."""
        self.inputs.freeze()
        self.rewards.freeze()

    def deltas(self, observations: np.ndarray, discounted_returns: np.ndarray) -> np.ndarray:
        """Sums a rollout's samples, [B, *obs] and [B, 1], about the fixed means. Returns [num_sums] float64."""
        return np.concatenate((self.inputs.deltas(observations), self.rewards.deltas(discounted_returns)))

    def merge(self, sums: np.ndarray, means: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Adds sums [num_sums] float64 of rollouts, taken about the fixed means or about `means`."""
        of_inputs, of_rewards = means or (None, None)
        self.inputs.merge(sums[: self.inputs.num_sums], of_inputs)
        self.rewards.merge(sums[self.inputs.num_sums :], of_rewards)

    def pack(self) -> np.ndarray:
        """Returns both in the form in which they travel and are saved: [num_sums] float64."""
        return np.concatenate((self.inputs.pack(), self.rewards.pack()))

    def unpack(self, packed: np.ndarray) -> None:
        """Reverses `pack`; does not freeze."""
        self.inputs.unpack(packed[: self.inputs.num_sums])
        self.rewards.unpack(packed[self.inputs.num_sums :])

    def problem(self) -> str | None:
        """Names the first moment that is not finite, with the repair. Returns None where all are finite."""
        if self.rewards.first_not_finite() is not None:
            return "the moments of the discounted returns; have the environment give smaller rewards"
        return self.inputs.problem()
