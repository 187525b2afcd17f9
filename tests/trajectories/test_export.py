"""Exports: what comes out elsewhere is what the reader gives; nothing is overwritten; nothing appears by halves."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pandas
import pyarrow.parquet
import pytest
from minari.serialization import serialize_space

from dppo.errors import UsageError
from dppo.settings.values import as_dict
from dppo.trajectories.export import as_d4rl, as_minari, as_tables
from dppo.trajectories.export import command as export
from dppo.trajectories.export.selection import Exported, in_batches
from dppo.trajectories.reader import Episode, Trajectories, open_trajectories
from dppo.trajectories.writer import Labels, TrajectoryWriter
from tests.parts import make_parts

ENVS = ("CartPole-v1", "Pendulum-v1")
NUM_ROLLOUTS = {"CartPole-v1": 8, "Pendulum-v1": 30}
each_env = pytest.mark.parametrize("env", ENVS)


def make_dump(run_dir: Path, env: str, *, every: int = 1, ranks: int = 2, horizon: int = 16) -> Path:
    """What workers without a server write, in several segments; the policies do not learn."""
    for rank in range(ranks):
        place = make_parts(env=env, worker=rank)
        envs = place.collector.envs
        labels = Labels(
            run_dir, "a-run", 1, rank, ranks, rank * place.config.num_envs, json.dumps(as_dict(place.config)),
            gymnasium.spec(env).to_json(), str(serialize_space(envs.observation_space)),
            str(serialize_space(envs.action_space)), "0.1.0",
        )  # fmt: skip
        is_box = isinstance(envs.action_space, gymnasium.spaces.Box)
        writer = TrajectoryWriter(labels, place.seeds.of, has_raw_actions=is_box, segment_bytes=4000, every=every)
        for _ in range(NUM_ROLLOUTS[env] * 16 // horizon):
            rollout, _ = place.rollout(horizon)
            writer.add(rollout)
            place.state.version += 1
        writer.settle(None)
        writer.close()
    return run_dir


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {env: make_dump(tmp_path_factory.mktemp("dump") / env, env) for env in ENVS}


@pytest.fixture(autouse=True)
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def command(*argv: Any) -> list[str]:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(a) for a in argv]))


def held(dump: Path, **filters: Any) -> list[Episode]:
    """With unfinished ones among them, or the test says nothing."""
    episodes = list(open_trajectories(dump, **filters))
    assert episodes
    return episodes


def unfinished(episode: Episode) -> bool:
    return not (episode.terminated or episode.truncated)


# -- Minari --------------------


@each_env
def test_a_minari_dataset_has_the_readers_episodes(dumps: dict[str, Path], env: str) -> None:
    (line, dropped) = command(dumps[env], "--to", "minari")
    episodes = held(dumps[env])
    dataset = minari.load_dataset(f"dppo/{env}-v0")
    assert f"dppo/{env}-v0" in minari.list_local_datasets()
    assert "dppo" in minari.namespace.list_local_namespaces()
    cut = [e for e in episodes if unfinished(e)]
    assert 0 < len(cut) < len(episodes)
    assert dataset.total_episodes == len(episodes)
    assert dataset.total_steps == sum(e.length for e in episodes) - len(cut)
    assert line.endswith(f": {len(episodes)} episodes, {dataset.total_steps} steps")
    assert dropped.startswith(f"{len(cut)} last steps of unfinished")

    details = dataset.storage.get_episode_metadata(range(len(episodes)))
    for mine, theirs, detail in zip(episodes, dataset, details, strict=True):
        length = mine.length - unfinished(mine)
        np.testing.assert_array_equal(theirs.observations, mine.observations)
        assert len(theirs.observations) == length + 1
        np.testing.assert_array_equal(theirs.actions, mine.actions[:length])
        np.testing.assert_array_equal(theirs.rewards, mine.rewards[:length])
        np.testing.assert_array_equal(theirs.terminations, mine.terminations[:length])
        assert bool(theirs.truncations[-1]) is (mine.truncated or unfinished(mine))
        assert not theirs.truncations[:-1].any()
        np.testing.assert_array_equal(theirs.infos["log_probs"], [*mine.log_probs[:length], np.nan])
        np.testing.assert_array_equal(theirs.infos["values"], [*mine.values[:length], np.nan])
        np.testing.assert_array_equal(theirs.infos["policy_version"], [*mine.policy_version[:length], -1])
        assert detail["seed"] == mine.seed and detail["total_steps"] == length
        where = detail["dppo"]
        assert (where["rank"], where["env"], where["id"]) == (mine.rank, mine.env, mine.id)
        assert where["return"] == mine.episode_return and where["complete"] == mine.complete
        if mine.complete:
            assert np.sum(theirs.rewards, dtype=np.float64) == pytest.approx(mine.episode_return)


@each_env
def test_a_minari_dataset_passes_minaris_own_checks(dumps: dict[str, Path], env: str) -> None:
    """What the helpers of Minari's tests check, and that the seeds lead to what was observed."""
    export.to_minari(open_trajectories(dumps[env]), "own/deep/name-v3", author="somebody")
    dataset = minari.load_dataset("own/deep/name-v3")
    recovered, made = dataset.recover_environment(), gymnasium.make(env)
    assert recovered.spec == made.spec
    for name in ("observation_space", "action_space"):
        assert getattr(dataset, name) == getattr(made, name) == getattr(recovered, name)
    total = 0
    for episode, detail in zip(dataset, dataset.storage.get_episode_metadata(range(len(dataset))), strict=True):
        total += len(episode)
        assert len(episode.observations) == len(episode) + 1
        assert all(observation in dataset.observation_space for observation in episode.observations)
        assert len(episode.actions) == len(episode.terminations) == len(episode.truncations) == len(episode)
        assert all(action in dataset.action_space for action in episode.actions)
        assert episode.terminations[-1] or episode.truncations[-1]
        np.testing.assert_allclose(made.reset(seed=detail["seed"])[0], episode.observations[0], rtol=1e-6)
        np.testing.assert_allclose(made.step(episode.actions[0])[0], episode.observations[1], rtol=1e-5)
    assert total == dataset.total_steps
    assert dataset.storage.jpeg_encoding is False
    metadata = dataset.storage.metadata
    assert metadata["author"] == {"somebody"}
    assert metadata["algorithm_name"] == "PPO, sync (dppo)"
    assert f"in {env} (ppo, sync, seed 0)" in metadata["description"]
    assert metadata["dppo_config"]["num_envs"] == 2 and "run_dir" not in metadata["dppo_config"]
    assert len(minari.split_dataset(dataset, [2, 1], seed=0)[0]) == 2
    best = dataset.filter_episodes(lambda e: float(np.sum(e.rewards)) > float(np.sum(dataset[0].rewards)))
    assert len(best) < len(dataset)


