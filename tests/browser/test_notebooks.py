"""A rendered notebook in headless Chromium: its attention view answers the pointer and asks the net for nothing."""

from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, opened

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
EXAMPLES = Path(__file__).parents[2] / "examples"
# Headless Chromium draws no frames once a page stands; a timer does it in their place.
FRAMES = "<script>window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 16);</script>"
# A reader's pointer over a cell of the last row; what is drawn from then on is what the chart tells of it.
POINT = """
const before = seen.texts.length;
const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
const place = {clientX: box.left + 0.3 * box.width, clientY: box.top + 0.75 * box.height, bubbles: true, view: window};
for (const kind of ["pointermove", "mousemove"]) canvas.dispatchEvent(new MouseEvent(kind, place));
setTimeout(() => { seen.acts.told = seen.texts.slice(before); }, 3000);
"""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["1_hijack_a_real_model", "4_attention_or_recall"])
def test_an_attention_view_in_a_notebook_works_offline(name, tmp_path):
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="basic").from_filename(str(EXAMPLES / f"{name}.ipynb"))
    page = f'<!DOCTYPE html><html><head><meta charset="utf-8">{FRAMES}</head><body>{body}</body></html>'
    _, seen = opened(page, tmp_path, acts=POINT)
    assert sum(size > 0 for size in seen["charts"]) >= 2
    assert not [request for request in seen["requests"] if not request.startswith(("data:", "blob:"))]
    assert seen["errors"] == []
    told = seen["acts"]["told"]
    assert [text.partition(":")[0] for text in told if ":" in text] == ["Src", "Dest", "Val"], told
