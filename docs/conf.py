"""How Sphinx makes the site of these pages: `make docs`.

The pages are plain Markdown that reads well where it lies. What a site needs besides is put in here as they are read:
the contents, from the lists of index.md; the docstrings, in the place of the names on the pages of api/; and the
notebooks of examples/, with the outputs that are saved in them.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import lcalens  # noqa: E402

project = "lcalens"
author = "The lcalens authors"
copyright = author
release = version = lcalens.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_static"]

# Markdown: links to headings, and LaTeX nowhere. Notebooks show what is saved in them, and load no script for widgets.
myst_heading_anchors = 4
myst_enable_extensions = []
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True

# Docstrings are Google's, with Markdown's backticks. What an argument may be stands in words behind its name.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "from_dict, to_dict"}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Every link inside the site must lead somewhere; `make linkcheck` asks for those that lead out of it.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|jaxtyping|numpy|pandas|torch|transformers)\..*"),  # no inventories of theirs are at hand
    ("py:class", r"lcalens\.(lca|mechanism)\..*"),  # what a class holds and no one makes: a Detector, an LCAAttention
]
linkcheck_anchors = False

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"lcalens {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
templates_path = []

NOTEBOOKS = HERE / "tutorials" / "notebooks"  # copies, which git ignores
# A page's own pages, which index.md does not list.
BENEATH = {
    "claims/index": "/claims/*",
    "hijacking": "/measured/counterfact-*",
    "mechanism": "/measured/trace-*",
    "tutorials/index": "notebooks/*",
    "howto/index": "*",
    "errors/index": "*",
    "api/index": "*",
}


def copy_notebooks() -> None:
    """The notebooks of examples/, beside the page that introduces them."""
    shutil.rmtree(NOTEBOOKS, ignore_errors=True)
    NOTEBOOKS.mkdir(parents=True)
    for notebook in sorted((ROOT / "examples").rglob("*.ipynb")):
        if not any(part.startswith(".") for part in notebook.relative_to(ROOT).parts):
            shutil.copy(notebook, NOTEBOOKS)


def contents(index: str) -> str:
    """The tables of contents that index.md's headings and lists stand for: each entry's first link, with its words."""
    trees = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0].strip()
        pages = re.findall(r"^- \[([^\]]*)\]\((?!https?:)([^)#]+)\.md\)", section, re.MULTILINE)
        trees.append(tree([f"{words} <{page}>" for words, page in pages], caption))
    return "\n".join(trees)


def tree(entries: list[str], caption: str = "") -> str:
    """A hidden table of contents."""
    options = ":hidden:\n:glob:\n" + (f":caption: {caption}\n" if caption else "")
    return "\n```{toctree}\n" + options + "\n" + "\n".join(entries) + "\n```\n"


def described(page: str) -> str:
    """A page of api/, whose lines of public names become their docstrings."""
    lines = []
    for line in page.splitlines():
        names = re.findall(r"`(\w+)`", line)
        if names and not re.sub(r"`\w+`|[,\s]", "", line) and set(names) <= set(lcalens.__all__):
            lines += ["```{eval-rst}", *(directive for name in names for directive in documented(name)), "```"]
        else:
            lines.append(line)
    return "\n".join(lines)


def documented(name: str) -> list[str]:
    """The directive that shows a public name."""
    thing = getattr(lcalens, name)
    if not isinstance(thing, type):
        return [f".. autofunction:: lcalens.{name}", ""]
    bases = any(base.__module__.startswith("transformers") for base in thing.__mro__)
    return [f".. autoclass:: lcalens.{name}", *(["   :no-members:"] if bases else []), ""]


def read(app: Any, page: str, source: list[str]) -> None:
    """Put in what the site needs besides the page's own text."""
    if page == "index":
        source[0] += contents(source[0])
    if page.startswith("api/"):
        source[0] = described(source[0])
    if page == "tutorials/index":
        source[0] = re.sub(r"\]\(\.\./\.\./examples/(?:[\w-]+/)*([\w-]+\.ipynb)\)", r"](notebooks/\1)", source[0])
    if page in BENEATH and (page != "tutorials/index" or any(NOTEBOOKS.iterdir())):
        listed = tree([BENEATH[page]])
        source[0] += listed.replace(":hidden:\n", "") if page == "tutorials/index" else listed


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    copy_notebooks()
    app.connect("source-read", read)
    app.connect("env-get-outdated", lambda *_: ["tutorials/index"])  # which notebooks there are is not in its text
    return {"parallel_read_safe": True, "parallel_write_safe": True}
