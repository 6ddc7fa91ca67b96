"""What a shell block of a page asks for, and whether the repository has it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from documents import ROOT, blocks
from lamport_rs.__main__ import _parser

NAME = "lamport-rs"
OF_TESTS = {"docs/rust.md": "tests/test_rust_crate.py runs it"}
"""Pages whose shell blocks a test of its own runs."""
SHELL = [each for each in blocks("sh", "") if each.page not in OF_TESTS]
OF_OTHERS = {"vllm": "vLLM's own command", "sglang": "SGLang's own command"}
"""Commands that the repository cannot check, with the reason."""


@dataclass
class Command:
    """One command of a block."""

    words: list[str]
    variables: list[str] = field(default_factory=list)
    """Those that are set for it."""


def commands_of(text: str) -> list[Command]:
    """The commands, without comments; one that goes on behind a backslash is one."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        variables = []
        while words and (match := re.match(r"^([A-Z_]+)=", words[0])):
            variables.append(match[1])
            words.pop(0)
        if words:
            found.append(Command([word for word in words if word not in ("...", "…")], variables))
    return found


def complaint(command: Command) -> str | None:
    """Return what the command names that there is not; None if there is all."""
    documented = (ROOT / "docs" / "environment.md").read_text()
    for variable in command.variables:
        if f"`{variable}`" not in documented:
            return f"docs/environment.md has no {variable}"
    program, *arguments = command.words
    if program in OF_OTHERS:
        return None
    check = CHECKS.get(program)
    return f"nobody knows how to check {program}" if check is None else check(arguments)


@cache
def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def check_make(arguments: list[str]) -> str | None:
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        pattern = rf"^{name} (\?|:)=" if is_variable else rf"^{name}:"
        if not re.search(pattern, makefile(), re.MULTILINE):
            return f"the Makefile has no {name}"
    return None


def check_command_line(arguments: list[str]) -> str | None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _parser().parse_args(arguments)
    except SystemExit:
        return said.getvalue() or "help only"
    return None


def check_python(arguments: list[str]) -> str | None:
    program, *options = arguments
    if program == "-m":
        return check_command_line(options[1:]) if options[0] == "lamport_rs" else f"module {options[0]}"
    if not (ROOT / program).is_file():
        return f"there is no {program}"
    text = (ROOT / program).read_text()
    missing = [option for option in options if option.startswith("-") and f'"{option}"' not in text]
    return f"{program} has no {missing}" if missing else None


def check_torchrun(arguments: list[str]) -> str | None:
    # Without `--standalone` two programs on one machine want the same port.
    alone, option, ranks, *program = arguments
    if alone != "--standalone" or option != "--nproc-per-node" or not ranks.isdigit():
        return f"torchrun {alone} {option} {ranks}"
    return check_python(program)


def check_pip(arguments: list[str]) -> str | None:
    text = (ROOT / "pyproject.toml").read_text()
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    if arguments[0] != "install":
        return f"pip {arguments[0]}"
    # From a checkout: no package index has the package yet.
    for wanted in arguments[1:]:
        name, _, extra = wanted.rstrip("]").partition("[")
        if name != "." or (extra and not re.search(rf"^{extra} =", extras, re.MULTILINE)):
            return f"{wanted} cannot be installed"
    return None


def check_cargo(arguments: list[str]) -> str | None:
    options = dict(pairwise(arguments))
    package, test = options.get("-p"), options.get("--test")
    crates = [file.parent for file in ROOT.glob("rust/*/Cargo.toml") if f'\nname = "{package}"\n' in file.read_text()]
    if arguments[0] != "test" or not crates:
        return f"there is no crate {package}"
    tests = crates[0] / "tests"
    if test and not ((tests / f"{test}.rs").is_file() or (tests / test / "main.rs").is_file()):
        return f"{package} has no test {test}"
    return None


def check_git(arguments: list[str]) -> str | None:
    (repository,) = re.findall(r'^repository = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    return None if arguments == ["clone", repository] else f"git {arguments}"


def check_cd(arguments: list[str]) -> str | None:
    return None if arguments == [NAME] else f"cd {arguments}"


CHECKS = {
    "cd": check_cd,
    "git": check_git,
    "make": check_make,
    NAME: check_command_line,
    "python": check_python,
    "torchrun": check_torchrun,
    "pip": check_pip,
    "cargo": check_cargo,
}
