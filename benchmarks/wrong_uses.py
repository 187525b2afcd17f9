"""What is a user told who uses environments on several ranks, or dppo.h, in a wrong way?

    PYTHONPATH=. .venv/bin/python benchmarks/wrong_uses.py [--at-once 3] [--only NAME ...]

Starts each wrong use of tests/wrong_uses.py, which lists them with the code and the words that must come. A use that is
still running after 150 s, or leaves a process behind, has failed. Prints a table and writes it to
benchmarks/results/wrong_uses.{md,json}; with --only, the rows of other names stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import machine, markdown_table, save, stored

from tests.launch import PROGRAMS
from tests.wrong_uses import C_API, GROUPS, Use, build, problem, start


def line_of(use: Use, text: str) -> str:
    """The line that tells it, without what differs between machines."""
    line = next((line for line in text.replace("\0", "").splitlines() if use.said in line), "")
    return line.strip().removeprefix("dppo: ")[:300].replace("|", "\\|")


def go_through(use: Use, built: Path) -> dict[str, Any]:
    """Runs a use. Returns its code, the line that the user is told, and what is wrong with that."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = start(use, Path(folder), built)
        except AssertionError as error:
            return {"code": "-", "told": "", "problem": str(error)}
        wrong = problem(use, ended)
        told = line_of(use, ended.stderr).replace(folder, "").replace(str(PROGRAMS.parents[2]), "")
        return {"code": ended.code, "told": told, "problem": f"{wrong}: {ended}" if wrong else ""}


def report(rows: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    """The tables as a document."""
    parts = [
        f"# Wrong uses of groups and of dppo.h\n\n`benchmarks/wrong_uses.py`; {machine()}.\n\nEach row was started as"
        " tests/wrong_uses.py says. It ended by itself, left no process behind, and told the user what the last column"
        " says; where the code is 2, that is dppo's only line. ULFM: under `mpirun --with-ft ulfm`.\n"
    ]
    for title, table in rows.items():
        lines = [(name, row["code"], row["told"] or row["problem"][:60]) for name, row in table.items()]
        parts.append(f"\n## {title}\n\n{markdown_table(('use', 'code', 'told'), lines)}")
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.at_once) as pool:
        build(Path(folder))
        for title, uses in (("Environments in Python on several ranks", GROUPS), ("Programs beside dppo", C_API)):
            chosen = {name: use for name, use in uses.items() if arguments.only is None or name in arguments.only}
            found = pool.map(lambda use: go_through(use, Path(folder)), chosen.values())
            before = stored("wrong_uses").get(title, {})
            rows[title] = {name: before[name] for name in uses if name in before}
            for name, row in zip(chosen, found, strict=True):
                rows[title][name] = row
                print(f"{name}: {row['problem'] or row['told']}", flush=True)
    wrong = [name for table in rows.values() for name, row in table.items() if row["problem"]]
    print(f"{sum(map(len, rows.values()))} uses, {len(wrong)} not as they should be: {', '.join(wrong)}")
    save("wrong_uses", report(rows), rows)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
