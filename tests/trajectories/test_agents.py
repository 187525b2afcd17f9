"""The names of agents that share a simulator, in dumps and what is made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from dppo.errors import UsageError
from dppo.trajectories.export.command import to_csv, to_d4rl
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.dumps import FakeWorker, edit, write_dump

NAMES = ("left", "right")


def test_each_episode_has_the_name_of_its_agent(tmp_path: Path) -> None:
    """Four environments on two ranks are two simulators of two agents."""
    write_dump(tmp_path, agents=NAMES)
    assert validate(tmp_path) == []
    dump = open_trajectories(tmp_path)
    assert {(episode.env, episode.agent) for episode in dump} == {(0, "left"), (1, "right"), (2, "left"), (3, "right")}
    table = dump.table()
    assert list(table)[:4] == ["rank", "env", "agent", "id"]
    assert [NAMES[env % 2] for env in table["env"]] == table["agent"].tolist() == [e.agent for e in dump]
    rights = open_trajectories(tmp_path, ranks=[2], last=3)
    assert rights.table()["agent"].tolist() == [episode.agent for episode in rights]
    to_csv(dump, tmp_path / "out.csv")
    with open(tmp_path / "out.csv") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[:4] == ["rank", "env", "agent", "episode"]
    assert all(line["agent"] == NAMES[int(line["env"]) % 2] for line in lines)
    to_d4rl(dump, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as flat:
        assert json.loads(flat["metadata/agents"].asstr()[()]) == list(NAMES)


def test_a_data_frame_has_the_name_in_each_line(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    frame = open_trajectories(write_dump(tmp_path, agents=NAMES)).to_pandas()
    assert len(frame) and (frame["agent"] == [NAMES[env % 2] for env in frame["env"]]).all()


def test_parquet_has_the_names_too(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from dppo.trajectories.export.command import to_parquet

    dump = open_trajectories(write_dump(tmp_path, agents=NAMES))
    to_parquet(dump, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert set(zip(table["env"], table["agent"], strict=True)) == {(env, NAMES[env % 2]) for env in range(4)}


def test_minari_has_the_name_in_an_episodes_origin(tmp_path: Path) -> None:
    minari = pytest.importorskip("minari")
    from dppo.trajectories.export.command import to_minari

    dump = open_trajectories(write_dump(tmp_path / "run", agents=NAMES))
    path = to_minari(dump, root=tmp_path / "sets").path
    dataset = minari.MinariDataset(path / "data")
    origins = [found["dppo"] for found in dataset.storage.get_episode_metadata(range(dataset.total_episodes))]
    assert [origin["agent"] for origin in origins] == [NAMES[origin["env"] % 2] for origin in origins]


def test_without_agents_there_is_no_name(tmp_path: Path) -> None:
    write_dump(tmp_path)
    dump = open_trajectories(tmp_path)
    assert {episode.agent for episode in dump} == {None} and "agent" not in dump.table()
    to_csv(dump, tmp_path / "out.csv")
    assert "agent" not in (tmp_path / "out.csv").read_text().splitlines()[0].split(",")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["left"', "agents: does not fit together"),
        ('{"left": 1}', "agents is no list of names"),
        ("[]", "is no list of names"),
        ("[1, 2]", "is no list of names"),
        ('["left", "left"]', "agents has 1 names, and there are 2 environments"),
        ('["a", "b", "c"]', "agents has 3 names, and there are 2 environments"),
        (3, "agents: does not fit together"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_found_and_not_read(text: Any, said: str, tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path, agents=NAMES).go(5)
    worker.finish()

    def lie(file: h5py.File) -> None:
        del file["agents"]
        file["agents"] = text

    edit(worker.path(0), lie)
    (violation,) = validate(tmp_path)
    assert said in str(violation)
    with pytest.raises(UsageError, match=r"seg_000000\.h5 cannot be read"):
        len(open_trajectories(tmp_path))
