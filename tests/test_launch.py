"""The launchers: processes on this host, and files for Slurm, Kubernetes and SkyPilot."""

import copy
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def load_local() -> Any:
    """launch/local.py as a module."""
    spec = importlib.util.spec_from_file_location("local", ROOT / "launch" / "local.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


local = load_local()


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts launch/local.py with a stand-in for fer_jax that imports nothing."""
    started: list[subprocess.Popen[str]] = []
    package = tmp_path / "fer_jax"
    package.mkdir()
    (package / "__init__.py").touch()

    def run(script: str, processes: int = 2) -> subprocess.Popen[str]:
        (package / "__main__.py").write_text(
            "import os, signal, sys, time\nprocess = int(os.environ['FER_JAX_PROCESS'])\n"
            # In one piece: the processes share the pipe.
            "def say(*words): os.write(1, (' '.join(map(str, words)) + '\\n').encode())\n" + script
        )
        launcher = (
            f"import sys; sys.path.insert(0, {str(ROOT / 'launch')!r}); import local\n"
            # The others print nothing at their end, so they get less time for it.
            "local.MESSAGES_S = 0.5; sys.exit(local.main(sys.argv[1:]))"
        )
        arguments = [f"--processes={processes}", "train", "--x=1"]
        command = [sys.executable, "-c", launcher, *arguments]
        started.append(subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_every_process_gets_its_number_and_the_command(start: Start):
    started = start(
        "say(process, os.environ['FER_JAX_PROCESSES'], os.environ['FER_JAX_COORDINATOR'], "
        "*sys.argv[1:])",
        processes=3,
    )
    lines = sorted(started.communicate(timeout=60)[0].splitlines())
    assert started.returncode == 0
    rows = [line.split() for line in lines]
    assert [row[:2] for row in rows] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({row[2] for row in rows}) == 1 and rows[0][2].startswith("127.0.0.1:")
    assert rows[0][3:] == ["train", "--x=1"]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        # One dies in the middle of the others' work.
        ("os.kill(os.getpid(), signal.SIGKILL) if process == 1 else time.sleep(600)", 137),
        ("sys.exit(2) if process == 1 else time.sleep(600)", 2),
        # All were preempted, or one of them was killed while the others saved.
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL) if process else (time.sleep(1), sys.exit(75))", 137),
        ("sys.exit(75) if process else (time.sleep(1), os.kill(os.getpid(), 9))", 137),
    ],
)
def test_one_that_fails_ends_all_and_its_code_is_passed_on(start: Start, script: str, code: int):
    began = time.monotonic()
    started = start(script)
    assert started.wait(timeout=60) == code
    assert time.monotonic() - began < 30 - local.MESSAGES_S


def test_the_exit_code_is_of_the_failure_that_caused_the_others():
    assert local.first_failure([0, 0]) == 0
    assert local.first_failure([134, 2]) == local.first_failure([2, 75]) == 2
    assert local.first_failure([134, 137]) == 137
    assert local.first_failure([75, 0]) == 75


def test_a_stopped_process_is_ended_too(start: Start):
    started = start("os.kill(os.getpid(), signal.SIGSTOP) if process else sys.exit(1)")
    assert started.wait(timeout=30) == 1


def test_signals_are_passed_on_and_a_second_ctrl_c_ends_at_once(start: Start):
    waits = "say(process); time.sleep(600)"
    saves = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); {waits}"
    saves_slowly = saves.replace("sys.exit(75)", "(time.sleep(2), sys.exit(75))")
    for script, signals, code in (
        (saves_slowly, [signal.SIGUSR1, signal.SIGTERM], 75),
        (saves, [signal.SIGINT], 75),
        (saves.replace("TERM", "HUP"), [signal.SIGHUP], 75),
        (f"signal.signal(signal.SIGTERM, lambda *_: None); {waits}", [signal.SIGINT] * 2, 137),
    ):
        started = start(script)
        assert started.stdout
        assert {started.stdout.readline().strip() for _ in range(2)} == {"0", "1"}
        for number in signals:
            started.send_signal(number)
            time.sleep(0.5)
        assert started.wait(timeout=20) == code


def test_the_processes_end_with_their_launcher(start: Start):
    started = start("say(os.getpid()); time.sleep(600)")
    assert started.stdout
    children = [int(started.stdout.readline()) for _ in range(2)]
    started.kill()
    started.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a process outlived its launcher"
        time.sleep(0.1)


def test_gpus_are_divided_evenly():
    found = local.environments(2, 1, {"A": "b"}, ["0", "1", "2", "3"])
    assert [own["CUDA_VISIBLE_DEVICES"] for own in found] == ["0,1", "2,3"]
    assert all(own["A"] == "b" for own in found)
    assert "CUDA_VISIBLE_DEVICES" not in local.environments(2, 1, {}, [])[0]
    assert local.visible_gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}) == []
    assert local.visible_gpus({"CUDA_VISIBLE_DEVICES": "2,GPU-5"}) == ["2", "GPU-5"]


# The schema of a JobSet v1alpha2 and of the batch/v1 and v1 objects in it, for the fields that a
# training job may have: a type, a list of one, or the fields of an object. "!" marks the required
# ones. Other fields are errors, as for `kubectl --validate=strict`.
TEXT, WHOLE, TRUTH = str, int, bool
TEXTS = {"*": TEXT}
METADATA = {"name": TEXT, "labels": TEXTS, "annotations": TEXTS}
CONTAINER = {
    "name!": TEXT,
    "image": TEXT,
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [TEXT],
    "args": [TEXT],
    "workingDir": TEXT,
    "env": [
        {
            "name!": TEXT,
            "value": TEXT,
            "valueFrom": {"fieldRef": {"fieldPath!": TEXT, "apiVersion": TEXT}},
        }
    ],
    "ports": [{"containerPort!": WHOLE, "name": TEXT, "protocol": {"TCP", "UDP"}}],
    "resources": {"limits": {"*": (TEXT, WHOLE)}, "requests": {"*": (TEXT, WHOLE)}},
    "securityContext": {
        "allowPrivilegeEscalation": TRUTH,
        "readOnlyRootFilesystem": TRUTH,
        "runAsNonRoot": TRUTH,
        "runAsUser": WHOLE,
        "capabilities": {"add": [TEXT], "drop": [TEXT]},
    },
    "volumeMounts": [{"name!": TEXT, "mountPath!": TEXT, "readOnly": TRUTH, "subPath": TEXT}],
}
POD = {
    "restartPolicy": {"Never", "OnFailure"},
    "terminationGracePeriodSeconds": WHOLE,
    "automountServiceAccountToken": TRUTH,
    "serviceAccountName": TEXT,
    "nodeSelector": TEXTS,
    "securityContext": {"runAsNonRoot": TRUTH, "runAsUser": WHOLE, "fsGroup": WHOLE},
    "containers!": [CONTAINER],
    "volumes": [
        {
            "name!": TEXT,
            "persistentVolumeClaim": {"claimName!": TEXT, "readOnly": TRUTH},
            "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
        }
    ],
}
JOB = {
    "parallelism": WHOLE,
    "completions": WHOLE,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": WHOLE,
    "activeDeadlineSeconds": WHOLE,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes": {
                    "containerName": TEXT,
                    "operator!": {"In", "NotIn"},
                    "values!": [WHOLE],
                },
                "onPodConditions": [{"type!": TEXT, "status": TEXT}],
            }
        ]
    },
    "template!": {"metadata": METADATA, "spec": POD},
}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
    "kind!": {"JobSet"},
    "metadata!": METADATA | {"namespace": TEXT},
    "spec!": {
        "network": {
            "enableDNSHostnames": TRUTH,
            "publishNotReadyAddresses": TRUTH,
            "subdomain": TEXT,
        },
        "coordinator": {"replicatedJob!": TEXT, "jobIndex": WHOLE, "podIndex": WHOLE},
        "successPolicy": {"operator!": {"All", "Any"}, "targetReplicatedJobs": [TEXT]},
        "failurePolicy": {
            "maxRestarts": WHOLE,
            "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [
                {
                    "name!": TEXT,
                    "action!": {
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                    },
                    "onJobFailureReasons": [TEXT],
                    "targetReplicatedJobs": [TEXT],
                }
            ],
        },
        "suspend": TRUTH,
        "managedBy": TEXT,
        "ttlSecondsAfterFinished": WHOLE,
        "replicatedJobs": [
            {
                "name!": TEXT,
                "groupName": TEXT,
                "replicas": WHOLE,
                "template!": {"metadata": METADATA, "spec!": JOB},
                "dependsOn": [{"name!": TEXT, "status!": {"Ready", "Complete"}}],
            }
        ],
    },
}


def wrong(value: Any, schema: Any, where: str = "") -> list[str]:
    """Returns the errors of a value by the schema, with their paths."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where} is not an object"]
        fields = {name.rstrip("!"): inner for name, inner in schema.items()}
        lacking = [name[:-1] for name in schema if name.endswith("!") and name[:-1] not in value]
        errors = [f"{where} lacks {name}" for name in lacking]
        for name, inner in value.items():
            if name not in fields and "*" not in fields:
                errors.append(f"{where} has no field {name}")
            else:
                errors += wrong(inner, fields.get(name, fields.get("*")), f"{where}.{name}")
        return errors
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} is not a list"]
        return [w for i, one in enumerate(value) for w in wrong(one, schema[0], f"{where}[{i}]")]
    if isinstance(schema, set):
        return [] if value in schema else [f"{where} is not one of {sorted(schema)}"]
    # YAML's true is an int for Python, but not for the API server.
    taken = isinstance(value, schema) and (schema is TRUTH or not isinstance(value, bool))
    return [] if taken else [f"{where} is of another type"]


