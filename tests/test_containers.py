"""jobs/Dockerfile and jobs/mpijob.yaml: the image holds what its installation needs, the job has the operator's form.

Neither a builder nor a Kubernetes cluster is needed. Where docker, podman or buildah can build, the image is built.
MPI_OPERATOR_CRD=FILE checks the job against the schema that the operator publishes as well, which is its
deploy/v2beta1/mpi-operator.yaml.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dppo.job import take_apart
from dppo.settings.flags import parse

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def table(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


CONTAINER = table(
    ("name",), name=TEXT, image=TEXT, command=several(TEXT), args=several(TEXT),
    env=several(table(("name",), name=TEXT, value=TEXT)),
    resources=table(limits={"type": "object"}),
    volumeMounts=several(table(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)  # fmt: skip
VOLUME = table(("name",), name=TEXT, persistentVolumeClaim=table(("claimName",), claimName=TEXT))
POD = table(
    ("containers",), containers=several(CONTAINER), volumes=several(VOLUME), terminationGracePeriodSeconds=WHOLE
)
REPLICAS = table(
    replicas=WHOLE, restartPolicy={"type": "string", "enum": ["Never", "OnFailure"]}, template=table(spec=POD)
)
MPIJOB = table(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=TEXT, kind=TEXT, metadata=table(("name",), name=TEXT),
    spec=table(
        ("mpiReplicaSpecs",),
        slotsPerWorker=WHOLE, sshAuthMountPath=TEXT, runLauncherAsWorker={"type": "boolean"},
        mpiImplementation={"type": "string", "enum": ["OpenMPI", "Intel", "MPICH"]},
        launcherCreationPolicy={"type": "string", "enum": ["AtStartup", "WaitForWorkersReady"]},
        runPolicy=table(
            cleanPodPolicy={"type": "string", "enum": ["All", "Running", "None"]}, backoffLimit=WHOLE,
            activeDeadlineSeconds=WHOLE, ttlSecondsAfterFinished=WHOLE, suspend={"type": "boolean"},
        ),
        mpiReplicaSpecs={"type": "object", "additionalProperties": REPLICAS},
    ),
)  # fmt: skip
"""The part of the form of an MPIJob (kubeflow.org/v2beta1) and of a pod that the manifest uses, in our own words: after
the types of the operator's API 0.8.2 and of Kubernetes."""
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "number": (int, float)}


