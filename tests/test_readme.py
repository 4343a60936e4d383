"""The commands of the READMEs exist, and those of the top README work as pasted."""

import json
import re
import shlex
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import cv2
import pytest
import tensorflow_datasets as tfds

from data_builders.demo import demo_dataset_builder
from fer_jax.__main__ import VERBS, main
from fer_jax.schema import EMOTIONS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *(
        path
        for room in ("configs", "data_builders", "fer_jax", "launch")
        for path in sorted((ROOT / room).rglob("README.md"))
    ),
]

# DATA, HOST:8081, PROTOCOL: something of the reader's.
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b")
# Seconds: the demo's config is one step of a network of a few thousand parameters, its third source
# a few faces.
SHORT = {
    "train": (
        "--config.num_epochs=0.01",
        "--config.batch_size=8",
        "--config.model.width=0.03",
        "--config.model.num_middle_blocks=0",
    ),
    "synthesize": ("--count=12",),
}
# Minutes by design; their own tests run them.
LONG = {"benchmark", "demo"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def typed(page: Path) -> list[str]:
    """The commands of a page's bash blocks, in order."""
    lines = [
        line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").split("\n")
    ]
    return [command for line in lines if (command := line.split(" #")[0].strip())]


def mentioned() -> list[str]:
    found = [command for page in PAGES for command in typed(page)]
    found += [c for page in PAGES for c in re.findall(r"`(fer-jax [^`]*)`", page.read_text())]
    return sorted({command for command in found if not re.search(r"PROTOCOL|VERB", command)})


@pytest.mark.parametrize("command", mentioned())
def test_commands_parse(command: str, capsys: pytest.CaptureFixture[str]):
    words = shlex.split(command)
    if words[0] == "source" and words[1].endswith("/dask.env"):
        assert (ROOT / "launch" / "dask" / "certificates.sh").is_file()
        return
    if words[0] == "source":
        assert words[1] == ".venv/bin/activate"
        assert "-m venv .venv" in (ROOT / "launch" / "environment.sh").read_text()
        return
    if words[0] == "pip":
        assert words[:3] == ["pip", "install", "-e"] and re.fullmatch(r"\.\[\w+\]", words[3])
        assert (
            words[3][2:-1]
            in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
        )
        return
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    if words[0] == "dask":
        command_line = import_module(f"distributed.cli.dask_{words[1]}").main
        known = {flag for option in command_line.params for flag in option.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
        return
    if words[0] in ("python", "sbatch", "kubectl", "sky"):
        files = [word for word in words if word.startswith("launch/")]
        files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
        assert files and all((ROOT / file).is_file() for file in files)
        return
    assert words[0] == "fer-jax" and words[1] in VERBS
    files = [word.partition("=")[2].split(":")[0] for word in words if word.startswith("--config=")]
    # mine.py is the config that README shows.
    assert all(file in ("mine.py", "FILE") or (ROOT / file).is_file() for file in files)
    if words[1:] == ["doctor"] or len(words) < 3:
        return
    # Every flag is one that the verb's own help lists.
    with pytest.raises(SystemExit):
        main(
            [*words[1:3], "--help"] if words[1] in ("build", "benchmark") else [words[1], "--help"]
        )
    printed = capsys.readouterr().out
    for flag in re.findall(r"--[\w.]+", command):
        assert flag in printed


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]*)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            other = page.parent / file if file else page
            assert other.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
                assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


@pytest.mark.usefixtures("one_device")
def test_every_command_without_a_placeholder_works_as_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runnable = [
        words[1:]
        for command in typed(README)
        if (words := shlex.split(command))[0] == "fer-jax"
        and words[1] not in LONG
        and not PLACEHOLDER.search(command)
    ]
    verbs = [words[0] for words in runnable]
    assert {"doctor", "build", "audit", "train", "evaluate", "report"} <= set(verbs)
    assert verbs.index("build") < verbs.index("train") < verbs.index("evaluate")

    checkout, data_dir = tmp_path / "checkout", tmp_path / "data"
    for folder in ("configs", "data_builders/demo/generator"):
        shutil.copytree(ROOT / folder, checkout / folder)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("FER_JAX_DATA", str(data_dir))
    # Half the people, each source still with a person of every content in every part.
    monkeypatch.setattr(demo_dataset_builder, "NUM_SUBJECTS", 30)
    for words in runnable:
        if "--help" in words:
            with pytest.raises(SystemExit) as stop:
                main(words)
            code = stop.value.code
        else:
            code = main([*words, *SHORT.get(words[0], ())])
        printed = capsys.readouterr()
        # README says of audit that 1 means a leak; drawn faces may be alike.
        fine = (0, 1) if words[0] == "audit" else (0,)
        assert code in fine, f"fer-jax {' '.join(words)}: {printed.out}{printed.err}"

    workdirs = {
        word.partition("=")[2] for words in runnable for word in words if "--workdir" in word
    }
    promised = re.search(r"A workdir holds (.*?)\.\n?\s", README.read_text(), re.DOTALL)
    assert promised
    names = re.findall(r"`([^`]*)`", promised[1])
    assert "runs/demo" in workdirs and {"checkpoints/", "report.html"} <= set(names)
    for name in names:
        assert (checkout / "runs/demo" / name).exists(), name
    tables = [path.name for path in (checkout / "runs/demo/predictions").iterdir()]
    assert {"demo-controlled.test.csv", "demo-social.all.csv"} <= set(tables)
    assert (checkout / "runs/audit/audit.html").is_file()

    own_faces(checkout, data_dir, monkeypatch)
    capsys.readouterr()
    for snippet in blocks(README, "python"):
        if "get_config" not in snippet:
            exec(compile(snippet, str(README), "exec"), {})
    assert re.search(r"^63 b.demo/controlled_\w+/\w+. \(128, 128, 3\) \d$", capsys.readouterr().out)


def own_faces(checkout: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's "own faces" section, with rendered faces in class folders and a short training."""
    section = README.read_text().partition("## Your own faces")[2].partition("\n## ")[0]
    (config,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (checkout / "mine.py").write_text(config)
    for folder, name in (("FACES", "demo/controlled"), ("OTHERFACES", "demo/social")):
        for number, face in enumerate(tfds.data_source(name, split="train", data_dir=data_dir)):
            image = checkout / folder / EMOTIONS[face["emotion"]] / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), face["image"][..., ::-1])
    commands = [
        shlex.split(line, comments=True) for line in section.split("\n") if "fer-jax" in line
    ]
    assert [words[1] for words in commands] == [
        *("build", "build", "train", "evaluate", "report", "compare")
    ]
    for words in commands[:-1]:
        assert main([*words[1:], *SHORT.get(words[1], ())]) == 0
    found = json.loads((checkout / "runs/MINE/results.json").read_text())["sets"]
    assert [(one["dataset"], one["split"], one["relation"]) for one in found] == [
        ("mine/grouped", "test", "within"),
        ("other/grouped", "all", "cross_domain"),
    ]
