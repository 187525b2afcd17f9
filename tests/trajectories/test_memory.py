"""How much memory dumps take: a writer twice its segment's size, a reader a part of what it walks through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import copy, json, re, sys
from pathlib import Path
import h5py
import numpy as np
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.format import segment_files
from dppo.trajectories.writer import Labels, TrajectoryWriter
from tests.parts import make_parts

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def restart_the_peak():
    Path("/proc/self/clear_refs").write_text("5")

run_dir, compression, segment_bytes, num_rollouts = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
place = make_parts(env="Pendulum-v1", num_envs=8, horizon=512)
one = place.rollout()[0]
rng = np.random.default_rng(0)
kind = sys.argv[5]
image, tree = (32, 32, 4), np.dtype([("camera", "u1", (32, 32, 4)), ("speed", "f8", 2)], align=True)
labels = Labels(run_dir, "id", 1, 1, 2, 0, "{}", "{}", "{}", "{}", "0.1")
writer = TrajectoryWriter(
    labels, None, has_raw_actions=True, segment_bytes=segment_bytes, compression=compression
)
restart_the_peak()
before = memory("VmRSS")
for number in range(num_rollouts):
    rollout = copy.copy(one)
    for name in ("observations", "env_actions", "actions", "log_probs", "values"):
        values = getattr(one, name)
        setattr(rollout, name, rng.standard_normal(values.shape, np.float32))
    if kind == "vector":
        rollout.observations = np.repeat(rollout.observations, 8, axis=2)
        rollout.final_observations = np.repeat(rollout.final_observations, 8, axis=1)
    else:
        finals, noise = len(rollout.final_envs), rng.integers(0, 256, (512, 8, *image), np.uint8)
        rollout.observations, rollout.final_observations = noise, np.zeros((finals, *image), np.uint8)
        if kind == "tree":
            rollout.observations, rollout.final_observations = np.zeros((512, 8), tree), np.zeros(finals, tree)
            rollout.observations["camera"] = noise
        del noise
    rollout.first_row = 512 * number
    writer.add(rollout)
writer.settle(None)
writer.close()
written = memory("VmHWM") - before
restart_the_peak()
before, steps, num_bytes = memory("VmRSS"), 0, 0
for episode in open_trajectories(run_dir):
    steps += episode.length
    num_bytes += episode.observations.nbytes
read = memory("VmHWM") - before
print(json.dumps([written, read, len(segment_files(labels.folder)), steps, num_bytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "compression", "segment_mb", "num_rollouts"),
    [("vector", "gzip", 32, 200), ("vector", "none", 32, 200), ("image", "none", 128, 25), ("tree", "none", 128, 25)],
)
def test_memory(kind: str, compression: str, segment_mb: int, num_rollouts: int, tmp_path: Path) -> None:
    """Observations are kept once, as the rollout has them. A rollout of images takes 16 MB."""
    segment_bytes = segment_mb * 2**20
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), compression, str(segment_bytes), str(num_rollouts), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    written, read, segments, steps, num_bytes = json.loads(done.stdout)
    assert segments >= 3 and steps == num_rollouts * 512 * 8
    assert written <= 2 * segment_bytes
    assert read <= num_bytes / 2, "more than memory can be walked through"
    print(f"{compression}: writer {written / 2**20:.0f} MB, reader {read / 2**20:.0f} MB of {num_bytes / 2**20:.0f} MB")
