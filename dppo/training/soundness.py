"""Whether a learner's state is sound: finite, and of the shapes that a checkpoint holds."""

from __future__ import annotations

import math
from typing import Any

from dppo.algo.optim import Optimizer
from dppo.models.flat import FlatParameters, is_finite
from dppo.training.moments import RunMoments


def first_not_finite(flat: FlatParameters, optimizer: Optimizer, moments: RunMoments, kl_coef: float) -> str | None:
    """Returns the first thing that is not finite, with the repair; None if everything is finite."""
    if not is_finite(flat.vector):
        return f"parameter {flat.first_not_finite(flat.vector)}; a smaller optim.lr may help"
    if not is_finite(optimizer.state.reshape(-1)):
        first = next(bad for row in optimizer.state if (bad := flat.first_not_finite(row)) is not None)
        return f"the optimiser's statistics of {first}; a smaller optim.max_grad_norm, or an optim.lr, may help"
    if not math.isfinite(kl_coef):
        return f"kl_coef is {kl_coef}"
    return moments.problem()


def check_shapes(saved: dict[str, Any], flat: FlatParameters, optimizer: Optimizer, own: RunMoments) -> None:
    """Raises ValueError if the saved network, optimiser or moments have other shapes than the given ones."""
    shapes = {name: tuple(shape) for name, shape in saved["shapes"].items()}
    if shapes != flat.shapes or saved["optimizer"].shape != optimizer.state.shape:
        raise ValueError(f"the checkpoint holds a network of {shapes}, this one is {flat.shapes}")
    flat.check_constants(saved.get("constants", {}))
    moments, split = saved["moments"], own.inputs.num_sums
    if saved["parameters"].shape != (flat.size,) or moments.shape != (own.num_sums,):
        sizes = len(saved["parameters"]), len(moments)
        raise ValueError(
            f"the checkpoint holds {sizes} parameters and moments, this network has {(flat.size, own.num_sums)}"
        )
    size = (split - 1) // 2
    for count, m2 in ((moments[0], moments[1 + size : split]), (moments[split], moments[split + 2 :])):
        if count < 0 or (m2 <= -1e-8 * max(count, 1.0)).any():  # a rounding below 0 counts as 0
            raise ValueError("the checkpoint holds moments of a negative count or a negative variance")
