"""The site: Sphinx over the pages of this folder. `make docs` builds it, and every warning is an error.

The pages are also read in the repository, so they link to its files by relative paths. On the site such a link leads to
the repository.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import lamport_rs
import lamport_rs.distributed
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/lamport-rs/lamport-rs"

project = "lamport-rs"
author = "the authors of lamport-rs"
version = release = lamport_rs.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"lamport-rs {release}"
html_copy_source = html_show_copyright = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
default_role = "code"
"""A single backtick in a docstring is code, as in Markdown."""
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|dist|collections|types|typing)\..*|Group|Backend|Algorithm|Any|optional")]
"""Names that other sites document, and aliases of types that the page describes."""

TAKEN_OVER = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Pages that are files of the repository's root."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
NAME = re.compile(r"(?<![:`])`(?:lamport_rs\.)?((?:LamportWorkspace\.|IpcBuffer\.)?\w+)(?:\(\))?`(?!`)")

log = logging.getLogger(__name__)


def take_over(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give pages that lie elsewhere their text, and links to what is no page the repository's address."""
    folder = Path(app.env.doc2path(docname)).parent
    if docname in TAKEN_OVER:
        folder, source[0] = ROOT, (ROOT / TAKEN_OVER[docname]).read_text()
        app.env.note_dependency(str(ROOT / TAKEN_OVER[docname]))
    source[0] = LINK.sub(lambda found: found[1] + address(app, docname, folder, found[2]) + found[3], source[0])


def address(app: Sphinx, docname: str, folder: Path, link: str) -> str:
    """Return what the site links to for a link of a page in `folder`."""
    path, _, anchor = link.partition("#")
    if not path or "://" in path:
        return link
    target = (folder / path).resolve()
    if not target.exists() or not target.is_relative_to(ROOT):
        log.warning("%s does not exist", link, location=docname)
        return link
    anchor = f"#{anchor}" if anchor else ""
    for name, file in TAKEN_OVER.items():
        if target == ROOT / file:
            target = Path(app.srcdir) / f"{name}.md"
    if target.is_relative_to(app.srcdir) and target.is_file():
        return f"/{target.relative_to(app.srcdir)}{anchor}"
    if target.suffix in (".svg", ".png"):
        return f"../{target.relative_to(ROOT)}" if folder == Path(app.srcdir) else f"../../{target.relative_to(ROOT)}"
    kind = "tree" if target.is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}{anchor}"


def public_names() -> dict[str, object]:
    """Return what the reference has to describe, by its name on the page."""
    names = {f"lamport_rs.{name}": getattr(lamport_rs, name) for name in lamport_rs.__all__ if name != "__version__"}
    names["lamport_rs.distributed.install"] = lamport_rs.distributed.install
    for name, value in list(names.items()):
        if inspect.isclass(value) and not issubclass(value, BaseException):
            members = {member: each for member, each in inspect.getmembers(value) if not member.startswith("_")}
            names |= {f"{name}.{member}": each for member, each in members.items()}
    return names


def link_names(_app: Sphinx, _kind: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Have public names in docstrings lead to their descriptions."""
    known = {name.removeprefix("lamport_rs."): name for name in public_names()}
    for index, line in enumerate(lines):
        lines[index] = NAME.sub(
            lambda found: f":py:obj:`~{known[found[1]]}`" if found[1] in known else found[0],
            line,
        )


def check_reference(_app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that the reference leaves out, or that have nothing to say."""
    described = {name for name, *_ in env.get_domain("py").get_objects()}
    for name, value in public_names().items():
        if name not in described:
            log.warning("%s is public, and no page describes it", name)
        if not inspect.getdoc(value):
            log.warning("%s is public, and has no docstring", name)


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.connect("source-read", take_over)
    app.connect("autodoc-process-docstring", link_names)
    app.connect("env-check-consistency", check_reference)
