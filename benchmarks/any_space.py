"""Does dppo observe and act in whatever Gymnasium describes? Spaces drawn at random, each trained on 1 and on 3 ranks.

    .venv/bin/python benchmarks/any_space.py [--spaces 60] [--seed 1] [--steps 2000]

Spaces are nested, have odd shapes, types of 1 to 8 bytes, bounds at infinity, other starts than 0, images, and some
have masks. A space has passed where the run ends as it should, without a traceback; where its action space contains
every action that the environment gets, illegal ones by the mask apart, each in the type of a sample; and where those of
the last episodes begin, to the bit, with what the checkpoint says that dppo sent.

Ten spaces are trained in one start, because starts are what takes the time; where one of them fails, each gets a start
of its own. Prints a table and writes it, as far as it is, to
benchmarks/results/any_space.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from common import machine, markdown_table, save, stored
from gymnasium import spaces

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.launch import Launcher

RANKS = 3
NUM_ENVS = 2
TOGETHER = 10
"""Spaces in one start."""
TIMEOUT_S = 150.0
"""For each of them."""
FLOATS = (np.float16, np.float32, np.float64)
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (7,), (2, 3), (1, 4, 1, 2))
IMAGES = ((3, 8, 10), (8, 10, 3), (40, 36, 1), (4, 37, 36), (1, 1, 3), (5, 9, 9), (2, 2, 2))
MASK = "action_mask"


class Drawer:
    """Draws spaces from a seed."""

    def __init__(self, seed: int, number: int) -> None:
        self._rng = np.random.default_rng([seed, number])

    def _one(self, *values: Any) -> Any:
        return values[self._rng.integers(len(values))]

    def both(self) -> tuple[spaces.Space[Any], spaces.Space[Any], str]:
        """Draws observation space, action space, and where the environment has its mask: info, method, leaf or none."""
        observed = self._tree(self._observed, 2)
        acted = self._tree(self._acted, 2)
        place = self._one("", "", "info", "method", "leaf")
        size = mask_size(acted)
        if not size:
            return observed, acted, ""
        if place == "leaf":
            observed = spaces.Dict({"rest": observed, MASK: spaces.MultiBinary(size)})
        return observed, acted, place

    def _tree(self, leaf: Any, depth: int) -> spaces.Space[Any]:
        kind = self._rng.random() if depth else 0.0
        if kind < (0.5 if depth == 2 else 0.7):
            return leaf()
        parts = [self._tree(leaf, depth - 1) for _ in range(self._rng.integers(1, 4))]
        names = ["b", "a key", "é.1"][: len(parts)]
        return spaces.Tuple(parts) if kind > 0.85 else spaces.Dict(dict(zip(names, parts, strict=True)))

    def _observed(self) -> spaces.Space[Any]:
        return self._one(self._floats, self._whole, self._image, self._discrete, self._many, self._bits)()

    def _acted(self) -> spaces.Space[Any]:
        return self._one(self._floats, self._few, self._discrete, self._many, self._bits)()

    def _floats(self) -> spaces.Space[Any]:
        low, high = self._one((-1, 1), (-np.inf, np.inf), (0, np.inf), (-np.inf, 2.5), (-3, 0.1), (0, 1000))
        return spaces.Box(low, high, self._one(*SHAPES), self._one(*FLOATS))

    def _whole(self) -> spaces.Space[Any]:
        dtype = self._one(*INTEGERS, np.bool_)
        if dtype is np.bool_:
            return spaces.Box(0, 1, self._one(*SHAPES), dtype)
        limits = np.iinfo(dtype)
        most = limits.max if limits.bits < 64 else 2**52  # Gymnasium samples through float64
        low, high = self._one((0, 5), (limits.min, limits.max), (most - 3, most - 1))
        return spaces.Box(low, high, self._one(*SHAPES), dtype)

    def _few(self) -> spaces.Space[Any]:
        dtype = self._one(*INTEGERS, np.bool_)
        if dtype is np.bool_:
            return spaces.Box(0, 1, self._one(*SHAPES), dtype)
        limits = np.iinfo(dtype)
        low = self._one(0, limits.min, limits.max - 9)
        return spaces.Box(low, low + self._one(0, 3, 8), self._one(*SHAPES), dtype)

    def _image(self) -> spaces.Space[Any]:
        shape = self._one(*IMAGES)
        dtype = self._one(np.uint8, np.uint8, np.uint8, np.uint16, np.bool_, *FLOATS)
        if dtype in FLOATS:
            low, high = self._one((0, 1), (-1, 1), (-np.inf, np.inf))
            return spaces.Box(low, high, shape, dtype)
        return spaces.Box(0, 1 if dtype is np.bool_ else np.iinfo(dtype).max, shape, dtype)

    def _discrete(self) -> spaces.Space[Any]:
        n = int(self._one(1, 2, 5, 64, 65, 100))
        return spaces.Discrete(n, start=int(self._one(0, 1, -5, 27)), dtype=self._one(np.int8, np.int16, np.int64))

    def _many(self) -> spaces.Space[Any]:
        nvec = self._one([2], [3, 1, 4], [[2, 3], [4, 5]], [70, 2])
        start = self._one(0, 3)
        return spaces.MultiDiscrete(nvec, dtype=self._one(np.uint8, np.int8, np.int64), start=np.full_like(nvec, start))

    def _bits(self) -> spaces.Space[Any]:
        return spaces.MultiBinary(self._one(1, 5, (2, 3), (2, 1, 2)))


# -- the environment, on the ranks --------------------


def discrete_parts(space: Any, value: Any = None) -> list[tuple[int, int]]:
    """(number of choices, chosen one from 0) of each element that a mask speaks of."""
    if isinstance(space, spaces.Dict):
        parts = [(part, value and value[key]) for key, part in space.spaces.items()]
        return [found for part, given in parts for found in discrete_parts(part, given)]
    if isinstance(space, spaces.Tuple):
        parts = [(part, value and value[i]) for i, part in enumerate(space.spaces)]
        return [found for part, given in parts for found in discrete_parts(part, given)]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        is_one = isinstance(space, spaces.Discrete)
        sizes, first = np.ravel(space.n if is_one else space.nvec), np.ravel(space.start)
    elif isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "biu":
        sizes, first = [int(b) - int(a) + 1 for a, b in zip(space.low.flat, space.high.flat, strict=True)], space.low
    else:
        return []
    starts = [int(start) for start in np.ravel(first)]
    chosen = starts if value is None else [int(each) for each in np.ravel(value)]
    return [(int(n), c - s) for n, c, s in zip(sizes, chosen, starts, strict=True)]


def mask_size(space: spaces.Space[Any]) -> int:
    return sum(n for n, _ in discrete_parts(space))


class Drawn(gymnasium.Env[Any, Any]):
    """Observes samples of a drawn space and looks at each action that it gets; writes them to a file per episode."""

    def __init__(self, seed: int, number: int, folder: str) -> None:
        self.observation_space, self.action_space, self._place = Drawer(seed, number).both()
        self._sizes, self._folder = [n for n, _ in discrete_parts(self.action_space)], Path(folder)
        self._file: Any = None
        if self._place == "method":
            self.action_masks = lambda: self._mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._time, self._last = 0, int(self.np_random.integers(5, 40))
        self._close()
        self._file = (self._folder / f"{seed}.pickle").open("wb")
        return self._observed(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        problem = self._problem(action)
        if problem:
            raise AssertionError(f"got {action!r}, which {problem}: {self.action_space}")
        pickle.dump(action, self._file)
        self._file.flush()
        self._time += 1
        return self._observed(), float(self._time % 3), self._time == self._last, False, self._info()

    def close(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _problem(self, action: Any) -> str:
        if not self.action_space.contains(action):
            return "is not in the action space"
        wrong = _wrong_type(self.action_space, action)
        if wrong:
            return wrong
        if self._place:
            place = 0
            for n, chosen in discrete_parts(self.action_space, action):
                if not self._mask[place + chosen]:
                    return f"is illegal, as entry {place + chosen} of the mask is 0"
                place += n
        return ""

    def _observed(self) -> Any:
        if self._place:
            masks = [self.np_random.integers(0, 2, n).astype(np.int8) for n in self._sizes]
            for mask in masks:
                mask[self.np_random.integers(len(mask))] = 1
            self._mask = np.concatenate(masks)
        sample = self.observation_space.sample()
        if self._place == "leaf":
            sample[MASK] = self._mask
        return sample

    def _info(self) -> dict[str, Any]:
        return {MASK: self._mask} if self._place == "info" else {}


def _wrong_type(space: Any, value: Any) -> str:
    """Says what of a value is not of the type that `space.sample()` gives."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space.spaces))
        expected: type = dict if isinstance(space, spaces.Dict) else tuple
        inner = (_wrong_type(space[key], value[key]) for key in keys)
        return next(filter(None, inner), "") if type(value) is expected else f"is a {type(value).__name__}"
    number = isinstance(space, spaces.Discrete)
    is_right = isinstance(value, np.integer) if number else type(value) is np.ndarray and value.shape == space.shape
    return "" if is_right and value.dtype == space.dtype else f"has {type(value).__name__} {value!r}"


