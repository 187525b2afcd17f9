"""What does bfloat16 gain? Milliseconds of an encoder's passes with and without `--model.bf16`.

    .venv/bin/python benchmarks/bf16.py [--repeats 9] [--device cuda:0]

Both networks are measured in turn, in one thread: on the CPU its own seconds, because others may use the machine as
well, with a GPU those of the clock. Prints a table and writes it to benchmarks/results/bf16.{md,json}, or for a GPU to
bf16-cuda.{md,json}.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import machine, markdown_table, save, spread
from gymnasium import spaces

from dppo.config import ModelConfig, MomentsConfig
from dppo.models.policy import ActorCritic, make_policy

IMAGES = (4, 84, 84)
ACTIONS = 6
MINIBATCH, ACTING = 256, 8
ROUNDS = {MINIBATCH: 1, ACTING: 20}
FEATURES = ("avx512_bf16", "amx_bf16")
"""What /proc/cpuinfo calls a CPU's bfloat16."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = [row for encoder in ("nature", "impala") for row in measure(encoder, options.repeats, options.device)]
    command = f".venv/bin/python benchmarks/bf16.py --repeats {options.repeats} --device {options.device}"
    flags = Path("/proc/cpuinfo").read_text().split()
    known = [feature for feature in FEATURES if feature in flags]
    unit = "Milliseconds of one thread, CPU time" if options.device == "cpu" else "Milliseconds"
    text = (
        f"# bfloat16\n\n`{command}`; {machine()}; the CPU has {' and '.join(known) or 'no bfloat16'}.\n\n"
        f"{unit}, median [least, most] of {options.repeats} repeats in turn: images of {IMAGES}, {ACTIONS} actions, no"
        " hidden layer. Cosine: between the gradients of all parameters with and without, for images of noise.\n\n"
        + markdown_table(
            ("encoder", "passes", "float32, ms", "bfloat16, ms", "ratio of the medians", "cosine"),
            [
                (
                    r["encoder"],
                    r["passes"],
                    spread(r["float32"]),
                    spread(r["bfloat16"]),
                    f"{r['ratio']:.2f}",
                    r["cosine"],
                )
                for r in rows
            ],
        )
    )
    name = "bf16" if options.device == "cpu" else "bf16-cuda"
    save(name, text, {"command": command, "machine": machine(), "cpu": known, "rows": rows})


def measure(encoder: str, repeats: int, device: str) -> list[dict[str, Any]]:
    """Measures the passes of both networks of an encoder."""
    policies = {name: make(encoder, device, bf16=name == "bfloat16") for name in ("float32", "bfloat16")}
    images = np.random.default_rng(0).integers(0, 256, (MINIBATCH, *IMAGES), np.uint8)

    def learn(policy: ActorCritic) -> None:
        outputs, values = policy.forward(images)
        rng = np.random.default_rng(1)
        policy.backward(rng.standard_normal(outputs.shape, np.float32), rng.standard_normal(values.shape, np.float32))

    def act(policy: ActorCritic) -> None:
        policy.network.act(images[:ACTING])

    rows = []
    for what, rows_of, passes in (("forward, backward", MINIBATCH, learn), ("acting", ACTING, act)):
        times = {name: [0.0] * repeats for name in policies}
        for repeat in range(-1, repeats):  # the first is for the caches
            for name, policy in policies.items():
                elapsed = seconds(passes, policy, ROUNDS[rows_of], device)
                if repeat >= 0:
                    times[name][repeat] = 1e3 * elapsed
        medians = {name: float(np.median(taken)) for name, taken in times.items()}
        ratio = medians["float32"] / medians["bfloat16"]
        row = {"encoder": encoder, "passes": f"{what}, {rows_of} rows", **times, "ratio": ratio, "cosine": ""}
        if passes is learn:
            one, other = (policy.flat.gradient.astype(np.float64) for policy in policies.values())
            row["cosine"] = f"{one @ other / np.linalg.norm(one) / np.linalg.norm(other):.4f}"
        rows.append(row)
    return rows


def make(encoder: str, device: str, *, bf16: bool) -> ActorCritic:
    """Makes a network on `device`."""
    cfg = ModelConfig(encoder=encoder, hidden=(), bf16=bf16)
    space, actions = spaces.Box(0, 255, IMAGES, np.uint8), spaces.Discrete(ACTIONS)
    policy = make_policy(space, actions, cfg, MomentsConfig(), np.random.default_rng(0))
    assert policy.place is not None
    policy.place(device)
    return policy


def seconds(passes: Callable[[ActorCritic], None], policy: ActorCritic, rounds: int, device: str) -> float:
    """Returns the seconds of one of `rounds` calls. Each ends with arrays on the host, so no GPU is still at work."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    since = clock()
    for _ in range(rounds):
        passes(policy)
    return (clock() - since) / rounds


if __name__ == "__main__":
    main()
