"""The command dppo: what it lists, what it passes on, and what shells complete. Uses the fixture `launch`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dppo import __main__ as front
from dppo.errors import EXIT_FAILED
from dppo.settings.completion import SHELLS
from tests.fakeruns import write_run
from tests.launch import Launcher

ENV = """
import gymnasium
def make():
    return gymnasium.make("CartPole-v1")
"""
CONSOLE_SCRIPT = "import sys\nfrom dppo.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
"""What pip writes into bin/dppo."""
COMPLETE = """
source {script}
words=({words} "")
COMP_WORDS=("${{words[@]:0:{count}}}") COMP_CWORD=$(({count} - 1))
$(complete -p dppo | grep -o '_tyro_[a-z]*') dppo "${{COMP_WORDS[COMP_CWORD]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_commands_are_listed_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert front.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if line.startswith("  ")] == [*front.COMMANDS, front.COMPLETION]
        assert all(len(line) <= 80 for line in lines)


def test_the_module_of_each_command_is_a_program() -> None:
    for command in front.COMMANDS.values():
        spec = find_spec(command.module)
        assert spec is not None and spec.origin is not None
        path = Path(spec.origin)
        path = path if path.name != "__init__.py" else path.with_name("__main__.py")
        assert 'if __name__ == "__main__":' in path.read_text()


def test_a_command_whose_module_is_not_there_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(front.COMMANDS, "paint", front.Command("dppo.paint", "paint it"))
    assert front.main([]) == 0 and "paint" not in capsys.readouterr().out
    assert front.main(["paint"]) == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rum"], "rum: no such command; did you mean run?"),
        (["Evaluat", "runs/it"], "Evaluat: no such command; did you mean evaluate?"),
        (["--env", "Hopper-v5"], "--env: no such command; did you mean dppo run --env?"),
        (["my.toml"], "my.toml: no such command; did you mean dppo run my.toml?"),
        (["xyzzy"], "xyzzy: no such command; dppo lists them"),
        ([""], "no such command"),
        (["completion"], "SHELL"),
        (["completion", "csh"], "choose from"),
    ],
)
def test_wrong_use_is_one_message(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dppo: ") and err.count("\n") == 1 and meant in err


def test_what_a_command_prints_and_its_exit_code_are_passed_on(tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    asked = run("-m", "dppo", "run", "--version"), run("-m", "dppo.run", "--version"), run("-m", "dppo", "--version")
    assert len({one.stdout for one in asked}) == 1 and asked[0].stdout.startswith("dppo ")
    assert asked[0].stderr == ""
    wrong = run("-m", "dppo", "sweep", "none.toml"), run("-m", "dppo.sweep", "none.toml")
    assert wrong[0].returncode == wrong[1].returncode == 2 and wrong[0].stderr == wrong[1].stderr


def test_ranks_train_by_the_script_as_by_the_module(launch: Launcher, tmp_path: Path) -> None:
    """Environments are found in the current folder, as with python -m, and the metrics are the same."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dppo").write_text(CONSOLE_SCRIPT)
    (tmp_path / "mine.py").write_text(ENV)
    flags = ("--env", "mine:make", "--num-envs", 2, "--horizon", 16, "--total-steps", 64)
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(front.__file__).parents[1])}
    jobs = [
        launch.start(2, "run", *flags, "--run-dir", "a", program=str(tmp_path / "bin" / "dppo"), **threads),
        launch.start(2, *flags, "--run-dir", "b", **threads),
    ]
    for job in jobs:
        ended = job.wait(60)
        assert ended.code == 0, str(ended)
    lines = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("a", "b")]
    kept = [[{k: v for k, v in one.items() if not k.endswith("_s")} for one in run] for run in lines]
    assert kept[0] == kept[1] and kept[0]
    versions = [json.loads((tmp_path / run / "versions.json").read_text())["attempts"][0] for run in ("a", "b")]
    assert versions[0]["command"][0] == versions[1]["command"][0]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The completion of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with (folder / shell).open("w") as file, contextlib.redirect_stdout(file):
            assert front.main(["completion", shell]) == 0
    return {shell: folder / shell for shell in SHELLS}


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["re"], ["report"]),
        (["run", "--ppo.cli"], ["--ppo.clip", "--ppo.clip-schedule"]),
        (["run", "--mode", ""], ["sync", "async"]),
        (["evaluate", "--epi"], ["--episodes"]),
        (["trajectories", "exp"], ["export"]),
        (["trajectories", "export", "--dataset"], ["--dataset-id"]),
        (["completion", "fi"], ["fish"]),
        (["report", "runs/"], []),  # bash itself completes names of files
    ],
    ids=" ".join,
)
def test_bash_completes_commands_and_flags(words: list[str], completed: list[str], scripts: dict[str, Path]) -> None:
    quoted = " ".join(f"'{word}'" for word in ("dppo", *words))
    text = COMPLETE.format(script=scripts["bash"], words=quoted, count=1 + len(words))
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=20, check=True)
    assert sorted(done.stdout.split()) == sorted(completed), done.stderr
    assert "complete -o bashdefault -o default -F _tyro_dppo dppo" in scripts["bash"].read_text()


def test_other_shells_understand_their_completions(scripts: dict[str, Path]) -> None:
    zsh = scripts["zsh"].read_text()
    assert zsh.startswith("#compdef dppo") and '-z "$completions"' in zsh  # then it completes names of files
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", scripts["zsh"]], timeout=20, check=True)
    assert "--no-files" not in scripts["fish"].read_text()
    if shutil.which("fish"):
        ask = f"source {scripts['fish']}; complete -C 'dppo run --ppo.cli'"
        said = subprocess.run(["fish", "-c", ask], capture_output=True, text=True, timeout=20, check=True).stdout
        assert "--ppo.clip\t" in said


@pytest.mark.parametrize("words", [["dppo"], ["dppo", "--version"], ["dppo.run", "--help"], ["dppo.report", "RUN"]])
def test_a_command_whose_reader_has_left_ends_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    reading, writing = os.pipe()
    os.close(reading)
    given = [str(tmp_path / "run") if word == "RUN" else word for word in words]
    with open(writing, "wb") as nobody:
        ended = subprocess.run(
            [sys.executable, "-m", *given], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False, timeout=180
        )
    assert (ended.returncode, ended.stderr) == (EXIT_FAILED, "")
