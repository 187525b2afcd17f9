"""Optimisers on a flat vector: torch's where torch has them, else the paper's formula in plain Python."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dppo.algo.optim import Optimizer, clip_scale, make_optimizer, squared_norm, staleness_weight
from dppo.config import OptimConfig

SIZE, STEPS, LR = 17, 12, 0.03
CONFIGS = {
    "adam": OptimConfig(name="adam", beta1=0.8, beta2=0.95, eps=1e-3),
    "rmsprop": OptimConfig(name="rmsprop", alpha=0.9, eps=1e-2),
    "sgd": OptimConfig(name="sgd", momentum=0.7),
}
every_rule = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Parameters [P] and the gradients of several steps [S, P], of very different sizes."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((STEPS, SIZE)) * 10.0 ** rng.integers(-3, 2, SIZE)
    return rng.standard_normal(SIZE).astype(np.float32), gradients.astype(np.float32)


def run(optimizer: Optimizer, params: np.ndarray, gradients: np.ndarray, first: int = 0) -> np.ndarray:
    """Parameters after a step for each gradient, at a falling rate."""
    params = params.copy()
    for t, gradient in enumerate(gradients, first):
        optimizer.step(params, gradient.copy(), LR / (1 + t))
    return params


def run_torch(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], params: np.ndarray, gradients: np.ndarray
) -> np.ndarray:
    """The same with torch's optimiser, in float64."""
    vector = torch.nn.Parameter(torch.from_numpy(params.astype(np.float64)))
    optimizer = make([vector])
    for t, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = LR / (1 + t)
        vector.grad = torch.from_numpy(gradient.astype(np.float64))
        optimizer.step()
    return vector.detach().numpy()


# -- the rules --------------------


def test_adam_worked_by_hand() -> None:
    """Its first step is lr g / (|g| + eps), whatever the decays."""
    params = np.array([1.0, 1.0], np.float32)
    make_optimizer(2, OptimConfig(name="adam", eps=0.5)).step(params, np.array([1.5, -0.5], np.float32), 0.1)
    np.testing.assert_allclose(params, [1 - 0.1 * 1.5 / 2.0, 1 + 0.1 * 0.5 / 1.0], rtol=1e-6)


def test_rmsprop_worked_by_hand() -> None:
    """g2 = 0.1 x 9, p = 1 - 0.1 x 3 / sqrt(0.9 + 0.1): epsilon is inside the root."""
    params = np.array([1.0], np.float32)
    make_optimizer(1, OptimConfig(name="rmsprop", alpha=0.9, eps=0.1)).step(params, np.array([3.0], np.float32), 0.1)
    np.testing.assert_allclose(params, [0.7], rtol=1e-6)


def test_sgd_worked_by_hand() -> None:
    """u = 2, then 0.5 x 2 + 2 = 3: p = 1 - 0.1 x 2 - 0.1 x 3."""
    params, gradient = np.array([1.0], np.float32), np.array([2.0], np.float32)
    optimizer = make_optimizer(1, OptimConfig(name="sgd", momentum=0.5))
    optimizer.step(params, gradient, 0.1)
    optimizer.step(params, gradient, 0.1)
    np.testing.assert_allclose(params, [0.5], rtol=1e-6)


def test_adam_is_torchs() -> None:
    params, gradients = problem()
    expected = run_torch(lambda p: torch.optim.Adam(p, betas=(0.8, 0.95), eps=1e-3), params, gradients)
    np.testing.assert_allclose(run(make_optimizer(SIZE, CONFIGS["adam"]), params, gradients), expected, rtol=1e-5)


def test_sgd_is_torchs() -> None:
    params, gradients = problem()
    expected = run_torch(lambda p: torch.optim.SGD(p, momentum=0.7), params, gradients)
    np.testing.assert_allclose(run(make_optimizer(SIZE, CONFIGS["sgd"]), params, gradients), expected, rtol=1e-5)


def test_rmsprop_is_the_formula_of_the_paper() -> None:
    """Mnih et al. 2016, eq. S3: g = alpha g + (1 - alpha) d^2; theta -= eta d / sqrt(g + eps)."""
    params, gradients = problem()
    expected = []
    for i, theta in enumerate(params.tolist()):
        g = 0.0
        for t in range(STEPS):
            d = float(gradients[t, i])
            g = 0.9 * g + (1 - 0.9) * d * d
            theta -= LR / (1 + t) * d / math.sqrt(g + 1e-2)
        expected.append(theta)
    actual = run(make_optimizer(SIZE, CONFIGS["rmsprop"]), params, gradients)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@every_rule
def test_an_optimiser_goes_on_from_its_saved_state_to_the_bit(cfg: OptimConfig) -> None:
    params, gradients = problem()
    whole = run(make_optimizer(SIZE, cfg), params, gradients)
    first, second = make_optimizer(SIZE, cfg), make_optimizer(SIZE, cfg)
    middle = run(first, params, gradients[:5])
    second.state[:], second.steps = first.state, first.steps
    np.testing.assert_array_equal(run(second, middle, gradients[5:], first=5), whole)


