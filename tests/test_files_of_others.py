"""Every command on a run that somebody else has made, or has spoilt: it says what is wrong, or does what is right."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from dppo import evaluate, report, verdict
from dppo.console import Console
from dppo.errors import UsageError
from dppo.run import preflight, setup
from dppo.settings.flags import parse
from dppo.training.build import build_parts
from dppo.trajectories import __main__ as trajectories
from tests.launch import Launcher

SECONDS = 2.0
"""A command takes milliseconds here; what hangs, or reads gigabytes, takes longer than this."""
SECRET = "root:x:0:0:a-secret-of-somebody"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with a dump and its index."""
    folder = tmp_path_factory.mktemp("sound")
    launcher = Launcher(folder)
    launcher.run(
        None, "--env", "CartPole-v1", "--num-envs", 2, "--horizon", 16, "--total-steps", 256, "--run-dir", "run",
        "--trajectories.enabled", "--checkpoint.every", 64, "--ppo.epochs", 1, "--ppo.minibatches", 1,
        "--model.hidden", 8,
    )  # fmt: skip
    launcher.close()
    assert trajectories.main(["index", str(folder / "run")]) == 0
    assert verdict.main([str(folder / "run")]) == 0
    (folder / "secret").write_text(SECRET)
    return folder / "run"


@pytest.fixture
def run_dir(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "run")
    shutil.copy(sound.parent / "secret", tmp_path / "secret")
    return tmp_path / "run"


def resume(run_dir: Path) -> int:
    """Everything that a resume does before it writes."""
    try:
        config, _ = parse(["--resume", "--run-dir", str(run_dir), "--total-steps", "512"])
        plan = setup.plan(config, MPI.COMM_SELF, Console(60.0), is_complete=True)
        assert isinstance(plan, preflight.Plan)
        place = build_parts(plan.config, 0)
        setup.check_saved(plan, place, MPI.COMM_SELF)
        setup.saved_replays(plan.saved, [0], plan.config.num_envs)
    except UsageError as error:
        print(f"dppo: {error}", file=sys.stderr)
        return 2
    return 0


COMMANDS: dict[str, Callable[[Path], int]] = {
    "evaluate": lambda run_dir: evaluate.main([str(run_dir), "--episodes", "1"]),
    "report": lambda run_dir: report.main([str(run_dir), "--no-plot"]),
    "curve": lambda run_dir: report.main([str(run_dir)]),
    "verdict": lambda run_dir: verdict.main([str(run_dir)]),
    "begin": lambda run_dir: verdict.main([str(run_dir), "--begin"]),
    "resume": resume,
    "info": lambda run_dir: trajectories.main(["info", str(run_dir)]),
    "validate": lambda run_dir: trajectories.main(["validate", str(run_dir)]),
    "export": lambda run_dir: trajectories.main(["export", str(run_dir), "--to", "csv"]),
    "plot": lambda run_dir: trajectories.main(["plot", str(run_dir), "-o", str(run_dir.parent / "x.png")]),
    "index": lambda run_dir: trajectories.main(["index", str(run_dir)]),
    "check": lambda run_dir: trajectories.main(["index", str(run_dir), "--check"]),
}
CHECKPOINT, SEGMENT = "checkpoints/step_000000256/", "trajectories/rank_00000/seg_000000.h5"
READERS: dict[str, list[str]] = {
    "config.toml": ["evaluate", "report", "resume"],
    "metrics.jsonl": ["curve", "resume"],
    "summary.json": ["report", "verdict", "resume"],
    "versions.json": ["resume"],
    "starts.jsonl": ["verdict", "begin"],
    "checkpoints/latest": ["verdict", "resume"],
    "spaces.json": ["evaluate"],
    CHECKPOINT + "manifest.json": ["resume", "validate"],
    CHECKPOINT + "state.safetensors": ["evaluate", "resume"],
    CHECKPOINT + "rank_00000.safetensors": ["resume", "validate"],
    SEGMENT: ["info", "validate", "export"],
    "trajectories/index.h5": ["check", "index"],
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x41
    path.write_bytes(data)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def nested(path: Path) -> None:
    depth = 20_000
    path.write_text(
        "a = " + "[" * depth + "]" * depth if path.suffix == ".toml" else '{"a":' * depth + "1" + "}" * depth
    )


def of_wrong_types(path: Path) -> None:
    """Every value of a text file that is not a table is another thing."""

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: other(part) for key, part in value.items()}
        return [[["x"]], -1] if isinstance(value, str) else "x" if value is None else {"x": [1e999, None]}

    if path.suffix == ".toml":
        path.write_text(
            "\n".join(f"{line.split(' = ')[0]} = [[1]]" for line in path.read_text().splitlines() if "=" in line)
        )
    elif path.suffix in (".json", ".jsonl"):
        lines = [other(json.loads(line)) for line in ([path.read_text()] if path.suffix == ".json" else path.open())]
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    else:
        path.write_bytes(b"\x89HDF\r\n\x1a\n" * 200)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "pipe": instead(os.mkfifo),
    "device": instead(lambda path: path.symlink_to("/dev/zero")),
    "link": instead(
        lambda path: path.symlink_to(path.parents[len(path.parts) - path.parts.index("run") - 1] / "secret")
    ),
    "loop": instead(lambda path: path.symlink_to(path)),
    "folder": instead(os.mkdir),
    "giant": instead(lambda path: (path.touch(), os.truncate(path, 10 * 2**30))),
    "nested": nested,
    "types": of_wrong_types,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 40),
}


