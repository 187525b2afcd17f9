"""Dumps of spaces drawn at random: nested, of odd shapes and types, with bounds at infinity and a start."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

from dppo.data import Rollout
from dppo.envs.leaves import are_equal, array_type, as_leaves, leaves, to_value
from dppo.rundir.spaces import space_to_json
from dppo.trajectories.export.command import to_minari
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.segment import Labels
from dppo.trajectories.validate import validate
from tests.dumps import CONFIG, FakeWorker

KEYS = ("a", "ä", "two words", "obs", "row", "0", "z-1", "Z", "{x}", "steps")


def drawn(rng: np.random.Generator, depth: int) -> spaces.Space[Any]:
    """A space, whose parts lie within each other up to `depth` deep."""
    kind = rng.integers(7) if depth else rng.integers(5)
    shape = tuple(rng.integers(1, 4, rng.integers(4)).tolist()) if rng.random() > 0.1 else (0,)
    if kind == 0:
        return spaces.Box(-np.inf, np.inf, shape, rng.choice([np.float32, np.float64, np.float16]))
    if kind == 1:
        return spaces.Box(0, 200, shape, rng.choice([np.uint8, np.int16, np.uint32, np.int64, np.uint64]))
    if kind == 2:
        return spaces.Discrete(int(rng.integers(1, 300)), start=int(rng.integers(-5, 5)))
    if kind == 3:
        return spaces.MultiDiscrete(rng.integers(1, 9, (int(rng.integers(1, 4)), 2)))
    if kind == 4:
        return spaces.MultiBinary([int(n) for n in rng.integers(1, 4, rng.integers(1, 3))])
    parts = [drawn(rng, depth - 1) for _ in range(rng.integers(1, 12 if kind == 6 else 5))]
    if kind == 6:
        return spaces.Tuple(parts)
    return spaces.Dict(OrderedDict(zip(rng.permutation(KEYS).tolist(), parts, strict=False)))


def values(space: spaces.Space[Any], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """An array [*shape, ...] of values of a space."""
    inner, dtype = array_type(space)
    out = np.zeros((*shape, *inner), dtype)
    for leaf in leaves(space):
        part = leaf.of(out)
        if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
            size = np.asarray(leaf.space.n if isinstance(leaf.space, spaces.Discrete) else leaf.space.nvec)
            part[...] = leaf.space.start + rng.integers(np.broadcast_to(size, part.shape))
        elif part.dtype.kind == "f":
            part[...] = rng.normal(size=part.shape)
        else:
            part[...] = rng.integers(0, 2 if isinstance(leaf.space, spaces.MultiBinary) else 200, part.shape)
    return out


class AnyWorker(FakeWorker):
    """Sees and sends values of any spaces, and samples what it sends."""

    def __init__(self, run_dir: Path, observed: spaces.Space[Any], acted: spaces.Space[Any], seed: int) -> None:
        super().__init__(run_dir)
        texts = space_to_json(observed), space_to_json(acted)
        labels = Labels(run_dir, "run", 1, 1, 3, 0, CONFIG, '{"id": "Fake-v0"}', *texts, "0.1")
        object.__setattr__(self.writer._builder, "_labels", labels)
        self.observed, self.acted, self.rng = observed, acted, np.random.default_rng(seed)
        self.rollouts: list[Rollout] = []

    def _rollout(self, rows: int, version: int) -> Rollout:
        rollout = super()._rollout(rows, version)
        rollout.observations = values(self.observed, (rows, 2), self.rng)
        rollout.final_observations = values(self.observed, (len(rollout.final_rows),), self.rng)
        rollout.env_actions = rollout.actions = values(self.acted, (rows, 2), self.rng)
        self.rollouts.append(rollout)
        return rollout


@pytest.mark.parametrize("seed", range(30))
def test_what_is_written_comes_back(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    observed, acted = drawn(rng, 3), drawn(rng, 3)
    worker = AnyWorker(tmp_path / "run", observed, acted, seed)
    worker.go(4).seal().go(9).seal().go(61).finish()
    assert [str(v) for v in validate(tmp_path / "run")] == []
    dump = open_trajectories(tmp_path / "run")
    arrays = dump.to_numpy()
    for name, column in (("observations", "observations"), ("actions", "env_actions")):
        expected = np.concatenate([getattr(rollout, column) for rollout in worker.rollouts])
        assert are_equal(arrays[name], expected[arrays["row"], arrays["env"]])
        types = {leaf: (part.dtype, part.shape[1:]) for leaf, part in as_leaves(arrays[name]).items()}
        space = observed if name == "observations" else acted
        assert types == {leaf.name: (leaf.dtype, leaf.shape) for leaf in leaves(space)}
        assert list(types) == [leaf.name for leaf in leaves(space)], "in the order of the space"
    with h5py.File(worker.path(2)) as file:
        for leaf, part in as_leaves(worker.rollouts[2].observations).items():
            np.testing.assert_array_equal(file[f"steps/observations/{leaf}".rstrip("/")][()], part, strict=True)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    to_minari(dump, "any/space-v0")
    dataset = minari.load_dataset("any/space-v0")
    assert dataset.observation_space == observed and dataset.action_space == acted
    for mine, theirs in zip(dump, dataset, strict=True):
        np.testing.assert_equal(theirs.observations, to_value(observed, mine.observations))
        np.testing.assert_equal(theirs.actions, to_value(acted, mine.actions[: len(theirs)]))
