"""The names of cases, in dumps and what is made of them."""

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

CASES = ("cold", "warm", "hot")


def test_each_episode_has_the_name_of_its_case(tmp_path: Path) -> None:
    """Four environments on two ranks."""
    write_dump(tmp_path, cases=CASES)
    assert validate(tmp_path) == []
    dump = open_trajectories(tmp_path)
    table = dump.table()
    expected = {0: "cold", 1: "warm", 2: "hot", 3: "cold"}
    assert dict(zip(table["env"].tolist(), table["case"].tolist(), strict=True)) == expected
    assert {episode.env: episode.case for episode in dump} == expected
    assert dump.filter(last=1).table()["case"].tolist() == [expected[int(dump.filter(last=1).table()["env"][0])]]
    to_csv(dump, tmp_path / "out.csv")
    with open(tmp_path / "out.csv") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[:4] == ["rank", "env", "case", "episode"]
    assert all(line["case"] == expected[int(line["env"])] for line in lines)
    to_d4rl(dump, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as flat:
        pairs = set(zip(flat["infos/env"][()].tolist(), flat["infos/case"][()].tolist(), strict=True))
    assert pairs == {(env, name.encode()) for env, name in expected.items()}


def test_agents_of_a_simulator_have_one_case(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path, cases=CASES, agents=("left", "right")))
    assert {(episode.env, episode.agent, episode.case) for episode in dump} == {
        (0, "left", "cold"), (1, "right", "cold"), (2, "left", "warm"), (3, "right", "warm"),
    }  # fmt: skip
    assert validate(tmp_path) == []


def test_parquet_and_minari_have_the_names_too(tmp_path: Path) -> None:
    parquet, minari = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("minari")
    from dppo.trajectories.export.command import to_minari, to_parquet

    dump = open_trajectories(write_dump(tmp_path / "run", cases=CASES))
    to_parquet(dump, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert all(case == CASES[env % 3] for env, case in zip(table["env"], table["case"], strict=True))
    path = to_minari(dump, root=tmp_path / "sets").path
    dataset = minari.MinariDataset(path / "data")
    origins = [found["dppo"] for found in dataset.storage.get_episode_metadata(range(dataset.total_episodes))]
    assert [origin["case"] for origin in origins] == [CASES[origin["env"] % 3] for origin in origins]


def test_without_cases_there_is_no_name(tmp_path: Path) -> None:
    dump = open_trajectories(write_dump(tmp_path))
    assert "case" not in dump.table() and {episode.case for episode in dump} == {None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["cold"', "cases: does not fit together"),
        ("[1, 2]", "cases is no list of names"),
        ('["cold"]', "cases has 1 names, and there are 2 environments"),
        (3, "cases: does not fit together"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_found_and_not_read(text: Any, said: str, tmp_path: Path) -> None:
    lie(tmp_path, text)
    (violation,) = validate(tmp_path)
    assert said in str(violation)
    with pytest.raises(UsageError, match=r"seg_000000\.h5 cannot be read"):
        len(open_trajectories(tmp_path))


@pytest.mark.parametrize(("text", "named"), [(json.dumps(["warm", "cold"]), "warm, cold"), (None, "not there")])
def test_another_case_than_the_settings_deal_is_found(text: str | None, named: str, tmp_path: Path) -> None:
    lie(tmp_path, text)
    (violation,) = validate(tmp_path)
    assert f"cases: is {named}; the settings deal cold, warm" in str(violation)


def lie(run_dir: Path, text: Any) -> None:
    """Replaces the names in a segment."""
    worker = FakeWorker(run_dir, cases=CASES).go(5)
    worker.finish()

    def replace(file: h5py.File) -> None:
        del file["cases"]
        if text is not None:
            file["cases"] = text

    edit(worker.path(0), replace)