def wrong(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """What is not as an OpenAPI schema of Kubernetes wants it; keys that it does not know are wrong, as for kubectl."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{where}: {value!r}"
        return
    kind = schema.get("type", "object")
    if "type" in schema and (not isinstance(value, TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))):
        yield f"{where}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, list):
        for at, item in enumerate(value):
            yield from wrong(item, schema.get("items", {}), f"{where}[{at}]")
    if isinstance(value, dict):
        known, others = schema.get("properties"), schema.get("additionalProperties")
        yield from (f"{where}: {key} is missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            if known and key in known:
                yield from wrong(item, known[key], f"{where}.{key}")
            elif isinstance(others, dict):
                yield from wrong(item, others, f"{where}.{key}")
            elif known and not schema.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{where}: {key} is unknown"


def manifest() -> Any:
    return yaml.safe_load((ROOT / "jobs" / "mpijob.yaml").read_text())


def test_the_job_has_the_form_of_an_mpijob() -> None:
    job = manifest()
    assert list(wrong(job, MPIJOB)) == []
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    replicas = job["spec"]["mpiReplicaSpecs"]
    assert set(replicas) == {"Launcher", "Worker"} and replicas["Launcher"]["replicas"] == 1
    # the operator makes the names of pods of it
    assert re.fullmatch("[a-z]([-a-z0-9]{0,40}[a-z0-9])?", job["metadata"]["name"])
    for part in replicas.values():
        pod = part["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slotsPerWorker": "4"}, ".spec.slotsPerWorker: '4' is no integer"),
        ({"slots": 4}, ".spec: slots is unknown"),
        ({"mpiImplementation": "LAM"}, ".spec.mpiImplementation: 'LAM' is none of"),
        ({"mpiReplicaSpecs": {"Worker": {"restartPolicy": "Always"}}}, ".spec.mpiReplicaSpecs.Worker.restartPolicy"),
    ],
)
def test_a_job_of_another_form_is_noticed(change: dict[str, Any], said: str) -> None:
    job = manifest()
    job["spec"] |= change
    (found,) = wrong(job, MPIJOB)
    assert found.startswith(said)


def test_the_job_has_the_form_that_the_operator_publishes() -> None:
    if not (file := os.environ.get("MPI_OPERATOR_CRD")):
        pytest.skip("MPI_OPERATOR_CRD names no file of the operator's")
    documents = yaml.load_all(Path(file).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (definition,) = (d for d in documents if d and d["kind"] == "CustomResourceDefinition")
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v2beta1")
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}  # which Kubernetes knows itself
    assert list(wrong(manifest(), schema)) == []


def test_the_launcher_of_the_job_trains() -> None:
    (launcher,) = manifest()["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"]
    assert launcher["command"] == ["dppo", "job"]
    training = take_apart(launcher["args"])
    assert training.launcher[:3] == ["mpirun", "--with-ft", "ulfm"] and training.program == ["dppo", "run"]
    config, _ = parse(training.settings)
    (mount,) = launcher["volumeMounts"]
    assert Path(str(config.run_dir)).is_relative_to(mount["mountPath"])


def instructions() -> list[list[str]]:
    """The lines of the Dockerfile as words."""
    text = re.sub(r"^#.*\n", "", (ROOT / "jobs" / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        shlex.split(line) if line.startswith("COPY") else line.split(maxsplit=1) for line in text.splitlines() if line
    ]


def test_the_image_holds_all_that_its_installation_needs(tmp_path: Path) -> None:
    """Copied as COPY does it: of a folder what is in it, links as they are."""
    image = tmp_path / "image" / "opt" / "dppo"
    for name, *words in instructions():
        if name == "COPY":
            *sources, destination = words
            place = image / destination
            place.mkdir(parents=True, exist_ok=True)
            for source in sources:
                found = ROOT / source
                subprocess.run(["cp", "-r", "-P", f"{found}/." if found.is_dir() else found, place], check=True)
    (pip,) = (words[1] for words in instructions() if words[0] == "RUN" and "pip install" in words[1])
    assert re.findall(r"-c (\S+)|install -m 755 (\S+)", pip) == [("constraints.txt", ""), ("", "scripts/mpirun")]
    assert (image / "constraints.txt").is_file() and (image / "scripts" / "mpirun").is_file()

    pytest.importorskip("setuptools")
    code = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=image, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with zipfile.ZipFile(*(image / "wheel").glob("*.whl")) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("dppo/")}
    kernels = {name for name in packed if name.startswith("dppo/algo/kernels.")}
    assert [name.endswith(".so") for name in kernels] == [True] * (shutil.which("cc") is not None)
    packed -= kernels
    kept = [p for p in (ROOT / "dppo").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    kept = [path for path in kept if not path.name.startswith("kernels.")]
    scripts = {f"dppo/cluster/jobs/{path.name}" for path in (ROOT / "jobs").iterdir()}
    assert packed == {str(path.relative_to(ROOT)) for path in kept} | scripts


def builder() -> str | None:
    for name in ("docker", "podman", "buildah"):
        if (
            shutil.which(name)
            and subprocess.run([name, "info"], capture_output=True, timeout=20, check=False).returncode == 0
        ):
            return name
    return None


@pytest.mark.slow
def test_the_image_is_built_where_there_is_a_builder() -> None:
    if (name := builder()) is None:
        pytest.skip("no docker, podman or buildah that can build")
    command = [name, "build", "--file", "jobs/Dockerfile", "--tag", "dppo-test", "."]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
