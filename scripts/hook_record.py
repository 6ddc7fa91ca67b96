"""What a plugin relies on in the releases of its engine: read from their sources, compared with a recorded table.

`scripts/vllm_hooks.py` and `scripts/sglang_hooks.py` say what is looked at. Nothing of an engine is imported, so
neither torch nor a GPU is needed. A release that is not recorded is compared with the newest one that is: what differs
is what the plugin has to learn.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
COMMUNICATOR = "ca_comm"
"""The attribute that holds an engine's custom all-reduce."""


def compare_or_record(engine: str, table_file: Path, facts_of: Callable[[Path], tuple[str, Facts]]) -> int:
    """Compare or record the releases that the command line names; the exit status says whether all is as recorded.

    Args:
        engine: The name of the engine's package.
        table_file: The recorded facts, by release.
        facts_of: Returns the release that is unpacked in a folder, and its facts.
    """
    parser = argparse.ArgumentParser(description=f"What the plugin relies on in releases of {engine}.")
    parser.add_argument("--record", action="store_true", help="record, and do not compare")
    parser.add_argument("sources", type=Path, nargs="+", help=f"a folder that holds the package {engine}")
    arguments = parser.parse_args()
    table: dict[str, Facts] = json.loads(table_file.read_text()) if table_file.exists() else {}
    differences = 0
    for sources in arguments.sources:
        release, facts = facts_of(sources)
        if arguments.record:
            table[release] = facts
            continue
        recorded = release if release in table else newest(table)
        found = list(differences_of(table[recorded], facts))
        print(f"{engine} {release}, recorded {recorded}: {len(found)} differences", *found, sep="\n  ")
        differences += len(found)
    if arguments.record:
        table_file.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    return int(differences > 0)


def newest(table: dict[str, Facts]) -> str:
    """Return the newest release of the table."""
    return max(table, key=lambda release: [int(part) for part in release.split(".")])


def release_of(package: Path) -> str:
    """Return the release's number, from the file that setuptools_scm writes."""
    for node in ast.walk(parsed(package / "_version.py")):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "__version__" in names:
                return str(node.value.value)
    raise SystemExit(f"{package / '_version.py'} assigns no __version__; expected the sources of a release")


def signatures_of(sources: Path, named: dict[str, list[str]]) -> dict[str, dict[str, str | None]]:
    """Return the parameters of the functions that are named by module; None for what the release does not have."""
    signatures: dict[str, dict[str, str | None]] = {}
    for module, names in named.items():
        tree = tree_of(sources, module)
        signatures[module] = {name: signature_of(definition(tree, name)) for name in names}
    return signatures


def file_of(sources: Path, module: str) -> Path:
    """Return the file of a module, which need not be there."""
    path = sources / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def tree_of(sources: Path, module: str) -> ast.Module:
    """Return the syntax tree of a module, an empty one if there is no such module."""
    file = file_of(sources, module)
    return parsed(file) if file.exists() else ast.Module([], [])


def definition(tree: ast.AST, name: str) -> ast.AST | None:
    """Find a function or class by its dotted name; it may be defined under a condition."""
    found: ast.AST | None = tree
    for part in name.split("."):
        found = next((node for node in defined_in(found) if node.name == part), None)
    return found


def defined_in(node: ast.AST | None) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield the functions and classes of a body, those under its conditions too."""
    for each in getattr(node, "body", []):
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            yield each
        elif isinstance(each, ast.If | ast.Try):
            yield from defined_in(each)


def signature_of(node: ast.AST | None) -> str | None:
    """Return a function's parameters without their types, a class as the names of its public methods."""
    if isinstance(node, ast.ClassDef):
        methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
        return ", ".join(sorted(name for name in methods if not name.startswith("_")))
    if not isinstance(node, ast.FunctionDef):
        return None
    parameters = node.args
    for parameter in [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]:
        parameter.annotation = None
    return ast.unparse(parameters)


def calls_in(node: ast.AST | None, wanted: Callable[[str], bool]) -> list[str]:
    """Return the names of the functions that are called, in the order of their lines, if they are wanted."""
    order: list[tuple[int, str]] = []
    for each in ast.walk(node) if node else ():
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute | ast.Name):
            name = ast.unparse(each.func)
            if wanted(name):
                order.append((each.lineno, name))
    return [name for _line, name in sorted(order)]


def asked_of_the_communicator(package: Path, skipped: Path | None = None) -> set[str]:
    """Return the attributes that the release's code reads from `ca_comm`, by whatever name it holds it."""
    asked: set[str] = set()
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(errors="replace")
        if COMMUNICATOR not in text or file == skipped:
            continue
        tree = ast.parse(text)
        names = {COMMUNICATOR} | {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and is_the_communicator(node.value, set())
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_the_communicator(node.value, names):
                asked.add(node.attr)
    return asked


def is_the_communicator(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is `ca_comm`, as an attribute, by `getattr`, or by one of these names."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        return len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and node.args[1].value == COMMUNICATOR
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Attribute) and node.attr == COMMUNICATOR


def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text())


def differences_of(recorded: Any, found: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each difference."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in sorted({*recorded, *found}):
            yield from differences_of(recorded.get(key), found.get(key), f"{place}{key}: ")
    elif recorded != found:
        yield f"{place}recorded {recorded!r}, found {found!r}"
