"""The Markdown pages as they lie: links and headings that they name are there, and every public name has its place."""

import re
from pathlib import Path

import pytest

import lcalens
from lcalens.core.errors import LcalensError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *(page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "notebooks")]
NOT_TEXT = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def headings(page):
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        yield re.sub(r"[^\w\- ]", "", words).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = NOT_TEXT.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        place, _, heading = target.partition("#")
        there = (page.parent / place).resolve() if place else page
        assert there.exists(), target
        if heading:
            assert heading in set(headings(there)), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_the_api_has_every_public_name_once():
    told = []
    for page in sorted((DOCS / "api").glob("*.md")):
        if page.name != "index.md":
            for line in page.read_text(encoding="utf-8").splitlines():
                if re.fullmatch(r"(`\w+`(, )?)+", line):
                    told += re.findall(r"`(\w+)`", line)
    assert sorted(told) == sorted(lcalens.__all__)


def test_a_list_names_every_page_of_its_folder():
    for folder in ("api", "errors", "howto"):
        text = (DOCS / folder / "index.md").read_text(encoding="utf-8")
        pages = {page.name for page in (DOCS / folder).glob("*.md")} - {"index.md"}
        assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", text)), folder
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_an_errors_note_names_a_page():
    assert (DOCS / "errors" / "schemes.md").exists()
    for message in ("schemes: 'x' is not known.", "true: 'Paris': a token reaches into it.", "limit: 0 is too few."):
        (note,) = LcalensError(message).__notes__
        (page,) = re.findall(r"errors/[\w-]+", note)
        assert (DOCS / f"{page}.md").exists(), page


def test_a_note_is_no_part_of_the_message():
    assert str(LcalensError("schemes: 'x' is not known.")) == "schemes: 'x' is not known."
