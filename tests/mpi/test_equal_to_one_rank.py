"""R ranks give what one rank gives, and ranks count by their samples, not by their number.

That ranks agree proves nothing: each result is compared with that of one rank on the concatenated batch.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.envs.leaves import as_leaves
from tests.launch import Launcher, flags, train_in_one_start
from tests.run_directory import checkpoint, metric_lines, parameters

LAYOUTS = {"alone": (1, 8), "n2": (2, 8), "n5": (5, 2)}
"""(ranks, environments per worker): 8 in all, on one worker, on one beside the server, on four."""

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1")
IMAGES = "tests.any_space:Masked"
"""An image and a choice, masks, and composite actions."""

KL: dict[str, Any] = {"objective": "kl", "kl-target": 1e-7, "kl-hinge": 1000.0, "epochs": 3}

CELLS: dict[str, dict[str, Any]] = {
    "ppo-allreduce": {"loss": "ppo"},
    "ppo-p2p": {"loss": "ppo", "exchange": "p2p"},
    "a3c-allreduce": {"loss": "a3c"},
    "a3c-p2p": {"loss": "a3c", "exchange": "p2p"},
    # a target so small that the hinge, of the mean KL over all ranks, decides every update but the first
    "kl-allreduce": {"loss": "ppo", "ppo": KL, "optim": {"lr": 3e-3}},
    "kl-p2p": {"loss": "ppo", "exchange": "p2p", "ppo": KL, "optim": {"lr": 3e-3}},
}
CELLS_OF_IMAGES: dict[str, dict[str, Any]] = {
    "images": {"loss": "ppo"},
    "images-gru": {"loss": "ppo", "model": {"core": "gru", "core-size": 8}},
    "images-lstm": {"loss": "ppo", "exchange": "p2p", "model": {"core": "lstm", "core-size": 8, "sequence": 50}},
    "images-own": {"loss": "ppo", "model": {"factory": "tests.models.structured_networks:Everything"}},
}
"""Episodes of seven steps end in the sequences; a network of the user's own is given images as they are."""


def settings(run_dir: Path, env: str, num_envs: int, cell: dict[str, Any]) -> dict[str, Any]:
    """One iteration of 8 environments, whatever the layout."""
    ppo = {"epochs": 1, "minibatches": 1, "target-kl": 0.0} | cell.get("ppo", {})
    return {
        **cell, "env": env, "num-envs": num_envs, "horizon": 128, "total-steps": 1, "seed": 4,
        "run-dir": str(run_dir), "ppo": ppo, "log": {"tensorboard": False},
    }  # fmt: skip