def inconsistent(jobset: dict[str, Any]) -> list[str]:
    """Returns what the API server accepts and what would not work."""
    spec = jobset["spec"]
    job = spec["replicatedJobs"][0]
    inner = job["template"]["spec"]
    pod = inner["template"]["spec"]
    environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    errors = []
    processes = environment["FER_JAX_PROCESSES"]["value"]
    if not processes == str(inner["parallelism"]) == str(inner["completions"]):
        errors.append("the number of pods differs between its places")
    host = f"{jobset['metadata']['name']}-{job['name']}-0-0.{spec['network']['subdomain']}"
    if environment["FER_JAX_COORDINATOR"]["value"].rpartition(":")[0] != host:
        errors.append(f"the first pod is {host}")
    if inner["completionMode"] != "Indexed" or "fieldRef" not in str(
        environment["FER_JAX_PROCESS"]
    ):
        errors.append("the pods have no number")
    if inner.get("backoffLimit") != 0 or pod["restartPolicy"] != "Never":
        errors.append("a pod alone would start again")
    codes = [rule.get("onExitCodes", {}) for rule in inner["podFailurePolicy"]["rules"]]
    names = {container["name"] for container in pod["containers"]}
    if not any(rule.get("values") == [75] and rule["containerName"] in names for rule in codes):
        errors.append("75 is a failure like any other")
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    if mounts != {volume["name"] for volume in pod["volumes"]}:
        errors.append("a mount without a volume")
    return errors


