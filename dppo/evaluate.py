"""python -m dppo.evaluate: plays episodes with a trained policy. In notebooks, `load_policy` loads one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from dppo.config import SEED, SOLVER
from dppo.console import Console, plain
from dppo.envs.given import Given
from dppo.envs.group_link import HeadLink
from dppo.envs.groups import find_maker
from dppo.envs.masks import MaskLayout, Masks
from dppo.envs.process import printing_to_stderr
from dppo.envs.simulators import agents_of
from dppo.errors import EXIT_USAGE, UsageError
from dppo.seeding import EpisodeSeeds, Purpose, seed_global_generators
from dppo.settings.commands import Parser, add_checkpoint, at_least, integer, require, until_its_reader_leaves, within
from dppo.settings.toml import load_config
from dppo.training.build import close_environments
from dppo.training.evaluator import serve
from dppo.training.played import Played, figures, in_cases
from dppo.training.playing import MAX_STEPS, Player, Progress, given_to_play
from dppo.training.policy import Policy, load_policy

_MOST_STEPS = 10**9
_SILENT_S, _INTERVAL_S = 2.0, 10.0
"""Seconds until an evaluation shows progress, and between two lines of it where no person watches."""


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

    Args:
      group: the other ranks of which each environment consists; None: there are none.

    Raises:
      UsageError: the environment cannot be made, or is not the one that the policy was trained in.
    """
    # before the environments are made: a constructor may draw from them
    seed_global_generators(seed)
    with contextlib.ExitStack() as at_end:
        try:
            given = given_to_play(policy.config, at_end, _own_comm, group)
            player = Player(policy.config, episodes, given)
        except ValueError as error:
            raise UsageError(str(error)) from error
        at_end.callback(player.close)
        return player.play(policy, seed, stochastic=stochastic, max_steps=max_steps, progress=progress)


def _own_comm() -> Any:
    from dppo.run.command import own_comm

    return own_comm()


def play_beside_a_run(run_dir: str, episodes: int) -> None:
    """Is the process beside rank 0 that plays evaluations while training; training/evaluator.py starts it."""
    with open(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)  # environments print as well
        serve(Path(run_dir), episodes, _own_comm, sys.stdin.buffer, answers)


def record(
    policy: Policy, episodes: int, seed: int, folder: Path, *, stochastic: bool, max_steps: int = MAX_STEPS,
    group: HeadLink | None = None,
) -> list[Path]:  # fmt: skip
    """Records `episodes` episodes, of `max_steps` at most, with Gymnasium's own recorder. Returns the MP4 files in
    `folder`, which are named after the environment.
    """
    with contextlib.ExitStack() as at_end:
        given = given_to_play(policy.config, at_end, _own_comm, group)
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
    add_checkpoint(parser)
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


@until_its_reader_leaves
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
            policy = load_policy(args.run_dir, args.checkpoint)
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
