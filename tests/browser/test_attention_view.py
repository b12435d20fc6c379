"""Attention views in headless Chromium: charts are drawn, text is text, and nothing leaves the page."""

import html
import re

import pytest
import torch
from helpers.browser import CHROMIUM, opened

from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.views import attention_view

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

SUBJECT = "<script>alert(1)</script>"


def saved(view, folder):
    return view.save(folder / "view.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    model = LCAForCausalLM(LCAConfig(m=3, d_model=8, d_head=4))
    contrast = Contrast([[5, 1, 2, 7]], [[5, 0, 6, 7]], true=1, false=3)
    return lca_bridge(model), contrast


def check_quiet(seen):
    assert seen["requests"] == []
    assert seen["refused"] == []
    assert seen["errors"] == []
    assert seen["alerts"] == 0
    assert seen["frames"] == 0


def test_a_toy_view_shows_bits(toy, tmp_path):
    dom, seen = opened(saved(attention_view(*toy, [(0, 0)]), tmp_path), tmp_path)
    check_quiet(seen)
    assert len(seen["charts"]) == 2
    assert min(seen["charts"]) > 100**2
    assert {"101 (0)", "001 (1)", "000 (1)", "110 (2)", "111 (3)"} <= set(seen["texts"])
    assert "101 001 010 111" in dom
    assert "Trust Notebook" not in dom  # the charts stand where it stood
    assert "101 000 110 111" in dom


def test_a_real_view_shows_every_token_as_text(standin, tmp_path):
    place = standin("gpt2")
    clean, hijacked = (f"Do not think of {word}. The capital of {SUBJECT} is" for word in ("Paris", "Rome"))
    contrast = Contrast(clean, hijacked, true=" Paris", false=" Rome", tokenizer=place.model)
    view = attention_view(place.model, contrast, [(0, 0), (0, 1)])
    dom, seen = opened(saved(view, tmp_path), tmp_path)
    check_quiet(seen)
    assert len(seen["charts"]) == 4
    for side in (view.clean, view.hijacked):
        shown = {f"{re.sub(r'[ ]', '', token)} ({i})" for i, token in enumerate(side.tokens)}
        assert shown <= set(seen["texts"])
    assert html.escape(hijacked) in dom
    assert seen["scripts"] == 2  # the probe's and the view's own


def test_tokens_of_markup_are_text_whole(toy, tmp_path, monkeypatch):
    """A tokenizer whose tokens are whole subjects, and worse."""
    bad = [SUBJECT, "</script><script>alert(2)</script>", "<!--<script>", "<img src=x onerror=alert(3)>"]
    bad += ["\\u003c", "`${1}`", '"});alert(4)//', "]]>&lt;b&gt;"]
    monkeypatch.setattr("lcalens.views.attention.read_token", lambda tokenizer, token: bad[token])
    monkeypatch.setattr("lcalens.views.attention.read_text", lambda tokenizer, tokens: " ".join(bad[i] for i in tokens))
    contrast = Contrast([list(range(8))], [list(range(7, -1, -1))], true=0, false=1)
    view = attention_view(toy[0], contrast, [(0, 0)])
    dom, seen = opened(saved(view, tmp_path), tmp_path)
    check_quiet(seen)
    assert {f"{token.replace(' ', '')} ({i})" for i, token in enumerate(bad)} <= set(seen["texts"])
    assert html.escape(" ".join(bad), quote=False) in dom
    assert "<img" not in dom[dom.index("<body") :].partition("<script crossorigin")[0]


def test_two_views_in_one_notebook_page(toy, tmp_path):
    first, second = (attention_view(*toy, [(0, 0)])._repr_html_() for _ in range(2))
    _, seen = opened(f"<html><head></head><body>{first}{second}</body></html>", tmp_path)
    check_quiet(seen)
    assert len(seen["charts"]) == 4
    assert min(seen["charts"]) > 100**2