def jobset() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "launch" / "kubernetes" / "jobset.yaml").read_text())


def test_the_jobset_is_valid_and_works():
    assert not wrong(jobset(), JOBSET)
    assert not inconsistent(jobset())


MUTANTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "field": lambda it: it["spec"].update(replicas=2),
    "misspelled": lambda it: it["spec"]["replicatedJobs"][0].update(repliccas=1),
    "version": lambda it: it.update(apiVersion="jobset.x-k8s.io/v1"),
    "required": lambda it: it["spec"]["replicatedJobs"][0].pop("name"),
    "required inside": lambda it: it["spec"]["failurePolicy"]["rules"][0].pop("action"),
    "choice": lambda it: it["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
    "text for a number": lambda it: it["spec"]["failurePolicy"].update(maxRestarts="3"),
    "truth for a number": lambda it: it["spec"]["replicatedJobs"][0].update(replicas=True),
    "number for a text": lambda it: container(it)["env"][1].update(value=2),
    "object for a list": lambda it: it["spec"].update(replicatedJobs={}),
}
BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "count": lambda it: container(it)["env"][1].update(value="3"),
    "coordinator": lambda it: it["metadata"].update(name="other"),
    "restarts alone": lambda it: pod(it).update(restartPolicy="OnFailure"),
    "code": lambda it: job(it)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values=[1]),
    "volume": lambda it: pod(it)["volumes"][0].update(name="elsewhere"),
}


