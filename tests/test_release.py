"""What a release refuses: a tree with changes, versions that differ, and artefacts that lack something."""

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from contextlib import nullcontext

import check_artefacts
import pytest
import release
from release import ReleaseError


def tree(folder, crates="1.2.3", package='version = "1.2.3"', changelog="## [1.2.3] - 2026-01-01"):
    (folder / "Cargo.toml").write_text(f'[workspace.package]\nedition = "2024"\nversion = "{crates}"\n')
    (folder / "pyproject.toml").write_text(f'[project]\nname = "some"\n{package}\n[tool.other]\nversion = "9"\n')
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}\n\n## 1.0.0\n")
    return folder


@pytest.mark.parametrize("package", ['version = "1.2.3"', 'dynamic = ["version"]'])
def test_versions_that_agree_are_the_version(tmp_path, package):
    assert release.check_versions(tree(tmp_path, package=package)) == "1.2.3"


@pytest.mark.parametrize(
    "changes",
    [{"crates": "1.2.4"}, {"package": 'version = "1.2.4"'}, {"changelog": "## Unreleased"}, {"changelog": "## 1.2.2"}],
)
def test_versions_that_differ_are_refused(tmp_path, changes):
    with pytest.raises(ReleaseError, match="expected the same version everywhere"):
        release.check_versions(tree(tmp_path, **changes))


def test_a_package_without_a_version_is_refused(tmp_path):
    with pytest.raises(ReleaseError, match=r"expected a version in pyproject\.toml"):
        release.check_versions(tree(tmp_path, package="# nothing"))


def test_a_tree_with_changes_is_refused(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    release.check_clean(tmp_path)
    (tmp_path / "new").touch()
    with pytest.raises(ReleaseError, match=r"(?s)expected a clean tree.*new"):
        release.check_clean(tmp_path)


LINK = "\n\n[1.2.3]: https://x"


@pytest.mark.parametrize(
    ("changelog", "fault"),
    [
        ("## [1.2.3] - 2026-01-02" + LINK, None),
        ("## [1.2.3] - 2026-01-03" + LINK, None),
        ("## [1.2.3] - 2026-01-01" + LINK, "the commit is of 2026-01-02"),
        ("## [1.2.3]" + LINK, "a heading like"),
        ("## [1.2.3] - 2026-01-02", "a link"),
        ("## [1.2.3] - 2026-01-02" + LINK + "\n\n## [Unreleased]", "Unreleased"),
    ],
)
def test_a_changelog_that_is_not_ready_is_refused(tmp_path, monkeypatch, changelog, fault):
    for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"):
        monkeypatch.setenv(name, "2026-01-02T23:30:00+00:00")
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    subprocess.run(["git", *who, "commit", "--quiet", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    tree(tmp_path, changelog=changelog)
    with pytest.raises(ReleaseError, match=fault) if fault else nullcontext():
        release.check_changelog(tmp_path, "1.2.3")


@pytest.mark.parametrize(("version", "is_there"), [("1.2.3", True), ("1.20.0", False), ("1.3.0", False)])
def test_a_release_without_a_row_in_the_table_is_refused(tmp_path, version, is_there):
    (tmp_path / "docs").mkdir()
    page = "# What works\n\n| 1.3 | other |\n\n## Releases\n\n| lamport-rs |\n| --- |\n| 1.2 | 3.10 |\n"
    (tmp_path / "docs/compatibility.md").write_text(page)
    with nullcontext() if is_there else pytest.raises(ReleaseError, match=f"a row for {version[:-2]} under Releases"):
        release.check_compatibility(tmp_path, version)


def test_files_are_gathered_with_their_checksums(tmp_path):
    (tmp_path / "b").write_text("two")
    (tmp_path / "a").write_text("one")
    release.gather(tmp_path / "out", [tmp_path / "b", tmp_path / "a"])
    sums = (tmp_path / "out/SHA256SUMS").read_text().splitlines()
    assert sums == [f"{hashlib.sha256(text).hexdigest()}  {name}" for name, text in (("a", b"one"), ("b", b"two"))]
    assert (tmp_path / "out/a").read_text() == "one"


NAME = "some-1-cp310-abi3-manylinux_2_28_x86_64.whl"


def wheel(folder, name=NAME, without=(), bom=("cudarc", "pyo3"), addresses=check_artefacts.ADDRESSES, filler=0):
    path, info = folder / name, "some-1.dist-info"
    lines = ["Metadata-Version: 2.4", "Name: some", *(f"Project-URL: {each}, https://x" for each in addresses), ""]
    files = {
        f"{info}/METADATA": "\n".join(lines),
        f"{info}/sboms/some.json": json.dumps({"components": [{"name": each} for each in bom]}),
        **{f"{info}/licenses/{each}": "" for each in check_artefacts.LICENCES},
        "filler": "x" * filler,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            if file.split("/")[-1] not in without:
                archive.writestr(file, text)
    return path


def test_a_whole_wheel_passes(tmp_path):
    assert check_artefacts.faults_of(wheel(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": NAME.replace("2_28", "2_34")}, "expected a name"),
        ({"filler": 8_000_000}, "expected 8000000 bytes at most"),
        ({"without": ["THIRD-PARTY.txt"]}, "licenses/THIRD-PARTY.txt"),
        ({"bom": ["cudarc"]}, "bill of materials"),
        ({"without": ["some.json"]}, "bill of materials"),
        ({"addresses": ["Issues", "Documentation", "Changelog"]}, "'Repository'"),
    ],
)
def test_a_wheel_that_lacks_something_is_refused(tmp_path, changes, fault):
    (found,) = check_artefacts.faults_of(wheel(tmp_path, **changes))
    assert fault in found


@pytest.mark.parametrize(
    ("name", "expected", "missing"),
    [
        ("some-1.tar.gz", check_artefacts.SOURCES, "rust/kernels/cuda/device/ptx.cuh"),
        ("some-1.crate", check_artefacts.IN_ARCHIVES[".crate"], "LICENSE"),
        ("some-1-site.tar.gz", check_artefacts.IN_ARCHIVES["-site.tar.gz"], "api.html"),
    ],
)
def test_an_archive_that_lacks_something_is_refused(tmp_path, name, expected, missing):
    for without in (None, missing):
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for each in expected:
                if each != without:
                    archive.addfile(tarfile.TarInfo(f"some-1/{each}"), io.BytesIO())
        faults = check_artefacts.faults_of(tmp_path / name)
        assert faults == ([f"expected the file {missing}"] if without else [])
