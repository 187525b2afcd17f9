"""The schema of a segment: it is told once, and a new column costs one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py

import dppo
from dppo.trajectories.format import ATTRIBUTES, TEXTS, datasets, held_steps
from tests.dumps import FakeWorker, write_dump

ROOT = Path(__file__).parents[2]
ONE_LINE_MORE = """
import sys
from pathlib import Path
import numpy as np
from dppo.trajectories import format

format.STEPS += (format.Column("next_values", np.dtype("f4"), "TN", "next_values", "next_value", is_info=True),)

import csv, h5py, pandas
from dppo.trajectories.export.command import to_csv, to_d4rl
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.dumps import FakeWorker, edit

run_dir = Path(sys.argv[1])
worker = FakeWorker(run_dir)
play = worker._rollout

def rollout(rows, version):
    out = play(rows, version)
    out.next_values = np.arange(out.first_row, worker.row, dtype=np.float32)[:, None] + np.zeros((1, 2), np.float32)
    return out

worker._rollout = rollout
worker.go(4).seal().go(7).finish()
assert validate(run_dir) == []
dump = open_trajectories(run_dir)
for episode in dump:
    rows = (episode.first_row + np.arange(episode.length)).tolist()
    assert episode.others["next_values"].tolist() == episode.steps["next_values"].tolist() == rows
steps = dump.to_numpy()
assert steps["next_values"].tolist() == steps["row"].tolist() == dump.to_pandas()["next_values"].tolist()
to_csv(dump, run_dir / "out.csv")
assert [float(line["next_value"]) for line in csv.DictReader(open(run_dir / "out.csv"))] == steps["row"].tolist()
to_d4rl(dump, run_dir / "out.hdf5")
with h5py.File(run_dir / "out.hdf5") as file:
    assert file["infos/next_values"][()].tolist() == steps["row"][steps["has_next"]].tolist()

def spoil(file):
    file["steps/next_values"][0, 0] = np.nan

edit(worker.path(0), spoil)
assert [v.dataset for v in validate(run_dir)] == ["steps/next_values"]
edit(worker.path(0), lambda file: file.__delitem__("steps/next_values"))
assert [str(v).rpartition(": ")[2] for v in validate(run_dir)] == ["is missing"]
"""


def test_a_segment_has_what_the_schema_says_and_nothing_else(tmp_path: Path) -> None:
    for is_raw in (False, True):
        run_dir = write_dump(tmp_path / str(is_raw), raw=is_raw)
        with h5py.File(FakeWorker(run_dir).path(1)) as file:
            assert set(file.attrs) == set(ATTRIBUTES)
            assert {group for group in file if not isinstance(file[group], h5py.Group)} == set(TEXTS)
            there = {"steps/actions_raw"} if is_raw else set()
            columns = {path: c for path, c in datasets().items() if not c.is_optional or path in there}
            assert {f"{group}/{name}" for group in file if group not in TEXTS for name in file[group]} == set(columns)
            for path, column in columns.items():
                assert column.dtype in (None, file[path].dtype), path
                assert column.ndim in (None, file[path].ndim), path


def test_a_new_column_costs_one_line(tmp_path: Path) -> None:
    """Writer, validator, reader, tables and exports know it by that."""
    command = [sys.executable, "-c", ONE_LINE_MORE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_document_tells_of_all(tmp_path: Path) -> None:
    text = (Path(dppo.__file__).parent.parent / "docs" / "trajectories.md").read_text()
    named = set(re.findall(r"`([a-z_/]+)`", text))
    assert named >= {*ATTRIBUTES, *TEXTS, *datasets()}
    tables = {column.single for column in held_steps() if column.ndim is not None}
    assert named >= tables
