"""Prepare a release: check that the tree may be released, or gather what was built.

`release.py check` refuses a tree with changes; versions that differ, of the crates, of the package, and of the newest
entry of the changelog; a changelog with a part that is not released, or whose newest entry is older than the commit or
has no link; and a table of releases without a row for the version. `release.py gather FOLDER FILE...` copies the files
into a folder with their checksums. Nothing is published.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKSUMS = "SHA256SUMS"


class ReleaseError(Exception):
    """The tree may not be released as it is."""


def main() -> int:
    """Do what the first argument says; return the exit status."""
    try:
        if sys.argv[1:] == ["check"]:
            check_clean(ROOT)
            version = check_versions(ROOT)
            check_changelog(ROOT, version)
            check_compatibility(ROOT, version)
            print(f"lamport-rs {version}")
        elif len(sys.argv) > 3 and sys.argv[1] == "gather":
            gather(Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
        else:
            raise ReleaseError("usage: release.py check, or release.py gather FOLDER FILE...")
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def check_clean(root: Path) -> None:
    """Raise if the tree has changes that are not committed, or files that git does not know."""
    changes = subprocess.check_output(["git", "status", "--porcelain"], cwd=root, text=True)
    if changes:
        raise ReleaseError(f"expected a clean tree, found changes; commit or remove them:\n{changes.rstrip()}")


def check_versions(root: Path) -> str:
    """Return the version, which must be the same everywhere."""
    crates = first(r'(?ms)^\[workspace\.package\]\n(?:[^\[]*\n)?version = "([^"]+)"', root / "Cargo.toml")
    table = re.search(r"(?ms)^\[project\]\n(.*?)(?=^\[|\Z)", (root / "pyproject.toml").read_text())
    package = re.search(r'(?m)^version = "([^"]+)"', table[1]) if table else None
    if package is None and not (table and re.search(r'(?m)^dynamic = \[.*"version".*\]', table[1])):
        raise ReleaseError("expected a version in pyproject.toml, or that it is dynamic (Cargo's); found neither")
    entry = first(r"(?m)^## \[?([^\]\s]+)\]?", root / "CHANGELOG.md")
    versions = {"Cargo.toml": crates, "pyproject.toml": package[1] if package else crates, "CHANGELOG.md": entry}
    if len(set(versions.values())) != 1:
        said = ", ".join(f"{version} in {file}" for file, version in versions.items())
        raise ReleaseError(f"expected the same version everywhere, found {said}")
    return crates


def check_changelog(root: Path, version: str) -> None:
    """Raise if the changelog is not ready: its newest entry needs a link, and a date not before the last commit's."""
    text = (root / "CHANGELOG.md").read_text()
    if re.search(r"(?mi)^## \[?unreleased\b", text):
        raise ReleaseError('expected no "Unreleased" in CHANGELOG.md: move what it has to the new entry')
    heading = re.search(rf"(?m)^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", text)
    if heading is None:
        raise ReleaseError(f"expected a heading like ## [{version}] - 2026-01-31 in CHANGELOG.md")
    if f"\n[{version}]: https://" not in text:
        raise ReleaseError(f"expected a link, [{version}]: https://..., in CHANGELOG.md")
    seconds = int(subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=root, text=True))
    committed = datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()
    if heading[1] < committed:
        raise ReleaseError(
            f"expected the day of release in CHANGELOG.md, found {heading[1]}; the commit is of {committed}"
        )


def check_compatibility(root: Path, version: str) -> None:
    """Raise if docs/compatibility.md has no row for the minor release that the version is of."""
    minor = ".".join(version.split(".")[:2])
    if f"\n| {minor} |" not in (root / "docs/compatibility.md").read_text().partition("\n## Releases\n")[2]:
        raise ReleaseError(f"expected a row for {minor} under Releases in docs/compatibility.md, found none")


def first(pattern: str, file: Path) -> str:
    """Return the first match of the pattern's group in a file."""
    found = re.search(pattern, file.read_text())
    if found is None:
        raise ReleaseError(f"expected a version in {file.name}, found none")
    return found[1]


def gather(folder: Path, files: list[Path]) -> None:
    """Copy files into a new folder, and write their checksums as `sha256sum --check` reads them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for file in sorted(files, key=lambda each: each.name):
        shutil.copy2(file, folder)
        lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    (folder / CHECKSUMS).write_text("".join(lines))
    print(f"{len(files)} files in {folder}")


if __name__ == "__main__":
    sys.exit(main())