@every_rule
def test_a_step_leaves_the_gradient_as_it_is_and_works_in_place(cfg: OptimConfig) -> None:
    params, gradients = problem()
    view = params[:]
    kept = gradients[0].copy()
    make_optimizer(SIZE, cfg).step(view, gradients[0], LR)
    np.testing.assert_array_equal(gradients[0], kept)
    assert (params != problem()[0]).any()


@every_rule
def test_a_zero_gradient_moves_nothing_at_first(cfg: OptimConfig) -> None:
    params, _ = problem()
    after = run(make_optimizer(SIZE, cfg), params, np.zeros((3, SIZE), np.float32))
    np.testing.assert_array_equal(after, params)


@every_rule
def test_rules_descend(cfg: OptimConfig) -> None:
    """On |p|^2 / 2, whose gradient is p."""
    optimizer, params = make_optimizer(SIZE, cfg), problem()[0]
    before = np.linalg.norm(params)
    for _ in range(200):
        optimizer.step(params, params.copy(), 0.02)
    assert np.linalg.norm(params) < 0.2 * before


# -- clipping, schedules, staleness --------------------


@pytest.mark.parametrize(("max_norm", "scale"), [(1.0, 0.2), (5.0, 1.0), (6.0, 1.0), (0.0, 1.0)])
def test_clipping_scales_to_the_norm_and_leaves_shorter_gradients(max_norm: float, scale: float) -> None:
    assert clip_scale(5.0, max_norm) == pytest.approx(scale)


def test_a_gradient_without_length_is_not_scaled() -> None:
    assert clip_scale(0.0, 0.5) == 1.0


def test_clipping_is_torchs() -> None:
    _, gradients = problem()
    vector = torch.nn.Parameter(torch.zeros(SIZE))
    vector.grad = torch.from_numpy(gradients[0].copy())
    norm = torch.nn.utils.clip_grad_norm_([vector], 0.5).item()
    scale = clip_scale(float(np.linalg.norm(gradients[0])), 0.5)
    assert scale == pytest.approx(0.5 / norm, rel=1e-4)
    np.testing.assert_allclose(gradients[0] * np.float32(scale), vector.grad.numpy(), rtol=1e-4)


@every_rule
def test_a_scale_is_that_of_the_gradient(cfg: OptimConfig) -> None:
    params, gradients = problem()
    scaled, plain = params.copy(), params.copy()
    with_scale, without = make_optimizer(SIZE, cfg), make_optimizer(SIZE, cfg)
    for gradient in gradients:
        with_scale.step(scaled, gradient, LR, scale=0.25)
        without.step(plain, np.float32(0.25) * gradient, LR)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "weights"),
    [
        ("drop", [1.0, 1.0, 1.0, 0.0, 0.0]),
        ("scale", [1.0, 1 / 2, 1 / 3, 0.0, 0.0]),
        ("none", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_staleness_weights_with_a_limit_of_two(policy: str, weights: list[float]) -> None:
    assert [staleness_weight(age, policy, 2) for age in range(5)] == weights


def norm_of(vector: np.ndarray) -> float:
    return squared_norm(vector, np.empty_like(vector))


@pytest.mark.parametrize("size", [0, 1, 7, 9155, 50_000, 1_000_003])
def test_a_squared_norm_is_a_sum_of_squares(size: int) -> None:
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    assert norm_of(vector) == pytest.approx(math.fsum(float(x) ** 2 for x in vector), rel=1e-6)


@pytest.mark.parametrize("entry", [1e-30, 1e-14, 1e-8, 1e15, 1e20, 3e38, -3.4e38])
def test_no_finite_entry_overflows_or_vanishes(entry: float) -> None:
    vector = np.full(20_000, entry, np.float32)
    with np.errstate(all="raise"):
        assert norm_of(vector) == pytest.approx(20_000 * float(vector[0]) ** 2, rel=1e-6)


def test_what_is_not_finite_stays_so() -> None:
    assert math.isnan(norm_of(np.array([1.0, np.nan], np.float32)))
    assert norm_of(np.array([1.0, -np.inf], np.float32)) == math.inf


def test_a_squared_norm_is_the_same_to_the_bit_on_all_types_of_cpu() -> None:
    """Whatever kernels BLAS and NumPy choose."""
    program = (
        "import numpy as np; from dppo.algo.optim import squared_norm;"
        "vectors = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (9155, 40001)];"
        "print(*[squared_norm(vector, vector.copy()).hex() for vector in vectors])"
    )
    emulated = ({}, {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 AVX2 FMA3"})
    seen = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env=os.environ | cpu, capture_output=True, text=True, check=True,
        ).stdout
        for cpu in emulated
    }  # fmt: skip
    assert len(seen) == 1
