"""python -m dppo.evaluate: plays episodes with a trained policy. In notebooks, `load_policy` loads one."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dppo.config import SEED, SOLVER, Config
from dppo.console import Console, plain
from dppo.envs.given import Given
from dppo.envs.group_link import HeadLink
from dppo.envs.groups import find_maker
from dppo.envs.maker import EnvMaker
from dppo.envs.masks import MaskLayout, Masks
from dppo.envs.process import kept_as_it_was, printing_to_stderr
from dppo.envs.simulators import agents_of
from dppo.envs.vector import make_vector_env
from dppo.errors import EXIT_USAGE, UsageError
from dppo.seams import VectorEnv
from dppo.seeding import EpisodeSeeds, Purpose, seed_global_generators
from dppo.settings.commands import Parser, at_least, integer, require, within
from dppo.settings.toml import load_config
from dppo.training.build import close_environments, max_restarts
from dppo.training.played import Played, figures, in_cases
from dppo.training.policy import Policy, load_policy

MAX_STEPS = 30_000
"""The default limit of an episode's steps: a little above that of Atari's games, which is the longest in use."""
_MOST_STEPS = 10**9
_SILENT_S, _INTERVAL_S = 2.0, 10.0
"""Seconds until an evaluation shows progress, and between two lines of it where no person watches."""


class Progress(NamedTuple):
    """The progress of an evaluation."""

    played: int
    """Episodes that were played."""
    steps: int
    longest: int
    """Steps in all environments, and of the longest episode under way."""


def play_episodes(
    policy: Policy,
    episodes: int,
    seed: int = 0,
    *,
    stochastic: bool = False,
    max_steps: int = MAX_STEPS,
    progress: Callable[[Progress], None] = lambda now: None,
    group: HeadLink | None = None,
) -> list[Played]:
    """Plays episodes in a fixed order, each to its end or for `max_steps`. The same seed gives the same episodes. The
    cases of `policy.config` are dealt to up to 20 environments in turn.

    Each of several environments (or agents) plays a fixed number of episodes, however long they take. If the episodes
    that end first counted, short ones would push long ones out of the sample.

    Args:
      group: the other ranks of which each environment consists; None: there are none.

    Raises:
      UsageError: the environment cannot be made, or is not the one that the policy was trained in.
    """
    policy.seed(seed)
    # a policy is not judged by a native vector form, whose environments cannot be started from a seed
    config = policy.config
    vectorization = "auto" if config.vectorization == "native" else config.vectorization
    num_envs = 1 if config.env == SOLVER else min(episodes, 20)
    seed_global_generators(seed)
    with contextlib.ExitStack() as at_end:
        try:
            given = _given(config, at_end, group)
            with kept_as_it_was():
                envs = make_vector_env(
                    config.env, num_envs, lambda index: seeds.next(index), vectorization,
                    kwargs=config.env_kwargs, wrappers=config.wrappers, cases=config.cases,
                    max_restarts=max_restarts(config), given=given, rounds_up=True,
                )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from error
        at_end.callback(close_environments, envs)
        seeds = EpisodeSeeds(seed, 0, envs.num_envs, Purpose.EVALUATION, max(1, len(envs.agents)))
        policy.require(envs.observation_space, envs.action_space)
        return _play(policy, envs, episodes, seed, stochastic=stochastic, max_steps=max_steps, progress=progress)


def _given(config: Config, at_end: contextlib.ExitStack, group: HeadLink | None) -> Given:
    """Returns what environments are given that are played outside of a run: folders that are removed at the end, and
    the communicator of this process alone. Starts MPI for a constructor that takes it only.
    """
    comm = None
    if group is None and config.own_env_ranks > 1:
        raise ValueError(
            f"its environments have {config.env_ranks} ranks: mpirun -n {config.env_ranks} python -m dppo.evaluate RUN"
        )
    if group is None and "comm" in EnvMaker(config.env, config.env_kwargs, config.wrappers).takes:
        from dppo.run.command import own_comm

        comm = own_comm()
    given = Given(comm, group=group)
    at_end.callback(given.workdirs.remove_new)
    return given


def _play(
    policy: Policy, envs: VectorEnv, episodes: int, seed: int, *,
    stochastic: bool, max_steps: int, progress: Callable[[Progress], None],
) -> list[Played]:  # fmt: skip
    num_envs, together = envs.num_envs, max(1, len(envs.agents))
    seed_global_generators(seed)
    quota = np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)
    done: list[list[Played]] = [[] for _ in range(num_envs)]
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    observations = envs.reset()
    policy.reset()
    num_played = steps = 0
    while num_played < episodes:
        restarts = envs.restarts
        step = envs.step(policy.act(observations, stochastic=stochastic, mask=envs.masks))
        observations = step.observations
        plays = np.ones(num_envs, bool) if step.valid is None else step.valid
        returns += step.rewards
        lengths += plays
        steps += int(plays.sum())
        longest = int(lengths.max())
        over = np.flatnonzero(lengths >= max_steps) if longest >= max_steps else ()
        new = list(dict.fromkeys((*step.final_envs, *over)))
        policy.reset([*new, *np.flatnonzero(~plays)])
        begun: set[int] = set()
        for i in new:
            at_end = i in step.final_envs
            failed = envs.restarts > restarts and not step.terminations[i]
            if len(done[i]) < quota[i]:
                done[i].append(Played(float(returns[i]), int(lengths[i]), at_end and not failed))
                num_played += 1
            returns[i], lengths[i] = 0.0, 0
            if not at_end:
                begun.add(int(i) // together * together)
        for first in sorted(begun):
            observations = observations.copy()
            observations[first : first + together] = envs.begin_episode(first)
        progress(Progress(num_played, steps, longest))
    return [played for d in done for played in d]


def record(
    policy: Policy, episodes: int, seed: int, folder: Path, *, stochastic: bool, max_steps: int = MAX_STEPS,
    group: HeadLink | None = None,
) -> list[Path]:  # fmt: skip
    """Records `episodes` episodes, of `max_steps` at most, with Gymnasium's own recorder. Returns the MP4 files in
    `folder`, which are named after the environment.
    """
    with contextlib.ExitStack() as at_end:
        given = _given(policy.config, at_end, group)
        return _record(policy, episodes, seed, folder, given, stochastic=stochastic, max_steps=max_steps)


def _record(
    policy: Policy, episodes: int, seed: int, folder: Path, given: Given, *, stochastic: bool, max_steps: int
) -> list[Path]:
    before = set(folder.glob("*.mp4")) if folder.exists() else set()
    config = policy.config
    try:
        maker = find_maker(config.env, config.env_kwargs, config.wrappers, given, config.cases)
        env = maker.make(render_mode="rgb_array")
    except ValueError as error:
        raise _no_video(config.env, error) from error
    if agents_of(env):
        close_environments(env)
        raise UsageError(f"no video of {config.env}: videos are of single environments, not of agents of a simulator")
    try:
        recorder = gymnasium.wrappers.RecordVideo(
            env,
            str(folder),
            episode_trigger=lambda _: True,
            name_prefix="-".join([_file_name(config.env), *(case["name"] for case in config.cases)]),
            disable_logger=True,
        )
        seeds = EpisodeSeeds(seed, 0, 1, Purpose.EVALUATION)
        masks = Masks(MaskLayout(env.action_space), env.observation_space, 1)
        for _ in range(episodes):
            observation, info = recorder.reset(seed=seeds.next(0))
            policy.reset()
            for _ in range(max_steps):
                mask = masks.of(recorder, observation, info)
                action = policy.act(observation, stochastic=stochastic, mask=mask)
                observation, _, terminated, truncated, info = recorder.step(action)
                if terminated or truncated:
                    break
        env = recorder  # its close() completes the last file
    except (gymnasium.error.Error, TypeError) as error:
        raise _no_video(config.env, error) from error
    finally:
        close_environments(env)
    return sorted(set(folder.glob("*.mp4")) - before)


def _no_video(env_id: str, error: Exception) -> UsageError:
    return UsageError(f"no video of {env_id}: {error}; pip install 'dppo[video]' may help")


def _file_name(env_id: str) -> str:
    return env_id.split(":")[-1].replace("/", "-")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m dppo.evaluate", description="Plays episodes with a trained policy.")
    parser.add_argument("run_dir", type=Path, help="directory of the run")
    parser.add_argument("--episodes", type=integer, default=100, help="how many, of each case (default: %(default)s)")
    parser.add_argument("--case", metavar="NAME", help="one of the run's cases alone (default: all, one after another)")
    parser.add_argument("--seed", type=integer, default=0, help="of the episodes (default: %(default)s)")
    parser.add_argument(
        "--max-steps",
        type=integer,
        default=MAX_STEPS,
        help="of an episode; one that has not ended by then is cut, and reported apart (default: %(default)s)",
    )
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--video", type=Path, metavar="DIR", help="record up to three episodes as MP4 files in DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    from dppo.run.beside import all_programs, other_programs

    try:
        with contextlib.ExitStack() as at_end:
            programs = at_end.enter_context(other_programs())
            args = _parser().parse_args(argv)
            require("--episodes", args.episodes, at_least(1, 1e6))
            require("--seed", args.seed, SEED)
            require("--max-steps", args.max_steps, within(1, _MOST_STEPS))
            config = load_config(args.run_dir)
            if config.own_env_ranks == 1 and config.env != SOLVER and programs is None:
                return _evaluate(args, None)
            from dppo.run.evaluation import evaluate_on_ranks

            programs = programs or at_end.enter_context(all_programs())
            return evaluate_on_ranks(config, args.run_dir, programs, lambda group: _evaluate(args, group))
    except UsageError as error:
        print(f"dppo: {plain(error)}", file=sys.stderr)
        return EXIT_USAGE


def _evaluate(args: argparse.Namespace, group: HeadLink | None) -> int:
    """Plays the episodes and prints the result. Returns the exit code."""
    try:
        folder = None if args.video is None else args.video.absolute()  # an environment may leave this folder
        videos: list[Path] = []
        with printing_to_stderr():  # environments print as well, and standard output is for the result
            policy = load_policy(args.run_dir)
            by_case: dict[str, list[Played]] = {}
            for name, config in in_cases(policy.config, args.case).items():
                policy.config = config
                by_case[name] = _play_and_tell(policy, args, group)
                if folder is not None:
                    limits = {"stochastic": args.stochastic, "max_steps": args.max_steps}
                    videos += record(policy, min(args.episodes, 3), args.seed, folder, **limits, group=group)
    except UsageError as error:
        print(f"dppo: {plain(error)}", file=sys.stderr)
        return EXIT_USAGE
    played = [p for episodes in by_case.values() for p in episodes]
    out = figures(played)
    if cut := out["cut"]:
        has_failed = any(p.length < args.max_steps for p in played if not p.ended)
        print(
            f"dppo: {cut} of {len(played)} episodes did not end within {args.max_steps:,} steps (--max-steps)"
            f"{', or their environment failed' if has_failed else ''}: they are not in the figures; their mean return"
            f" until there is {out['cut_return_mean']:.2f}",
            file=sys.stderr,
        )
    by_name = {name: figures(episodes) for name, episodes in by_case.items() if name}
    if args.json:
        out |= {"max_steps": args.max_steps, "seed": args.seed, "env": policy.config.env, "env_steps": policy.env_steps}
        out |= {"cases": by_name} if by_name else {}
        print(json.dumps(out | ({"videos": [str(v) for v in videos]} if args.video else {})))
        return 0
    _show(policy, by_name, out, args, videos)
    return 0


def _play_and_tell(policy: Policy, args: argparse.Namespace, group: HeadLink | None) -> list[Played]:
    """Plays the episodes. If that takes a while, shows the progress on standard error: an episode may never end."""
    console, loud_from = Console(_INTERVAL_S, stream=sys.stderr), time.monotonic() + _SILENT_S

    def progress(now: Progress) -> None:
        if time.monotonic() >= loud_from and console.progress_due():
            console.progress(
                f"{now.played} of {args.episodes} episodes, {now.steps:,} steps; the longest under way has"
                f" {now.longest:,}, at {args.max_steps:,} it is cut (--max-steps)"
            )

    played = play_episodes(
        policy, args.episodes, args.seed, stochastic=args.stochastic, max_steps=args.max_steps, progress=progress,
        group=group,
    )  # fmt: skip
    console.done()
    return played


def _show(
    policy: Policy, by_case: dict[str, dict[str, Any]], total: dict[str, Any], args: argparse.Namespace,
    videos: list[Path],
) -> None:  # fmt: skip
    from rich.console import Console as RichConsole
    from rich.table import Column, Table

    how, names = "stochastic" if args.stochastic else "greedy", ("mean", "median", "min", "max")
    table = Table(*([Column("case")] if by_case else []), *(Column(name, justify="right") for name in names))
    for case, line in [*by_case.items(), *([("all", total)] if len(by_case) != 1 else [])]:
        numbers = ("-" if line[name] is None else f"{line[name]:.2f}" for name in names)
        table.add_row(*([case] if by_case else []), *numbers)
    console = RichConsole(markup=False, emoji=False)
    console.print(
        f"{plain(policy.config.env)}: returns of {total['ended']} {how} episodes, after {policy.env_steps:,} steps"
    )
    console.print(table)
    for video in videos:
        console.print(f"video: {plain(video)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
