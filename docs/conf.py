"""Sphinx configuration for `make docs`. The pages are Markdown that is also readable on GitHub."""

import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx

project = "Trivium"
author = "the authors of Trivium"
release = version = version_of("trivium")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = "Trivium"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
default_role = "code"  # docstrings use single backticks for code, as in Markdown

myst_heading_anchors = 3  # heading anchors as on GitHub
myst_enable_extensions = ["attrs_inline"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
copybutton_exclude = ".linenos, .gp"

ROOT = Path(__file__).parent.parent
COMMANDS = ROOT / "docs" / "reference" / "command-line.md"


def write_commands(app: Sphinx) -> None:
    """Generate the command-line reference with typer on every build."""
    reference = subprocess.run(
        [
            sys.executable,
            "-m",
            "typer",
            "trivium_cli",
            "utils",
            "docs",
            "--name",
            "trivium",
            "--title",
            "Command line",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if not COMMANDS.is_file() or COMMANDS.read_text(encoding="utf-8") != reference:
        COMMANDS.write_text(reference, encoding="utf-8")


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Point links to source files at their viewcode pages, and unlink other targets outside docs/."""
    page = Path(doctree["source"])
    for node in list(doctree.findall(download_reference)):
        path = (page.parent / node["reftarget"]).resolve().relative_to(ROOT).with_suffix("")
        if path.parts[0] in ("configuration", "modeling", "tokenization", "trivium"):
            module = "/".join(path.parts if path.parts[0] == "trivium" else ("trivium", *path.parts))
            up = "../" * len(page.relative_to(ROOT / "docs").parent.parts)
            node.replace_self(nodes.reference("", "", *node.children, refuri=f"{up}_modules/{module}.html"))
    for node in list(doctree.findall(pending_xref)):
        path = (page.parent / node["reftarget"]).resolve()
        path = path if path.exists() else path.with_suffix(".md")
        if node.get("refdomain") in (None, "", "doc") and path.exists() and ROOT / "docs" not in path.parents:
            node.replace_self(node.children)


def setup(app: Sphinx) -> None:
    """Register the build hooks."""
    app.connect("builder-inited", write_commands)
    app.connect("doctree-read", link_sources)
