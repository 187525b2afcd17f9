"""Writes trajectory dumps as a Minari dataset, episode by episode."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dppo.envs.leaves import to_value
from dppo.errors import UsageError, missing_package
from dppo.files import fsync_folder, parse_json
from dppo.trajectories.catalogue import REPAIR, SURPRISES
from dppo.trajectories.episodes import Episode
from dppo.trajectories.export.selection import Exported, appearing, labels_of, refuse_inside_dump
from dppo.trajectories.format import held_steps
from dppo.trajectories.reader import Trajectories

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

T = TypeVar("T")
_ORIGIN = ("rank", "env", "id", "first_row", "offset", "return", "complete")
_NAMESPACE_FILE = "namespace_metadata.json"
_ID = re.compile(r"(?:[\w-][\w/-]*[\w-]/)?[\w-]+-v\d+", re.ASCII)
_MAX_NAME, _MAX_DIGITS = 200, 9
"""The most characters of a part of a dataset's id, and the most digits of its version."""
_MAX_SIZE = 10**8
"""The most numbers in an observation or an action."""


def to_minari(
    trajectories: Trajectories, dataset_id: str | None = None, root: Path | str | None = None, author: str | None = None
) -> Exported:
    """Writes a dataset that `minari.load_dataset(dataset_id)` opens.

    Episodes that ended are exported as they are. If an episode did not end (the run stopped, or rows around it were not
    written), its last step has no known next observation: that step is dropped, and the step before it is truncated.
    `infos` hold log_probs, values, policy_version and action_mask (where there are masks) beside each observation, with
    nan, -1 and false beside the last. Each episode's metadata (`dataset.storage.get_episode_metadata`) has its seed
    and, under `dppo`, its origin.

    Args:
      dataset_id: (namespace/)name-vN; by default the id of `default_dataset_id`.
      root: the folder of Minari's datasets; by default MINARI_DATASETS_PATH, else ~/.minari/datasets, as in Minari.

    Raises:
      UsageError: Minari is not installed, the dataset exists, or there is nothing to export.
    """
    try:
        import minari
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise missing_package("Minari", error) from error

    labels = labels_of(trajectories)
    dataset_id = default_dataset_id(labels) if dataset_id is None else dataset_id
    # absolute: Minari cannot measure a dataset by a relative path
    root = (_minari_root() if root is None else Path(root)).absolute()
    folder = root / dataset_id
    refuse_inside_dump(root)
    done, versions = Exported(folder), list[int]()
    with appearing(folder, lambda folder: _check_free(root, dataset_id), is_folder=True) as part:
        spaces = [_parsed(labels, name, _space) for name in ("observation_space", "action_space")]
        storage = MinariStorage.new(
            part / "data",
            observation_space=spaces[0],
            action_space=spaces[1],
            env_spec=_parsed(labels, "env_spec", _env_spec),
            jpeg_encoding=False,
        )
        storage.update_episodes(_buffers(trajectories, done, versions, *spaces))
        storage.update_episode_metadata(_origins(trajectories))
        storage.update_metadata(
            {"dataset_id": dataset_id, "minari_version": minari.__version__, **_description(labels, versions, author)}
        )
    _name_namespaces(root, dataset_id)
    fsync_folder(folder.parent)
    return done


def default_dataset_id(labels: dict[str, str]) -> str:
    """Returns an id such as dppo/CartPole-v1-v0: the environment with its own version, then the dataset's version."""
    name = _parsed(labels, "env_spec", lambda text: str(json.loads(text)["id"])).rpartition(":")[2]
    return f"dppo/{re.sub(r'[^a-zA-Z0-9_/-]', '_', name)}-v0"


def _parsed(labels: dict[str, str], name: str, make: Callable[[str], T]) -> T:
    """Parses a label of the dump. Raises UsageError where the label is damaged."""
    try:
        return make(labels[name])
    except (*SURPRISES, AssertionError) as error:  # Minari asserts
        raise UsageError(f"{name} of the dump's first segment cannot be read: {error!r}; {REPAIR}") from error


def _space(text: str) -> Any:
    """Makes a space of its JSON text. Raises ValueError before it makes one that is too large for any trajectory."""
    from minari.serialization import deserialize_space

    parts = [parse_json(text)]
    while parts:
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        if isinstance(part, dict) and isinstance(part.get("shape"), list) and math.prod(part["shape"]) > _MAX_SIZE:
            raise ValueError(f"a space of shape {part['shape']!r:.60} is too large")
    return deserialize_space(text)


def _env_spec(text: str) -> EnvSpec | None:
    """Returns the spec from which `recover_environment` makes the environment; None where the dump does not have all
    of it.
    """
    from gymnasium.envs.registration import EnvSpec

    described = dict(json.loads(text))
    if "id" not in described:
        raise ValueError("it has no id")
    return EnvSpec.from_json(text) if "entry_point" in described else None


# -- what is written --------------------


