"""Makes an ONNX file of a trained policy, and compares what it computes with the policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dppo.config import VERSION
from dppo.errors import UsageError, missing_package
from dppo.files import replace_atomically
from dppo.rundir.spaces import space_to_json

if TYPE_CHECKING:
    from dppo.models.onnx_graph import Port
    from dppo.training.onnx_check import Difference
    from dppo.training.policy import Policy

NUM_OBSERVATIONS = 1000
"""The number of observations on which the file is compared with the policy."""
TOLERANCE = 1e-5
"""The largest difference that is accepted by default."""
MOST_BYTES = 2**31 - 2**24
"""The most bytes of parameters: an ONNX file is one message of protobuf, which has less than 2 GiB."""


class CheckError(Exception):
    """Raised where a file that was made does not compute what the policy does."""


def export(policy: Policy, *, stochastic: bool = False, tolerance: float = TOLERANCE) -> tuple[bytes, Difference]:
    """Returns a policy as the bytes of an ONNX file, and its largest difference from the policy.

    Args:
      stochastic: whether the file samples actions, from an input `noise`; else it takes the most probable ones.
      tolerance: the largest difference that is accepted; see `Difference`.

    Raises:
      UsageError: a package is missing, the network cannot be exported, or is too large.
      CheckError: the file would not compute what the policy does.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_package("ONNX and onnxruntime", error, "export") from error
    from dppo.models.onnx_graph import PolicyGraph, to_onnx
    from dppo.training.onnx_check import largest_difference

    parts, cfg = policy.actor_critic, policy.config.model
    if 4 * parts.flat.size > MOST_BYTES:
        raise UsageError(f"this network has {parts.flat.size:,} parameters, and an ONNX file has less than 2 GiB")
    given: dict[str, Any] = {"mask_size": policy.mask_size, "reward_scale": policy.reward_scale}
    given |= {"is_sampled": stochastic}
    graph = PolicyGraph(parts, policy.spaces, cfg, **given)
    versions = {"dppo": VERSION, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    try:
        data = to_onnx(graph, metadata(policy, graph.inputs, graph.outputs, versions, stochastic=stochastic))
    except ValueError as error:
        raise UsageError(f"model.factory={cfg.factory}: {error}" if cfg.factory else str(error)) from error
    try:
        worst = largest_difference(parts, policy.spaces, data, NUM_OBSERVATIONS, **given)
    except ValueError as error:
        raise UsageError(f"model.factory={cfg.factory}: {error}" if cfg.factory else str(error)) from error
    except RuntimeError as error:
        raise CheckError(str(error)) from error
    if not worst.size <= tolerance:
        raise CheckError(
            f"on {NUM_OBSERVATIONS:,} observations, its {worst.where} differs by up to {worst.size:.3g} from the"
            f" policy's; at most {tolerance:g} is accepted (--tolerance)"
        )
    return data, worst


def write_policy(policy: Policy, path: Path, **given: Any) -> tuple[int, Difference]:
    """Writes a policy as an ONNX file, which replaces an existing one. Returns its size in bytes, and its largest
    difference from the policy. Takes and raises what `export` does, and then writes nothing; raises OSError where it
    cannot write.
    """
    data, worst = export(policy, **given)
    replace_atomically(path, data)
    return len(data), worst


def metadata(
    policy: Policy, inputs: list[Port], outputs: list[Port], versions: dict[str, str], *, stochastic: bool
) -> dict[str, str]:
    """Returns the texts that the file carries: docs/export.md explains them."""
    observed, acted = policy.spaces
    kinds = policy.actor_critic.distribution.noise_kinds if stochastic else ()
    return {
        "env": policy.config.env,
        "env_steps": str(policy.env_steps),
        "actions": "sampled" if stochastic else "greedy",
        "observation_space": space_to_json(observed),
        "action_space": space_to_json(acted),
        "inputs": json.dumps([_plain(port) for port in inputs]),
        "outputs": json.dumps([_plain(port) for port in outputs]),
        "noise": json.dumps(kinds),
        "versions": json.dumps(versions),
    }


def _plain(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": str(port.dtype), "shape": port.shape}
