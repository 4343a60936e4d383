"""What the READMEs tell people to type exists."""

import re
from pathlib import Path

import pytest

from fer_jax.__main__ import VERBS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "data_builders").glob("*/README.md"))]


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            found += [
                line.split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines()
            ]
        found += re.findall(r"`(fer-jax [^`]*)`", text)
    return sorted({command for command in found if command and "PROTOCOL" not in command})


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, capsys: pytest.CaptureFixture[str]):
    words = command.split()
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    assert words[0] == "fer-jax" and words[1] in VERBS
    files = [word.partition("=")[2].split(":")[0] for word in words if word.startswith("--config=")]
    assert all((ROOT / file).is_file() for file in files)
    if words[1:] == ["doctor"] or len(words) < 3:
        return
    # Every flag is one that the verb's own help lists.
    with pytest.raises(SystemExit):
        main([*words[1:3], "--help"] if words[1] == "build" else [words[1], "--help"])
    printed = capsys.readouterr().out
    for flag in re.findall(r"--[\w.]+", command):
        assert flag in printed


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]*)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target