def job(it: dict[str, Any]) -> dict[str, Any]:
    return it["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(it: dict[str, Any]) -> dict[str, Any]:
    return job(it)["template"]["spec"]


def container(it: dict[str, Any]) -> dict[str, Any]:
    return pod(it)["containers"][0]


@pytest.mark.parametrize("name", MUTANTS)
def test_an_invalid_jobset_is_detected(name: str):
    mutant = copy.deepcopy(jobset())
    MUTANTS[name](mutant)
    assert wrong(mutant, JOBSET)


@pytest.mark.parametrize("name", BROKEN)
def test_a_jobset_that_would_not_work_is_detected(name: str):
    mutant = copy.deepcopy(jobset())
    BROKEN[name](mutant)
    assert not wrong(mutant, JOBSET) and inconsistent(mutant)


def test_the_image_has_what_the_jobset_runs():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    steps = [line.partition(" ") for line in joined.splitlines() if line]
    assert {name for name, _, _ in steps} == {
        *("FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD")
    }
    copied = {file for name, _, value in steps if name == "COPY" for file in value.split()[:-1]}
    assert all((ROOT / file).exists() for file in copied)
    config = next(word for word in container(jobset())["args"] if word.startswith("--config="))
    assert {config.partition("=")[2].split("/")[0], "fer_jax", "requirements.txt"} <= copied
    (user,) = [value for name, _, value in steps if name == "USER"]
    assert user.split(":")[0] == str(pod(jobset())["securityContext"]["runAsUser"])
    assert container(jobset())["image"] in text
    for command in (value for name, _, value in steps if name == "RUN"):
        subprocess.run(["sh", "-n"], input=command, text=True, check=True)


def test_skypilots_machines_get_their_number(tmp_path: Path):
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert set(task) == {
        *("name", "num_nodes", "resources", "workdir", "volumes", "envs", "setup", "run")
    }
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text('python() { env | grep ^FER_JAX_P; env | grep ^FER_JAX_C; echo "$@"; }\n')
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", task["run"]],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
            "SKYPILOT_NODE_RANK": "1",
            "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    *variables, command = ran.stdout.splitlines()
    assert set(variables) == {
        "FER_JAX_PROCESSES=2",
        "FER_JAX_PROCESS=1",
        "FER_JAX_COORDINATOR=10.0.0.7:8476",
    }
    assert command.startswith("-m fer_jax train --config=configs/demo.py")


def test_all_launchers_start_the_same_run():
    words = ["--config=configs/demo.py", "fer_jax", "train"]
    for file in ("kubernetes/jobset.yaml", "skypilot.yaml", "slurm/train.sbatch"):
        text = (ROOT / "launch" / file).read_text()
        assert all(word in text for word in words), file


def test_the_audit_fails_if_a_package_is_not_looked_up(tmp_path: Path):
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "vulnerabilities.sh", tmp_path / "launch")
    (tmp_path / "launch" / "environment.sh").write_text(f"cd {tmp_path}\nPYTHON=false\n")
    # A stand-in that fails as pip-audit does, but only with --strict.
    pip_audit = tmp_path / ".venv" / "audit" / "bin" / "pip-audit"
    pip_audit.parent.mkdir(parents=True)
    pip_audit.write_text('#!/bin/sh\ncase "$*" in *--strict*requirements.txt*) exit 1 ;; esac\n')
    pip_audit.chmod(0o755)
    assert subprocess.run(["bash", tmp_path / "launch" / "vulnerabilities.sh"]).returncode == 1


