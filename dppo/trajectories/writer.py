"""A worker's trajectory writer: it gathers rollouts and makes segments of them.

    RUN/trajectories/rank_00003/seg_000012.h5

A segment is built in memory and becomes visible in one step, so that no file is ever half written, and an HDF5 library
that dies on a full disk is never near one.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dppo.data import EpisodeProgress, Rollout
from dppo.errors import DumpError
from dppo.files import PASSING, RETRY_S, fsync_folder, write_durably
from dppo.trajectories.format import (  # fmt: skip
    FORMAT,
    FORMAT_VERSION,
    compression_filter,
    end_row,
    episode_table,
    rank_folder,
    seal_image,
    segment_files,
    segment_path,
    write_dataset,
)
from dppo.trajectories.hdf5 import RAW_BYTES

if TYPE_CHECKING:
    import h5py

LOOK_S = 0.02
"""How often whoever waits for the disk looks whether it refuses."""


@dataclass(frozen=True)
class Labels:
    """What is the same for all segments of a worker."""

    run_dir: Path
    run_id: str
    attempt: int
    rank: int
    world_size: int
    first_env: int
    config_json: str
    env_spec: str
    observation_space: str
    action_space: str
    version: str

    @property
    def folder(self) -> Path:
        return rank_folder(self.run_dir, self.rank)


MAX_BYTES = RAW_BYTES * 7 // 8
"""Of the steps in a segment; what else is in it is smaller by far."""


@dataclass(slots=True)
class _Part:
    """A rollout that waits for its segment."""

    first_row: int
    end_row: int
    num_bytes: int
    standing: EpisodeProgress
    steps: dict[str, np.ndarray]
    final: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Rows (of the rollout), environments, observations."""


class Sealed(NamedTuple):
    """A worker's answer to `TrajectoryWriter.seal`, or its account of what went wrong meanwhile."""

    rank: int
    row: int | None
    """That was asked for; None: nobody asked."""
    next_segment: int | None
    """Segments below it hold all rows before `row` that could be written; None: a later row is in one already."""
    end_row: int = 0
    """Behind the last row in them."""
    problem: str | None = None
    """What is not written, and why; told once."""
    failed: bool = False
    """It is an error, not a limit that was set."""
    refusal: str | None = None
    """What the disk says, which is asked again; "": it has taken everything."""


