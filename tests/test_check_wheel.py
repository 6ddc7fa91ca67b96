"""The check of the wheel: which torch and Python it takes, and that what fails or hangs fails it."""

import subprocess
import sys
import zipfile

import check_installed
import check_wheel
import pytest
from check_wheel import CheckError, Claims, Python


def wheel_with(folder, *lines: str):
    """A wheel that has nothing but metadata."""
    path = folder / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some-1.dist-info/METADATA", "\n".join(["Metadata-Version: 2.4", "Name: some", *lines, ""]))
    return path


def test_the_oldest_torch_and_python_are_those_of_the_metadata(tmp_path):
    extra = "Requires-Dist: matplotlib>=3.8 ; extra == 'bench'"
    wheel = wheel_with(tmp_path, "Requires-Dist: torch>=2.6.1", extra, "Requires-Python: >=3.10")
    assert check_wheel.claims_of(wheel) == Claims((3, 10), "2.6.1")


@pytest.mark.parametrize(
    "lines",
    [["Requires-Python: >=3.10"], ["Requires-Python: >=3.10", "Requires-Dist: torch"], ["Requires-Dist: torch>=2"]],
)
def test_metadata_without_a_lower_bound_is_an_error(tmp_path, lines):
    with pytest.raises(CheckError, match=r"expected torch>=VERSION and Python >=VERSION"):
        check_wheel.claims_of(wheel_with(tmp_path, *lines))


def test_what_is_not_checked_for_want_of_a_python_is_said(capsys):
    claims = Claims((3, 10), "2.6")
    check_wheel.check_pythons([Python((3, 10, 13), "a"), Python((3, 13, 0), "b")], claims)
    assert "NOT CHECKED" not in capsys.readouterr().out
    check_wheel.check_pythons([Python((3, 12, 1), "a"), Python((3, 12, 3), "b")], claims)
    said = capsys.readouterr().out
    assert "NOT CHECKED: another Python" in said
    assert "NOT CHECKED: Python 3.10, the oldest" in said
    with pytest.raises(CheckError, match=r"expected a Python from 3\.10 on"):
        check_wheel.check_pythons([], claims)


def test_the_next_python_is_taken_where_there_is_no_torch_for_the_first(tmp_path, monkeypatch, capsys):
    pythons, ran = [Python((3, 14, 0), "new"), Python((3, 13, 0), "old")], []
    monkeypatch.setattr(check_wheel, "install", lambda wheel, python, torch, folder: python.path == "old")
    monkeypatch.setattr(check_wheel, "run", lambda command, folder, seconds: ran.append(command) or "")
    check_wheel.check(tmp_path / "some.whl", pythons, "torch")
    assert len(ran) == 1
    assert "NOT CHECKED: this Python" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckError, match="pip finds no torch for any Python here"):
        check_wheel.check(tmp_path / "some.whl", pythons[:1], "torch")


def test_this_python_is_found_behind_its_environment():
    found = check_wheel.describe(sys.executable)
    assert found is not None
    assert found.version == sys.version_info[:3]
    prefixes = subprocess.check_output(
        [found.path, "-c", "import sys; print(sys.prefix == sys.base_prefix)"], text=True
    )
    assert prefixes.strip() == "True"
    assert check_wheel.describe("/no/such/python") is None


def test_a_command_that_fails_or_hangs_is_an_error_with_what_it_printed(tmp_path):
    code = "print('before'); raise SystemExit(3)"
    with pytest.raises(CheckError, match=r"(?s)status 3, expected 0.*before"):
        check_wheel.run([sys.executable, "-c", code], str(tmp_path), 60)
    with pytest.raises(CheckError, match=r"did not end within 0\.5 s"):
        check_wheel.run([sys.executable, "-c", "import time; time.sleep(60)"], str(tmp_path), 0.5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "statuses"),
    [
        ("import time; time.sleep(60 * (1 - rank)); raise SystemExit(rank)", [None, 1]),
        ("import time; time.sleep(60 * rank)", [0, None]),
        ("", [0, 0]),
    ],
)
def test_ranks_that_fail_or_do_not_end_are_told(code, statuses):
    processes = [subprocess.Popen([sys.executable, "-c", f"rank = {rank}\n{code}"]) for rank in range(2)]
    try:
        assert check_installed.wait_for(processes, 5) == statuses
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_an_environment_with_numpy_is_refused():
    with pytest.raises(SystemExit, match="expected an environment without numpy"):
        check_installed.check_imports()