def test_minari_seeds_only_what_begins(tmp_path: Path) -> None:
    """With every second rollout missing, most that is held of an episode is not its beginning."""
    dump = make_dump(tmp_path / "gaps", "Pendulum-v1", every=2, ranks=1)
    trajectories = open_trajectories(dump)
    offsets = trajectories.table()["offset"].tolist()
    export.to_minari(trajectories, "gaps-v0")
    dataset = minari.load_dataset("gaps-v0")
    details = list(dataset.storage.get_episode_metadata(range(len(dataset))))
    assert [d["dppo"]["offset"] for d in details] == offsets
    assert {"seed" in d for d, offset in zip(details, offsets, strict=True) if offset} == {False}
    assert sum("seed" in d for d in details) == offsets.count(0) > 0


def test_minari_has_no_place_for_a_single_step_that_leads_nowhere(
    tmp_path: Path,
) -> None:
    """With rollouts of one row, of which every second is missing, nearly all episodes are such."""
    dump = make_dump(tmp_path / "single", "CartPole-v1", every=2, ranks=1, horizon=1)
    trajectories = open_trajectories(dump)
    ended = [e for e in trajectories if not unfinished(e)]
    done = export.to_minari(trajectories, "single-v0")
    assert 0 < done.episodes == done.steps == len(ended) == len(trajectories) - done.dropped_steps
    dataset = minari.load_dataset("single-v0")
    for mine, theirs, detail in zip(
        ended, dataset, dataset.storage.get_episode_metadata(range(len(ended))), strict=True
    ):
        np.testing.assert_array_equal(theirs.observations, mine.observations)
        assert detail["dppo"]["env"] == mine.env and detail["dppo"]["first_row"] == mine.first_row


