"""python -m dppo.export: writes a trained policy as one ONNX file, which runs without dppo, Python or torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dppo.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, UsageError
from dppo.settings.commands import Parser, add_checkpoint, complain, plain, require, until_its_reader_leaves, within
from dppo.training.exported import NUM_OBSERVATIONS, TOLERANCE, CheckError, write_policy
from dppo.training.policy import load_policy


def _parser() -> Parser:
    parser = Parser(prog="python -m dppo.export", description="Writes a trained policy as one ONNX file.")
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="directory of the run")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("policy.onnx"), help="(default: %(default)s)"
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--stochastic", action="store_true", help="sample actions, from an input, instead of taking the most probable"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="DIFFERENCE",
        help="the largest difference from the policy that is accepted, relative to an output's largest number"
        " (default: %(default)s)",
    )  # fmt: skip
    return parser


@until_its_reader_leaves
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        require("--tolerance", args.tolerance, within(0, 1))
        _check_output(args.output)
        policy = load_policy(args.run_dir, args.checkpoint)
        size, worst = write_policy(policy, args.output, stochastic=args.stochastic, tolerance=args.tolerance)
    except UsageError as error:
        complain(error)
        return EXIT_USAGE
    except CheckError as error:
        complain(f"{args.output} was not written: {error}")
        return EXIT_FAILED
    except OSError as error:
        complain(f"{args.output} cannot be written: {error}")
        return EXIT_FAILED
    print(
        f"{plain(args.output)}: {plain(policy.config.env)} after {policy.env_steps:,} steps,"
        f" {'sampled' if args.stochastic else 'greedy'} actions, {size:,} bytes; on {NUM_OBSERVATIONS:,}"
        f" observations onnxruntime differs from the policy by at most {worst.size:.1e} (in {worst.where})"
    )
    return EXIT_FINISHED


def _check_output(path: Path) -> None:
    """Raises UsageError where no file can be written."""
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise UsageError(f"-o {path} is no file: name the file to write, such as policy.onnx")
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: there is no folder {path.parent}: make it first")


if __name__ == "__main__":
    sys.exit(main())
