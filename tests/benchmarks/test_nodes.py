"""benchmarks/nodes.py: its plan, and its table of made-up runs, both worked by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dppo.rundir.recorders import write_json
from tests.fakeruns import write_run

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
RUN = ("--num-envs", 2, "--horizon", 10, "--ppo.minibatches", 2)
ITERATION_S = {"weak-1-1": 0.1, "weak-2-1": 0.125, "strong-2-1": 0.05}


def nodes(folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "nodes.py"), str(folder), *map(str, arguments)]
    environment = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def plan(
    folder: Path, nodes_: int, per_node: int, *flags: object, repeats: int = 1
) -> subprocess.CompletedProcess[str]:
    size = ("--nodes", nodes_, "--ranks-per-node", per_node, "--iterations", 10, "--repeats", repeats)
    return nodes(folder, *size, "--plan", *flags)


def write(folder: Path, hosts: list[str], iteration_s: float, steps: int, **summary: object) -> None:
    """A run of ten iterations; 4 updates in each, a fifth of the time in the exchange."""
    settings = {"num-envs": 2, "horizon": 10, "ppo": {"minibatches": 2}}
    write_run(folder, settings, **({"world_size": len(hosts)} | summary))  # type: ignore[arg-type]
    write_json(folder / "versions.json", {"hosts": hosts, "mpi": "Open MPI", "packages": {"dppo": "0.1.0"}})
    lines = [
        {
            "env_steps": k * steps, "updates": 4 * k, "train_s": k * iteration_s, "iteration_s": iteration_s,
            "exchange_mean_s": iteration_s / 5,
        }
        for k in range(1, 11)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows(text: str) -> list[list[str]]:
    return [line.split(" | ") for line in re.findall(r"^\| ((?:weak|strong) .*) \|$", text, re.MULTILINE)]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """One and two nodes of two ranks: one worker and three."""
    folder = tmp_path / "scaling"
    assert plan(folder, 2, 2, *RUN).returncode == 0
    write(folder / "weak-1-1", ["n1", "n1"], ITERATION_S["weak-1-1"], 20)
    write(folder / "weak-2-1", ["n1", "n1", "n2", "n2"], ITERATION_S["weak-2-1"], 60)
    write(folder / "strong-2-1", ["n1", "n1", "n2", "n2"], ITERATION_S["strong-2-1"], 18)
    return folder


def test_a_plan_of_six_nodes_by_hand(tmp_path: Path) -> None:
    done = plan(tmp_path / "scaling", 6, 16, *RUN, repeats=2)
    # workers: 15, 31, 63, 95. strong: 10 * 15 / 31 = 4.8, … / 63 = 2.4, … / 95 = 1.6 rows
    expected = [
        "weak-1-K 1 16 10 3000", "weak-2-K 2 32 10 6200", "strong-2-K 2 32 5 3100", "weak-4-K 4 64 10 12600",
        "strong-4-K 4 64 2 2520", "weak-6-K 6 96 10 19000", "strong-6-K 6 96 2 3800",
    ]  # fmt: skip
    assert done.stdout.splitlines() == [line.replace("K", k) for k in "12" for line in expected], done.stderr


def test_strong_scaling_ends_where_a_worker_would_have_too_little(tmp_path: Path) -> None:
    # 8 minibatches of 2 environments: 4 rows or a multiple. 8 * 3 / 7 = 3.4
    done = plan(tmp_path / "scaling", 2, 4, "--num-envs", 2, "--horizon", 8, "--ppo.minibatches", 8)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["weak-1-1", "weak-2-1"]
    assert "no strong scaling on 2 nodes" in nodes(tmp_path / "scaling").stdout


def test_efficiency_by_hand(measured: Path) -> None:
    done = nodes(measured)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    # 20 / 0.1, 60 / 0.125, 18 / 0.05 steps/s; 480 / 200 / 3 workers, 360 / 200 / 3
    assert rows(done.stdout) == [
        ["weak", "1", "2", "1", "20", "200", "1.00", "100.0%", "40.0", "20.0%"],
        ["weak", "2", "4", "3", "60", "480", "2.40", "80.0%", "32.0", "20.0%"],
        ["strong", "1", "2", "1", "20", "200", "1.00", "100.0%", "40.0", "20.0%"],
        ["strong", "2", "4", "3", "18", "360", "1.80", "60.0%", "80.0", "20.0%"],
    ]
    assert rows((measured / "scaling.md").read_text()) == rows(done.stdout)
    assert "(scaling.svg)" in (measured / "scaling.md").read_text()
    picture = ElementTree.parse(measured / "scaling.svg")
    points = [len(picture.findall(f".//{SVG}g[@id='measured-{number}']//{SVG}use")) for number in (0, 1)]
    assert points == [2, 2]


def test_without_matplotlib_there_is_a_table(measured: Path) -> None:
    (measured / "matplotlib.py").write_text("raise ImportError('none here')")
    done = nodes(measured, PYTHONPATH=f"{measured}:{ROOT}")
    assert done.returncode == 0 and len(rows(done.stdout)) == 4
    assert done.stderr.startswith("dppo: no plot: this needs Matplotlib, ") and done.stderr.count("\n") == 1, (
        done.stderr
    )
    assert "scaling.svg" not in (measured / "scaling.md").read_text()
    assert not (measured / "scaling.svg").exists()


def test_repeats_are_shown_as_median_and_spread(tmp_path: Path) -> None:
    plan(tmp_path / "s", 1, 2, *RUN, repeats=3)
    for repeat, iteration_s in enumerate((0.1, 0.2, 0.08), 1):
        write(tmp_path / "s" / f"weak-1-{repeat}", ["n1", "n1"], iteration_s, 20)
    assert {row[5] for row in rows(nodes(tmp_path / "s").stdout)} == {"200 [100, 250]"}


def spoil(run: Path, how: str) -> None:
    if how == "failed":
        write_json(run / "summary.json", {"exit": "failed", "error": "rank 2 on n2 failed"})
    elif how == "one node":
        write_json(run / "versions.json", {"hosts": 4 * ["n1"]})
    elif how == "lost ranks":
        write_json(run / "summary.json", {"exit": "finished", "world_size": 3})
    elif how == "too short":
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:3]))
    elif how == "damaged":
        (run / "metrics.jsonl").write_text("{")
    else:
        (run / "metrics.jsonl").unlink()
        (run / "summary.json").unlink()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("failed", "is failed: rank 2 on n2 failed"),
        ("one node", "ran with 4 ranks on 1 nodes instead of 4 on 2"),
        ("lost ranks", "lost ranks: 3 of 4 were left"),
        ("too short", "has 3 iterations, and 4 are needed"),
        ("damaged", "has a metrics.jsonl that cannot be used"),
        ("killed", "is running"),
    ],
)
def test_a_run_that_cannot_be_used_is_named_and_the_others_are_shown(measured: Path, how: str, why: str) -> None:
    spoil(measured / "weak-2-1", how)
    (measured / "weak-2-1.out").touch()
    done = nodes(measured)
    assert done.returncode == 1
    assert done.stderr == "dppo: 1 of 3 runs are missing from the table: weak-2-1\n"
    assert [row[:2] for row in rows(done.stdout)] == [["weak", "1"], ["strong", "1"], ["strong", "2"]]
    assert f"- weak-2-1 {why}" in done.stdout and "its output is" in done.stdout


def test_without_one_node_there_is_no_efficiency(measured: Path) -> None:
    spoil(measured / "weak-1-1", "failed")
    assert [row[6:8] for row in rows(nodes(measured).stdout)] == [["–", "–"], ["–", "–"]]


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    plan(tmp_path / "s", 2, 2, *RUN)
    done = nodes(tmp_path / "s")
    assert done.returncode == 1 and "- strong-2-1 has not run" in done.stdout
    assert not (tmp_path / "s" / "scaling.svg").exists()


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plan(tmp_path / "s", 1, 2)
    cases = {
        "no such folder": nodes(tmp_path / "nothing"),
        "no plan.json": nodes(tmp_path / "empty"),
        "choose another SCALING_DIR": plan(tmp_path / "s", 1, 2),
        "must be at least 2": plan(tmp_path / "t", 1, 1),
        "REPEATS=0": plan(tmp_path / "t", 1, 2, repeats=0),
        "server.drop=1": plan(tmp_path / "t", 4, 2, "--exchange", "p2p", "--server.drop", 1),
        "no such flag": plan(tmp_path / "t", 1, 2, "--horizont", 3),
    }
    for what, done in cases.items():
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and what in done.stderr, done
    assert not (tmp_path / "t").exists()
