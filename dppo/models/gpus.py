"""The GPUs that this process sees, as torch says; only a rank whose network is torch's asks."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

VISIBLE = "CUDA_VISIBLE_DEVICES"


class GPU(NamedTuple):
    """A GPU that this process may use."""

    device: str
    """Its name in this process: "cuda:0"."""
    identity: str
    """Its name on this node, the same in all processes."""
    description: str
    """Its model, for a person."""


def visible_gpus() -> tuple[GPU, ...]:
    """Returns the GPUs that this process sees, in torch's order. Takes no memory of them."""
    import torch

    if not torch.cuda.is_available():
        return ()
    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        # where the batch system gives each rank a GPU of its own, each rank sees it as number 0
        gpus.append(GPU(f"cuda:{index}", str(getattr(found, "uuid", index)), str(found.name)))
    return tuple(gpus)


def why_none() -> str:
    """Says why torch sees no GPU here."""
    return _reason_and_repair()[0]


def require_gpu() -> None:
    """Raises ValueError, with the reason and the repair, if torch sees no GPU."""
    if not visible_gpus():
        reason, repair = _reason_and_repair()
        raise ValueError(f"--device cuda: torch sees no GPU on {socket.gethostname()}: {reason}: {repair}")


def _reason_and_repair() -> tuple[str, str]:
    import torch

    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA", "install one with it, or use --device cpu"
    visible = os.environ.get(VISIBLE)
    if visible is not None and not visible.strip(", ").replace("-1", ""):
        return f"{VISIBLE} is {visible!r}", "unset it, ask Slurm for GPUs (--gpus-per-node), or use --device cpu"
    try:
        torch.cuda.init()
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        return f"it says {said!r}", "look at nvidia-smi there, or use --device cpu"
    return "it does not say why", "look at nvidia-smi there, or use --device cpu"
