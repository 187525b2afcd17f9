"""python -m dppo.trajectories: what it says, draws, indexes and saves, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dppo.trajectories.__main__ import main
from dppo.trajectories.format import USER_BLOCK, seal_image
from dppo.trajectories.plots import policy_lag
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.dumps import FakeWorker, edit, replace, write_dump

SEGMENT = "trajectories/rank_00001/seg_000001.h5"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, which is one line; stdout is empty."""
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("dppo: ")
    return err


# -- info and validate --------------------


def test_info_counts_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dump(tmp_path, ranks=[2])
    FakeWorker(tmp_path, first_env=2).go(4).finish()
    FakeWorker(tmp_path, first_env=2, row=6, attempt=2).go(5).finish()
    orphans = tmp_path / "trajectories/orphaned/attempt_00002/rank_00001"
    orphans.mkdir(parents=True)
    (orphans / "seg_000001.h5").write_bytes(b"")
    assert main(["info", str(tmp_path), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    # rank 1: ids 0 of both, 1 (cut), then 2, 3 (begun) of env 2 and the rest of 1 and 2 (begun) of env 3
    assert out["episodes"] == {"ended": 5 + 3, "complete": 5 + 2, "unfinished": 2 + 4}
    assert out["steps"] == 22 + 18
    assert out["returns"] == {"min": 6.0, "q25": 6.0, "median": 6.0, "q75": 15.0, "max": 15.0}
    assert {r: (n["segments"], n["rows"], n["steps"], n["missing_rows"]) for r, n in out["ranks"].items()} == {
        "1": (2, 9, 18, 2), "2": (2, 11, 22, 0),
    }  # fmt: skip
    assert out["ranks"]["2"]["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("trajectories/rank_00002/*.h5"))
    assert (out["attempts"], out["orphaned"]) == ([1, 2], 1)
    assert main(["info", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "8 episodes that ended (7 complete), 6 unfinished; 40 steps" in " ".join(text.split())
    assert "written in attempt(s) 1, 2; 1 orphaned segment(s)" in text


def test_validate_of_a_sound_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(write_dump(tmp_path))]) == 0
    assert capsys.readouterr().out.endswith("the trajectories are sound\n")
    assert main(["validate", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_validate_of_a_damaged_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dump(tmp_path) / SEGMENT
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["validate", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{SEGMENT}: its bytes do not match its checksum",
        *(str(v) for v in validate(tmp_path)[1:]),
        f"{len(validate(tmp_path))} violation(s)",
    ]
    assert main(["validate", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0] == {
        "file": SEGMENT, "dataset": None, "row": None, "what": "its bytes do not match its checksum",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["info", "validate", "index", "plot"])
def test_a_run_without_trajectories_is_wrong_use(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["-o", str(tmp_path / "x.png")] if command == "plot" else []
    assert main([command, str(tmp_path), *more]) == 2
    assert "has no trajectories" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_info_of_a_damaged_dump_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(write_dump(tmp_path) / SEGMENT, 1000)
    assert main(["info", str(tmp_path)]) == 2
    assert "`python -m dppo.trajectories validate RUN`" in one_line(capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"), (["frobnicate"], "invalid choice"), (["plot", "RUN"], "-o/--output"),
        (["plot", "RUN", "-o", ""], "an empty name"),
        (["export", "RUN", "--to", "cs\nv"], "invalid choice"),
        (["export", "RUN", "--to", "csv", "--last", "x"], "'x'"),
        (["validate", "a\nb"], "a b has no trajectories"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize("command", ["info", "index", "plot", "export"])
def test_a_pipe_among_the_segments_is_not_waited_for(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(write_dump(tmp_path) / "trajectories/rank_00001/seg_000002.h5")
    more = {"plot": ["-o", str(tmp_path / "x.png")], "export": ["--to", "csv"]}
    assert main([command, str(tmp_path), *more.get(command, [])]) == 2
    assert "seg_000002.h5 is no file" in one_line(capsys)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: replace(file, "steps/rewards", np.float32(1)),
        lambda file: (file.__delitem__("steps"), file.create_dataset("steps", data=3)),
        lambda file: file["steps"].create_group("more"),
        lambda file: replace(file, "episodes/start", np.array([b"x"] * 6)),
        lambda file: replace(file, "episodes/id", np.zeros((2, 3, 4))),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    tmp_path: Path, change: Callable[[h5py.File], object], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(write_dump(tmp_path) / SEGMENT, change)
    for command in (["info"], ["index"], ["export", "--to", "csv"], ["export", "--to", "d4rl"]):
        if main([command[0], str(tmp_path), *command[1:]]):
            one_line(capsys)
        capsys.readouterr()


def test_it_is_a_command(tmp_path: Path) -> None:
    write_dump(tmp_path)
    command = [sys.executable, "-m", "dppo.trajectories"]
    done = subprocess.run([*command, "validate", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([*command, "frobnicate"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2


# -- plot --------------------


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.png"
    assert main(["plot", str(write_dump(tmp_path)), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "out.nothing")]) == 2
    assert "out.nothing cannot be written" in capsys.readouterr().err
    (tmp_path / "adir").mkdir()
    for out, said in {
        "out.png": "exists already", "adir": "no suffix", "adir.png/x": "no suffix",
        "trajectories/rank_00001/seg_000009.h5.png": "would lie within the trajectories",
    }.items():  # fmt: skip
        before = picture.stat()
        assert main(["plot", str(tmp_path), "-o", str(tmp_path / out)]) == 2
        assert said in one_line(capsys)
        assert picture.stat() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adir", "out.png", "trajectories"]


def test_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(write_dump(tmp_path)), "-o", str(tmp_path / "x.png")]) == 2
    assert "pip install 'dppo[analysis]'" in one_line(capsys)


def test_policy_lag_is_behind_the_newest_of_all_ranks(tmp_path: Path) -> None:
    """Version 3 acts in rank 2 from row 2 on, in rank 1 from row 4 on."""
    FakeWorker(tmp_path).go(4, 1).seal().go(2, 3).finish()
    FakeWorker(tmp_path, rank=2, first_env=2).go(2, 0).go(4, 3).finish()
    lag = policy_lag(open_trajectories(tmp_path).catalogue)
    assert lag[1][1].tolist() == [0, 0, 2, 2, 0, 0]
    assert lag[2][1].tolist() == [1, 1, 0, 0, 0, 0]


# -- index --------------------


def test_the_index_shows_all_segments_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_dump(tmp_path / "run")
    assert main(["index", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/trajectories/index.h5\n"
    os.rename(run, tmp_path / "moved")  # sources are relative
    segments = list(open_trajectories(tmp_path / "moved", ranks=[2]).segments())
    with h5py.File(tmp_path / "moved/trajectories/index.h5") as file:
        assert set(file) == {"rank_00001", "rank_00002"}
        for name, data in file["rank_00002/steps"].items():
            assert data.is_virtual
            np.testing.assert_array_equal(data, np.concatenate([s[name] for s in segments]))
    assert main(["index", str(tmp_path / "moved"), "--check"]) == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_missing_source_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["index", str(write_dump(tmp_path))])
    (tmp_path / SEGMENT).unlink()
    capsys.readouterr()
    assert main(["index", str(tmp_path), "--check"]) == 1
    assert one_line(capsys) == "dppo: rank_00001/seg_000001.h5 is missing: its rows read as fill values\n"
    with h5py.File(tmp_path / "trajectories/index.h5") as file:
        assert file["rank_00001/steps/row"][4:].tolist() == [0] * 7  # which is why


def test_a_stale_index_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["index", str(write_dump(tmp_path))])
    FakeWorker(tmp_path, row=11).go(2).finish()
    FakeWorker(tmp_path / "other").go(4).seal().go(3).finish()
    os.replace(tmp_path / "other" / SEGMENT, tmp_path / SEGMENT)
    capsys.readouterr()
    assert main(["index", str(tmp_path), "--check"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "rank_00001/seg_000001.h5 has another shape than the index says" in first
    assert "rank_00001/seg_000002.h5 is not in the index: write it anew" in second
    assert main(["index", str(tmp_path)]) == 0
    assert main(["index", str(tmp_path), "--check"]) == 0


def test_an_index_over_a_gap_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_dump(tmp_path) / "trajectories/rank_00001/seg_000000.h5").unlink()
    assert main(["index", str(tmp_path)]) == 0
    assert "rank_00001/seg_000000.h5 is missing" in capsys.readouterr().err
    with h5py.File(tmp_path / "trajectories/index.h5") as file:
        assert file["rank_00001/steps/row"][:].tolist() == list(range(4, 11))


def test_an_index_over_a_wide_gap_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dump(tmp_path) / "trajectories/rank_00001"
    shutil.copy(folder / "seg_000001.h5", folder / "seg_30000000.h5")
    assert main(["index", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank_00001/seg_000002.h5 to seg_29999999.h5 are missing" in line


@pytest.mark.parametrize("what", ["text", "folder", "hdf5", "part"])
def test_a_foreign_file_in_the_place_of_the_index(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dump(tmp_path) / "trajectories/index.h5"
    if what == "part":
        part = path.with_name("index.h5.part")
        part.write_text("mine")
        assert main(["index", str(tmp_path)]) == 0
        assert part.read_text() == "mine"
        return
    if what == "text":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
    else:
        with h5py.File(path, "w") as file:
            file["rank_00001/mine"] = 1
    before = path.stat()
    assert main(["index", str(tmp_path)]) == 2
    assert "is no index that dppo has written" in one_line(capsys)
    assert path.stat() == before
    assert main(["index", "--check", str(tmp_path)]) == 2
    one_line(capsys)
    assert len(list(path.parent.iterdir())) == 3


def test_no_index_to_check_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(write_dump(tmp_path)), "--check"]) == 2
    assert "index.h5 is not there: write it with" in one_line(capsys)


def test_no_index_of_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(write_dump(tmp_path) / SEGMENT, 1000)
    assert main(["index", str(tmp_path)]) == 2
    assert "seg_000001.h5 cannot be read" in one_line(capsys)
    assert not list((tmp_path / "trajectories").glob("index*"))


# -- damage that HDF5 would not survive --------------------


def long_dump(run_dir: Path) -> Path:
    """One segment of 2500 rows: three chunks per environment."""
    worker = FakeWorker(run_dir, [700, 900])
    worker.go(2500).finish()
    return worker.path(0)


def test_zeros_among_the_texts_end_no_command(tmp_path: Path) -> None:
    """HDF5 itself would go round in them for ever; so each command runs under a time limit."""
    path = long_dump(tmp_path)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 200 : heap + 500] = bytes(300)
    path.write_bytes(b"".join(seal_image(bytes(data[USER_BLOCK:]))))
    done = {}
    for command in (
        ["validate", str(tmp_path)],
        ["info", str(tmp_path)],
    ):
        argv = [sys.executable, "-m", "dppo.trajectories", *command]
        done[" ".join(command[:2])] = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert [d.returncode for d in done.values()] == [1, 2], done
    assert "its texts are damaged" in done[f"validate {tmp_path}"].stdout
