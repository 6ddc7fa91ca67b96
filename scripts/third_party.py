"""Write THIRD-PARTY.txt: the crates that are linked into the package, and the texts of their licences.

`third_party.py` writes it, `third_party.py --check` fails if it is not what it would write. What is linked follows from
Cargo.lock: the packages that the extension needs on any of the architectures, without build scripts and macros.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "THIRD-PARTY.txt"
EXTENSION = "lamport-rs-python"
TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
NAMES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "license*", "UNLICENSE*")
HEAD = """Software that is linked into the wheels of lamport-rs, besides its own (LICENSE).
Made by scripts/third_party.py: change Cargo.lock, not this file.

Rust's standard library is linked, too: MIT OR Apache-2.0, https://github.com/rust-lang/rust
The kernels are this project's own. NVIDIA's NVRTC makes their PTX, and ptxas their cubins; neither is in the wheel, and
the bill of materials, which is Cargo's, does not name them: docs/requirements.md has their versions.
"""


def main() -> int:
    """Write or check the file; return the exit status."""
    text = notice(sorted(linked(), key=lambda each: (each["name"], each["version"])))
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text)
    elif not FILE.is_file() or FILE.read_text() != text:
        print(f"{FILE.name} does not have what Cargo.lock links: python scripts/third_party.py", file=sys.stderr)
        return 1
    return 0


def linked() -> list[dict[str, Any]]:
    """Return the packages of other people that the extension links on any target."""
    command = ["cargo", "metadata", "--format-version=1", "--locked"]
    metadata = json.loads(
        subprocess.check_output([*command, *(f"--filter-platform={each}" for each in TARGETS)], cwd=ROOT)
    )
    packages = {each["id"]: each for each in metadata["packages"]}
    nodes = {each["id"]: each for each in metadata["resolve"]["nodes"]}
    found, open_ = set[str](), [key for key, each in packages.items() if each["name"] == EXTENSION]
    while open_:
        key = open_.pop()
        if key in found or any("proc-macro" in target["kind"] for target in packages[key]["targets"]):
            continue
        found.add(key)
        for dependency in nodes[key]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                open_.append(dependency["pkg"])
    return [packages[key] for key in found if packages[key]["source"]]


def notice(packages: list[dict[str, Any]]) -> str:
    """Return the file's text: a list of the packages, then each text once, with those that it belongs to."""
    texts: dict[str, list[str]] = {}
    lines = [HEAD]
    for package in packages:
        name = f"{package['name']} {package['version']}"
        lines.append(f"{name}: {package['license']}, {package['repository']}")
        folder = Path(package["manifest_path"]).parent
        files = sorted({file for pattern in NAMES for file in folder.glob(pattern) if file.is_file()})
        if not files:
            lines[-1] += " (its package has no text of a licence)"
        for file in files:
            text = "\n".join(line.rstrip() for line in file.read_text().strip().splitlines())
            texts.setdefault(text, []).append(name)
    for text, names in texts.items():
        lines.append(f"\n{'=' * 100}\n{', '.join(names)}\n{'=' * 100}\n\n{text}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