def _buffers(
    trajectories: Trajectories, done: Exported, versions: list[int], observed: Any, acted: Any
) -> Iterator[Any]:
    """Yields an EpisodeBuffer for each episode that has a transition, with dicts and tuples of arrays where the spaces
    of observations and actions are such. Adds the policy versions to `versions`.
    """
    from minari.data_collector import EpisodeBuffer

    for episode, length, offset in done.chosen(trajectories, only_transitions=True):
        truncations = episode.truncations[:length].copy()
        if not episode.terminations[length - 1]:
            truncations[-1] = True
        versions += episode.policy_version[[0, -1]].tolist()
        yield EpisodeBuffer(
            seed=episode.seed if offset == 0 else None,  # a seed must lead to the first observation
            observations=to_value(observed, episode.observations),
            actions=to_value(acted, episode.actions[:length]),
            rewards=episode.rewards[:length],
            terminations=episode.terminations[:length],
            truncations=truncations,
            infos=_infos(episode, length),
        )


def _infos(episode: Episode, length: int) -> dict[str, np.ndarray]:
    """Returns the infos with an entry beside each observation; nan, -1 or false beside the last one."""
    steps, infos = episode.steps, [column.name for column in held_steps() if column.is_info and column.ndim is not None]
    unknown = {"f": np.nan, "i": -1, "b": False}
    out: dict[str, np.ndarray] = {}
    for name in infos:
        if name in steps:
            values = steps[name][:length]
            last = np.full((1, *values.shape[1:]), unknown[values.dtype.kind], values.dtype)
            out[name] = np.concatenate((values, last))
    return out


def _origins(trajectories: Trajectories) -> Iterator[dict[str, Any]]:
    """Yields attributes for each episode that has a transition; Minari reads them back as a dict under `dppo`."""
    table = trajectories.table()
    transitions = table["length"] - ~(table["terminated"] | table["truncated"])
    for i in np.flatnonzero(transitions).tolist():
        named = {f"dppo/{name}": str(table[name][i]) for name in ("agent", "case") if name in table}
        yield {f"dppo/{name}": table[name][i] for name in _ORIGIN} | named


def _description(labels: dict[str, str], versions: list[int], author: str | None) -> dict[str, Any]:
    config = dict(_parsed(labels, "config_json", lambda text: json.loads(text).items()))
    config.pop("run_dir", None)  # datasets are for others: no paths of this machine
    loss, mode, env, seed = (config.get(key) for key in ("loss", "mode", "env", "seed"))
    description = (
        f"Recorded by dppo {labels['dppo_version']} while it trained a policy in {env} ({loss}, {mode}, seed {seed});"
        f" the policy learns meanwhile, versions {min(versions)} to {max(versions)}."
        f" Run {labels['run_id']}."
    )
    metadata = {"description": description, "algorithm_name": f"{str(loss).upper()}, {mode} (dppo)"}
    return metadata | {"dppo_config": config} | ({"author": {author}} if author else {})


# -- Minari's folders --------------------


def _minari_root() -> Path:
    path = os.environ.get("MINARI_DATASETS_PATH")
    return Path(path) if path is not None else Path.home() / ".minari" / "datasets"


def _check_free(root: Path, dataset_id: str) -> None:
    if not _ID.fullmatch(dataset_id) or "//" in dataset_id:
        raise UsageError(
            f"--dataset-id {dataset_id!r} must have the form namespace/name-v0; letters, digits, _ and - of ASCII"
        )
    if max(map(len, dataset_id.split("/"))) > _MAX_NAME or len(dataset_id.rpartition("-v")[2]) > _MAX_DIGITS:
        raise UsageError(
            f"--dataset-id of {len(dataset_id)} characters is too long: at most {_MAX_NAME} between slashes, and "
            f"{_MAX_DIGITS} digits of a version"
        )
    try:
        exists = (root / dataset_id).exists()
    except OSError as error:
        raise UsageError(f"{root / dataset_id} cannot be written: {error.strerror}; choose another -o") from error
    for parent in _namespaces(root, dataset_id):
        if (parent / "data").exists():
            raise UsageError(f"--dataset-id {dataset_id} would lie inside the dataset {parent}: choose another")
    if exists:
        name, _, version = dataset_id.rpartition("-v")
        free = next(n for n in range(int(version) + 1, 2**31) if not (root / f"{name}-v{n}").exists())
        raise UsageError(
            f"the dataset {dataset_id} exists already in {root}, and nothing is overwritten: --dataset-id"
            f" {name}-v{free} is free"
        )


def _namespaces(root: Path, dataset_id: str) -> list[Path]:
    """Returns the folders between `root` and the dataset's folder."""
    return [root / parent for parent in Path(dataset_id).parents if parent != Path(".")]


def _name_namespaces(root: Path, dataset_id: str) -> None:
    """Writes what `minari.namespace.create_namespace` would write, under `root`."""
    for folder in _namespaces(root, dataset_id):
        if not (folder / _NAMESPACE_FILE).exists():
            (folder / _NAMESPACE_FILE).write_text("{}")
