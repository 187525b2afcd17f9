"""States that environments save themselves: folders of their own files, and what dppo notes of each.

    RUN/checkpoints/states/NAME/{files/…, about.json}                    as an environment's worker has written it
    RUN/checkpoints/step_000050176/states/NAME/{files/…, about.json}     in a checkpoint: the same files, by hard links

A state is written under another name, synced, and renamed. Its files are never written again, so that checkpoints share
them. `about.json` has the size and the checksum of each file; the checkpoint's manifest has the checksum of about.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dppo.files import fsync_folder, open_regular, parse_json, read_regular, write_durably
from dppo.rundir import paths
from dppo.rundir.tensors import to_json

FILES, ABOUT = "files", "about.json"
_ANY_SIZE = 2**63


def write_state(run_dir: Path, name: str, save: Callable[[Path], object], about: dict[str, Any]) -> None:
    """Has `save` write its files into an empty folder, and makes a state of them, whole or not at all.

    Args:
      about: further values for about.json.

    Raises:
      ValueError: nothing was written, or something that is no file.
      Exception: what `save` raises.
    """
    root = run_dir / paths.STATES
    folder, part = root / name, root / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / FILES).mkdir(parents=True)
        save(part / FILES)
        files = {}
        for path in _files_in(part / FILES):
            with open_regular(path, part, _ANY_SIZE) as file:
                os.fsync(file.fileno())
                files[str(path.relative_to(part / FILES))] = _described(file)
            fsync_folder(path.parent)
        if not files:
            raise ValueError("save_state(path) has written no file into the folder path")
        write_durably(part / ABOUT, to_json({**about, "files": files}))
        fsync_folder(part)
        os.rename(part, folder)
        fsync_folder(root)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def find_state(run_dir: Path, name: str, checkpoints: Iterable[Path]) -> Path:
    """Returns the folder of a state: in the first of `checkpoints` that has it, else where its worker has written it.

    Raises:
      FileNotFoundError: it is nowhere.
    """
    for folder in (*(checkpoint / paths.STATES_IN_CHECKPOINT for checkpoint in checkpoints), run_dir / paths.STATES):
        if (folder / name / ABOUT).is_file():
            return folder / name
    raise FileNotFoundError(f"the saved state {name} is nowhere")


def read_about(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns what about.json says, and its checksum. Raises ValueError where it is damaged."""
    data = read_regular(folder / ABOUT, folder)
    about = parse_json(data)
    files = about.get("files") if isinstance(about, dict) else None
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise ValueError(f"{folder.name}/{ABOUT} does not name the state's files")
    return about, hashlib.sha256(data).hexdigest()


def check_state(folder: Path, checksum: str) -> None:
    """Raises ValueError if a state is not what was written: `checksum` is that of about.json."""
    try:
        about, found = read_about(folder)
        if found != checksum:
            raise ValueError(f"{folder.name}/{ABOUT} does not match its checksum in manifest.json")
        for name, (size, sha256) in about["files"].items():
            with open_regular(folder / FILES / name, folder, _ANY_SIZE) as file:
                if _described(file) != [size, sha256]:
                    raise ValueError(f"{folder.name}: {name:.60} does not match its checksum")
    except OSError as error:
        raise ValueError(f"the saved state {folder.name} cannot be read: {error}") from error


def link_state(source: Path, target: Path) -> str:
    """Makes `target` a state with the files of `source`. Returns the checksum of its about.json.

    Raises:
      OSError, ValueError: `source` cannot be read, or `target` cannot be written.
    """
    target.mkdir(parents=True)
    for path in (*_files_in(source / FILES), source / ABOUT):
        other = target / path.relative_to(source)
        other.parent.mkdir(parents=True, exist_ok=True)
        _link(path, other)
    for folder, _, _ in os.walk(target):
        fsync_folder(Path(folder))
    return read_about(target)[1]


def remove_states(run_dir: Path, names: Iterable[str] | None = None) -> None:
    """Removes states that workers have written; None: all. Those of checkpoints stay."""
    for folder in [run_dir / paths.STATES] if names is None else [run_dir / paths.STATES / name for name in names]:
        shutil.rmtree(folder, ignore_errors=True)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, in a fixed order. Raises ValueError where there is a link."""
    for place, below, names in os.walk(folder):
        below.sort()
        for name in (*below, *sorted(names)):
            path = Path(place, name)
            if path.is_symlink():
                raise ValueError(f"{path.relative_to(folder)} is a link, and a saved state holds files of its own only")
            if name not in below:
                yield path


def _described(file: BinaryIO) -> list[Any]:
    """Returns the size and the checksum of a file."""
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return [os.fstat(file.fileno()).st_size, digest.hexdigest()]


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    is_within = not os.path.isabs(name) and ".." not in Path(name).parts
    return is_within and isinstance(entry, list) and [type(part) for part in entry] == [int, str]


def _link(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems have no hard links
        os.link(source, target, follow_symlinks=False)
        return
    with open_regular(source, None, _ANY_SIZE) as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        os.fsync(copy.fileno())
