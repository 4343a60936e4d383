"""The house keeps its shape: floors, top level, names."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module may import from lower floors and from its own folder; the longest prefix counts.
FLOORS = {
    "fer_jax": 0,
    "fer_jax.compilations": 0,
    "fer_jax.errors": 0,
    "fer_jax.fields": 0,
    "fer_jax.forms": 0,
    "fer_jax.schema": 0,
    "fer_jax.storage": 0,
    "fer_jax.config": 1,
    "fer_jax.distributed": 1,
    "fer_jax.process": 1,
    "fer_jax.figures": 1,
    "fer_jax.access_log": 1,
    "fer_jax.results": 1,
    "fer_jax.media": 1,
    "fer_jax.models": 1,
    "fer_jax.collect": 2,
    # It reads files, so it may import only the lowest floors, and not inference.
    "fer_jax.report": 2,
    "fer_jax.weights": 2,
    "fer_jax.data": 2,
    "fer_jax.sharding": 2,
    "fer_jax.checkpoints": 2,
    "fer_jax.methods": 3,
    "fer_jax.inference": 3,
    "fer_jax.evaluation": 4,
    "fer_jax.synthesis": 5,
    "fer_jax.training": 6,
    "fer_jax.predict": 7,
    "fer_jax.export": 7,
    "fer_jax.study": 8,
    "fer_jax.benchmark": 10,
    "fer_jax.demo": 9,
    "fer_jax.doctor": 9,
    "fer_jax.__main__": 11,
    "data_builders": 3,
    "configs": 2,
}
# Floor 0 in order: each may import those before it.
GROUND_FLOOR = [
    "fer_jax",
    "fer_jax.compilations",
    "fer_jax.errors",
    "fer_jax.fields",
    "fer_jax.schema",
    "fer_jax.forms",
    "fer_jax.storage",
]
# `fer_jax.load` imports what it calls when it is called.
FRONT_DOOR = ("fer_jax", "fer_jax.inference.recognizer")
ELSEWHERE_ONLY = {"tensorflow", "keras", "torch"}  # the benchmark's peers


def room(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in FLOORS:
            return prefix
    raise AssertionError(f"{module} has no floor: add its package to FLOORS")


def python_files() -> list[Path]:
    return sorted(
        path
        for folder in ("fer_jax", "data_builders", "configs")
        for path in (ROOT / folder).rglob("*.py")
    )


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from fer_jax import checkpoints` names a module, not an object.
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(
                    inner
                    if (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                    or (ROOT / inner.replace(".", "/")).is_dir()
                    else module
                )
    return found


def violations(module: str, imported: set[str]) -> list[str]:
    wrong = []
    here = room(module)
    for name in imported:
        top = name.split(".")[0]
        if top in ELSEWHERE_ONLY and here != "fer_jax.benchmark":
            wrong.append(f"{module} imports {name}")
        if top not in ("fer_jax", "data_builders", "configs"):
            continue
        if (module, name) == FRONT_DOOR:
            continue
        there = room(name)
        if FLOORS[here] == 0 and there in GROUND_FLOOR and here in GROUND_FLOOR:
            allowed = GROUND_FLOOR.index(there) < GROUND_FLOOR.index(here)
        else:
            allowed = FLOORS[there] < FLOORS[here] or there == here
        if not allowed:
            wrong.append(f"{module} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    return wrong


def test_imports_go_down_only():
    wrong = []
    for path in python_files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        wrong += violations(module, imports(path))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("fer_jax.data.batches", "fer_jax.evaluation.metrics"),  # up
        ("fer_jax.models.xception", "fer_jax.media.images"),  # sideways
        ("fer_jax.errors", "fer_jax.schema"),  # up within the ground floor
        ("fer_jax.training.step", "torch"),
        ("fer_jax.report.report", "fer_jax.inference.network"),
        ("fer_jax.report.run_page", "fer_jax.evaluation.bootstrap"),
    ],
)
def test_a_wrong_import_is_seen(module: str, imported: str):
    assert violations(module, {imported})


def test_the_top_level_has_exactly_the_planned_folders():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top <= {
        *("fer_jax", "configs", "data_builders", "launch", "tests"),
        *("requirements.txt", "README.md", "pyproject.toml", "LICENSE", ".gitignore", ".ci"),
    }


def test_file_names_say_something():
    empty = re.compile(r"^_?(utils?|helpers?|common|misc|lib)$")
    assert not [path for path in python_files() if empty.match(path.stem)]


def test_every_suppression_has_a_reason():
    bare = []
    for path in [*python_files(), *(ROOT / "tests").glob("*.py")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            comment = re.search(r"#\s*(noqa|type: ignore|pyright: ignore)[^(]*", line)
            if comment and "(" not in line[comment.end() - 1 :] and path != Path(__file__):
                bare.append(f"{path.name}:{number}")
    assert not bare
