"""The books of a peer's run: one clock and one count of environment steps and episodes, the same for every trainer.

Wraps each environment below the trainer's own wrappers, so that returns are raw and undiscounted; the scripts beside
this file use it, each in the virtual environment of its trainer. Its cost is about a microsecond a step. Each process
writes a file of its own, because Sample Factory steps environments in several.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

WINDOW = 100  # episodes, as in dppo's return_mean_100
SIMULATORS = {"halfcheetah": ("mujoco",), "pong": ("ale-py",)}


class TargetReached(Exception):
    """Thrown from the environment's step: ends a trainer that has one process, whatever its callbacks are like."""


class Ledger:
    """What the environments of this process did: a line (seconds, steps so far, return) as each episode ends."""

    def __init__(self, folder: str, target: float | None = None) -> None:
        self.file = Path(folder, f"{os.getpid()}.jsonl").open("a")  # noqa: SIM115 as long as the process
        self.target = target
        self.steps = 0
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def note(self, total: float | None) -> None:
        """An episode's return, or None before the first step."""
        print(json.dumps((time.monotonic(), self.steps, total)), file=self.file, flush=True)
        if total is not None:
            self.recent.append(total)
            if self.target is not None and reached(self.recent, self.target):
                raise TargetReached


class Recorded(gymnasium.Wrapper):  # type: ignore[type-arg]
    """An environment whose steps and episodes go into a ledger."""

    def __init__(self, env: gymnasium.Env[Any, Any], ledger: Ledger) -> None:
        super().__init__(env)
        self.ledger, self.total = ledger, 0.0

    def reset(self, **kwargs: Any) -> Any:
        self.total = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        ledger = self.ledger
        if ledger.steps == 0:
            ledger.note(None)
        outcome = self.env.step(action)
        ledger.steps += 1
        self.total += float(outcome[1])
        if outcome[2] or outcome[3]:
            ledger.note(self.total)
        return outcome


def reached(returns: Iterable[float], target: float) -> bool:
    """Whether the window is full and its mean is at least the target."""
    window = list(returns)
    return len(window) == WINDOW and statistics.fmean(window) >= target


def arguments(description: str, variants: Sequence[str] = ("best",)) -> argparse.Namespace:
    """What every script takes. Seeds Python's and NumPy's generators, and limits the threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--study", choices=("cartpole", "halfcheetah", "images", "pong"), default="cartpole")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--target", type=float, help="end once the mean of the last 100 training episodes reaches it")
    parser.add_argument("--variant", choices=variants, default="best", help="which settings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", required=True, help="an empty folder for what the run writes")
    args = parser.parse_args()
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 trainers draw from the global generator
    return args


def report(args: argparse.Namespace, trainer: str, env: str, steps: int, ended: float) -> None:
    """Prints the run as one line of JSON; `steps` were trained on until `ended`, a time.monotonic()."""
    rows = []
    for path in Path(args.folder).glob("*.jsonl"):
        rows += [(*json.loads(line), path.name) for line in path.read_text().splitlines()]
    rows.sort()
    started, steps_of, window = rows[0][0], {}, deque[float](maxlen=WINDOW)
    target_s = target_steps = None
    for moment, steps_here, total, process in rows:
        steps_of[process] = steps_here
        if total is not None:
            window.append(total)
        if target_s is None and args.target is not None and reached(window, args.target):
            target_s, target_steps = moment - started, sum(steps_of.values())
    names = (trainer, "torch", "gymnasium", "numpy", *SIMULATORS.get(args.study, ()))
    figures = {
        "env": env,
        "seed": args.seed,
        "threads": args.threads,
        "steps": steps,
        "seconds": ended - started,
        "steps_per_s": steps / (ended - started),
        "seconds_to_target": target_s,
        "steps_to_target": target_steps,
        "episodes": sum(total is not None for _, _, total, _ in rows),
        "return_at_end": statistics.fmean(window) if window else None,
        "versions": {name: metadata.version(name) for name in names},
    }
    print(json.dumps(figures), flush=True)
