"""The blocks of the documents are whole, and what they tell the reader to type works as far as it can be tried here."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from dppo import evaluate, export, report, sweep
from dppo.__main__ import COMMANDS
from dppo.config import Config
from dppo.errors import HelpShown
from dppo.settings.flags import parse
from dppo.settings.resolve import resolve
from dppo.settings.toml import to_toml
from dppo.trajectories.__main__ import _parser as trajectories_parser
from tests.test_docs import DOCUMENTS, ROOT, each_document, examples

LANGUAGES = ("", "c", "python", "sh", "toml", "{toctree}", "{eval-rst}")
"""The last two are of Sphinx, for the site."""
BY_HAND = (
    "MPICC=", "module load", "apptainer", "source", "python3 -m venv", "python -m build", "python -m pip", "docker ",
    "kubectl ", "ls ", "echo ", "dppo completion ",
)  # fmt: skip
"""Beginnings of commands that need a cluster, a network or a shell of one's own."""
LAUNCHERS = re.compile(r"^(mpirun|srun)( --with-ft ulfm)?( -n \d+)? (?=python |dppo )")


class Block(NamedTuple):
    document: Path
    line: int
    language: str
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """What stands between fences; fails where a fence is none."""
    opened: tuple[int, str, str] | None = None
    content: list[str] = []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if "```" not in line:
            content.append(line)
            continue
        fence = re.fullmatch(r"( *)```(\w*|\{[\w-]+\})", line)
        assert fence is not None, f"{document.name}:{number}: {line!r} is no fence: text has got into its line"
        indent, language = fence.groups()
        if opened is None:
            assert language in LANGUAGES, f"{document.name}:{number}: {language!r}"
            opened = (number, indent, language)
        else:
            assert (indent, language) == (opened[1], ""), f"{document.name}:{number}: closes the fence of {opened[0]}"
            assert content, f"{document.name}:{number}: the block is empty"
            yield Block(document, opened[0], opened[2], "\n".join(t.removeprefix(indent) for t in content) + "\n")
            opened = None
        content = []
    assert opened is None, f"{document.name}: the fence of line {opened} is never closed"


def commands() -> Iterator[str]:
    """Of all shell blocks, one a line."""
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    yield from (part.strip() for part in re.split(r"&&|\|\||(?<=\S) & ", line.partition("#")[0] + " "))


def plain(command: str) -> str:
    """The command after the launcher and variables before it, in its form for `python -m`."""
    command = LAUNCHERS.sub("", re.sub(r"^((?!MPICC)[A-Z_]+=\S* )+", "", command))
    return re.sub(rf"^dppo ({'|'.join(COMMANDS)})(?= |$)", r"python -m dppo.\1", command)


def each(beginning: str) -> list[str]:
    """The commands that begin so."""
    return sorted({command for command in map(plain, commands()) if command.startswith(beginning)})


@each_document
def test_every_block_is_whole_and_in_its_language(document: Path) -> None:
    checks: dict[str, Callable[[str], object]] = {
        "python": lambda text: compile(text, document.name, "exec"),
        "toml": tomllib.loads,
        "sh": lambda text: subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=10),
        "c": str,  # parts of programs
        "": str,
        "{toctree}": str,  # by `make docs`
        "{eval-rst}": str,
    }
    for block in blocks(document):
        checks[block.language](block.text)


def test_every_command_of_the_documents_is_known_here() -> None:
    """So that a new one is tried below, or said to be tried by hand."""
    known = (
        "python -m dppo.", "python -m mpi4py", "make ", "sbatch ", "jobs/", ".ci/run", "tensorboard ",
        "python examples/", *BY_HAND,
    )  # fmt: skip
    found = {plain(command) for command in commands()} - {"", "dppo"}
    assert [c for c in sorted(found) if not c.startswith(known) and " apptainer exec " not in c] == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: the files that the documents show, and a run."""
    for name, content in examples().items():
        (tmp_path / name).write_text(content)
    for name in ("NAME", "stopped"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.toml").write_text(to_toml(resolve(Config())))
    for name in ("jobs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_commands_that_train_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    tried = each("python -m dppo.run")
    assert len(tried) >= 8
    for command in tried:
        with suppress(HelpShown):
            parse(shlex.split(command)[3:])
    for command in [c for c in each("sbatch ") if "jobs/train" in c]:
        parse(shlex.split(command.partition(".sbatch")[2]))
    assert "usage" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_commands_that_look_at_runs_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    parsers = {
        "evaluate": evaluate._parser,
        "export": export._parser,
        "report": report._parser,
        "trajectories": trajectories_parser,
    }
    for name, make in parsers.items():
        tried = each(f"python -m dppo.{name} ")
        assert tried
        for command in tried:
            make().parse_args(shlex.split(command)[3:])
    tried = each("python -m dppo.sweep ")
    assert tried
    for command in tried:
        words = shlex.split(command)[3:]
        sweep._check(sweep._parser().parse_args(words))
        assert "--run" in words or sweep.main(words) == 0
    assert "sbatch --array" in capsys.readouterr().out


def test_modules_targets_and_scripts_that_commands_name_are_there() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    modules = set(re.findall(r"python -m (dppo(?:\.\w+)?)", text))
    assert modules and [name for name in modules if find_spec(name) is None] == []
    targets = {c.split()[1] for c in each("make ")} | set(re.findall(r"`make ([a-z-]+)", text))
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets and targets <= rules
    scripts = set(re.findall(r"(?<![\w/.-])(?:jobs|benchmarks|scripts|tests|\.ci)/[\w./-]*\w", text))
    assert scripts and [name for name in scripts if not (ROOT / name).exists()] == []
