"""What a release refuses: a tree with changes, versions that differ, and artefacts that lack something."""

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile

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


def test_an_sdist_without_the_kernels_is_refused(tmp_path):
    path = tmp_path / "some-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in check_artefacts.SOURCES:
            if not name.startswith("rust/kernels"):
                archive.addfile(tarfile.TarInfo(f"some-1/{name}"), io.BytesIO())
    assert check_artefacts.faults_of(path) == ["expected the file rust/kernels/cuda/device/ptx.cuh"]