class TrajectoryWriter:
    """Gathers a worker's rollouts and writes them as segments, each in a thread of its own once it is built.

    Args:
      seed_of: (index of an environment, number of an episode) -> its seed; None where it has none.
      has_raw_actions: whether actions as sampled are other than as sent.
      max_bytes: of this worker's folder; None: any.
      required: the first error counts. Else a segment that a full disk refuses waits in memory, with what comes after
        it, until that is KEPT_WAITING times a segment.
      wait_s: so long at most a disk that refuses is waited for in the end.
    """

    FULL = 0.7
    """Share of `segment_bytes` at which a segment is sealed: with its image and what HDF5 needs, a worker's memory then
    grows by twice `segment_bytes` at most.
    """
    KEPT_OPEN = 2
    """So many of the last rollouts are not sealed for their size: a checkpoint may end before them."""
    KEPT_WAITING = 4

    def __init__(
        self,
        labels: Labels,
        seed_of: Callable[[int, int], int] | None,
        *,
        has_raw_actions: bool,
        segment_bytes: int,
        every: int = 1,
        compression: str = "gzip",
        max_bytes: float | None = None,
        required: bool = False,
        wait_s: float = 10.0,
    ) -> None:
        import h5py  # noqa: F401  before training: it takes 0.2 s

        self._labels, self._seed_of, self._has_raw_actions = labels, seed_of, has_raw_actions
        self._segment_bytes = min(int(self.FULL * segment_bytes), MAX_BYTES // 2)
        self._every, self._required = every, required
        self._filter = compression_filter(compression)
        self._max_bytes, self._wait_s = max_bytes, wait_s
        self._parts: deque[_Part] = deque()
        self._held_bytes = 0
        self._next_row = 0  # that was not added yet
        self._rollouts = 0
        self._answers: deque[Sealed] = deque()
        self._orders: deque[int] = deque()  # that are answered when the segment on its way is written
        self._stopped = self._told = False
        self._failure: str | None = None
        self._refusal: str | None = None  # of the segment on its way, which its thread tries again
        self._refusal_told = self._is_behind = False
        self._give_up = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")
        self._writing: Future[int] | None = None
        self._writing_end = 0
        with contextlib.suppress(OSError):  # later it is not made again: it was moved, then
            labels.run_dir.mkdir(parents=True, exist_ok=True)
        visible = segment_files(labels.folder)
        self._next_segment = max(visible, default=-1) + 1
        self._sealed_row = end_row(labels.folder)
        self._written_bytes = sum(path.stat().st_size for path in visible.values())

    def add(self, rollout: Rollout) -> None:
        """A rollout that rank 0 was told of; perhaps again.

        Raises:
          DumpError: a segment could not be written, and that was to end the run.
        """
        if self._failure is not None and self._required:
            raise DumpError(self._failure)
        if rollout.first_row < self._next_row:
            return
        self._next_row = rollout.first_row + rollout.num_rows
        self._rollouts += 1
        if self._stopped or not rollout.num_rows or (self._rollouts - 1) % self._every:
            return
        part = self._part(rollout)
        self._parts.append(part)
        self._held_bytes += part.num_bytes
        if self._held_bytes >= self._segment_bytes and len(self._parts) > self.KEPT_OPEN:
            self._seal_until(self._parts[-1 - self.KEPT_OPEN].end_row)

    def seal(self, row: int) -> None:
        """Everything before `row`, the end of a rollout, becomes visible; `answers` says when."""
        if (self._writing_end if self._writing is not None else self._sealed_row) > row:
            self._answers.append(Sealed(self._labels.rank, row, None))
            return
        self._seal_until(row)
        self._orders.append(row)

    def answers(self) -> list[Sealed]:
        """What is done since it was asked last; never waits."""
        if self._writing is None or self._writing.done():
            self._look_at_the_last()
            if self._orders:  # they have come while the disk refused
                self._seal_until(self._orders[-1])
        elif self._refusal is not None:
            self._tell_refusal(self._refusal)
            self._answer_orders()
        out, self._answers = list(self._answers), deque()
        return out

    def settle(self, row: int | None) -> list[Sealed]:
        """The same as `seal`, but waits; `row` None: everything. It may be asked again, and gives the same answer."""
        until, deadline = self._next_row if row is None else row, time.monotonic() + self._wait_s
        self.seal(until)
        self._wait_until(deadline)
        while self._has_parts(until):  # they have waited behind a segment that the disk refused
            self._seal_until(until)
            self._wait_until(deadline)
        return self.answers()

    def wait(self) -> None:
        """Until nothing is on its way to the disk, or the disk has refused it for too long."""
        self._wait_until(time.monotonic() + self._wait_s)

    def _wait_until(self, deadline: float) -> None:
        while self._is_refused():
            if time.monotonic() > deadline:
                self._give_up.set()
                break
            time.sleep(LOOK_S)
        self._look_at_the_last()

    def close(self) -> None:
        """What is not sealed belongs to no boundary."""
        self.wait()
        self._thread.shutdown()

    # -- building and committing --------------------

    def _part(self, rollout: Rollout) -> _Part:
        assert rollout.standing is not None
        steps = {
            "row": np.arange(rollout.first_row, rollout.first_row + rollout.num_rows),
            "observations": rollout.observations,
            "actions": rollout.env_actions,
            "rewards": rollout.rewards,
            "terminations": rollout.terminations,
            "truncations": rollout.truncations,
            "valid": rollout.valid,
            "log_probs": rollout.log_probs,
            "values": rollout.values,
            "policy_version": rollout.versions,
        }
        if self._has_raw_actions:
            steps["actions_raw"] = rollout.actions
        final = rollout.final_rows, rollout.final_envs, rollout.final_observations
        num_bytes = sum(a.nbytes for a in steps.values()) + final[2].nbytes
        return _Part(rollout.first_row, rollout.first_row + rollout.num_rows, num_bytes, rollout.standing, steps, final)

    def _seal_until(self, row: int) -> None:
        """Builds a segment of the rollouts before `row` and has it committed; several where many have waited."""
        while self._has_parts(row):
            if self._is_refused():
                self._is_behind = True
                if self._held_bytes <= self.KEPT_WAITING * self._segment_bytes:
                    return
                self._give_up.set()  # there is no more room in memory, either
            self._look_at_the_last()
            self._seal(self._take(row))
        self._is_behind = False

    def _is_refused(self) -> bool:
        """Whether the disk refuses the segment on its way. Waits while it takes its time."""
        while self._writing is not None and not self._writing.done() and self._refusal is None:
            wait([self._writing], LOOK_S)
        return self._writing is not None and not self._writing.done()

    def _has_parts(self, row: int) -> bool:
        return bool(self._parts) and self._parts[0].end_row <= row

    def _take(self, row: int) -> list[_Part]:
        """The parts before `row`; where they have waited, so many as make a segment."""
        parts = [self._parts.popleft()]
        num_bytes, limit = parts[0].num_bytes, self._segment_bytes if self._is_behind else math.inf
        while self._has_parts(row) and num_bytes < limit:
            parts.append(self._parts.popleft())
            num_bytes += parts[-1].num_bytes
        self._held_bytes -= num_bytes
        return parts

    def _seal(self, parts: list[_Part]) -> None:
        if self._stopped:
            return
        path = segment_path(self._labels.folder, self._next_segment)
        end = parts[-1].end_row
        try:
            image = self._build(parts)
        except Exception as error:  # of h5py, of memory: it is the dump that is lost, not the run
            self._note_failure(path, error)
            return
        if self._max_bytes is not None and self._written_bytes + len(image) > self._max_bytes:
            self._stopped = True
            self._parts.clear()
            self._tell(f"trajectories: {path} would pass --trajectories.max-gb; no more are written")
            return
        self._writing_end = end
        self._writing = self._thread.submit(self._commit, path, image)

    def _commit(self, path: Path, image: memoryview) -> int:
        """In the thread. A disk that is full, or fails, is asked again."""
        while True:
            try:
                return _commit(path, image)
            except OSError as error:
                if self._required or error.errno not in PASSING or self._give_up.is_set():
                    raise
                self._refusal = f"{path}: {error}"
            self._give_up.wait(RETRY_S)

    def _look_at_the_last(self) -> None:
        """Waits for the segment that is being written, if there is one; whoever asked for it has an answer then."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                self._written_bytes += writing.result()
                self._next_segment += 1
                self._sealed_row = self._writing_end
                self._refusal = None
                self._tell_refusal("")
        except Exception as error:
            self._refusal = None
            self._note_failure(segment_path(self._labels.folder, self._next_segment), error)
        self._give_up.clear()
        self._answer_orders()

    def _answer_orders(self) -> None:
        """Those for which all is done that can be done now."""
        is_stuck = self._writing is not None and self._refusal is not None
        while self._orders and (is_stuck or not self._has_parts(self._orders[0])):
            row = self._orders.popleft()
            self._answers.append(Sealed(self._labels.rank, row, self._next_segment, self._sealed_row))

    def _tell_refusal(self, text: str) -> None:
        """When it begins, and when it is over."""
        if self._refusal_told != bool(text):
            self._refusal_told = bool(text)
            self._answers.append(Sealed(self._labels.rank, None, None, refusal=text))

    def _note_failure(self, path: Path, error: Exception) -> None:
        self._failure = f"trajectories: {path} could not be written: {str(error) or type(error).__name__}"
        self._tell(self._failure, failed=True)

    def _tell(self, text: str, *, failed: bool = False) -> None:
        if not self._told:
            self._told = True
            self._answers.append(Sealed(self._labels.rank, None, None, 0, text, failed))

    def _build(self, parts: list[_Part]) -> memoryview:
        """The HDF5 image of a segment. Empties the parts as it goes; nothing is in memory three times, as it would be
        with HDF5's own driver for memory, whose image can only be copied.
        """
        import h5py

        if (size := sum(part.num_bytes for part in parts)) > MAX_BYTES:
            raise ValueError(f"a rollout of {size:,} bytes is more than readers take: lower --horizon or --num-envs")
        image = io.BytesIO()
        with h5py.File(image, "w", libver=("earliest", "v110")) as file:
            self._write_labels(file, parts)
            self._write_episodes(file, parts)
            self._write_finals(file, parts)
            for name in list(parts[0].steps):
                write_dataset(file, f"steps/{name}", [part.steps.pop(name) for part in parts], self._filter)
        return image.getbuffer()

    def _write_labels(self, file: h5py.File, parts: list[_Part]) -> None:
        labels, first_row = self._labels, parts[0].first_row
        num_envs = parts[0].steps["rewards"].shape[1]
        file.attrs.update({
            "format": FORMAT, "format_version": FORMAT_VERSION, "run_id": labels.run_id, "attempt": labels.attempt,
            "rank": labels.rank, "world_size": labels.world_size, "segment": self._next_segment,
            "first_env": labels.first_env, "first_env_step": first_row * num_envs,
            "skipped_rows": first_row - self._sealed_row, "every": self._every, "complete": True,
            "dppo_version": labels.version,
        })  # fmt: skip
        for name in ("config_json", "env_spec", "observation_space", "action_space"):
            file[name] = getattr(labels, name)

    def _write_episodes(self, file: h5py.File, parts: list[_Part]) -> None:
        tables: list[dict[str, np.ndarray]] = []
        start = 0
        for run in _runs(parts):
            rewards, terminations, truncations, valid = (
                np.concatenate([part.steps[name] for part in run])
                for name in ("rewards", "terminations", "truncations", "valid")
            )
            table, _ = episode_table(rewards, terminations, truncations, valid, run[0].standing)
            if self._seed_of is None:  # nobody numbers its episodes
                table["id"] = run[0].first_row + table["start"] - table["offset"]
            table["start"] += start
            start += run[-1].end_row - run[0].first_row
            tables.append(table)
        merged = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        order = np.lexsort((merged["start"], merged["env"]))
        merged = {name: values[order] for name, values in merged.items()}
        seeds = [
            -1 if self._seed_of is None else self._seed_of(int(n), int(e))
            for n, e in zip(merged["env"], merged["id"], strict=True)
        ]
        for name, values in (merged | {"seed": np.array(seeds, np.int64)}).items():
            write_dataset(file, f"episodes/{name}", [values], self._filter)

    def _write_finals(self, file: h5py.File, parts: list[_Part]) -> None:
        starts = np.cumsum([0, *(part.end_row - part.first_row for part in parts)])
        rows = np.concatenate([part.final[0] + start for part, start in zip(parts, starts, strict=False)])
        write_dataset(file, "final/row", [rows.astype(np.int64)], self._filter)
        write_dataset(file, "final/env", [p.final[1].astype(np.int64) for p in parts], self._filter)
        write_dataset(file, "final/observations", [p.final[2] for p in parts], self._filter)


def _runs(parts: list[_Part]) -> list[list[_Part]]:
    """The parts, in groups without a missing row."""
    runs: list[list[_Part]] = []
    for part in parts:
        if runs and runs[-1][-1].end_row == part.first_row:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _commit(path: Path, image: memoryview) -> int:
    """Makes a segment visible. Returns its bytes."""
    head, body = seal_image(image)
    if not path.parent.is_dir():
        path.parent.parent.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        fsync_folder(path.parent.parent)
    part = path.with_name(path.name + ".part")
    if path.exists():
        raise FileExistsError("it is there already, of another process; segments are never replaced")
    try:
        write_durably(part, head, body)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    fsync_folder(path.parent)
    return len(head) + len(body)
