"""Is a run that was stopped and resumed the run that was never stopped? SIGTERM at random moments, then --resume.

    .venv/bin/python benchmarks/resume.py [--moments 10] [--seed S]

Each cell trains once without being stopped; then again as often as there are moments, each time with a SIGTERM to a
random rank at a random moment, which must end with code 75, and a resume on the same ranks. Compared are all lines of
metrics.jsonl, without the keys that end in `_s`, and every bit of the last checkpoint. Prints a table and writes it to
benchmarks/results/resume.{md,json}.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from common import machine, markdown_table, save

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.launch import Launcher
from tests.run_directory import checkpoint, count_lines, differences, metric_lines, summary

COMMON = "--env CartPole-v1 --total-steps 60000 --horizon 32 --checkpoint.every 10000 --log.no-tensorboard --seed 3"
CELLS = {
    "sync/allreduce, 4 ranks": (4, f"{COMMON} --exchange allreduce"),
    "sync/p2p, 4 ranks": (4, f"{COMMON} --exchange p2p"),
    "sync/allreduce, A2C, 4 ranks": (4, f"{COMMON} --exchange allreduce --loss a3c"),
    "sync/allreduce, Pendulum-v1, 3 ranks": (3, COMMON.replace("CartPole-v1", "Pendulum-v1")),
    "1 rank": (None, COMMON),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = []
    for cell, (ranks, flags) in CELLS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append((cell, *_compare(Path(folder), ranks, flags.split(), options.moments, rng)))
        print(*rows[-1], flush=True)
    head = ("cell", "lines of a whole run", "SIGTERM after so many lines", "equal lines", "equal checkpoints")
    table = markdown_table(head, rows)
    command = f".venv/bin/python benchmarks/resume.py --moments {options.moments} --seed {options.seed}"
    text = (
        f"# Stopped, resumed, and the same\n\n`{command}`; {machine()}. Flags of each run: `{COMMON}`.\n\n"
        "Of each cell one run was never stopped. The others got SIGTERM, at a random rank and moment, ended with code"
        " 75, and were resumed; counted are those whose lines of metrics.jsonl (keys that end in `_s` apart), and"
        f" whose last checkpoint to the bit, are those of the first.\n\n{table}"
    )
    save("resume", text, {"command": command, "machine": machine(), "rows": rows})


def _compare(
    folder: Path, ranks: int | None, flags: list[str], moments: int, rng: random.Random
) -> tuple[int, str, str, str]:
    launcher = Launcher(folder)
    try:
        launcher.run(ranks, *flags, "--run-dir", "whole", timeout=120)
        whole = metric_lines(folder / "whole")
        stopped_at, same_lines, same_bits = [], 0, 0
        while len(stopped_at) < moments:
            run_dir = folder / "run"
            shutil.rmtree(run_dir, ignore_errors=True)
            job = launcher.start(ranks, *flags, "--run-dir", run_dir)
            lines, delay_s = rng.randrange(int(0.9 * len(whole))), rng.uniform(0.0, 0.05)
            job.until(
                lambda run_dir=run_dir, lines=lines: (
                    (run_dir / "summary.json").exists() and count_lines(run_dir) >= lines
                )
            )  # type: ignore[misc]
            time.sleep(delay_s)
            job.send(signal.SIGTERM, None if ranks is None else rng.randrange(ranks))
            if job.wait(60).code == 0:
                continue  # it had just finished
            assert summary(run_dir)["exit"] == "preempted"
            stopped_at.append(count_lines(run_dir))
            launcher.run(ranks, "--resume", "--run-dir", run_dir, timeout=120)
            same_lines += metric_lines(run_dir) == whole
            same_bits += differences(checkpoint(run_dir), checkpoint(folder / "whole")) == []
    finally:
        launcher.close()
    at = ", ".join(map(str, sorted(stopped_at)))
    return len(whole), at, f"{same_lines} of {moments}", f"{same_bits} of {moments}"


if __name__ == "__main__":
    main()
