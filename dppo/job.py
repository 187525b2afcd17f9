"""python -m dppo.job: the batch scripts that come with the package, copied to a folder of your own.

Whoever installed dppo with pip has no checkout to take `jobs/` from.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dppo.errors import EXIT_USAGE, UsageError
from dppo.settings.commands import Parser

SCRIPTS = Path(__file__).parent / "cluster" / "jobs"
"""In a checkout a link to its `jobs/`, in an installed package a folder."""


def copy_scripts(folder: Path) -> list[Path]:
    """Copies the batch scripts into `folder`, which is made. Returns the copies.

    Raises:
      UsageError: a file of that name is there already, or the folder cannot be written to; nothing was copied then.
    """
    sources = sorted(path for path in SCRIPTS.iterdir() if path.is_file())
    if held := [path.name for path in sources if (folder / path.name).exists()]:
        raise UsageError(f"{folder} has {', '.join(held)} already: move them away, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copies = [Path(shutil.copyfile(path, folder / path.name)) for path in sources]
        for copy in copies:
            if copy.read_bytes().startswith(b"#!"):
                copy.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to: {error.strerror}: choose another folder") from error
    return copies


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = Parser(prog="python -m dppo.job", description="Copies dppo's batch scripts, for you to change.")
    parser.add_argument("--copy", type=Path, required=True, metavar="FOLDER", help="where the copies go, such as jobs")
    try:
        copies = copy_scripts(parser.parse_args(argv).copy)
    except UsageError as error:
        print(f"dppo: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"{len(copies)} files in {copies[0].parent}: {', '.join(path.name for path in copies)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
