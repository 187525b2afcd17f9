"""Every cell of mode x exchange x loss learns a probe whose optimum is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dppo.evaluate import main as evaluate
from tests.launch import train_in_one_start
from tests.parts import probe
from tests.run_directory import metric_lines

CELLS: dict[str, tuple[str, ...]] = {
    "allreduce-ppo": ("--exchange", "allreduce", "--loss", "ppo"),
    "allreduce-a3c": ("--exchange", "allreduce", "--loss", "a3c"),
    "p2p-ppo": ("--exchange", "p2p", "--loss", "ppo"),
    "p2p-a3c": ("--exchange", "p2p", "--loss", "a3c"),
    "async-ppo": ("--mode", "async", "--loss", "ppo"),
    "async-a3c": ("--mode", "async", "--loss", "a3c"),
    "p2p-ppo-drop": ("--exchange", "p2p", "--loss", "ppo", "--server.drop", "1"),
    "async-a3c-scale": ("--mode", "async", "--loss", "a3c", "--server.staleness", "scale"),
    "async-a3c-none": ("--mode", "async", "--loss", "a3c", "--server.staleness", "none"),
    "async-ppo-scale": ("--mode", "async", "--loss", "ppo", "--server.staleness", "scale"),
}
PPO = ("--horizon", 32, "--ppo.epochs", 4, "--ppo.minibatches", 4, "--optim.lr", 1e-3, "--total-steps", 20_000)
A3C = ("--horizon", 8, "--optim.lr", 2e-3, "--total-steps", 30_000)

EXCHANGES: dict[str, tuple[str, ...]] = {
    "allreduce": ("--exchange", "allreduce"),
    "p2p": ("--exchange", "p2p"),
    "async": ("--mode", "async", "--loss", "ppo"),
}
OWN = "tests.models.structured_networks:OnProbe"
SETTLED = ("--total-steps", 8_000, "--optim.anneal")
"""The policy rests at the end: asynchronous runs differ each time, and some need twice the steps of others."""
PROBES: dict[str, tuple[tuple[object, ...], float]] = {
    "Inputs": ((*SETTLED, "--ppo.entropy-coef", 0.02, "--model.activation", "relu"), 1.0),
    "Inputs-own": ((*SETTLED, "--ppo.entropy-coef", 0.02, "--model.factory", OWN), 1.0),
    "Parts": (("--total-steps", 15_000), 1.9),
    "Mask": (SETTLED, 1.0),
}
"""Probes in spaces of several kinds, with flags, and the mean return that is asked for."""
OF_SPACES = (
    "--horizon", 32, "--ppo.epochs", 4, "--ppo.minibatches", 4, "--optim.lr", 3e-3, "--optim.no-anneal",
    "--model.hidden", 64,
)  # fmt: skip
OF_MEMORY = (
    "--env", "dppo.envs.probes_of_memory:dppo/ProbeTMaze-v0", "--env-kwargs", "length=5", "--horizon", 48,
    "--ppo.epochs", 4, "--ppo.minibatches", 4, "--ppo.entropy-coef", 0.01, "--optim.lr", 3e-3, "--optim.no-anneal",
    "--model.hidden", 16, "--total-steps", 40_000, "--target-return", 0.97,
)  # fmt: skip
WITH_MEMORY: dict[str, tuple[object, ...]] = EXCHANGES | {
    "async-a3c": ("--mode", "async", "--loss", "a3c", "--horizon", 12, "--optim.lr", 5e-3),
}
CORES = ("gru", "lstm")
ALWAYS = ("--num-envs", 8, "--seed", 1, "--log.no-tensorboard")


def greedy_mean(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """Of 100 episodes."""
    assert evaluate([str(run_dir), "--episodes", "100", "--json"]) == 0
    mean: float = json.loads(capsys.readouterr().out)["mean"]
    return mean


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each cell, all in one start, because starts are what takes the time."""
    folder = tmp_path_factory.mktemp("runs")
    env = ("--env", probe("Context"), *ALWAYS)
    runs = {cell: (*flags, *env, *(PPO if "ppo" in cell else A3C)) for cell, flags in CELLS.items()}
    train_in_one_start(folder, 3, runs, timeout=120)
    return folder


@pytest.fixture(scope="module")
def runs_in_spaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each probe in spaces of several kinds, in each exchange."""
    folder = tmp_path_factory.mktemp("runs-in-spaces")
    runs = {
        f"{exchange}-{name}": (*flags, "--env", probe(name.removesuffix("-own")), *ALWAYS, *OF_SPACES, *of_probe)
        for name, (of_probe, _) in PROBES.items()
        for exchange, flags in EXCHANGES.items()
    }
    train_in_one_start(folder, 3, runs, timeout=120)
    return folder


@pytest.fixture(scope="module")
def runs_with_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the T-maze with each core in each exchange, and one without memory."""
    folder = tmp_path_factory.mktemp("runs-with-memory")
    flags = (*OF_MEMORY, *ALWAYS)
    runs: dict[str, tuple[object, ...]] = {
        f"{exchange}-{core}": (*flags, *of_exchange, "--model.core", core, "--model.core-size", 16)
        for exchange, of_exchange in WITH_MEMORY.items()
        for core in CORES
    }
    runs["without-memory"] = (*flags, "--total-steps", 20_000)
    train_in_one_start(folder, 3, runs, timeout=120)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns_to_match_action_to_observation(
    cell: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ProbeContext: a return of 1 for the right action, -1 for the wrong one."""
    assert evaluate([str(runs / cell), "--episodes", "100", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mean"] == 1.0, figures
    assert figures["episodes"] == 100 and figures["env"] == "dppo.envs.probes:dppo/ProbeContext-v0"
    if "async" in cell:
        histograms = [json.loads(line) for line in (runs / cell / "metrics.jsonl").read_text().splitlines()]
        counts = [sum(h["staleness"]) for h in histograms]
        assert sum(sum(h["staleness"][1:]) for h in histograms) > 0, "two workers must be ahead of each other at times"
        assert min(counts) > 0 and len(metric_lines(runs / cell)) == len(counts)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", PROBES)
def test_every_exchange_learns_in_spaces_of_several_kinds(
    name: str, exchange: str, runs_in_spaces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image beside a vector, a composite action, and an illegal action: ProbeMask ends the run that takes one."""
    assert greedy_mean(runs_in_spaces / f"{exchange}-{name}", capsys) >= PROBES[name][1]


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("exchange", WITH_MEMORY)
@pytest.mark.parametrize("core", CORES)
def test_every_exchange_learns_to_remember(
    core: str, exchange: str, runs_with_memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ProbeTMaze: which turn earns 1 was shown at the start of the episode."""
    assert greedy_mean(runs_with_memory / f"{exchange}-{core}", capsys) >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_policy_without_memory_guesses(runs_with_memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0.4 <= greedy_mean(runs_with_memory / "without-memory", capsys) <= 0.6