PIP = "-m pip install --quiet --disable-pip-version-check"


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Sources launch/environment.sh beside stand-ins for Python and nvidia-smi.

    The Python appends its arguments to calls.txt; `-m venv` copies it, nothing is installed.
    """
    (tmp_path / "launch").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "launch" / "environment.sh", tmp_path / "launch")
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    stand_in = (
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls.txt\n'
        'case "$*" in *find_spec*) exit "${LACKS:-0}" ;; *version\\(*) echo 1.2.3 ;; esac\n'
        'case "$1 $2" in "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac\n'
    )
    for name, text in (
        ("python3.12", stand_in),
        ("nvidia-smi", '#!/bin/sh\n[ -n "$GPUS" ] && echo "$GPUS"\n'),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def source(**variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "calls.txt").write_text("")
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", 'source launch/environment.sh; echo "$PYTHON"'],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
        )

    return source


@pytest.mark.parametrize(
    ("variables", "cuda"),
    [
        ({}, False),
        ({"GPUS": "GPU 0: NVIDIA A100"}, True),
        ({"GPUS": "No devices found"}, False),
        ({"FER_JAX_CUDA": "yes"}, True),
        ({"GPUS": "GPU 0: NVIDIA A100", "FER_JAX_CUDA": "no"}, False),
    ],
)
def test_jax_for_cuda_is_installed_where_there_is_a_gpu(
    install: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    variables: dict[str, str],
    cuda: bool,
):
    done = install(**variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/.venv/bin/python"
    assert ("installing JAX 1.2.3 for CUDA" in done.stdout) == cuda
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert [call for call in calls if call.startswith("-m")] == [
        "-m venv .venv",
        f"{PIP} --require-hashes -r requirements.txt",
        f"{PIP} --no-deps --editable .",
        *([f"{PIP} jax[cuda13]==1.2.3"] if cuda else []),
    ]
    # Again: nothing is installed, until the requirements change.
    assert install(**variables).stdout == f"{tmp_path}/.venv/bin/python\n"
    assert (tmp_path / "calls.txt").read_text() == ""
    (tmp_path / "requirements.txt").write_text("changed")
    install(**variables)
    assert ("jax[cuda13]" in (tmp_path / "calls.txt").read_text()) == cuda


def test_a_gpu_that_was_added_installs_jax_for_cuda(
    install: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
):
    install()
    install(GPUS="GPU 0: NVIDIA A100")
    assert "jax[cuda13]==1.2.3" in (tmp_path / "calls.txt").read_text()


def test_a_python_that_has_everything_is_used_as_it_is(
    install: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
):
    own = {"FER_JAX_INSTALL": "no", "FER_JAX_PYTHON": "python3.12", "GPUS": "GPU 0: A100"}
    done = install(**own)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/bin/python3.12\n")
    assert "-m" not in (tmp_path / "calls.txt").read_text().split()
    assert not (tmp_path / ".venv").exists()
    for wrong_one in ({"LACKS": "1"}, {"FER_JAX_PYTHON": "/nowhere/python"}):
        refused = install(**own | wrong_one)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert "FER_JAX_PYTHON=/path/to/python" in refused.stderr


def test_an_unknown_value_of_fer_jax_cuda_is_refused(
    install: Callable[..., subprocess.CompletedProcess[str]],
):
    refused = install(FER_JAX_CUDA="maybe")
    assert refused.returncode == 2
    assert refused.stderr == "FER_JAX_CUDA must be yes or no, got 'maybe'\n"
