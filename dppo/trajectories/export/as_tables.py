"""Writes trajectory dumps as tables with one line per step: Parquet for data frames, CSV for everything else."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dppo.envs.leaves import as_leaves
from dppo.errors import UsageError, missing_package
from dppo.trajectories.episodes import Episode
from dppo.trajectories.export.selection import Exported, appearing, in_batches, labels_of
from dppo.trajectories.flat import flat_columns, singles, unique
from dppo.trajectories.format import held_steps
from dppo.trajectories.reader import Trajectories

if TYPE_CHECKING:
    import pyarrow

MAX_COLUMNS = 2000


def to_parquet(trajectories: Trajectories, path: Path | str) -> Exported:
    """Writes the columns of `columns_of` as Parquet (zstd); unknown values are null. The file's schema metadata hold
    config_json, env_spec, observation_space and action_space. Raises UsageError where pyarrow is not installed, `path`
    exists, or there is nothing to export.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_package("pyarrow", error) from error

    done = Exported(Path(path))

    def tables() -> Iterator[tuple[int, pyarrow.Table]]:
        for episode, _, offset in done.chosen(trajectories, only_transitions=False):
            columns = columns_of(episode, offset)
            table = pa.table({
                name: pa.array(np.ma.getdata(column), mask=np.ma.getmaskarray(column))
                for name, column in columns.items()
            })  # fmt: skip
            yield table.nbytes, table

    with appearing(done.path) as part, contextlib.ExitStack() as opened:
        writer = None
        for batch in in_batches(tables()):
            if writer is None:
                schema = batch[0].schema.with_metadata(labels_of(trajectories))
                writer = opened.enter_context(parquet.ParquetWriter(part, schema, compression="zstd"))
            writer.write_table(pa.concat_tables(batch).cast(schema))
    return done


def to_csv(trajectories: Trajectories, path: Path | str) -> Exported:
    """Writes the columns of `columns_of` below a line of their names; unknown values are empty. Numbers have as many
    digits as it takes to read them back exactly; booleans are True and False. Raises UsageError where `path` exists, or
    there is nothing to export.
    """
    done = Exported(Path(path))
    with appearing(done.path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for episode, _, offset in done.chosen(trajectories, only_transitions=False):
            columns = columns_of(episode, offset)
            if done.episodes == 1:
                writer.writerow(columns)
            writer.writerows(zip(*map(_as_text, columns.values()), strict=True))
    return done


def columns_of(episode: Episode, offset: int) -> dict[str, np.ma.MaskedArray]:
    """Returns columns with one value per step. Unknown values are masked: seed, next_obs after an unfinished episode.

    An observation or action without an axis is one column; others are obs_0, obs_1, …: flat, in C order. The leaves of
    a Dict or a Tuple are obs_camera_0, …. `t` counts the episode's steps from 0, `row` those of the worker.

    Args:
      offset: the number of the episode's steps before the first recorded one.

    Raises:
      UsageError: observations are too large for columns, or two columns would have one name.
    """
    length, observations = episode.length, episode.observations

    def same(value: int | None) -> np.ma.MaskedArray:
        return np.ma.array(np.full(length, value or 0, np.int64), mask=value is None)

    names = {"agent": episode.agent, "case": episode.case}
    columns: list[tuple[str, np.ma.MaskedArray]] = [
        ("rank", same(episode.rank)),
        ("env", same(episode.env)),
        *((name, np.ma.array(np.full(length, text))) for name, text in names.items() if text is not None),
        ("episode", same(episode.id)),
        ("seed", same(episode.seed)),
        ("row", np.ma.array(episode.first_row + np.arange(length))),
        ("t", np.ma.array(offset + np.arange(length))),
    ]
    short = {column.name: column.single for column in held_steps()}
    for name, whole in episode.steps.items():
        for single, values in singles(short[name], whole):
            columns += flat_columns(single, np.ma.array(values))
    for single, values in singles("next_obs", observations):
        columns += flat_columns(single, _following(values, length))
    if len(columns) > MAX_COLUMNS:
        shapes = ", ".join(f"{leaf} {part.shape[1:]}".lstrip() for leaf, part in as_leaves(observations).items())
        forms = "minari, which holds arrays" if observations.dtype.names else "minari or d4rl, which hold arrays"
        raise UsageError(
            f"an observation {shapes} makes a table of {len(columns)} columns (at most {MAX_COLUMNS}):"
            f" export --to {forms}"
        )
    return unique(columns)


def _following(values: np.ndarray, length: int) -> np.ma.MaskedArray:
    """Returns [length, ...]: the value after each of the first `length` ones, masked where there is none."""
    following = np.ma.array(np.zeros_like(values[:length]), mask=True)
    following[: len(values) - 1] = values[1:]
    return following


def _as_text(column: np.ma.MaskedArray) -> list[str]:
    text = np.ma.getdata(column).astype(str)
    return np.where(np.ma.getmaskarray(column), "", text).tolist()  # type: ignore[no-any-return]