@pytest.fixture
def limited() -> Iterator[None]:
    """What hangs is ended."""

    def end(number: int, frame: Any) -> None:
        raise AssertionError("it hangs:\n" + "".join(traceback.format_stack(frame)[-8:]))

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 120)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def call(name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that is quick, and says what is wrong in one line."""
    before = time.process_time()
    code = COMMANDS[name](run_dir)
    assert time.process_time() - before < SECONDS, name
    out, err = capsys.readouterr()
    assert code in (0, 1, 2, 75), (name, code)
    assert "Traceback" not in out + err and SECRET not in out + err, (name, err)
    assert all(line.startswith("dppo: ") for line in err.splitlines()), (name, err)
    if code == 2:
        assert len(err.splitlines()) == 1, (name, err)
    if code:
        assert out or err, name
    return code, out, err


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_what_it_should_be(run_dir: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    again = run_dir.parent / "again" / "run"
    for name, commands in READERS.items():
        for command in commands:
            shutil.copytree(run_dir, again)
            shutil.copy(run_dir.parent / "secret", again.parent)
            DAMAGES[damage](again / name)
            code, out, err = call(command, again, capsys)
            refused = damage in ("pipe", "device", "link", "loop", "folder", "giant")
            if refused and (name, command, damage) != ("metrics.jsonl", "resume", "giant"):  # its lines are kept
                assert Path(name).name in out + err, (name, command, code, out, err)
            assert not [made for made in again.parent.rglob("*.csv") if SECRET in made.read_text()]
            shutil.rmtree(again.parent)


def test_undamaged_it_is_all_right(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        code, _, err = call(name, run_dir, capsys)
        assert (code, err) == (0, ""), name


# -- HDF5 that leads elsewhere --------------------


def external(file: h5py.File, secret: Path) -> None:
    shape = file["steps/actions"].shape
    del file["steps/actions"]
    file.create_dataset(
        "steps/actions", (*shape[:1], *shape[1:]), "u1", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.parent / "other.h5", "w") as other:
        other["x"] = np.zeros(file["steps/rewards"].shape, np.float32)
    layout = h5py.VirtualLayout(file["steps/rewards"].shape, np.float32)
    layout[:] = h5py.VirtualSource(str(secret.parent / "other.h5"), "x", file["steps/rewards"].shape)
    del file["steps/rewards"]
    file.create_virtual_dataset("steps/rewards", layout)


def replaced(name: str, **how: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, secret: Path) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return change


def linked(link: Callable[[Path], Any], name: str = "steps/rewards") -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, secret: Path) -> None:
        del file[name]
        file[name] = link(secret)

    return change


def attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["run_id"] = ["x" * 1000] * 1000


def endless(file: h5py.File, secret: Path) -> None:
    file["steps/again"] = file["/"]


def many(file: h5py.File, secret: Path) -> None:
    for number in range(1200):
        file[f"more/{number}"] = h5py.SoftLink("/steps")


def bomb(file: h5py.File, secret: Path) -> None:
    """16 GiB of zeros, all of them written, in 16 MiB."""
    del file["steps/rewards"]
    dataset = file.create_dataset(
        "steps/rewards", (2**31, 2), np.float32, chunks=(2**22, 1), compression="gzip", shuffle=True
    )
    chunk = zlib.compress(bytes(2**24))
    for row in range(0, 2**31, 2**22):
        for env in range(2):
            dataset.id.write_direct_chunk((row, env), chunk)


BIG = (2**40, 2)
LEADING: dict[str, Callable[[h5py.File, Path], None]] = {
    "external storage": external,
    "virtual": virtual,
    "external link": linked(lambda secret: h5py.ExternalLink(str(secret.parent / "other.h5"), "x")),
    "soft link": linked(lambda _: h5py.SoftLink("/steps/values")),
    "external group": linked(lambda secret: h5py.ExternalLink(str(secret.parent / "other.h5"), "/"), "final"),
    "sparse": replaced("steps/rewards", shape=BIG, dtype=np.float32, chunks=(1024, 1)),
    "sparse and compressed": replaced(
        "steps/rewards", shape=BIG, dtype=np.float32, chunks=(1024, 1), compression="gzip"
    ),
    "sparse rows": replaced("steps/row", shape=(2**40,), dtype=np.int64, chunks=(1024,)),
    "contiguous and never written": replaced("steps/rewards", shape=BIG, dtype=np.float32),
    "bomb": bomb,
    "other filter": replaced("steps/rewards", data=np.zeros((2**16, 2), np.float32), compression="lzf"),
    "texts": replaced("steps/rewards", shape=(8, 2), dtype=h5py.string_dtype()),
    "references": replaced("steps/rewards", shape=(8, 2), dtype=h5py.ref_dtype),
    "list of texts": replaced("config_json", data=["{}"] * 1000, dtype=h5py.string_dtype()),
    "nothing": replaced("steps/rewards", data=h5py.Empty("f4")),
    "attribute": attribute,
    "endless": endless,
    "many": many,
}


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("name", LEADING)
def test_a_segment_that_leads_elsewhere_or_is_a_bomb(
    run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(run_dir / SEGMENT, "r+") as file:
        LEADING[name](file, run_dir.parent / "secret")
    for command in ("info", "validate", "export", "plot", "index"):
        code, out, err = call(command, run_dir, capsys)
        if command != "validate":
            assert code == 2 and "seg_000000.h5" in err, (command, code, out, err)
        if command == "validate":
            assert code == 1 and "seg_000000.h5" in out
    assert not list(run_dir.glob("*.csv"))


@pytest.mark.usefixtures("limited")
def test_an_index_that_leads_to_a_pipe(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, pipe = run_dir / "trajectories/index.h5", run_dir.parent / "pipe"
    os.mkfifo(pipe)
    with h5py.File(index, "r+") as file:
        del file["rank_00000"]
        file["rank_00000"] = h5py.ExternalLink(str(pipe), "/")
    code, _, err = call("check", run_dir, capsys)
    assert code == 2 and "index.h5" in err
    code, _, err = call("index", run_dir, capsys)
    assert code == 2 and "index.h5 is no index that dppo has written" in err


@pytest.mark.parametrize(
    "name, values",
    [
        ("steps/rewards", np.full((8, 2), "a", h5py.string_dtype())),
        ("steps/observations", np.zeros((8, 2, 4), "S3")),
        ("steps/terminations", np.zeros((8, 2))),
        ("steps/values", np.zeros(8, np.float32)),
        ("episodes/return", np.zeros((3, 2))),
    ],
)
def test_a_segment_of_wrong_types_is_one_message(
    name: str, values: np.ndarray, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(run_dir / SEGMENT, "r+") as file:
        del file[name]
        file[name] = values
    for command in ("info", "export", "plot"):
        code, _, err = call(command, run_dir, capsys)
        assert code == 2 and name.split("/")[1] in err, (command, err)


def test_a_space_that_is_none_is_found(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(run_dir / SEGMENT, "r+") as file:
        del file["observation_space"]
        file["observation_space"] = '{"type": "Box"}'
    code, out, _ = call("validate", run_dir, capsys)
    assert code == 1 and "observation_space: no space" in out


def test_an_index_whose_sources_lie_elsewhere(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = run_dir / "trajectories/index.h5"
    index.unlink()
    with h5py.File(index, "w") as file:
        layout = h5py.VirtualLayout((4,), np.float32)
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
        file.create_virtual_dataset("rank_00000/steps/rewards", layout)
    code, _, err = call("check", run_dir, capsys)
    assert code == 1 and "/etc/passwd is none of the dump's segments" in err


def test_a_run_directory_may_be_a_link_and_its_parts_may_not(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = run_dir.parent / "link"
    link.symlink_to(run_dir)
    for name in ("evaluate", "report", "verdict", "resume", "info", "validate", "check"):
        code, _, err = call(name, link, capsys)
        assert (code, err) == (0, ""), name
    for part, commands in {"checkpoints": ("evaluate", "resume"), "trajectories": ("info", "export")}.items():
        os.rename(run_dir / part, run_dir.parent / part)
        (run_dir / part).symlink_to(run_dir.parent / part)
        for name in commands:
            code, _, err = call(name, run_dir, capsys)
            assert code == 2 and "outside of" in err, (name, err)


# -- right checksums, wrong contents --------------------


def forged(run_dir: Path, **changes: Any) -> None:
    """The newest checkpoint with other values in its environments."""
    from dataclasses import replace

    from dppo.rundir.checkpoint import checkpoint_folders, read_checkpoint, write_checkpoint

    saved = read_checkpoint(checkpoint_folders(run_dir)[0])
    saved.ranks = {
        rank: (row, [replace(e, **{name: change(getattr(e, name)) for name, change in changes.items()}) for e in envs])
        for rank, (row, envs) in saved.ranks.items()
    }
    write_checkpoint(run_dir, saved, keep=1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"actions": lambda a: a + 7}, "actions of environment 0 are none of Discrete(2)"),
        ({"actions": lambda a: a.astype(float)}, "actions of environment 0 are none of Discrete(2)"),
        ({"actions": lambda a: np.zeros((3, 2), np.int64)}, "actions of environment 0 are none of Discrete(2)"),
        ({"observation": lambda o: o[:2]}, "observation of environment 0 is an array of float32 (2,)"),
        ({"observation": lambda o: o.astype(np.complex64)}, "observation of environment 0"),
        ({"env": lambda _: 3}, "an environment is there twice"),
        ({"episode_return": lambda _: np.nan}, "episode_return holds numbers that are not finite"),
    ],
    ids=["range", "type", "shape", "observation", "complex", "twice", "nan"],
)
def test_environments_that_are_not_of_this_run(
    run_dir: Path, changes: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forged(run_dir, **changes)
    code, _, err = call("resume", run_dir, capsys)
    assert code == 2 and expected in err, err


def test_another_network(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_dir / "config.toml"
    config.write_text(re.sub(r"(hidden = \[\s*)8\b", r"\g<1>9", config.read_text()))
    for name in ("resume", "evaluate"):
        code, _, err = call(name, run_dir, capsys)
        assert code == 2 and "holds a network of" in err, name


def test_a_run_of_an_earlier_dppo(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run_dir / "checkpoints").glob("step_*"):
        for file in folder.glob("*.safetensors"):
            file.rename(file.with_suffix(".pt"))
        (folder / "manifest.json").write_text('{"format": 1, "next_segments": {"0": 2}}')
    for name in ("resume", "evaluate"):
        code, _, err = call(name, run_dir, capsys)
        assert code == 2 and "dppo 0.1.0 (git" in err and "finish the run with that version" in err, name
        assert err.count("step_") == 0
    assert call("validate", run_dir, capsys)[0] == 0


# -- a dump that has not begun --------------------


def test_a_run_that_was_killed_before_its_first_segment(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dppo.rundir.checkpoint import checkpoint_folders, read_checkpoint, write_checkpoint

    shutil.rmtree(run_dir / "trajectories")
    saved = read_checkpoint(checkpoint_folders(run_dir)[0])
    saved.next_segments, saved.missing_rows = {0: 0}, {0: 128}
    write_checkpoint(run_dir, saved, keep=1)
    for name in ("info", "validate"):
        code, out, err = call(name, run_dir, capsys)
        assert (code, err) == (0, "")
        assert "enabled in its config.toml, but no segment has been sealed yet" in out and "sound" not in out
        assert "step_000000256, has seen 256 steps, 256 of them are missing (rank 0: 128 rows of 2 environments)" in out
    assert trajectories.main(["info", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"]["0"]["missing_rows"] == 128
    code, _, err = call("export", run_dir, capsys)
    assert code == 2 and "no segment has been sealed yet" in err


def test_a_dump_that_was_removed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run_dir / "trajectories")
    code, out, _ = call("info", run_dir, capsys)
    assert code == 1 and "the segments that step_000000256 names are gone: " in out
    code, out, _ = call("validate", run_dir, capsys)
    assert code == 1 and "of rank 0; missing: 0 to " in out


def test_names_that_are_no_names(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = run_dir.parent / "[red]<img src=x>\x1b[31m|`x`\n[a](http:evil)"
    shutil.copytree(run_dir, odd / "run")
    summary = odd / "run" / "summary.json"
    values = json.loads(summary.read_text()) | {"exit": "failed", "error": "a\x1b[2J <b> [x](http://e) | \u202e"}
    summary.write_text(json.dumps(values))
    outs = [
        call(name, path, capsys)[1:]
        for name, path in (("report", odd), ("verdict", odd / "run"), ("info", odd / "run"))
    ]
    text = (odd / "report.md").read_text()
    for shown in (*(part for out in outs for part in out), text):
        assert not set(shown) & set("\x1b\r\u202e")
    assert (
        "\\<img src=x\\>" in text and "\\|" in text and "](http" not in text.replace("\\](", "") and "\\`x\\`" in text
    )
    assert "<img" not in text.replace("\\<img", "") and "<b>" not in text.replace("\\<b", "")
