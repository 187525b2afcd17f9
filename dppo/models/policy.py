"""The actor-critic: a network, an action distribution and the flat buffers that hold their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from dppo.config import ModelConfig, MomentsConfig
from dppo.data import EpisodeProgress, Rollout
from dppo.envs.leaves import ArrayType
from dppo.models.distributions import LOG_STD_BOUNDS, make_distribution
from dppo.models.flat import MOST_PARAMETERS, FlatParameters
from dppo.models.inputs import Inputs
from dppo.models.mlp import MLP
from dppo.models.seams import ActionDistribution, Network

if TYPE_CHECKING:
    from dppo.models.torch_network import TorchNetwork

NO_PROGRESS = EpisodeProgress(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
ROWS = 8
"""The block size of acting, which pads its rows to whole blocks. BLAS sums in another order for one row or two than for
eight, and a chaotic simulator (HalfCheetah) turns a difference in the last bit into one of order 1 within 60 steps.
Without blocks, eight environments on one rank would have other episodes than two on each of four ranks."""
ROWS_OF_IMAGES = 4
"""The same for a network with images, whose rows have their own bits from four rows on (with MKL_CBWR as
cluster/startup.py sets it). A row costs 0.2 ms there."""


class ActorCritic:
    """The policy pi(a | s) and the value V(s), with the inputs that they are computed from.

    A Box policy has one more parameter than its network: the state-independent log standard deviation. `head`
    parametrises the distribution: the network's outputs, followed by that parameter.

    Args:
      place: has the network compute on another device; None: it computes on the CPU only.
    """

    def __init__(
        self,
        inputs: Inputs,
        network: Network,
        distribution: ActionDistribution,
        flat: FlatParameters,
        description: str,
        mask_size: int = 0,
        place: Callable[[str], None] | None = None,
    ) -> None:
        self.place = place
        self.inputs, self.network, self.distribution, self.flat = inputs, network, distribution, flat
        self.description, self.mask_size = description, mask_size
        sampled = distribution.mode(np.zeros((1, distribution.head_size), np.float32))
        sent = distribution.to_env(sampled)
        self._sends_as_sampled = sent is sampled
        self._types: dict[str, ArrayType] = {
            "observations": inputs.observation_type,
            "inputs": inputs.type,
            "masks": ((mask_size,), np.dtype(bool)),
            "actions": distribution.action_type,
            "env_actions": (sent.shape[1:], sent.dtype),
            "heads": ((distribution.head_size,), np.dtype(np.float32)),
            "states": ((network.state_size,), np.dtype(np.float32)),
        }
        self.state_size = network.state_size
        """S, the size of the network's memory of one environment; 0 without."""
        self._log_std = flat.parameters.get("log_std")
        self._d_log_std = flat.gradients.get("log_std")
        self._rows = ROWS_OF_IMAGES if inputs.images else ROWS
        self._compiled = network if isinstance(network, MLP) and network.is_compiled else None
        self._tail = np.empty(0, np.float32) if self._log_std is None else self._log_std
        self._padded = np.empty((0, 0), np.float32)
        self._padded_states = self.first_states(0)

    def first_states(self, num_envs: int) -> np.ndarray:
        """Returns the network's states [N, S] at the start of an episode."""
        return np.zeros((num_envs, self.state_size), np.float32)

    def blank_rollout(
        self, first_row: int, rows: int, num_envs: int, progress: EpisodeProgress = NO_PROGRESS
    ) -> Rollout:
        """Returns a rollout to be filled; see `Rollout.blank`. Columns that are always equal share their memory."""
        rollout = Rollout.blank(first_row, rows, num_envs, self._types, progress)
        if self._sends_as_sampled:
            rollout.env_actions = rollout.actions
        if self.inputs.is_raw:
            rollout.inputs = rollout.observations
        return rollout

    def _head(self, outputs: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if self._log_std is None and out is None:
            return outputs
        head = np.empty((len(outputs), self.distribution.head_size), np.float32) if out is None else out
        if self._log_std is None:
            head[...] = outputs
        else:
            head[:, : outputs.shape[1]] = outputs
            head[:, outputs.shape[1] :] = self._log_std
        return head

    def act(
        self,
        inputs: np.ndarray,
        noise: np.ndarray,
        head: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        states: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Samples actions.

        Args:
          inputs: [N, ...], as `inputs` gives them.
          noise: [N, noise_size] float32, of the kinds that the distribution names.
          head: [N, K] float32 to write the head into; a new array if None.
          masks: [N, M] bool: the legal actions, if some may be illegal.
          states: [N, S] float32: the network's states before, which become those after; None: those of a start.

        Returns:
          (actions [N, *act], head [N, K], values [N] or None); log-probabilities, and values that are None here, are
          cheaper for a whole rollout at once.
        """
        n, values = len(inputs), None
        if self._compiled is not None:
            head = self._compiled_head(self._compiled, inputs, head)
        else:
            head, values = self._padded_head(inputs, head, states)
        if masks is not None:
            head[...] = self.distribution.masked(head, masks)
        return self.distribution.sample(head, noise), head, None if values is None else values[:n]

    def _compiled_head(self, network: MLP, inputs: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            out = np.empty((len(inputs), self.distribution.head_size), np.float32)
        network.write_head(inputs, self._tail, out)
        return out

    def _padded_head(
        self, inputs: np.ndarray, head: np.ndarray | None, states: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the head [N, K], in `head` if given, and values of at least N rows, if the network has some."""
        n = len(inputs)
        if n % self._rows:
            if len(self._padded) != n + -n % self._rows:
                # of a real row: zeros need not be an observation, as of a Discrete that starts at 1
                self._padded = np.repeat(inputs[:1], n + -n % self._rows, axis=0)
            self._padded[:n] = inputs
            inputs = self._padded
        outputs, values = self._advance(inputs, states)
        return self._head(outputs[:n], head), values

    def _advance(self, inputs: np.ndarray, states: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Calls the network for inputs with rows to fill up a block; `states`, of the first rows, becomes the new
        one.
        """
        if states is None or len(states) == len(inputs) or not self.state_size:
            return self.network.act(inputs, states)
        if len(self._padded_states) != len(inputs):
            self._padded_states = self.first_states(len(inputs))
        self._padded_states[: len(states)] = states
        out = self.network.act(inputs, self._padded_states)
        states[...] = self._padded_states[: len(states)]
        return out

    def greedy(
        self, inputs: np.ndarray, masks: np.ndarray | None = None, states: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the mode of the policy, [N, *act], for inputs [N, ...], the legal actions [N, M] bool, and the
        network's states as in `act`.
        """
        if self._compiled is not None:
            head = self._compiled_head(self._compiled, inputs)
        else:
            head = self._head(self.network.act(inputs, states)[0])
        return self.distribution.mode(self._masked(head, masks))

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        """Returns values [B], in units of the normalised return, for inputs [B, ...] and states [B, S], which stay."""
        return self.network.value(inputs, states)

    def forward(
        self,
        inputs: np.ndarray,
        masks: np.ndarray | None = None,
        states: np.ndarray | None = None,
        firsts: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (head [B, K], value [B]) for samples in sequences; `backward` differentiates the last call.

        Args:
          inputs: [B, ...].
          masks: [B, M] bool: the legal actions.
          states, firsts: [B, S] and [B]: see `Minibatch`; None: every sample is the start of an episode.
        """
        outputs, value = self.network.forward(inputs, states, firsts)
        return self._masked(self._head(outputs), masks), value

    def _masked(self, head: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        return head if masks is None or not masks.shape[1] else self.distribution.masked(head, masks)

    def backward(self, d_head: np.ndarray, d_value: np.ndarray) -> None:
        """Writes the gradient for `d_head` [B, K] and `d_value` [B] into `flat.gradient`."""
        if self._log_std is None:
            self.network.backward(d_head, d_value)
            return
        split = d_head.shape[1] - len(self._log_std)
        self.network.backward(d_head[:, :split], d_value)
        np.add.reduce(d_head[:, split:], axis=0, out=self._d_log_std)


def _require_trainable(cfg: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuses too many parameters before they are made, which takes memory and time."""
    number = sum(map(math.prod, shapes.values()))
    if number > MOST_PARAMETERS:
        core = f" with model.core_size={cfg.core_size}" * (cfg.core is not None)
        raise ValueError(
            f"model.hidden={cfg.hidden}{core} makes {number:,} parameters with these spaces, and at most"
            f" {MOST_PARAMETERS:,} can be trained: choose smaller layers"
        )


def make_policy(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    cfg: ModelConfig,
    moments: MomentsConfig,
    rng: np.random.Generator,
    num_sums: int = 0,
    mask_size: int = 0,
) -> ActorCritic:
    """Makes a freshly initialised policy. The network is the closed-form MLP unless the configuration asks for torch.

    Args:
      observation_space: see `Inputs`.
      action_space: Discrete, MultiDiscrete, MultiBinary or Box.
      rng: the generator of the initial weights.
      num_sums: the number of metric sums that travel behind the gradient.
      mask_size: the number of actions that the environments' masks speak of; 0: they have none.

    Raises:
      ValueError: a space is not supported, or the factory does not work.
    """
    inputs = Inputs(observation_space, moments)
    distribution = make_distribution(action_space)
    outputs = distribution.network_outputs
    log_std: dict[str, tuple[int, ...]] = {"log_std": (distribution.log_std_size,)} if distribution.log_std_size else {}
    network: Network
    place: Callable[[str], None] | None = None
    if cfg.bf16 and (cfg.factory is not None or not inputs.images):
        raise ValueError(
            "model.bf16 is for dppo's encoders of images, and this network has none"
            f"{' (a factory may use torch.autocast itself)' * (cfg.factory is not None)}: leave it out"
        )
    if cfg.factory is None and cfg.backend != "torch" and not inputs.is_raw and not cfg.core:
        _require_trainable(cfg, MLP.shapes(inputs.size, cfg.hidden, outputs))
        flat = FlatParameters(MLP.shapes(inputs.size, cfg.hidden, outputs) | log_std, num_sums)
        network = MLP(flat, len(cfg.hidden), cfg.activation, may_be_compiled=cfg.backend != "numpy")
        MLP.initialise(flat, len(cfg.hidden), rng)
        by = "C and NumPy" if network.is_compiled else "NumPy"
        description = f"{_layers(cfg)}, closed-form gradient in {by}"
    else:
        both, seed = (observation_space, action_space), int(rng.integers(2**31))
        network, flat, description = _torch_network(inputs, both, cfg, outputs, log_std, num_sums, seed)
        place = network.place
    if log_std:
        flat.parameters["log_std"][...] = cfg.log_std_init
        flat.bound("log_std", *LOG_STD_BOUNDS)
    described = f"{description}, {flat.size} parameters"
    return ActorCritic(inputs, network, distribution, flat, described, mask_size, place)


def _layers(cfg: ModelConfig) -> str:
    return f"MLP {' x '.join(map(str, cfg.hidden))} {cfg.activation}"


def _torch_network(
    inputs: Inputs,
    both_spaces: tuple[gymnasium.Space, gymnasium.Space],
    cfg: ModelConfig,
    outputs: int,
    log_std: dict[str, tuple[int, ...]],
    num_sums: int,
    seed: int,
) -> tuple[TorchNetwork, FlatParameters, str]:
    """Makes a network of torch, with its parameters and a phrase on it: of the factory, with encoders, or the MLP."""
    import torch

    from dppo.models.encoders import EncodedModule, EncodedNetwork
    from dppo.models.own_networks import make_own_network
    from dppo.models.torch_network import TorchMLP, TorchNetwork

    if cfg.factory is None and (inputs.is_raw or cfg.core):
        with torch.device("meta"):  # where arrays have shapes only
            _require_trainable(cfg, TorchNetwork.shapes(EncodedModule(inputs, outputs, cfg)))
    torch.manual_seed(seed)
    if cfg.factory is not None:
        own, flat = make_own_network(cfg.factory, inputs, *both_spaces, log_std, num_sums, seed)
        return own, flat, f"{cfg.factory}, torch autograd"
    if inputs.is_raw or cfg.core:
        encoded = EncodedModule(inputs, outputs, cfg)
        flat = FlatParameters(TorchNetwork.shapes(encoded) | log_std, num_sums)
        return EncodedNetwork(flat, encoded, inputs), flat, f"{encoded.description}, {_layers(cfg)}, torch autograd"
    _require_trainable(cfg, MLP.shapes(inputs.size, cfg.hidden, outputs))
    module = TorchMLP(inputs.size, cfg.hidden, outputs, cfg.activation)
    flat = FlatParameters(TorchNetwork.shapes(module) | log_std, num_sums)
    return TorchNetwork(flat, module), flat, f"{_layers(cfg)}, torch autograd"