def assert_same_run(run_dir: Path, other: Path, tolerance: float) -> None:
    """Two one-iteration runs: same episodes and counts exactly, same figures and parameters within `tolerance`."""
    (line,), (other_line,) = metric_lines(run_dir), metric_lines(other)
    assert line.keys() == other_line.keys()
    for key in line.keys() - {"workers"}:
        if key in ("iteration", "env_steps", "updates", "episodes", "episodes_ended", "samples", "length_mean_100"):
            assert line[key] == other_line[key], key
        elif line[key] is not None:
            mine, others = (
                np.array(of[key], float) for of in (line, other_line)
            )  # a list, such as returns, or a number
            assert mine == pytest.approx(others, rel=tolerance, abs=tolerance), key
    np.testing.assert_allclose(parameters(run_dir), parameters(other), rtol=0, atol=tolerance)
    moments, other_moments = (checkpoint(d)["state"]["moments"] for d in (run_dir, other))
    np.testing.assert_allclose(moments, other_moments, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(250)
def test_every_layout_makes_the_same_first_update(launch: Launcher, tmp_path: Path) -> None:
    """Six cells, two environments, three layouts; images in four cells: 48 small runs in one start of five ranks."""
    runs = {
        (cell, env, layout): tmp_path / f"{cell}-{env.rpartition(':')[2]}-{layout}"
        for chosen, envs in ((CELLS, ENVIRONMENTS), (CELLS_OF_IMAGES, (IMAGES,)))
        for cell in chosen for env in envs for layout in LAYOUTS
    }  # fmt: skip
    cells = CELLS | CELLS_OF_IMAGES
    jobs = [
        {"ranks": LAYOUTS[layout][0], "flags": flags(settings(run_dir, env, LAYOUTS[layout][1], cells[cell]))}
        for (cell, env, layout), run_dir in runs.items()
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    launch.run(5, tmp_path / "jobs.json", program="train_layouts.py", timeout=240)

    for cell in CELLS:
        for env in ENVIRONMENTS:
            for layout in ("n2", "n5"):
                assert_same_run(runs[cell, env, "alone"], runs[cell, env, layout], 1e-5)
    for cell in CELLS_OF_IMAGES:
        for layout in ("n2", "n5"):
            assert_same_run(*(runs[cell, IMAGES, each] for each in ("alone", layout)), 1e-4)
    for env in ENVIRONMENTS:
        for layout in LAYOUTS:  # the two exchanges are two ways to the same sum
            for loss in ("ppo", "a3c", "kl"):
                np.testing.assert_allclose(
                    parameters(runs[f"{loss}-allreduce", env, layout]), parameters(runs[f"{loss}-p2p", env, layout]),
                    rtol=0, atol=1e-5,
                )  # fmt: skip
        (line,) = metric_lines(runs["kl-allreduce", env, "alone"])
        hinge_weight = 2 * KL["kl-hinge"] * (float(line["approx_kl"]) - 2 * KL["kl-target"])
        assert hinge_weight > 0.3, "the hinge was to matter, beside the penalty's weight of 1"


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_command_gives_the_same_on_one_two_and_five_ranks(env: str, launch: Launcher, tmp_path: Path) -> None:
    flags = (
        "--env", env, "--ppo.minibatches", 1, "--ppo.epochs", 2, "--ppo.target-kl", 0, "--optim.lr", 3e-4,
        "--horizon", 128, "--total-steps", 1024, "--seed", 7, "--log.no-tensorboard",
    )  # fmt: skip
    launch.run(None, *flags, "--num-envs", 8, "--run-dir", tmp_path / "alone")
    launch.run(2, *flags, "--num-envs", 8, "--run-dir", tmp_path / "n2")
    launch.run(5, *flags, "--num-envs", 2, "--run-dir", tmp_path / "n5")
    assert_same_run(tmp_path / "alone", tmp_path / "n2", 1e-5)
    assert_same_run(tmp_path / "alone", tmp_path / "n5", 1e-5)


ROLLOUTS: dict[tuple[str, str], tuple[int, float]] = {
    ("CartPole-v1", "none"): (150, 0.0),
    ("Pendulum-v1", "none"): (120, 1e-6),
    ("dppo.envs.probes:dppo/ProbeCorridor-v0", "none"): (40, 0.0),
    (IMAGES, "none"): (40, 1e-6),
    (IMAGES, "gru"): (40, 1e-6),
    (IMAGES, "lstm"): (40, 1e-6),
}
"""(horizon, tolerance): discrete actions exactly, continuous ones to 1e-6."""


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rollouts of six environments, of each kind, on 1, 2 and 3 ranks, in one start."""
    folder = tmp_path_factory.mktemp("rollouts")
    kinds = [word for (env, core), (horizon, _) in ROLLOUTS.items() for word in (env, core, horizon)]
    with closing(Launcher(folder)) as launcher:
        launcher.run(3, 6, *kinds, program="first_rollout.py")
    return folder


@pytest.mark.parametrize(("env", "core"), ROLLOUTS)
def test_rollouts_do_not_depend_on_the_layout(env: str, core: str, rollouts: Path) -> None:
    tolerance = ROLLOUTS[env, core][1]
    one, *others = (np.load(rollouts / f"{env.rpartition('/')[2]}-{core}-{ranks}.npz") for ranks in (1, 2, 3))
    assert len(one["episodes"]) >= 6, "the comparison was to include ends of episodes"
    assert one["states"].any() == (core != "none")
    for other in others:
        np.testing.assert_allclose(other["episodes"], one["episodes"], rtol=1e-6, atol=tolerance)
        for name in ("observations", "inputs", "actions", "env_actions", "rewards", "terminations", "truncations"):
            assert other[name].shape == one[name].shape
            for leaf, values in as_leaves(one[name]).items():
                scale, found = max(1.0, float(np.abs(values).max())), as_leaves(other[name])[leaf]
                np.testing.assert_allclose(found, values, rtol=0, atol=tolerance * scale, err_msg=f"{name} {leaf}")
        for name in ("heads", "log_probs", "values", "next_values", "states"):
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=1e-5, err_msg=name)


UNEQUAL = [("allreduce", "ppo", "CartPole-v1"), ("p2p", "ppo", "Pendulum-v1"), ("p2p", "a3c", "CartPole-v1")]


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of each cell with ranks whose batches are unequal, all in one start."""
    folder = tmp_path_factory.mktemp("unequal")
    cells = [word for cell in UNEQUAL for word in (*cell, f"{'-'.join(cell)}.npz")]
    with closing(Launcher(folder)) as launcher:
        launcher.run(4, *cells, program="unequal_ranks.py")
    return folder


@pytest.mark.parametrize("cell", UNEQUAL, ids="-".join)
def test_a_rank_weighs_as_much_as_it_has_samples(cell: tuple[str, ...], unequal: Path) -> None:
    """Gradients, advantage statistics, observation and return moments of ranks with unequal batches."""
    result = np.load(unequal / f"{'-'.join(cell)}.npz")
    for i in (0, 1):
        samples = result[f"samples_{i}"]
        assert list(samples) == [8, 34, 78]
        assert result[f"got_samples_{i}"] == samples.sum()
        assert result[f"got_env_steps_{i}"] == (i + 1) * samples.sum()
        expected = result[f"expected_gradient_{i}"]
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(result[f"got_gradient_{i}"], expected, rtol=0, atol=2e-5 * np.abs(expected).max())

        size = len(result[f"expected_mean_{i}"])
        count, mean, m2 = np.split(result[f"got_moments_{i}"][: 1 + 2 * size], [1, 1 + size])
        assert count == (i + 1) * samples.sum()
        np.testing.assert_allclose(mean, result[f"expected_mean_{i}"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(np.sqrt(m2 / count), result[f"expected_std_{i}"], rtol=1e-9, atol=1e-9)
        count, _, m2 = result[f"got_moments_{i}"][1 + 2 * size :]
        assert np.sqrt(count / m2) == pytest.approx(result[f"expected_reward_scale_{i + 1}"], rel=1e-6)


FAR_AWAY: dict[str, tuple[object, ...]] = {
    "allreduce": ("--exchange", "allreduce"),
    "p2p": ("--exchange", "p2p", "--server.drop", 1),
    "async": ("--mode", "async"),
    "async with vtrace": ("--mode", "async", "--vtrace"),
    "async ppo": ("--mode", "async", "--loss", "ppo", "--ppo.epochs", 1, "--ppo.minibatches", 1),
}


@pytest.fixture(scope="module")
def far_away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each cell, all in one start."""
    folder = tmp_path_factory.mktemp("far_away")
    env = ("--env", "odd_envs:odd/FarAway-v0", "--num-envs", 2, "--horizon", 16, "--log.no-tensorboard")
    runs = {name: (*env, *cell, "--total-steps", 400) for name, cell in FAR_AWAY.items()}
    train_in_one_start(folder, 3, runs, timeout=60)
    return folder


@pytest.mark.parametrize("cell", FAR_AWAY)
def test_the_first_moments_keep_the_spread_of_observations_far_from_zero(cell: str, far_away: Path) -> None:
    """Around 1e9, where sums about 0 lose it. Ranks whose sums are added up take them about one observation."""
    count, *moments = checkpoint(far_away / cell)["state"]["moments"][:5]
    assert count >= 200
    np.testing.assert_allclose(moments, [1e9, 0.0, count, count], rtol=1e-12)
