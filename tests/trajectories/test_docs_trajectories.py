"""The worked example of docs/trajectories.md runs as it stands, on a dump that it makes itself."""

from __future__ import annotations

import re
from pathlib import Path

import dppo
from tests.launch import Launcher

DOCUMENT = Path(dppo.__file__).parent.parent / "docs" / "trajectories.md"
CLONING_LINES = 40


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def test_the_offline_analysis_runs_and_the_clone_has_learnt(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("\n".join(blocks()))
    ended = launch.start(
        None,
        program=str(tmp_path / "analysis.py"),
        MINARI_DATASETS_PATH=str(tmp_path / "datasets"),
        MPLCONFIGDIR=str(tmp_path),
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
    ).wait(120)
    assert ended.code == 0, str(ended)
    (cloned,) = re.findall(r"the clone's mean return: ([\d.]+) - that of the whole training: ([\d.]+)", ended.stdout)
    assert float(cloned[0]) > 400, ended.stdout
    assert float(cloned[0]) > float(cloned[1])
    assert {"returns.png", "steps.parquet", "cartpole.hdf5"} <= {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "datasets" / "dppo" / "cartpole-good-v0").is_dir()


def test_the_cloning_is_as_short_as_promised() -> None:
    (cloning,) = [block for block in blocks() if "cross_entropy" in block]
    assert len(cloning.splitlines()) < CLONING_LINES
