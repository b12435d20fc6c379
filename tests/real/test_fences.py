"""Every Python block of the README and the documentation runs, page by page, on the default model, with fewer facts."""

import re
from pathlib import Path

import pytest

import lcalens

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SMALLER = (
    (re.compile(r"limit=\d+"), "limit=14"),
    (re.compile(r"range\(\d+\)"), "range(1)"),
    (re.compile(r"counts=\([\d, ]+\)"), "counts=(0, 1)"),
    (re.compile(r"facts\[:60\]"), "facts[:8]"),
    (re.compile(r"facts\[60:120\]"), "facts[8:16]"),
    (re.compile(r"(memory\(model, second, \(23, 4\))\)"), r"\1, draws=2)"),
    (re.compile(r"(leading\(.*), \d+"), r"\1, 3"),
)


def pages():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        blocks = ["\n".join(line.removeprefix(indent) for line in block.splitlines())
                  for indent, block in FENCE.findall(text)]  # fmt: skip
        if blocks:
            yield pytest.param(blocks, id=page.name)


@pytest.mark.parametrize("blocks", list(pages()))
def test_the_blocks_of_a_page_run_in_order(blocks, real_model, tmp_path, monkeypatch):
    model = real_model("smollm2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lcalens, "load_model", lambda name, **options: model, raising=False)
    space = {"__name__": "a page"}
    for block in blocks:
        for pattern, put in SMALLER:
            block = pattern.sub(put, block)
        exec(compile(block, "a page's block", "exec"), space)


def test_what_is_imported_from_lcalens_is_public():
    for page in pages():
        for block in page.values[0]:
            for names in re.findall(r"^from lcalens import (?:\(([^)]*)\)|(.*))$", block, re.MULTILINE):
                asked = {name.strip() for name in re.split(r"[,\n]", "".join(names)) if name.strip()}
                assert asked <= set(lcalens.__all__), asked - set(lcalens.__all__)
