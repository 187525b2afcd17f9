"""Has a worker's environments save their own states after rollouts, and begins from saved ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from dppo.data import EnvState, SavedState
from dppo.envs.env_list import EnvList
from dppo.envs.reasons import reason
from dppo.envs.states import Start
from dppo.rundir.checkpoint import checkpoint_folders
from dppo.rundir.states import FILES, find_state, read_about, write_state
from dppo.training.episode_sums import EpisodeSums


class StateSaver:
    """The states that N environments have saved.

    Args:
      first_env: global number of the first environment.
      every_s: seconds between two rollouts after which the environments save their states; 0: after each.
    """

    def __init__(self, envs: EnvList, run_dir: Path, first_env: int, every_s: float) -> None:
        self._envs, self._run_dir, self._first_env, self._every_s = envs, run_dir, first_env, every_s
        self._saved: list[SavedState | None] = [None] * envs.num_envs
        self._due, self._failing = 0.0, set[int]()
        self._token = os.urandom(4).hex()  # a resume may come to the same rows again

    def after_rollout(self, row: int, episodes: np.ndarray, sums: EpisodeSums) -> list[SavedState | None]:
        """Has the environments save their states before `row`, if that is due. Returns the newest state of each present
        episode. An environment that fails to save keeps the one before.
        """
        self._saved = [
            s if s is not None and s.episode == e else None for s, e in zip(self._saved, episodes, strict=True)
        ]
        if time.monotonic() >= self._due:
            for index, episode in enumerate(episodes.tolist()):
                before = self._saved[index]
                if before is None or before.row != row:
                    self._save(index, SavedState(self._name(index, row), row, episode), sums)
            self._due = time.monotonic() + self._every_s
        return self._saved.copy()

    def _name(self, index: int, row: int) -> str:
        return f"env_{self._first_env + index:05d}-{row:09d}-{self._token}"

    def _save(self, index: int, state: SavedState, sums: EpisodeSums) -> None:
        masks = self._envs.masks
        about = {
            "length": int(sums.lengths[index]),
            "episode_return": float(sums.returns[index]),
            "discounted_return": float(sums.discounted_returns[index]),
            "mask": None if masks is None else masks[index].astype(int).tolist(),
        }
        try:
            write_state(self._run_dir, state.name, lambda folder: self._envs.states.save(index, folder), about)
        except Exception as error:  # of the user's, or of a full disk
            if index not in self._failing:
                _say(
                    f"environment {self._first_env + index} could not save its state, a resume replays: {reason(error)}"
                )
            self._failing.add(index)
        else:
            self._saved[index] = state
            self._failing.discard(index)

    def load(self, state: EnvState) -> dict[str, Any]:
        """Brings an environment to its saved state, from where `EnvList.replay` goes on. Returns what is known of that
        state.

        Raises:
          Exception: it cannot be loaded.
        """
        assert state.saved is not None
        folder = find_state(self._run_dir, state.saved.name, checkpoint_folders(self._run_dir))
        about, _ = read_about(folder)
        mask = None if about["mask"] is None else np.array(about["mask"], bool)
        observation = None if len(state.actions) else state.observation
        self._envs.states.load(
            state.env - self._first_env, Start(folder / FILES, observation, mask, int(about["length"]))
        )
        return about

    def restored(self, states: dict[int, EnvState], row: int, cut: Collection[int]) -> None:
        """Takes in that the environments of `states` are where these have them, in `row`, except those of `cut`."""
        for index in range(self._envs.num_envs):
            state = states.get(self._first_env + index)
            if state is not None and state.saved is not None and state.env not in cut:
                self._saved[index] = state.saved._replace(row=row - len(state.actions))


def _say(text: str) -> None:
    line = "".join(c if c.isprintable() else " " for c in text)
    print(f"dppo: {line}", file=sys.stderr, flush=True)
