"""The documents say what the code does: keys, flags, places in the code and links that they name exist, examples run.

Uses the fixture `launch`; reads README.md, CHANGELOG.md, CONTRIBUTING.md and docs/.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dppo.evaluate import _parser as evaluate_parser
from dppo.export import _parser as export_parser
from dppo.report import _parser as report_parser
from dppo.settings.flags import flag_names
from dppo.sweep import _parser as sweep_parser
from dppo.trajectories.__main__ import _parser as trajectories_parser
from tests.launch import Launcher
from tests.parts import probe

ROOT = Path(__file__).parent.parent
README, METRICS = ROOT / "README.md", ROOT / "docs" / "metrics.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 200
SHORT = ("--num-envs", 2, "--horizon", 16, "--total-steps", 64)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
FLAGS_OF_OTHERS = {
    "mpirun": {
        "bind-to",
        "host",
        "hostfile",
        "map-by",
        "mca",
        "oversubscribe",
        "report-bindings",
        "version",
        "with-ft",
    },
    "sbatch": {"array", "batch", "cpus-per-task", "exclusive", "gpus-per-node", "hint", "nodes", "ntasks"}
    | {"ntasks-per-node", "requeue", "signal", "time"},
    "srun": {"cpu-bind", "distribution", "list", "mpi", "multi-prog", "nodelist"},
    "dppo.job": {"copy", "include", "kill-after-s", "openmpi", "place-groups"},
    "dppo.verdict": {"begin"},
    "docker": {"file", "tag"},
    "examples": {"picture"},
    "kubectl": {"filename", "follow"},
    "mpi4py": {"mpi-lib-version"},
    "pip": {"cache-dir", "no-binary"},
    "tensorboard": {"logdir"},
}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def examples() -> dict[str, str]:
    """The files that the documents show: blocks that begin with the file's name in a comment."""
    found = [
        pair
        for document in DOCUMENTS
        for pair in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", document.read_text(), re.DOTALL)
    ]
    assert len(dict(found)) == len(found), "two examples have the same name"
    return dict(found)


def anchors(document: Path) -> set[str]:
    """The headings of a document as a link names them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(text: str, heading: str) -> str:
    """What stands below `## heading`, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading!r}"
    return found[1]


