"""The process beside rank 0 that plays evaluations: rank 0's half, and the process's own.

Rank 0 starts the process for the first evaluation. They speak by pipes, a JSON object a line: rank 0 names a
checkpoint, the process says now and then that it makes progress, and in the end the figures. It is no rank: it has none
of the launcher's variables, starts no MPI (unless its environment does), comes last where cores are short, and ends
when rank 0 does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dppo.cluster.startup import child_environment
from dppo.config import Config
from dppo.console import plain
from dppo.rundir.checkpoint import number_of
from dppo.seeding import evaluation_seed
from dppo.settings.toml import load_config
from dppo.training.evaluation_queue import PlayingError
from dppo.training.played import Played, figures, in_cases
from dppo.training.playing import Player, Progress, given_to_play
from dppo.training.policy import load_policy

_PROGRAM = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from dppo.cluster.processes import follow
follow(int(sys.argv[2]))
from dppo.evaluate import play_beside_a_run
play_beside_a_run(sys.argv[3], int(sys.argv[4]))
"""
_FOLDER = os.readlink("/proc/self/cwd") if os.path.exists("/proc/self/cwd") else os.curdir
"""The folder in which this program was started: an environment may have changed it."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_LAST_LINES, _LAST_CHARS = 8, 2000
"""How much of what a process that has failed has printed is shown."""
_LEAVE_S = 2.0
"""Seconds that the process may take to close its environments."""
_PROGRESS_S = 1.0


class PlayingProcess:
    """Rank 0's half: starts the process, asks it to play a checkpoint, and looks for its answer without waiting."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        self._run_dir, self._episodes = run_dir.absolute(), config.eval.episodes
        self._stall_abort_s = config.log.stall_abort_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_busy = False
        self._answers, self._said = b"", deque[bytes](maxlen=64)
        self._heard_at = 0.0

    @property
    def is_busy(self) -> bool:
        return self._is_busy

    @property
    def pid(self) -> int | None:
        """The number of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def begin(self, checkpoint: Path) -> None:
        """Begins to play a checkpoint; starts the process where none is there.

        Raises:
          PlayingError: the process cannot be started, or has ended.
        """
        try:
            if self._process is None:
                self._start()
            assert self._process is not None and self._process.stdin is not None
            self._process.stdin.write(json.dumps({"env_steps": number_of(checkpoint)}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        except OSError as error:
            raise PlayingError(f"its process cannot be started: {error}") from error
        self._is_busy, self._heard_at = True, time.monotonic()

    def _start(self) -> None:
        arguments = [json.dumps(sys.path), str(os.getpid()), str(self._run_dir), str(self._episodes)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=_FOLDER, env=child_environment() | _ONE_THREAD,
            process_group=0,  # what a terminal or the launcher sends to the rank's group is not for it
        )  # fmt: skip
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._answers = b""
        self._said.clear()

    def result(self, wait_s: float) -> dict[str, Any] | None:
        """Returns the figures of the evaluation under way; None: they are not there yet. Waits `wait_s` at most.

        Raises:
          PlayingError: the process has failed, or has made no progress for --log.stall-abort-s.
        """
        process = self._process
        assert process is not None and process.stdout is not None and process.stderr is not None
        select.select([process.stdout, process.stderr], [], [], wait_s)
        if said := _read(process.stderr):
            self._said.append(said)
        answers = _read(process.stdout)
        if answers == b"":
            raise self._failure()
        self._answers += answers or b""
        *lines, self._answers = self._answers.split(b"\n")
        for line in lines:
            self._heard_at = time.monotonic()
            answer = json.loads(line)
            if "refused" in answer:
                self.close()
                raise PlayingError(str(answer["refused"]), is_final=True)
            if "figures" in answer:
                self._is_busy = False
                return dict(answer["figures"])
        if 0 < self._stall_abort_s < time.monotonic() - self._heard_at:
            self.close()
            raise PlayingError(f"it made no progress for {self._stall_abort_s:g} s (--log.stall-abort-s)")
        return None

    def _failure(self) -> PlayingError:
        """Ends what is left of a process that has ended by itself. Returns what it was."""
        process = self._process
        assert process is not None and process.stderr is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_S)
        while said := _read(process.stderr):
            self._said.append(said)
        code = process.poll()
        self._is_busy = True  # so that `close` waits for nothing
        self.close()
        how = "it closed its output" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"
        text = b"".join(self._said).decode(errors="replace")[-_LAST_CHARS:]
        last = "".join(f"\n  {plain(line)}" for line in text.splitlines()[-_LAST_LINES:])
        return PlayingError(f"its process has ended ({how}){last}")

    def close(self) -> None:
        """Ends the process, and what it has started. One that plays nothing may close its environments before."""
        process, self._process = self._process, None
        was_busy, self._is_busy = self._is_busy, False
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        if not was_busy:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _read(stream: Any) -> bytes | None:
    """Returns what is there: None if there is nothing now, b"" at the end."""
    try:
        return os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return None


# -- the process --------------------


def serve(run_dir: Path, episodes: int, own_comm: Callable[[], Any], requests: BinaryIO, answers: BinaryIO) -> None:
    """Plays one checkpoint after another, until there are no more requests. The environments stay: making them may take
    longer than playing.

    Args:
      own_comm: returns the communicator of this process alone.
    """

    def tell(**answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    config = load_config(run_dir)
    with contextlib.ExitStack() as at_end:
        players: dict[str, Player] = {}
        try:
            for request in requests:
                started = time.monotonic()
                env_steps = json.loads(request)["env_steps"]
                if not players:
                    given = given_to_play(config, at_end, own_comm)
                    for name, case in in_cases(config).items():
                        players[name] = Player(case, episodes, given)
                        at_end.callback(players[name].close)
                played = _play(run_dir, env_steps, players, evaluation_seed(config.seed), tell)
                tell(figures={**_figures(played), "seconds_s": time.monotonic() - started})
        except ValueError as error:  # a further try would end in the same way
            tell(refused=str(error))


def _play(
    run_dir: Path, env_steps: int, players: dict[str, Player], seed: int, tell: Callable[..., None]
) -> dict[str, list[Played]]:
    policy = load_policy(run_dir, env_steps)
    next_word = 0.0

    def progress(now: Progress) -> None:
        nonlocal next_word
        if time.monotonic() >= next_word:
            next_word = time.monotonic() + _PROGRESS_S
            tell(steps=now.steps)

    return {name: player.play(policy, seed, progress=progress) for name, player in players.items()}


def _figures(by_case: dict[str, list[Played]]) -> dict[str, Any]:
    """Returns the figures of a line of evaluations.jsonl: of all episodes and, with cases, of each case."""
    out = _named(figures([played for episodes in by_case.values() for played in episodes]))
    if "" not in by_case:
        out["cases"] = {name: _named(figures(episodes)) for name, episodes in by_case.items()}
    return out


def _named(found: dict[str, Any]) -> dict[str, Any]:
    returns = {f"return_{name}": found[name] for name in ("mean", "median", "min", "max", "std")}
    return {**returns, **{name: found[name] for name in ("length_mean", "episodes", "cut")}}
