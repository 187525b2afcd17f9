"""The seams within models/: what acting needs of a distribution, and what a network is. The others: dppo/seams.py."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dppo.data import ArrayType
from dppo.seams import Distribution

NoiseKinds = tuple[tuple[str, int], ...]
"""What the noise of one action consists of, side by side: (kind, how many numbers), as dppo/seeding.py draws it."""


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