def table_keys(text: str, header: str = "key") -> set[str]:
    """First column of the tables whose first column is called `header`."""
    keys: set[str] = set()
    for table in re.findall(rf"^\| `?{header}`? \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            keys |= set(re.findall(r"`([^`]+)`", row.split("|")[1]))
    return keys


def test_every_key_of_a_run_is_explained_and_every_explained_key_is_written(launch: Launcher, tmp_path: Path) -> None:
    schedules = ("--ppo.clip-schedule", "linear", "--ppo.entropy-schedule", "cosine")
    modes = {
        "allreduce": ("--mode", "sync", "--exchange", "allreduce"),
        "p2p": ("--mode", "sync", "--exchange", "p2p", "--ppo.objective", "kl", "--cases", '{name="only"}', *schedules),
        "async": ("--mode", "async"),
    }
    modes["p2p"] += ("--eval.every", 32, "--eval.episodes", 1)
    jobs = [
        launch.start(None, "--env", "CartPole-v1", "--run-dir", name, *SHORT, *flags, **ONE_THREAD)
        for name, flags in modes.items()
    ]
    for job in jobs:
        ended = job.wait(60)
        assert ended.code == 0, str(ended)
    metrics: set[str] = set()
    for name in modes:
        for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines():
            metrics |= set(json.loads(line))
    summary = json.loads((tmp_path / "async" / "summary.json").read_text())
    (attempt,) = json.loads((tmp_path / "async" / "versions.json").read_text())["attempts"]

    evaluations = [json.loads(line) for line in (tmp_path / "p2p" / "evaluations.jsonl").read_text().splitlines()]

    text = METRICS.read_text()
    assert table_keys(section(text, "evaluations.jsonl")) == {key for line in evaluations for key in line}
    assert table_keys(section(text, "metrics.jsonl")) == metrics
    assert table_keys(section(text, "summary.json")) == set(summary)
    assert table_keys(section(text, "versions.json")) == set(attempt)
    clocks = {key for key in metrics if key.endswith("_s")}
    assert clocks == table_keys(section(text, "metrics.jsonl").partition("### Time\n")[2])


@each_document
def test_every_flag_exists(document: Path) -> None:
    evaluate = {option.removeprefix("--") for option in evaluate_parser()._option_string_actions}
    report = {option.removeprefix("--").removeprefix("no-") for option in report_parser()._option_string_actions}
    sweep = {option.removeprefix("--") for option in sweep_parser()._option_string_actions}
    export = {option.removeprefix("--") for option in export_parser()._option_string_actions}
    (commands,) = (a for a in trajectories_parser()._actions if isinstance(a, argparse._SubParsersAction))
    trajectories = {option.removeprefix("--") for c in commands.choices.values() for option in c._option_string_actions}
    known = {
        *flag_names(),
        "help",
        *evaluate,
        *export,
        *report,
        *sweep,
        *trajectories,
        *(flag for flags in FLAGS_OF_OTHERS.values() for flag in flags),
    }
    text = document.read_text()
    named = re.findall(r"(?<![\w-])--([a-z][a-z0-9.-]*[a-z0-9])", text)
    # --log.* and the like name a whole section
    sections = set(re.findall(r"(?<![\w-])--([a-z0-9]+)\.\*", text))
    assert sections <= {name.partition(".")[0] for name in flag_names() if "." in name}
    positive = [re.sub(r"(^|\.)no-(?!binary)", r"\1", name) for name in named if name not in sections]
    assert [name for name in positive if name not in known] == []


@each_document
def test_every_place_in_the_code_exists(document: Path) -> None:
    wrong = []
    for file, name in re.findall(r"`([\w/]+\.py): ([\w.]+)`", document.read_text()):
        path = ROOT / "dppo" / file
        if not path.is_file() or name not in definitions(path):
            wrong.append(f"{file}: {name}")
    assert wrong == []


def definitions(path: Path) -> set[str]:
    """Functions and classes of a module, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{child.name}" for child in inner if isinstance(child, ast.FunctionDef)}
    return names


@each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|<img [^>]*src=\"([^\"]+)\"", document.read_text())
    local = [link for pair in links for link in pair if link and not link.startswith("http")]
    assert [link for link in local if not (document.parent / link).exists()] == []


@each_document
def test_every_link_to_another_site_is_one(document: Path) -> None:
    """By its form alone: the tests need no network."""
    for link in re.findall(r"\]\((\w+:[^)]*)\)", document.read_text()):
        parts = urlsplit(link)
        assert (
            parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc) and not re.search(r"\s", link)
        ), link


@each_document
def test_every_link_to_a_heading_finds_it(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]*\.md)?#([^)]*)\)", document.read_text())
    targets = [(document.parent / file if file else document, heading) for file, heading in links]
    assert [f"{file.name}#{heading}" for file, heading in targets if heading not in anchors(file)] == []


def test_the_readme_is_short_and_links_every_document() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= README_LINES
    names = [str(document.relative_to(ROOT)) for document in DOCUMENTS if document != README]
    assert [name for name in names if f"]({name})" not in text] == []


def test_the_details_are_numbered_without_a_gap() -> None:
    numbers = re.findall(r"^(\d+)\. \*\*", (ROOT / "docs" / "algorithms.md").read_text(), re.MULTILINE)
    assert numbers == [str(i + 1) for i in range(len(numbers))]


def test_the_examples_of_the_documents_run(launch: Launcher, tmp_path: Path) -> None:
    files = examples()
    networks = {"my_net.py", "my_parts.py", "my_memory.py"}
    plays = {"play_it.py", "play_many.py", "use_it.py"}
    environments = {"my_sim.py", "my_jets.py", "my_valve.py", "my_stack.py"}
    assert set(files) == {"pendulum.toml", "train_it.py", "plateau.py", *environments, *plays, *networks}
    for name, content in files.items():
        (tmp_path / name).write_text(content.replace("total_steps=100_000", "total_steps=2_000"))
    own = launch.start(
        None,
        "--env",
        "my_sim:Thermostat-v0",
        "--model.factory",
        "my_net:Shared",
        "--run-dir",
        "own",
        *SHORT,
        **ONE_THREAD,
    )
    parts = ("--env", probe("Inputs"), "--model.factory", "my_parts:Fused")
    fused = launch.start(None, *parts, "--run-dir", "fused", *SHORT, **ONE_THREAD)
    remembers = ("--model.factory", "my_memory:Remembers", "--ppo.minibatches", 2)  # two sequences of two environments
    memory = launch.start(None, *remembers, "--run-dir", "memory", *SHORT, **ONE_THREAD)
    config = launch.start(None, "pendulum.toml", "--dry-run", **ONE_THREAD)
    made = ["--env", "my_sim:Thermostat", "--wrappers", "my_sim:limited", "--env-kwargs", "noise=0.2"]
    unregistered = launch.start(None, *made, "--dry-run", **ONE_THREAD)
    jets = ("--env", "my_jets:Jets", "--env-kwargs", "jets=12", "--num-envs", 24)
    agents = launch.start(None, *jets, "--dry-run", **ONE_THREAD)
    valve = launch.start(None, "--env", "my_valve:Valve", "--run-dir", "runs/valve", *SHORT, **ONE_THREAD)
    stack = launch.start(None, "--env", "my_stack:Stack", "--run-dir", "stack", *SHORT, **ONE_THREAD)
    train = launch.start(None, program=str(tmp_path / "train_it.py"), **ONE_THREAD)
    stops = launch.start(None, program=str(tmp_path / "plateau.py"), **ONE_THREAD)
    for job in (own, fused, memory, config, unregistered, agents, train, stops, valve, stack):
        ended = job.wait(60)
        assert ended.code == 0, str(ended)
    for job in [launch.start(None, program=str(tmp_path / name), **ONE_THREAD) for name in sorted(plays)]:
        played = job.wait(60)
        assert played.code == 0, str(played)
