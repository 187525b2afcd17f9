"""Dumps of Dict and Tuple spaces and of masks: what the worker has seen is in the file, leaf by leaf, and comes out."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pandas
import pyarrow.parquet
import pytest

from dppo.data import Rollout
from dppo.envs.leaves import are_equal, as_leaves, from_leaves, leaves, to_value
from dppo.errors import UsageError
from dppo.rundir.spaces import space_from_json, space_to_json
from dppo.seeding import EpisodeSeeds
from dppo.trajectories.buffer import Part
from dppo.trajectories.export.as_tables import columns_of
from dppo.trajectories.export.command import to_csv, to_d4rl, to_minari, to_parquet
from dppo.trajectories.format import written_steps
from dppo.trajectories.index import check_index, write_index
from dppo.trajectories.reader import Trajectories, open_trajectories
from dppo.trajectories.validate import validate
from dppo.trajectories.writer import Labels, TrajectoryWriter
from tests.dumps import edit, replace
from tests.nested_env import ACTED, CHOICES, OBSERVED, Masked, Nested
from tests.parts import make_parts

N, HORIZON, ROLLOUTS = 2, 12, 6


@dataclasses.dataclass(frozen=True)
class Dump:
    """What a worker has written, and its rollouts."""

    run_dir: Path
    rollouts: list[Rollout]

    def segment(self, number: int = 0) -> Path:
        return self.run_dir / f"trajectories/rank_00001/seg_{number:06d}.h5"

    def column(self, name: str) -> np.ndarray:
        """A column of all rollouts. Raw actions have the axes of those that were sent."""
        values = np.concatenate([getattr(rollout, name) for rollout in self.rollouts])
        if name != "actions" or values.dtype.names is None:
            return values
        sent = as_leaves(self.column("env_actions"))
        named = {leaf: part.reshape(sent[leaf].shape) for leaf, part in as_leaves(values).items()}
        return from_leaves(named, num_axes=2)

    def finals(self) -> dict[tuple[int, int], np.ndarray]:
        """{(row, environment): the true last observation}."""
        return {
            (r.first_row + int(row), int(env)): final
            for r in self.rollouts
            for row, env, final in zip(r.final_rows, r.final_envs, r.final_observations, strict=True)
        }

    @property
    def trajectories(self) -> Trajectories:
        return open_trajectories(self.run_dir)


def write(run_dir: Path, env: type[Nested]) -> Dump:
    place = make_parts(env=f"{env.__module__}:{env.__name__}", num_envs=N, horizon=HORIZON)
    return record(run_dir, env, [place.rollout()[0] for _ in range(ROLLOUTS)])


def record(run_dir: Path, env: type[Nested], rollouts: list[Rollout], **options: Any) -> Dump:
    labels = Labels(
        run_dir, "a-run", 1, 1, 2, 0, '{"env": "it", "loss": "ppo", "mode": "sync", "seed": 0}', '{"id": "It-v0"}',
        space_to_json(env.observation_space), space_to_json(env.action_space), "0.1",
    )  # fmt: skip
    seeds = EpisodeSeeds(0, 0, N)
    options = {"segment_bytes": 30_000, "has_raw_actions": env is Nested} | options
    writer = TrajectoryWriter(labels, seeds.of, **options)
    for rollout in rollouts:
        writer.add(rollout)
    assert [answer for answer in writer.settle(None) if answer.problem] == []
    writer.close()
    return Dump(run_dir, rollouts)


def copied(dump: Dump, run_dir: Path) -> Dump:
    """A dump that may be spoilt."""
    shutil.copytree(dump.run_dir, run_dir, dirs_exist_ok=True)
    return Dump(run_dir, dump.rollouts)


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    return write(tmp_path_factory.mktemp("nested"), Nested)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    return write(tmp_path_factory.mktemp("masked"), Masked)


COLUMNS = {
    "observations": "observations",
    "actions": "env_actions",
    "actions_raw": "actions",
    "action_mask": "masks",
    "rewards": "rewards",
}  # fmt: skip


# -- the files --------------------


def test_plain_h5py_finds_every_leaf_as_the_worker_had_it(nested: Dump) -> None:
    files = [h5py.File(path) for path in sorted(nested.segment().parent.iterdir())]
    assert len(files) > 1
    for name, column in COLUMNS.items():
        for leaf, expected in as_leaves(nested.column(column)).items():
            path = f"steps/{name}/{leaf}".removesuffix("/")
            np.testing.assert_array_equal(np.concatenate([f[path][()] for f in files]), expected, path, strict=True)
    finals = np.stack(list(nested.finals().values()))
    for leaf, expected in as_leaves(finals).items():
        there = np.concatenate([f[f"final/observations/{leaf}"][()] for f in files])
        np.testing.assert_array_equal(there, expected, leaf, strict=True)
    steps = files[0]["steps"]
    assert list(steps["observations"]) == list(OBSERVED.spaces), "in the order of the space"
    assert list(steps["observations/pose"]) == ["0", "1", "2"]
    assert steps["action_mask"].shape[2] == CHOICES and steps["action_mask"].dtype == bool
    assert steps["actions_raw/arm/0"].dtype == np.float32 and steps["actions/arm/0"].dtype == np.float64
    for file in files:
        file.close()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_large_segment_is_in_chunks(compression: str, nested: Dump, tmp_path: Path) -> None:
    """Those of an image as of images: 64 rows of an environment."""
    many = [dataclasses.replace(nested.rollouts[i % ROLLOUTS], first_row=HORIZON * i) for i in range(400 // HORIZON)]
    path = nested.segment().relative_to(nested.run_dir)
    record(tmp_path, Nested, many, compression=compression, segment_bytes=2**30)
    with h5py.File(tmp_path / path) as file:
        for name, chunks in {
            "steps/observations/camera": (64, 1, 6, 5, 3), "steps/observations/pose/0": (396, 1, 2),
            "steps/actions/arm/0": (396, 1, 2, 2), "final/observations/camera": (64, 6, 5, 3),
        }.items():  # fmt: skip
            assert file[name].chunks == (chunks[0] if name.startswith("steps") else file[name].chunks[0], *chunks[1:])
            assert file[name].compression == (None if compression == "none" else compression)
        for name, column in (("observations", "observations"), ("actions", "env_actions")):
            for leaf, expected in as_leaves(np.concatenate([getattr(r, column) for r in many])).items():
                np.testing.assert_array_equal(file[f"steps/{name}/{leaf}"][()], expected, leaf, strict=True)


def test_a_writer_holds_the_rollouts_arrays_and_no_copies(nested: Dump) -> None:
    """An image takes its bytes once, as uint8."""
    rollout = nested.rollouts[0]
    part = Part.of(rollout, written_steps())
    assert part.steps["observations/camera"].dtype == np.uint8
    for name in ("observations/camera", "observations/pose/1"):
        assert np.shares_memory(part.steps[name], rollout.observations)
    assert np.shares_memory(part.steps["actions_raw/arm/0"], rollout.actions)
    assert np.shares_memory(part.steps["action_mask"], rollout.masks)


def test_what_is_written_is_sound(nested: Dump, masked: Dump) -> None:
    assert [str(v) for dump in (nested, masked) for v in validate(dump.run_dir)] == []


def test_the_labels_are_the_spaces(nested: Dump) -> None:
    with h5py.File(nested.segment()) as file:
        for name, space in (("observation_space", OBSERVED), ("action_space", ACTED)):
            back = space_from_json(file[name].asstr()[()])
            assert back == space and [leaf.path for leaf in leaves(back)] == [leaf.path for leaf in leaves(space)]


def test_a_space_that_is_nested_too_deeply_is_said(tmp_path: Path) -> None:
    rollout = make_parts(env="tests.nested_env:Masked", num_envs=N, horizon=4).rollout()[0]
    observations = np.zeros(rollout.observations.shape, np.float32)
    for _ in range(40):
        inner = np.empty(observations.shape, [("a", observations.dtype)])
        inner["a"] = observations
        observations = inner
    rollout.observations = observations
    labels = Labels(tmp_path, "a", 1, 1, 2, 0, "{}", "{}", "{}", "{}", "0")
    writer = TrajectoryWriter(labels, None, has_raw_actions=False, segment_bytes=2**30)
    writer.add(rollout)
    (problem,) = [answer.problem for answer in writer.settle(None) if answer.problem]
    writer.close()
    assert "spaces 40 deep" in problem and "could not be written" in problem


def test_segments_of_before_there_were_masks_are_sound_and_read(nested: Dump, tmp_path: Path) -> None:
    """The format has the number that it had then."""
    dump = copied(nested, tmp_path)
    edit(dump.segment(), lambda file: file.__delitem__("steps/action_mask"))
    assert [str(v) for v in validate(tmp_path)] == []
    first, *_, last = dump.trajectories
    assert first.action_mask is None and last.action_mask is not None
    assert sum(episode.length for episode in dump.trajectories) == len(dump.trajectories.to_numpy()["row"])
    edit(dump.segment(), lambda file: file.__delitem__("steps/values"))
    assert [str(v) for v in validate(tmp_path)] == [f"{dump.segment().relative_to(tmp_path)}, steps/values: is missing"]


# -- what the validator finds --------------------


def spoil_leaf(file: h5py.File) -> None:
    file["steps/observations/pose/0"][3, 1] = np.nan


def forget_leaf(file: h5py.File) -> None:
    del file["steps/observations/bits"]


def add_leaf(file: h5py.File) -> None:
    file["steps/actions/arm/2"] = file["steps/actions/arm/1"][()]


def shorten_leaf(file: h5py.File) -> None:
    replace(file, "steps/observations/pose/1", file["steps/observations/pose/1"][1:])


def widen_leaf(file: h5py.File) -> None:
    replace(file, "final/observations/bits", np.zeros((len(file["final/row"]), 3), np.int8))


def retype_raw(file: h5py.File) -> None:
    replace(file, "steps/actions_raw/arm/0", file["steps/actions_raw/arm/0"][()].astype(np.float64))


def retype_mask(file: h5py.File) -> None:
    replace(file, "steps/action_mask", file["steps/action_mask"][()].astype(np.int8))


def empty_tree(file: h5py.File) -> None:
    del file["final/observations"]
    file.create_group("final/observations")


@pytest.mark.parametrize(
    ("change", "dataset", "what"),
    [
        (spoil_leaf, "steps/observations/pose/0", "holds nan at [3, 1, 0]"),
        (forget_leaf, "steps/observations", "steps/observations/bits is missing"),
        (add_leaf, "steps/actions", "steps/actions/arm/2 is there"),
        (shorten_leaf, "steps/observations/pose/1", "it should begin with"),
        (widen_leaf, "final/observations/bits", "holds ('|i1', (3,)), steps/observations/bits ('|i1', (2, 2))"),
        (retype_raw, "steps/actions_raw/arm/0", "is of type float64, not float32"),
        (retype_mask, "steps/action_mask", "is of type int8, not bool"),
        (empty_tree, "final/observations", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_leaf_is_found(
    change: Callable[[h5py.File], None], dataset: str, what: str, nested: Dump, tmp_path: Path
) -> None:
    dump = copied(nested, tmp_path)
    edit(dump.segment(), change)
    found = [v for v in validate(tmp_path) if v.dataset == dataset]
    assert any(what in violation.what for violation in found), [str(v) for v in validate(tmp_path)]


# -- the reader --------------------


@pytest.mark.parametrize("kind", ["nested", "masked"])
def test_episodes_are_what_the_worker_has_seen(kind: str, request: pytest.FixtureRequest) -> None:
    dump: Dump = request.getfixturevalue(kind)
    finals = dump.finals()
    episodes = list(dump.trajectories)
    assert sum(episode.length for episode in episodes) == N * HORIZON * ROLLOUTS
    for episode in episodes:
        where = slice(episode.first_row, episode.first_row + episode.length), episode.env
        for name, column in COLUMNS.items():
            if name in episode.steps:
                assert are_equal(episode.steps[name], dump.column(column)[where]), name
        ended = episode.terminated or episode.truncated
        assert len(episode.observations) == episode.length + ended
        if ended:
            assert are_equal(
                episode.observations[-1:], finals[episode.first_row + episode.length - 1, episode.env][None]
            )
    assert ("actions_raw" in episodes[0].steps) is (kind == "nested")
    assert episodes[0].action_mask is not None and episodes[0].action_mask.dtype == bool


def test_a_dumped_episode_can_be_replayed(nested: Dump) -> None:
    env, whole = Nested(), nested.trajectories.filter(complete_only=True)
    assert len(whole) > 4
    for episode in whole:
        observation, info = env.reset(seed=episode.seed)
        for t in range(episode.length):
            np.testing.assert_equal(to_value(OBSERVED, episode.observations[t]), observation)
            assert episode.action_mask is not None
            np.testing.assert_array_equal(episode.action_mask[t], info["action_mask"])
            observation, reward, *over, info = env.step(to_value(ACTED, episode.actions[t]))
            assert np.float32(reward) == episode.rewards[t]
            assert over == [episode.terminations[t], episode.truncations[t]]
        np.testing.assert_equal(to_value(OBSERVED, episode.observations[-1]), observation)


def test_segments_give_trees_and_leaves(nested: Dump) -> None:
    first = next(nested.trajectories.segments())
    rows = len(first["row"])
    assert are_equal(first["observations"], nested.column("observations")[:rows])
    assert are_equal(first["actions"], nested.column("env_actions")[:rows])
    np.testing.assert_array_equal(first["steps/observations/pose/1"], nested.column("observations")["pose"]["1"][:rows])
    assert first["final/observations"].shape == first["final/row"].shape


def test_all_at_once(nested: Dump) -> None:
    arrays, tensors = nested.trajectories.to_numpy(), nested.trajectories.to_torch()
    at = arrays["row"], arrays["env"]
    assert are_equal(arrays["observations"], nested.column("observations")[at])
    assert are_equal(arrays["actions_raw"], nested.column("actions")[at])
    np.testing.assert_array_equal(arrays["action_mask"], nested.column("masks")[at])
    known, following = arrays["has_next"], arrays["next_observations"]
    assert 0 < (~known).sum() < len(known)
    assert np.isnan(following["pose"]["0"][~known]).all() and np.isfinite(following["pose"]["0"][known]).all()
    assert not following["camera"][~known].any() and following["camera"][known].any()
    for name, leaf in as_leaves(arrays["observations"]).items():
        np.testing.assert_array_equal(tensors[f"observations/{name}"].numpy(), leaf, strict=True)
    assert tensors["action_mask"].shape == (len(known), CHOICES)

    frame = nested.trajectories.to_pandas()
    assert frame["obs_camera"][3].shape == (6, 5, 3)
    np.testing.assert_array_equal(frame["obs_pose_0_1"], arrays["observations"]["pose"]["0"][:, 1])
    np.testing.assert_array_equal(frame["obs_pose_1"], arrays["observations"]["pose"]["1"])
    np.testing.assert_array_equal(frame["action_gear"], arrays["actions"]["gear"])
    np.testing.assert_array_equal(frame["action_mask_12"], arrays["action_mask"][:, 12])


def test_the_index_has_every_leaf(nested: Dump, tmp_path: Path) -> None:
    dump = copied(nested, tmp_path)
    path, missing = write_index(tmp_path)
    assert missing == check_index(tmp_path) == []
    with h5py.File(path) as index:
        steps = index["rank_00001/steps"]
        for leaf, values in as_leaves(dump.column("observations")).items():
            np.testing.assert_array_equal(steps[f"observations/{leaf}"][()], values)
    edit(dump.segment(), forget_leaf)
    assert any("steps/observations/bits" in problem for problem in check_index(tmp_path))


# -- exports --------------------


def test_minari_has_dicts_and_tuples(nested: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    to_minari(nested.trajectories, "nested/it-v0")
    dataset = minari.load_dataset("nested/it-v0")
    assert dataset.observation_space == OBSERVED and dataset.action_space == ACTED
    for mine, theirs in zip(nested.trajectories, dataset, strict=True):
        length = len(mine.observations) - 1
        assert len(theirs) == length
        np.testing.assert_equal(theirs.observations, to_value(OBSERVED, mine.observations))
        np.testing.assert_equal(theirs.actions, to_value(ACTED, mine.actions[:length]))
        for t in range(length):
            assert at(theirs.observations, t) in OBSERVED and at(theirs.actions, t) in ACTED
        assert mine.action_mask is not None
        np.testing.assert_array_equal(theirs.infos["action_mask"][:-1], mine.action_mask[:length], strict=True)
        assert not theirs.infos["action_mask"][-1].any()


def at(values: Any, t: int) -> Any:
    """Step t of dicts and tuples of arrays."""
    if isinstance(values, dict):
        return {name: at(part, t) for name, part in values.items()}
    return tuple(at(part, t) for part in values) if isinstance(values, tuple) else np.asarray(values[t])


def test_tables_have_a_column_per_number(nested: Dump, tmp_path: Path) -> None:
    to_csv(nested.trajectories, tmp_path / "it.csv")
    to_parquet(nested.trajectories, tmp_path / "it.parquet")
    parquet = pandas.read_parquet(tmp_path / "it.parquet")
    text = pandas.read_csv(tmp_path / "it.csv", dtype=dict(parquet.dtypes.items()))
    arrays = nested.trajectories.to_numpy()
    for frame in (parquet, text):
        for name, values in {
            "obs_camera_89": arrays["observations"]["camera"][:, 5, 4, 2],
            "obs_pose_0_1": arrays["observations"]["pose"]["0"][:, 1],
            "obs_pose_2": arrays["observations"]["pose"]["2"],
            "action_arm_0_3": arrays["actions"]["arm"]["0"][:, 1, 1],
            "action_raw_arm_1_2": arrays["actions_raw"]["arm"]["1"][:, 1, 0],
            "action_level_1": arrays["actions"]["level"][:, 1],
            "action_mask_13": arrays["action_mask"][:, 13],
        }.items():
            np.testing.assert_array_equal(frame[name], values, name)
        known = arrays["has_next"]
        assert frame["next_obs_pose_1"].isna().tolist() == (~known).tolist()
        np.testing.assert_array_equal(
            frame["next_obs_pose_1"].dropna(), arrays["next_observations"]["pose"]["1"][known]
        )
    assert pyarrow.parquet.read_schema(tmp_path / "it.parquet").field("obs_bits_0").type == "int8"


def test_two_columns_of_one_name_are_refused(masked: Dump) -> None:
    """Whose numbers would they be?"""
    renamed = {"x_0": np.zeros(3), "x": np.zeros((3, 2))}
    episode = next(iter(masked.trajectories))
    tree = np.zeros(len(episode.observations), [(name, "f4", values.shape[1:]) for name, values in renamed.items()])
    with pytest.raises(UsageError, match=r"two columns would be called obs_x_0.*rename one"):
        columns_of(dataclasses.replace(episode, observations=tree), 0)


def test_d4rl_refuses_trees_and_has_masks(nested: Dump, masked: Dump, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"of a Dict or a Tuple with the parts bits, camera, pose: export --to minari"):
        to_d4rl(nested.trajectories, tmp_path / "it.hdf5")
    assert list(tmp_path.iterdir()) == []
    to_d4rl(masked.trajectories, tmp_path / "it.hdf5")
    arrays = masked.trajectories.to_numpy()
    with h5py.File(tmp_path / "it.hdf5") as file:
        masks = file["infos/action_mask"][()]
        np.testing.assert_array_equal(masks, arrays["action_mask"][arrays["has_next"]])
        assert masks[np.arange(len(masks)), file["actions"][()] - 1].all(), "no illegal action was taken"


def test_masks_are_columns_of_tables(masked: Dump, tmp_path: Path) -> None:
    to_csv(masked.trajectories, tmp_path / "it.csv")
    with open(tmp_path / "it.csv") as file:
        lines = list(csv.DictReader(file))
    masks = masked.trajectories.to_numpy()["action_mask"]
    assert [[line[f"action_mask_{i}"] == "True" for i in range(3)] for line in lines] == masks.tolist()
    assert "action_raw" not in lines[0]