# -- on the ranks --------------------


def folder_of(folder: Path, number: int, ranks: int) -> Path:
    return folder / f"{number}-{ranks}"


def train_all(numbers: list[int], seed: int, steps: int, folder: Path) -> None:
    """Trains each space on all ranks, then each on one rank, several at a time. A run that fails ends the program."""
    from mpi4py import MPI

    from dppo import train
    from dppo.settings.flags import parse

    world = MPI.COMM_WORLD

    def run(number: int, comm: Any) -> None:
        place = folder_of(folder, number, comm.size)
        if comm.rank == 0:
            place.mkdir()
        comm.Barrier()
        flags = (
            f"--env any_space:Drawn --env-kwargs seed={seed} number={number} folder={place} --run-dir {place}/run"
            f" --num-envs {NUM_ENVS} --horizon 64 --total-steps {steps} --seed {number} --log.no-tensorboard"
            " --model.hidden 16 16 --ppo.epochs 1 --ppo.minibatches 2"
        )
        config, _ = parse(flags.split())
        train(config, comm, quiet=True)

    for number in numbers:
        run(number, world)
    for number in numbers[world.rank :: world.size]:
        run(number, MPI.COMM_SELF)


# -- what came of it --------------------


def same(space: Any, sent: Any, got: Any) -> bool:
    """Whether a row of the checkpoint holds the value that the environment got, to the bit."""
    if isinstance(space, spaces.Dict):
        return all(same(part, sent[key], got[key]) for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return all(same(part, sent[str(i)], got[i]) for i, part in enumerate(space.spaces))
    return np.asarray(sent).tobytes() == np.asarray(got).tobytes()


def compared(seed: int, number: int, place: Path) -> int:
    """The number of actions that the environments got and the checkpoint has. Raises AssertionError where they differ,
    or the run has not ended as it should.
    """
    from dppo.rundir.checkpoint import newest_valid
    from dppo.seeding import EpisodeSeeds

    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["exit"] == "finished", summary["exit"]
    saved, _ = newest_valid(place / "run", lambda checkpoint: None)
    assert saved is not None, "there is no checkpoint"
    space, count = Drawer(seed, number).both()[1], 0
    for _, envs in saved.ranks.values():
        for state in envs:
            with (place / f"{EpisodeSeeds(number, state.env, 1).of(0, state.episode)}.pickle").open("rb") as file:
                for sent in state.actions:
                    got = pickle.load(file)
                    assert same(space, sent, got), f"environment {state.env} got {got}, and dppo sent {sent}"
                    count += 1
    return count


def outcomes(numbers: list[int], seed: int, steps: int) -> dict[int, str]:
    """Trains some spaces. Returns for each what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(Path(folder))
        program = "--rank-program", folder, "--seed", seed, "--steps", steps, "--numbers", *numbers
        try:
            ended = launcher.run(RANKS, *program, program=__file__, timeout=TIMEOUT_S * len(numbers))
            complaint = ended.stderr if "Traceback" in ended.stderr else ""
        except AssertionError as error:
            complaint = str(error)
        finally:
            launcher.close()
        if complaint and len(numbers) > 1:
            return {n: said for number in numbers for n, said in outcomes([number], seed, steps).items()}
        if complaint:
            print(complaint, file=sys.stderr)
            lines = [line for line in complaint.splitlines() if "Error" in line]
            return {numbers[0]: f"failed: {(lines or ['no error is named'])[0]}"[:200]}
        out = {}
        for number in numbers:
            try:
                counts = [compared(seed, number, folder_of(Path(folder), number, ranks)) for ranks in (1, RANKS)]
                out[number] = f"passed, {counts[0]} and {counts[1]} actions compared"
            except Exception as error:
                traceback.print_exc()
                out[number] = f"failed: {error}"[:200]
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--spaces", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--numbers", type=int, nargs="*", help="only these of the spaces; the others keep their last result"
    )
    parser.add_argument("--rank-program", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_program:
        sys.modules["any_space"] = sys.modules["__main__"]  # where the flags say that the environment is
        train_all(args.numbers, args.seed, args.steps, args.rank_program)
        return
    chosen = list(range(args.spaces)) if args.numbers is None else args.numbers
    what = {"seed": args.seed, "steps": args.steps}
    before = stored("any_space")
    rows = before["rows"] if args.numbers is not None and what.items() <= before.items() else {}
    for first in range(0, len(chosen), TOGETHER):
        for number, said in outcomes(chosen[first : first + TOGETHER], args.seed, args.steps).items():
            observed, acted, place = Drawer(args.seed, number).both()
            cells = [f"`{' '.join(str(space).split())}`" for space in (observed, acted)]
            rows[str(number)] = (number, *cells, place or "-", said)
        rows = dict(sorted(rows.items(), key=lambda row: int(row[0])))
        save("any_space", report(rows, args.seed, args.steps), what | {"machine": machine(), "rows": rows})
    raise SystemExit(any(not has_passed(rows[str(number)]) for number in chosen))


def has_passed(row: Sequence[Any]) -> bool:
    return str(row[-1]).startswith("passed")


def report(rows: dict[str, Sequence[Any]], seed: int, steps: int) -> str:
    table = markdown_table(("space", "observations", "actions", "mask", "on 1 and on 3 ranks"), rows.values())
    return (
        f"# Any space\n\n`.venv/bin/python benchmarks/any_space.py --seed {seed} --steps {steps}`; {machine()}.\n\n"
        f"{sum(map(has_passed, rows.values()))} of {len(rows)} have passed. Each was trained for {steps:,} steps on"
        " each number of ranks. Every action was checked by the environment; compared to the bit are the actions of the"
        f" episodes under way at the end.\n\n{table}"
    )


if __name__ == "__main__":
    main()
