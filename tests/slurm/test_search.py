"""jobs/search.sbatch: the tasks of an array work on one study; a task that is preempted comes back to its trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dppo.study.journal import OWNER, Study
from dppo.study.search import read_search
from dppo.study.spec import read_sweep
from tests.run_directory import count_lines, summary
from tests.slurm.emulation import Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
SEARCH = """
[fixed]
env = "dppo.envs.probes:dppo/ProbeSlow-v0"
num-envs = 2
horizon = 16
total-steps = 512
log.tensorboard = false

[search]
trials = 5
sampler = "random"

[search.space]
optim.lr = {low = 1e-4, high = 1e-2, log = true}
"""


def test_an_array_of_four_tasks_works_on_one_study(slurm: Cluster, sbatch: Submit) -> None:
    file, folder = slurm.folder / "search.toml", slurm.folder / "runs" / "search"
    file.write_text(SEARCH)
    job = sbatch(
        "--array=0-3 --ntasks-per-node=2", "search.sbatch", name="search", SWEEP=str(file), SWEEP_DIR=str(folder)
    )

    def study() -> Study:
        return Study(folder, read_search(read_sweep(file), file))

    def trial_of_task_2() -> Path | None:
        if not (folder / "study.journal").exists():
            return None
        found = [trial.number for trial in study().trials() if trial.user_attrs.get(OWNER) == "task_002"]
        return folder / f"trial_{found[0]:04}" if found else None

    job.until(lambda: (run := trial_of_task_2()) is not None and count_lines(run) > 5, every_s=0.5)
    run_dir = trial_of_task_2()
    assert run_dir is not None
    slurm.on("head", "scancel", "--signal=USR1", "--batch", f"{job.number}_2")
    job.until(lambda: not slurm.on("head", "squeue", "--noheader", "--jobs", job.number).strip(), 120, 0.5)
    trials = study().trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5, job.output
    assert {trial.user_attrs[OWNER] for trial in trials} == {f"task_00{k}" for k in range(4)}
    assert sorted(path.name for path in folder.glob("trial_*")) == [f"trial_000{k}" for k in range(5)]
    assert {summary(folder / f"trial_000{k}")["exit"] for k in range(5)} == {"finished"}
    assert summary(run_dir)["attempt"] == 2
    lines = [json.loads(line)["iteration"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, len(lines) + 1))
    assert "5 of 5 trials have ended" in job.output
