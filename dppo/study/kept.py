"""The copy of a sweep's file in its folder, which says whose folder it is."""

from __future__ import annotations

from pathlib import Path

from dppo.errors import UsageError
from dppo.files import TOML_BYTES, read_regular, replacing
from dppo.rundir import paths
from dppo.study.search import JOURNAL
from dppo.study.spec import COPY, Sweep, read_sweep, task_folder


def keep_copy(path: Path, sweep: Sweep, sweep_dir: Path) -> None:
    """Keeps a copy of the file in the sweep's folder. Raises UsageError where the folder belongs to another sweep, or
    cannot be written.
    """
    try:
        copy, content = sweep_dir / COPY, read_regular(path, max_bytes=TOML_BYTES)
        if copy.exists():
            if read_regular(copy, sweep_dir, TOML_BYTES) == content:
                return
            _refuse_another(path, sweep, copy)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as part:  # tasks that start together all write it
            part.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{sweep_dir} cannot be written: {error.strerror}; choose another SWEEP_DIR") from error


def _refuse_another(path: Path, sweep: Sweep, copy: Path) -> None:
    """Raises UsageError where the new file changes a task that has been run; repaired and added tasks are allowed."""
    before = read_sweep(copy)
    if (copy.parent / JOURNAL).exists() and (differing := _changed_in_study(before, sweep)):
        raise UsageError(
            f"{copy.parent / JOURNAL} is the study of another file ({copy}), which has another {differing}: choose"
            f" another SWEEP_DIR for {path}, or undo that; only search.trials may change"
        )
    for task in range(len(before.varied)):
        folder = task_folder(copy.parent, task)
        if not (folder / paths.CONFIG).exists():
            continue
        now = sweep.settings(task) if task < len(sweep.varied) else {}
        then = before.settings(task)
        if now != then:
            changed = sorted(key for key in now.keys() | then if now.get(key) != then.get(key))
            what = ", ".join(f"{k} was {then.get(k, 'not set')}, is {now.get(k, 'not set')}" for k in changed)
            raise UsageError(
                f"{folder} is a run of another sweep.toml ({copy}): {what if now else 'it has no such task now'};"
                f" choose another SWEEP_DIR for {path}, or undo what changes tasks that have been run"
            )


def _changed_in_study(before: Sweep, now: Sweep) -> str:
    """Returns what of a study differs in the new file, apart from the number of trials; "" if nothing does."""
    if before.fixed != now.fixed:
        return "[fixed]"
    then, new = ({**(sweep.search or {}), "trials": None} for sweep in (before, now))
    return next((f"search.{key}" for key in then | new if then.get(key) != new.get(key)), "")
