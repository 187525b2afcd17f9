"""Stands in for mpirun and training: leaves a run directory as dppo.run does, at once or when it is asked to save.

    fake_launcher.py PLAN python -m dppo.run --seed 3 … --run-dir RUN

PLAN is JSON: what becomes of the run by its seed; "slow" runs until SIGUSR1, "fail", "wrong", "killed" and "cut" (once,
with a checkpoint) speak for themselves, a number is the return of a run that ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    plan, words = json.loads(sys.argv[1]), sys.argv[2:]
    folder = Path(words[words.index("--run-dir") + 1])
    what = plan.get(words[words.index("--seed") + 1], 1.0)
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    (folder / "config.toml").touch()
    with open(folder / "starts", "a") as file:
        file.write(f"{sorted(os.sched_getaffinity(0))} {words[-1]}\n")

    def leave(exit: str, code: int, reached: float = 0.0, error: str | None = None) -> int:
        line = {"iteration": 1, "env_steps": 1000, "return_mean_100": reached}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "summary.json").write_text(json.dumps(line | {"exit": exit, "error": error}))
        return code

    if what == "wrong":
        print("dppo: this is wrong", file=sys.stderr)
        return 2
    if what == "fail":
        return leave("failed", 1, error="Traceback\nValueError: it broke")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "cut" and "--resume" not in words:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "latest").write_text("step_000000500")
        return 137
    if what == "slow" and "--resume" not in words:
        print("slow", flush=True)
        until = time.monotonic() + 30
        while not asked and time.monotonic() < until:
            time.sleep(0.01)
        return leave("preempted", 75)
    return leave("finished", 0, what if isinstance(what, float) else 1.0)


if __name__ == "__main__":
    sys.exit(main())
