"""A policy as one ONNX graph: from raw observations, mask and memory to the actions that the environment takes.

torch writes the graph. Everything that surrounds the network, which NumPy computes elsewhere, is written once more with
torch's operations (input_tensors.py, action_tensors.py); the command compares both.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dppo.envs.leaves import leaves
from dppo.models.action_tensors import ActionTensors
from dppo.models.encoders import EncodedModule, in_float32
from dppo.models.input_tensors import InputTensors, StructuredTensors, observed_leaves
from dppo.models.structured import StructuredNetwork
from dppo.models.torch_network import TorchMLP, TorchNetwork

if TYPE_CHECKING:
    import gymnasium

    from dppo.config import ModelConfig
    from dppo.models.policy import ActorCritic

OBSERVATION, MASK, STATE, NOISE = "observation", "mask", "state_in", "noise"
ACTION, VALUE, LOG_PROB, NEW_STATE = "action", "value", "log_prob", "state_out"
BATCH = "batch"
OPSET = 18
"""The version of ONNX's operators: the first that torch's exporter writes without a conversion, so many programs read
it."""
_ROWS = 3
"""Rows of the example that torch follows: it takes a size of 1 for a constant."""

_Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of the graph."""

    name: str
    shape: tuple[int, ...]
    """Of one row: the first axis of the graph's is the batch."""
    dtype: np.dtype[Any]


class PolicyGraph(nn.Module):
    """A policy of one step, from raw observations to actions.

    Args:
      spaces: of observations and of actions.
      mask_size: the number of choices that masks speak of; 0: the graph has no mask.
      reward_scale: the factor from the raw reward to the critic's unit.
      is_sampled: whether actions are sampled, from noise that is an input; else they are the most probable ones.
    """

    def __init__(
        self,
        policy: ActorCritic,
        spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]],
        cfg: ModelConfig,
        *,
        mask_size: int,
        reward_scale: float,
        is_sampled: bool,
    ) -> None:
        super().__init__()
        observed, acted = spaces
        self._names = [named(OBSERVATION, leaf.name) for leaf in observed_leaves(observed)]
        self._leaves = [leaf.name for leaf in observed_leaves(observed)]
        self._reward_scale = reward_scale
        self._step = _StepOf(policy, observed, cfg)
        self.actions = ActionTensors(acted, policy.flat.parameters.get("log_std", np.empty(0, np.float32)))
        bits, floats = np.dtype(bool), np.dtype(np.float32)
        size, noise_size = policy.state_size, policy.distribution.noise_size
        self.has_mask, self.has_state, self.is_sampled = bool(mask_size), bool(size), is_sampled
        self.inputs = [
            *(Port(n, leaf.shape, leaf.dtype) for n, leaf in zip(self._names, observed_leaves(observed), strict=True)),
            *([Port(MASK, (mask_size,), bits)] if mask_size else []),
            *([Port(STATE, (size,), floats)] if size else []),
            *([Port(NOISE, (noise_size,), floats)] if is_sampled else []),
        ]
        self.outputs = [
            *(Port(named(ACTION, leaf.name), leaf.shape, leaf.dtype) for leaf in leaves(acted)),
            Port(VALUE, (), floats),
            Port(LOG_PROB, (), floats),
            *([Port(NEW_STATE, (size,), floats)] if size else []),
        ]

    def forward(
        self,
        observations: list[torch.Tensor],
        mask: torch.Tensor | None,
        states: torch.Tensor | None,
        noise: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Maps `inputs` to `outputs`."""
        outputs, values, after = self._step(dict(zip(self._leaves, observations, strict=True)), states)
        actions, log_prob = self.actions(outputs, mask, noise)
        return [*actions, values / self._reward_scale, log_prob, *([] if after is None else [after])]


def named(what: str, leaf: str) -> str:
    """Returns the name of a leaf's input or output: "action" of a plain space, "action/arm/0" of a nested one."""
    return f"{what}/{leaf}" if leaf else what


class _StepOf(nn.Module):
    """One step of a policy's network, from the leaves of observations."""

    def __init__(self, policy: ActorCritic, space: gymnasium.Space[Any], cfg: ModelConfig) -> None:
        super().__init__()
        network, inputs = policy.network, policy.inputs
        self.has_state = bool(policy.state_size)
        self.is_own = isinstance(network, StructuredNetwork)
        self.convert: nn.Module = StructuredTensors(inputs, space) if self.is_own else InputTensors(inputs)
        if isinstance(network, TorchNetwork):
            self.network = network.module
        else:
            mlp = TorchMLP(inputs.size, cfg.hidden, policy.distribution.network_outputs, cfg.activation)
            mlp.take_over(policy.flat.parameters)
            self.network = mlp

    def forward(self, observed: dict[str, torch.Tensor], states: torch.Tensor | None) -> _Outcome:
        """Returns outputs [B, K'], values [B], and the new states [B, S] where the network has a memory."""
        given, network = self.convert(observed), self.network
        if self.has_state:
            outcome: _Outcome = network(given, states)
            return outcome
        if isinstance(network, EncodedModule):
            return *network.without_memory(given), None
        return *network(given if self.is_own else given[0]), None


# -- the file --------------------


def to_onnx(graph: PolicyGraph, metadata: dict[str, str]) -> bytes:
    """Returns the graph as an ONNX file's bytes.

    Args:
      metadata: texts by name, for the file's own table of such.

    Raises:
      ValueError: torch cannot follow the network, which then is of the user's own.
    """
    import onnx

    with in_float32(graph), _quietly(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _followed(graph),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
            )
        except Exception as error:  # whatever the user's module does
            while error.__cause__ is not None:  # the cause says more than that a step has failed
                error = error.__cause__  # type: ignore[assignment]
            first = str(error).strip().splitlines() or [""]
            raise ValueError(f"torch cannot export it: {type(error).__name__}: {first[0]:.300}") from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # they name files of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata)
    proto.producer_name, proto.graph.name = "dppo", "policy"
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _followed(graph: PolicyGraph) -> torch.export.ExportedProgram:
    """Has torch follow the graph for any number of rows: torch.onnx.export would fix this number where it cannot."""
    examples, shapes = _examples(graph), _dynamic(graph)
    try:
        return torch.export.export(graph, examples, dynamic_shapes=shapes, strict=False)
    except Exception:  # as with len(tensor), which only the slower way of following takes for a variable
        return torch.export.export(graph, examples, dynamic_shapes=shapes, strict=True)


def _examples(graph: PolicyGraph) -> tuple[Any, ...]:
    by_name = {port.name: torch.from_numpy(np.zeros((_ROWS, *port.shape), port.dtype)) for port in graph.inputs}
    extra = [by_name.pop(name, None) for name in (MASK, STATE, NOISE)]
    return list(by_name.values()), *extra


def _dynamic(graph: PolicyGraph) -> tuple[Any, ...]:
    rows = {0: torch.export.Dim(BATCH)}
    observations, *extra = _examples(graph)
    return [rows for _ in observations], *(None if example is None else rows for example in extra)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides what the exporter says of packages that nobody needs and of its own future."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
