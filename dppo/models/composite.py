"""The distribution of the actions of a Dict or a Tuple."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dppo.envs.leaves import array_type
from dppo.models.seams import ActionDistribution, NoiseKinds
from dppo.seams import ArrayType, Evaluation


class _Part(NamedTuple):
    """A part of the actions, and its columns in what the whole is given."""

    name: str
    distribution: ActionDistribution
    head: slice | np.ndarray
    noise: slice
    mask: slice


class Composite:
    """Independent parts side by side. actions: structured, [B], with a field per part, of what the part samples.

    Log-probabilities, entropies and KL are sums over the parts. head: the network's outputs of all parts, then the log
    standard deviations of all parts; noise and masks: those of all parts. A part may be a Composite: its columns lie
    where those of its own parts would.
    """

    def __init__(self, space: gymnasium.Space[Any], parts: Mapping[str, ActionDistribution]) -> None:
        each = list(parts.values())
        self._sent_type = array_type(space)[1]
        self.network_outputs = sum(part.network_outputs for part in each)
        self.compiled_loss: Callable[..., None] | None = None
        self.log_std_size = sum(part.log_std_size for part in each)
        self.head_size = self.network_outputs + self.log_std_size
        self.noise_kinds: NoiseKinds = tuple(itertools.chain.from_iterable(part.noise_kinds for part in each))
        self.noise_size = sum(part.noise_size for part in each)
        self.choices: tuple[int, ...] = tuple(itertools.chain.from_iterable(part.choices for part in each))
        self.mask_size = sum(part.mask_size for part in each)
        fields = [(name, *reversed(part.action_type)) for name, part in parts.items()]
        self.action_type: ArrayType = (), np.dtype(fields, align=True)
        self._parts: list[_Part] = []
        output, log_std, noise, mask = 0, self.network_outputs, 0, 0
        for name, part in parts.items():
            outputs = slice(output, output := output + part.network_outputs)
            log_stds = slice(log_std, log_std := log_std + part.log_std_size)
            head = np.r_[outputs, log_stds] if part.log_std_size else outputs  # a slice is a view
            noises = slice(noise, noise := noise + part.noise_size)
            masks = slice(mask, mask := mask + part.mask_size)
            self._parts.append(_Part(name, part, head, noises, masks))

    def sample(self, head: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Samples actions [B]."""
        # zeros, so that what lies between the fields is the same in every run
        actions = np.zeros(len(noise), self.action_type[1])
        for part in self._parts:
            actions[part.name] = part.distribution.sample(head[:, part.head], noise[:, part.noise])
        return actions

    def mode(self, head: np.ndarray) -> np.ndarray:
        """Returns the most probable actions [B]."""
        actions = np.zeros(len(head), self.action_type[1])
        for part in self._parts:
            actions[part.name] = part.distribution.mode(head[:, part.head])
        return actions

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions as the environment wants them: [B], of the space's array type."""
        sent = np.zeros(len(actions), self._sent_type)
        for part in self._parts:
            sent[part.name] = part.distribution.to_env(actions[part.name])
        return sent

    def masked(self, head: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Rules out what is not legal; see `ActionDistribution`."""
        if masks.all():
            return head
        return self._joined(
            head, (part.distribution.masked(head[:, part.head], masks[:, part.mask]) for part in self._parts)
        )

    def _joined(self, like: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
        """Returns an array like a head, made of those of its parts."""
        joined = np.empty(like.shape, like.dtype)
        for part, columns in zip(self._parts, parts, strict=True):
            joined[:, part.head] = columns
        return joined

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Evaluates `actions`: sums over the parts."""
        parts = [part.distribution.evaluate(head[:, part.head], actions[part.name]) for part in self._parts]
        log_probs, entropies, pullbacks = zip(*parts, strict=True)

        def pullback(d_log_prob: np.ndarray, d_entropy: float) -> np.ndarray:
            return self._joined(head, (back(d_log_prob, d_entropy) for back in pullbacks))

        return np.add.reduce(log_probs), np.add.reduce(entropies), pullback

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns KL[old | new], [B]."""
        return np.add.reduce([part.distribution.kl(old_head[:, part.head], head[:, part.head]) for part in self._parts])

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the gradient of weight * sum of `kl`, [B, K]."""
        return self._joined(
            head,
            (part.distribution.kl_backward(old_head[:, part.head], head[:, part.head], weight) for part in self._parts),
        )