def test_minari_goes_where_it_is_told(dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command(dumps["CartPole-v1"], "--to", "minari", "-o", "elsewhere", "--complete-only")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    dataset = minari.load_dataset("dppo/CartPole-v1-v0")
    assert len(dataset) == len(held(dumps["CartPole-v1"], complete_only=True))
    assert [p.name for p in (tmp_path / "elsewhere" / "dppo").iterdir() if p.name.startswith(".")] == []


def test_minari_overwrites_nothing_and_says_what_is_free(dumps: dict[str, Path], minari_root: Path) -> None:
    argv = (dumps["CartPole-v1"], "--to", "minari", "--last", 2)
    command(*argv)
    content = {p: p.read_bytes() for p in minari_root.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=r"exists already.*--dataset-id dppo/CartPole-v1-v1 is free"):
        command(*argv)
    with pytest.raises(UsageError, match="inside the dataset"):
        command(*argv, "--dataset-id", "dppo/CartPole-v1-v0/data-v0")
    for wrong in (
        "no-version",
        "../up-v0",
        "/root-v0",
        "a//b-v",
        "a/../../b-v0",
        "aa//b-v0",
        "",
        "x-v\u0663",
        "a\nb-v0",
    ):
        with pytest.raises(UsageError, match="must have the form"):
            command(*argv, "--dataset-id", wrong)
    for long in ("x" * 300 + "-v0", "x-v" + "1" * 20):
        with pytest.raises(UsageError, match="is too long"):
            command(*argv, "--dataset-id", long)
    assert content == {p: p.read_bytes() for p in minari_root.rglob("*") if p.is_file()}
    command(*argv, "--dataset-id", "dppo/CartPole-v1-v1")
    assert len(minari.list_local_datasets()) == 2


def test_a_dump_that_only_knows_its_environments_id(dumps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {**as_minari.labels_of(open_trajectories(dumps["CartPole-v1"])), "env_spec": '{"id": "my_sim:Own-v2"}'}
    monkeypatch.setattr(as_minari, "labels_of", lambda trajectories: labels)
    command(dumps["CartPole-v1"], "--to", "minari")
    dataset = minari.load_dataset("dppo/Own-v2-v0")
    assert dataset.env_spec is None and len(dataset) > 1


@pytest.mark.parametrize("name", ["env_spec", "config_json", "observation_space"])
@pytest.mark.parametrize("text", ["{", "[1]", "{}", "\x00"])
def test_a_dump_whose_labels_are_damaged(
    dumps: dict[str, Path], name: str, text: str, minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (name, text) in (("config_json", "{}"), ("config_json", "[1]")):
        text = "[[1]]"
    labels = {**as_minari.labels_of(open_trajectories(dumps["CartPole-v1"])), name: text}
    monkeypatch.setattr(as_minari, "labels_of", lambda trajectories: labels)
    with pytest.raises(UsageError, match=f"{name} of the dump's first segment cannot be read"):
        command(dumps["CartPole-v1"], "--to", "minari")
    assert not minari_root.exists()


# -- D4RL --------------------


@each_env
def test_d4rl_has_flat_arrays_that_end_each_episode(dumps: dict[str, Path], env: str, tmp_path: Path) -> None:
    command(dumps[env], "--to", "d4rl", "-o", tmp_path / "flat.hdf5")
    episodes = held(dumps[env])
    kept = [e.length - unfinished(e) for e in episodes]
    with h5py.File(tmp_path / "flat.hdf5") as file:
        arrays = {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
        infos = {name: file["infos"][name][()] for name in file["infos"]}
        assert json.loads(file["metadata/config_json"].asstr()[()])["env"] == env
    assert {len(a) for a in (*arrays.values(), *infos.values())} == {sum(kept)}
    for name, wanted in {
        "observations": [e.observations[:-1] for e in episodes],
        "next_observations": [e.observations[1:] for e in episodes],
        "actions": [e.actions[:k] for e, k in zip(episodes, kept, strict=True)],
        "rewards": [e.rewards[:k] for e, k in zip(episodes, kept, strict=True)],
    }.items():
        np.testing.assert_array_equal(arrays[name], np.concatenate(wanted), strict=True)
    np.testing.assert_array_equal(infos["env"], np.repeat([e.env for e in episodes], kept))
    assert ("actions_raw" in infos) is (env == "Pendulum-v1")
    terminals, timeouts = arrays["terminals"], arrays["timeouts"]
    assert terminals.dtype == timeouts.dtype == bool
    assert not (terminals & timeouts).any()
    ends = np.cumsum(kept) - 1
    np.testing.assert_array_equal(np.flatnonzero(terminals | timeouts), ends)
    np.testing.assert_array_equal(terminals[ends], [e.terminated for e in episodes])


def test_d4rl_cut_in_the_step_in_which_it_terminated_is_a_terminal(dumps: dict[str, Path]) -> None:
    episode = next(e for e in held(dumps["CartPole-v1"]) if e.terminated)
    both = replace(episode, truncations=episode.terminations.copy(), truncated=True)
    columns = as_d4rl._columns(both, both.length)
    assert columns["terminals"][-1] and not columns["timeouts"].any()


# -- tables --------------------


@each_env
def test_parquet_and_csv_hold_every_step(dumps: dict[str, Path], env: str, tmp_path: Path) -> None:
    for form in ("parquet", "csv"):
        command(dumps[env], "--to", form, "-o", tmp_path / f"steps.{form}")
    parquet = pandas.read_parquet(tmp_path / "steps.parquet")
    frames = [parquet, pandas.read_csv(tmp_path / "steps.csv", dtype={name: t for name, t in parquet.dtypes.items()})]
    episodes = held(dumps[env])
    lengths = [e.length for e in episodes]
    size = episodes[0].observations.shape[1]
    cut = np.cumsum(lengths)[[unfinished(e) for e in episodes]] - 1
    for frame in frames:
        assert len(frame) == sum(lengths)
        assert frame["next_obs_0"].isna().to_numpy().nonzero()[0].tolist() == cut.tolist()
        for i in range(size):
            observations = np.concatenate([e.observations[: e.length, i] for e in episodes])
            np.testing.assert_array_equal(frame[f"obs_{i}"], observations)
            following = np.concatenate([e.observations[1:, i] for e in episodes])
            np.testing.assert_array_equal(frame[f"next_obs_{i}"].dropna(), following)
        action = "action" if env == "CartPole-v1" else "action_0"
        np.testing.assert_array_equal(frame[action], np.concatenate([e.actions for e in episodes]).ravel())
        assert ("action_raw_0" in frame) is (env == "Pendulum-v1")
        for column, name in {
            "reward": "rewards", "terminated": "terminations", "truncated": "truncations", "log_prob": "log_probs",
            "value": "values", "policy_version": "policy_version",
        }.items():  # fmt: skip
            np.testing.assert_array_equal(frame[column], np.concatenate([getattr(e, name) for e in episodes]))
        for column, name in {"rank": "rank", "env": "env", "episode": "id", "seed": "seed"}.items():
            np.testing.assert_array_equal(frame[column], np.repeat([getattr(e, name) for e in episodes], lengths))
        np.testing.assert_array_equal(frame["t"], np.concatenate([np.arange(n) for n in lengths]))
        np.testing.assert_array_equal(frame["row"] - frame["t"], np.repeat([e.first_row for e in episodes], lengths))
        returns = frame.groupby(["rank", "env", "episode"])["reward"].sum()
        assert returns[(1, episodes[-1].env, episodes[-1].id)] == pytest.approx(episodes[-1].episode_return, rel=1e-5)
    schema = pyarrow.parquet.read_schema(tmp_path / "steps.parquet")
    assert json.loads(schema.metadata[b"config_json"])["env"] == env
    assert parquet["obs_0"].dtype == np.float32 and parquet["terminated"].dtype == bool


def test_unknown_seeds_are_empty_and_steps_count_from_the_episodes_beginning(dumps: dict[str, Path]) -> None:
    episode = replace(held(dumps["CartPole-v1"])[0], seed=None)
    columns = as_tables.columns_of(episode, 7)
    assert columns["seed"].mask.all()
    assert as_tables._as_text(columns["seed"]) == [""] * episode.length
    assert columns["t"].tolist() == list(range(7, 7 + episode.length))


def test_images_are_no_columns(dumps: dict[str, Path]) -> None:
    episode = held(dumps["CartPole-v1"])[0]
    images = np.zeros((len(episode.observations), 84, 84, 3), np.uint8)
    with pytest.raises(UsageError, match=r"columns.*--to minari or d4rl"):
        as_tables.columns_of(replace(episode, observations=images), 0)


# -- all forms --------------------

FORMS = ("minari", "d4rl", "parquet", "csv")
each_form = pytest.mark.parametrize("form", FORMS)


@each_form
def test_filters(dumps: dict[str, Path], form: str, tmp_path: Path) -> None:
    dump = dumps["CartPole-v1"]
    best = float(np.median([e.episode_return for e in held(dump, complete_only=True, ranks=[1])]))
    wanted = held(dump, complete_only=True, ranks=[1], min_return=best, last=3)
    lines = command(
        dump, "--to", form, "-o", tmp_path / "out", "--complete-only", "--ranks", "1", "--min-return", best, "--last", 3
    )
    assert len(lines) == 1
    assert lines[0].endswith(f": {len(wanted)} episodes, {sum(e.length for e in wanted)} steps")


@each_form
def test_nothing_appears_where_nothing_is_left_or_something_fails(
    dumps: dict[str, Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (dumps["CartPole-v1"], "--to", form, "-o", tmp_path / "out" / "it")
    with pytest.raises(UsageError, match="no step is left to export"):
        command(*argv, "--min-return", 1e9)
    first = itertools.islice(open_trajectories(dumps["CartPole-v1"]), 3)

    def broken(self: Trajectories) -> Any:
        yield from first
        raise OSError("a bad disk")

    monkeypatch.setattr(Trajectories, "__iter__", broken)
    with pytest.raises(OSError, match="a bad disk"):
        command(*argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", [f for f in FORMS if f != "minari"])
def test_no_file_is_overwritten(dumps: dict[str, Path], form: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(UsageError, match="precious exists already"):
        command(dumps["CartPole-v1"], "--to", form, "-o", path)
    assert path.read_text() == "mine"


@each_form
def test_what_another_has_half_written_stays(dumps: dict[str, Path], form: str, tmp_path: Path) -> None:
    for name in ("out.part", "out/dppo/.CartPole-v1-v0.part"):
        (tmp_path / form / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / form / name).write_text("mine")
    out = tmp_path / form / ("out" if form == "minari" else "out.x")
    command(dumps["CartPole-v1"], "--to", form, "-o", out, "--last", 1)
    assert (tmp_path / form / "out.part").read_text() == "mine"
    assert (tmp_path / form / "out/dppo/.CartPole-v1-v0.part").read_text() == "mine"


@each_form
@pytest.mark.parametrize("name", ["rank_00001/seg_000099.h5", "new"])
def test_nothing_is_written_into_a_dump(dumps: dict[str, Path], form: str, name: str, tmp_path: Path) -> None:
    root = dumps["Pendulum-v1"] / "trajectories"
    before = sorted(root.rglob("*"))
    (tmp_path / "link").symlink_to(root / "rank_00001")
    for out in (root / name, tmp_path / "link" / "x"):
        with pytest.raises(UsageError, match="would lie within the trajectories"):
            command(dumps["CartPole-v1"], "--to", form, "-o", out)
    assert sorted(root.rglob("*")) == before


def test_files_lie_in_the_run_by_default(tmp_path: Path) -> None:
    dump = make_dump(tmp_path / "run", "CartPole-v1", ranks=1)
    for form in ("d4rl", "parquet", "csv"):
        command(dump, "--to", form)
    assert sorted(p.name for p in dump.iterdir() if p.is_file()) == [
        "trajectories.csv", "trajectories.hdf5", "trajectories.parquet",
    ]  # fmt: skip
    with open(dump / "trajectories.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(e.length for e in held(dump))


@pytest.mark.parametrize(("form", "package"), [("minari", "minari"), ("parquet", "pyarrow")])
def test_a_missing_package_is_named(
    dumps: dict[str, Path], form: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"(?i)this needs (minari|pyarrow).*pip install 'dppo\[analysis\]'"):
        command(dumps["CartPole-v1"], "--to", form, "-o", tmp_path / "out")
    assert list(tmp_path.rglob("*.part")) == []


def test_wrong_use(dumps: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="has no trajectories"):
        command(tmp_path, "--to", "csv")
    with pytest.raises(UsageError, match="--dataset-id is for --to minari"):
        command(dumps["CartPole-v1"], "--to", "csv", "--dataset-id", "a-v0")
    with pytest.raises(UsageError, match="--last"):
        command(dumps["CartPole-v1"], "--to", "csv", "--last", 0)
    with pytest.raises(UsageError, match="ranks"):
        command(dumps["CartPole-v1"], "--to", "csv", "--ranks", "0,7")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        command(dumps["CartPole-v1"], "--to", "csv", "-o", tmp_path / "file" / "out.csv")
    with pytest.raises(UsageError, match="cannot be written: File name too long"):
        command(dumps["CartPole-v1"], "--to", "csv", "-o", tmp_path / ("x" * 300))
    with pytest.raises(SystemExit):
        command(dumps["CartPole-v1"], "--to", "csv", "-o", "")
    assert "an empty name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(dumps["CartPole-v1"], "--to", "csv", "--ranks", "one")
    assert "'one' must be ranks, such as 1,2" in capsys.readouterr().err


def test_batches_keep_the_order_and_are_bounded() -> None:
    items = [(3, "a"), (4, "b"), (9, "c"), (1, "d"), (1, "e")]
    assert list(in_batches(items, 6)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(in_batches([], 6)) == []


@each_form
def test_batches_are_one_file(
    dumps: dict[str, Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dumps larger than a batch."""
    functions = {name: getattr(export, f"to_{name}") for name in FORMS}
    for module in (as_d4rl, as_tables):
        monkeypatch.setattr(module, "in_batches", lambda items: in_batches(items, 2000))
    trajectories = open_trajectories(dumps["Pendulum-v1"])
    done: Exported = functions[form](trajectories, *([None] if form == "minari" else []), tmp_path / "out")
    assert done.episodes == len(trajectories)
    assert done.steps + done.dropped_steps == sum(e.length for e in trajectories)
