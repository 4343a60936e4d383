"""What pip-audit wrote against what is pinned: was everything audited, and is it sound?

    python launch/audit.py requirements.txt FOUND.json

Exit code 0 only if every pin that applies here was audited and nothing is known against it.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def pinned(requirements: str) -> dict[str, str]:
    """The pins of a requirements file that apply to this machine: version by name."""
    lines = re.sub(r"\\\n", " ", requirements).splitlines()
    found = {}
    for line in lines:
        text = line.split(" --hash")[0].split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            name = canonicalize_name(requirement.name)
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def complaints(pins: dict[str, str], found: str) -> list[str]:
    """What stands against calling the pins sound; nothing if all were audited.

    Args:
      pins: from `pinned`.
      found: pip-audit's JSON; "" where it wrote none.
    """
    try:
        dependencies = json.loads(found)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return ["pip-audit wrote no result: its service cannot be reached, or it failed"]
    said, audited = [], set()
    for entry in dependencies:
        name = canonicalize_name(entry["name"])
        if "skip_reason" in entry:
            said.append(f"{name} was not audited: {entry['skip_reason']}")
            continue
        if entry["version"] != pins.get(name):
            said.append(f"{name}: {entry['version']} was audited, {pins.get(name)} is pinned")
        audited.add(name)
        for weakness in entry["vulns"]:
            mended = ", ".join(weakness.get("fix_versions", [])) or "no version"
            said.append(f"{name} {entry['version']}: {weakness['id']} (mended in {mended})")
    skipped = {canonicalize_name(entry["name"]) for entry in dependencies} - audited
    said += [f"{name} was not audited" for name in sorted(pins.keys() - audited - skipped)]
    return said


def main(argv: Sequence[str]) -> int:
    """Prints what stands against the pins. Returns the exit code."""
    requirements, found = (Path(word).read_text() for word in argv)
    pins = pinned(requirements)
    said = complaints(pins, found) if pins else ["nothing is pinned"]
    for line in said:
        print(line)
    print(f"{len(pins)} pins: " + (f"{len(said)} complaints" if said else "all audited, all sound"))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
