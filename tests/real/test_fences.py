"""Every Python block of the README and the documentation runs, page by page, on the default model, with fewer facts.

A `text` block right behind a Python block is what that one prints. A block that nothing here can run begins with
"```python no-run".
"""

import contextlib
import io
import re
from pathlib import Path

import pytest

import lcalens
from lcalens.llm import defences
from lcalens.llm.plain import plain_texts

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^( *)```python\n(.*?)^\1```$(?:\n\n\1```text\n(.*?)^\1```$)?",
    re.MULTILINE | re.DOTALL,
)
NEVER_RUN = 4  # at most so many blocks
SMALLER = (
    (re.compile(r"limit=[1-9]\d+"), "limit=14"),
    (re.compile(r"range\(\d+\)"), "range(1)"),
    (re.compile(r"counts=\([\d, ]+\)"), "counts=(0, 1)"),
    (re.compile(r"facts\[:60\]"), "facts[:8]"),
    (re.compile(r"facts\[60:120\]"), "facts[8:16]"),
    (re.compile(r"(memory\(model, second, \(23, 4\))\)"), r"\1, draws=2)"),
    (re.compile(r"(leading\(.*), \d+"), r"\1, 3"),
)


def texts():
    listed = (page for page in sorted((ROOT / "docs").rglob("*.md")) if "_" not in page.relative_to(ROOT).parts[1][:1])
    for page in (ROOT / "README.md", *listed):
        yield page.relative_to(ROOT), page.read_text(encoding="utf-8")


def pages():
    for page, text in texts():
        blocks = [
            tuple(None if part is None else "\n".join(line.removeprefix(indent) for line in part.splitlines())
                  for part in (block, printed or None))
            for indent, block, printed in FENCE.findall(text)
        ]  # fmt: skip
        if blocks:
            yield pytest.param(blocks, 6 if "howto" in page.parts else 12, id=str(page))


@pytest.mark.parametrize(("blocks", "limit"), list(pages()))
def test_the_blocks_of_a_page_run_in_order(blocks, limit, real_model, tmp_path, monkeypatch):
    load_model = lcalens.load_model

    def load(source, **options):
        return real_model(source) if source in ("smollm2", "gemma3-270m") else load_model(source, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lcalens, "load_model", load, raising=False)
    monkeypatch.setattr(defences, "plain_texts", lambda *parts, **options: plain_texts(*parts, **options)[:12])
    space = {"__name__": "a page"}
    for block, printed in blocks:
        if printed is None:
            for pattern, put in SMALLER:
                block = pattern.sub(put, block)
            block = block.replace("limit=14", f"limit={limit}")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, "a page's block", "exec"), space)
        if printed is not None:
            assert out.getvalue().rstrip() == printed.rstrip()


def test_few_blocks_are_never_run():
    assert sum(text.count("```python no-run") for _, text in texts()) <= NEVER_RUN


def test_what_is_imported_from_lcalens_is_public():
    for page in pages():
        for block, _ in page.values[0]:
            for names in re.findall(r"^from lcalens import (?:\(([^)]*)\)|(.*))$", block, re.MULTILINE):
                asked = {name.strip() for name in re.split(r"[,\n]", "".join(names)) if name.strip()}
                assert asked <= set(lcalens.__all__), asked - set(lcalens.__all__)
