"""What do the pages of python -m dppo.report look like? Makes runs, their pages, and pictures of these for the docs.

    .venv/bin/python benchmarks/report_pictures.py [--only cells|deaths] [--keep DIR]

- cells: the six cells of mode, exchange and loss, each with three seeds, of CartPole-v1 on 3 ranks. Their page.
- deaths: one run on 5 ranks of which one after another dies by SIGKILL, three in all, and which is stopped by a signal
  and resumed twice, with evaluations. Its page.

Takes pictures of the pages with a headless Chromium, light and dark, and writes them to docs/pictures. --keep: the
folder of the runs and their pages; by default they are removed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from common import mpirun

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import Tab, opened, program
from tests.launch import Job, Launcher
from tests.run_directory import count_lines

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
WAYS = {
    "sync-allreduce": "--mode sync --exchange allreduce", "sync-p2p": "--mode sync --exchange p2p",
    "async": "--mode async",
}  # fmt: skip
LOSSES, SEEDS = ("ppo", "a3c"), (1, 2, 3)
COMMON = "--env CartPole-v1 --total-steps 100000 --num-envs 8 --log.no-tensorboard --checkpoint.every 1000000"
DEATHS = (
    "--env CartPole-v1 --total-steps 300000 --num-envs 8 --horizon 32 --log.no-tensorboard --checkpoint.every 10000"
    " --eval.every 30000 --eval.episodes 5"
)
PLAN = (
    (((20, 4), (40, 3)), 60),
    (((100, 2),), 140),
    ((), None),
)
"""Of each attempt: (line of metrics.jsonl, rank that is killed then) …, and the line at which it is stopped."""
RANKS = 5
LIMIT_S = 300.0
WIDTH, HEIGHTS = 1200, {"cells": 1480, "deaths": 1500}
MOST_BYTES = 200_000


def cells(folder: Path) -> Path:
    """Trains the six cells. Returns their page."""
    for (name, way), loss, seed in itertools.product(WAYS.items(), LOSSES, SEEDS):
        run = folder / "cells" / f"{name}-{loss}-{seed}"
        print(f"{run.name} …", flush=True)
        flags = f"{COMMON} {way} --loss {loss} --seed {seed} --run-dir {run}"
        mpirun(3, ["-m", "dppo.run", *flags.split()], LIMIT_S)
    return report(folder / "cells")


def deaths(folder: Path) -> Path:
    """Trains one run that loses three ranks and is resumed twice. Returns its page."""
    run = folder / "three-deaths-two-resumes"
    launcher = Launcher(folder)
    try:
        for attempt, (kills, stop) in enumerate(PLAN, 1):
            given = ["--resume"] if attempt > 1 else DEATHS.split()
            job = launcher.start(RANKS, *given, "--run-dir", run, survives=True)
            for line, rank in kills:
                wait_for_line(job, run, line)
                job.send(signal.SIGKILL, rank)
                print(f"attempt {attempt}: rank {rank} was killed at line {count_lines(run)}", flush=True)
            if stop is not None:
                wait_for_line(job, run, stop)
                job.send(signal.SIGUSR1)
            ended = job.wait(LIMIT_S)
            print(f"attempt {attempt}: mpirun ended with {ended.code}", flush=True)
    finally:
        launcher.close()
    return report(run)


def wait_for_line(job: Job, run: Path, line: int) -> None:
    job.until(lambda: count_lines(run) >= line, LIMIT_S)


def report(folder: Path) -> Path:
    """Returns the page of a folder."""
    command = [sys.executable, "-m", "dppo.report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    return folder / "report.html"


def take_pictures(tab: Tab, page: Path, name: str) -> None:
    """Writes docs/pictures/NAME-{light,dark}.png: the page's beginning."""
    for theme in ("light", "dark"):
        tab.show(WIDTH, HEIGHTS[name], dark=theme == "dark")
        tab.open(page)
        assert not tab.said, tab.said
        path = PICTURES / f"report-{name}-{theme}.png"
        path.write_bytes(small(tab.picture()))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
        if path.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{path} has more than {MOST_BYTES:,} bytes")


def small(picture: bytes) -> bytes:
    """Returns the PNG, packed better, with all its colours: a palette would lose those of thin lines."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cells", "deaths"))
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    browser, why = program()
    if browser is None:
        raise SystemExit(why)
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dppo-pictures-") as scratch, opened(browser) as tab:
        folder = (given.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in (("cells", cells), ("deaths", deaths)):
            if given.only in (None, name):
                take_pictures(tab, make(folder), name)


if __name__ == "__main__":
    main()
