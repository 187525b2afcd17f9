"""Environments that save their own states: what a checkpoint holds, how a resume begins from it, what is removed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.config import CheckpointConfig
from dppo.rundir.checkpoint import Checkpoint, checkpoint_folders, newest_valid, read_checkpoint
from tests.envs import saving_sims
from tests.envs.saving_sims import Plate
from tests.parts import Run, wait_for_checkpoints

OURS = saving_sims.__name__
ALWAYS = CheckpointConfig(every=0, states_s=0.0)


@pytest.fixture(autouse=True)
def _counted() -> Iterator[None]:
    Plate.calls.clear()
    yield


@pytest.fixture(autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the folders of environments."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def run_of(run_dir: Path, env: str = "Plate", saved: Checkpoint | None = None, **changes: Any) -> Run:
    settings: dict[str, Any] = {"env": f"{OURS}:{env}", "checkpoint": ALWAYS, "horizon": 16}
    return Run(run_dir, saved=saved, **(settings | changes))


def seen_of(run: Run) -> dict[str, Any]:
    """What the last rollout of each worker has in it."""
    rollouts = [place.collector.last for place in run.places]
    columns = ("observations", "masks", "env_actions", "rewards", "truncations", "log_probs", "values")
    return {f"{w} {name}": getattr(r, name) for w, r in enumerate(rollouts) for name in columns}


def assert_resumes_exactly(run_dir: Path, rollouts: int, **changes: Any) -> Counter[str]:
    """A run that is saved and resumed after `rollouts` collects what it would have collected. Returns the calls that
    the resume made until the environments were where they had been.
    """
    run = run_of(run_dir, **changes)
    for _ in range(rollouts):
        run.iterate()
    run.tracker.saver.save_at_once()
    run.iterate()
    expected = seen_of(run)
    run.tracker.files.close()
    saved, skipped = newest_valid(run_dir, with_states=True)
    assert saved is not None and not skipped and saved.iteration == rollouts
    Plate.calls.clear()
    resumed = run_of(run_dir, saved=saved, **changes)
    calls = Counter(Plate.calls)
    resumed.iterate()
    for name, column in seen_of(resumed).items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)
    sums, before = resumed.places[0].collector._sums, run.places[0].collector._sums
    for name in ("returns", "lengths", "discounted_returns", "first_rows"):
        np.testing.assert_array_equal(getattr(sums, name), getattr(before, name), err_msg=name)
    resumed.tracker.files.close()
    return calls


@pytest.mark.parametrize("rollouts", [1, 3, 4])
@pytest.mark.parametrize(
    "env", ["Plate", "MaskedPlate", "Plate-v0"], ids=["simulator", "masks in the info", "limit of steps around it"]
)
def test_a_resume_loads_what_was_saved_at_the_boundary(env: str, rollouts: int, tmp_path: Path) -> None:
    """Two workers; in the middle of an episode, and after one that has ended."""
    calls = assert_resumes_exactly(tmp_path, rollouts, env=env, workers=2, env_kwargs={"length": 48})
    probes = 2 if env == "MaskedPlate" else 0  # only a reset tells that the info has masks
    assert calls == Counter(load=4, reset=probes) if probes else calls == Counter(load=4)


def test_wrappers_with_a_state_save_it(tmp_path: Path) -> None:
    assert assert_resumes_exactly(tmp_path, 2, wrappers=(f"{OURS}:Resumable",)) == Counter(load=2)


def test_behind_a_wrapper_that_may_remember_something_it_is_replayed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", wrappers=(f"{OURS}:remembers",))
    assert run.places[0].collector.envs.description.endswith(
        "; replayed, because the wrapper Wrapper has no save_state and load_state"
    )
    run.tracker.files.close()
    calls = assert_resumes_exactly(tmp_path, 2, wrappers=(f"{OURS}:remembers",))
    assert calls == Counter(reset=2, step=64)


@pytest.mark.parametrize("length", [10, 10_000])
def test_the_episodes_length_does_not_matter(length: int, tmp_path: Path) -> None:
    """Counted in calls: an episode of 10,000 steps is resumed as one of 10."""
    run = run_of(tmp_path, env_kwargs={"length": 20_000}, num_envs=1, horizon=length)
    run.iterate()
    run.tracker.saver.finish("preempted")
    assert run.places[0].collector._sums.lengths == [length]
    Plate.calls.clear()
    resumed = run_of(tmp_path, saved=run.saved(), env_kwargs={"length": 20_000}, num_envs=1, horizon=length)
    assert Plate.calls == Counter(load=1)
    resumed.tracker.files.close()


def test_between_two_saves_a_resume_replays_the_steps_since(tmp_path: Path) -> None:
    calls = assert_resumes_exactly(tmp_path, 3, checkpoint=CheckpointConfig(every=0, states_s=1e6))
    assert calls == Counter(load=2, step=2 * 32)


@pytest.mark.parametrize(
    ("failing", "healed", "loads", "steps"),
    [(0, 10**9, 0, 48), (1, 10**9, 1, 32), (1, 2, 1, 0)],
    ids=["never saved: from the start", "the last good one", "it saves again"],
)
def test_one_that_fails_to_save_keeps_its_last_good_state(
    failing: int, healed: int, loads: int, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = {"failing": failing, "healed": healed}
    calls = assert_resumes_exactly(tmp_path, 3, env_kwargs=kwargs)
    assert calls == Counter({n: 2 * c for n, c in {"load": loads, "reset": 1 - loads, "step": steps}.items() if c})
    lines = [line for line in capsys.readouterr().err.splitlines() if "could not save its state" in line]
    assert (
        len(lines) >= 2 and "dppo: environment 0 could not save its state, a resume replays: RuntimeError" in lines[0]
    )
    assert not list(tmp_path.rglob("*.part"))


def test_an_episode_that_begins_after_the_last_state_is_replayed(tmp_path: Path) -> None:
    checkpoint = CheckpointConfig(every=0, states_s=1e6)
    calls = assert_resumes_exactly(tmp_path, 3, env_kwargs={"length": 40}, checkpoint=checkpoint)
    assert calls == Counter(reset=2, step=2 * 8)


# -- what cannot be loaded --------------------


def resumed_with(tmp_path: Path, **kwargs: Any) -> list[str]:
    """The problems of a resume with other arguments of the constructor."""
    run = run_of(tmp_path)
    run.iterate()
    run.tracker.saver.finish("preempted")
    states = {e.env: e for _, envs in run.saved().ranks.values() for e in envs}
    other = run_of(tmp_path / "other", env_kwargs=kwargs)
    other.tracker.files.close()
    saver = other.places[0].collector._saver
    assert saver is not None
    saver._run_dir = tmp_path
    return other.places[0].collector.restore(states, 16, 100, time.monotonic() + 60)


def test_an_observation_that_load_state_returns_is_compared(tmp_path: Path) -> None:
    assert resumed_with(tmp_path / "a", returns="right") == []
    lines = resumed_with(tmp_path / "b", returns="wrong")
    assert len(lines) == 2
    assert "its state cannot be loaded: ValueError: load_state(path) has returned another observation" in lines[0]
    assert lines[0].endswith("; its episode is cut here")


def test_damaged_files_make_a_checkpoint_damaged(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    for _ in range(2):
        run.iterate()
        run.tracker.saver.save_at_once()
    run.tracker.files.close()
    newest, before, _ = checkpoint_folders(tmp_path)
    heat = next(newest.glob("states/env_00001-*/files/fields/heat.npy"))
    heat.unlink()
    heat.write_bytes(b"\0" * 192)
    saved, skipped = newest_valid(tmp_path, with_states=True)
    assert saved is not None and saved.env_steps == int(before.name[5:])
    assert len(skipped) == 1 and "fields/heat.npy does not match its checksum" in skipped[0]
    assert newest_valid(tmp_path)[1] == [], "an evaluation does not read them"


# -- files --------------------


@pytest.mark.parametrize("entry", [7, [], ["env_00000-000000016-x"], None, {"a": 1}, ["..", 16, 0, "x"]])
def test_a_manifest_that_names_states_wrongly_is_damaged(entry: object, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.iterate()
    run.tracker.saver.finish("preempted")
    folder = checkpoint_folders(tmp_path)[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["states"]["0"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_checkpoint(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in folder.glob("states/*"))


def test_checkpoints_share_files_and_old_states_are_removed(tmp_path: Path) -> None:
    run = run_of(tmp_path, checkpoint=CheckpointConfig(every=1, states_s=0.0, keep=2))
    root = tmp_path / "checkpoints"
    for _ in range(6):
        run.iterate()
        wait_for_checkpoints(run)
    run.tracker.files._writer.submit(lambda: None).result()
    assert len(names(root)) <= 4, "of the last boundary, and those that may be about to be saved"
    assert [names(folder) for folder in checkpoint_folders(tmp_path)] == [
        [f"env_0000{i}-{row:09d}" for i in range(2)] for row in (96, 80)
    ]
    here = next(root.glob("states/env_00000-000000096-*/files/clock.json"))
    assert os.stat(here).st_nlink == 2
    run.tracker.files.close()


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert assert_resumes_exactly(tmp_path, 2) == Counter(load=2)


def test_a_resumed_run_saves_states_that_only_its_checkpoint_has(tmp_path: Path) -> None:
    """Its first checkpoints come before the environments have saved again."""
    run = run_of(tmp_path)
    run.iterate()
    run.tracker.saver.finish("preempted")
    shutil.rmtree(tmp_path / "checkpoints" / "states")
    never = {"checkpoint": CheckpointConfig(every=0, states_s=1e6, keep=1)}
    resumed = run_of(tmp_path, saved=run.saved(), **never)
    assert resumed.places[0].collector._saver is not None
    resumed.places[0].collector._saver._due = 1e12
    for _ in range(2):
        resumed.iterate()
        resumed.tracker.saver.save_at_once()
    resumed.tracker.files.close()
    (only,) = checkpoint_folders(tmp_path)
    assert names(only) == ["env_00000-000000016", "env_00001-000000016"]
    saved = resumed.saved()
    Plate.calls.clear()
    run_of(tmp_path, saved=saved, **never).tracker.files.close()
    assert Plate.calls == Counter(load=2, step=2 * 32)


def test_an_environment_whose_state_is_lost_is_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.iterate()
    shutil.rmtree(next((tmp_path / "checkpoints" / "states").glob("env_00001-*")))
    run.tracker.saver.finish("preempted")
    assert [[e.env for e in envs] for _, envs in run.saved().ranks.values()] == [[0]]
