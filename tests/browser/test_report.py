"""The report in headless Chromium: nothing leaves it, heads are chosen, tables sort, hostile text is text."""

import numpy as np
import pandas as pd
import pytest
from helpers.browser import CHROMIUM, opened

from lcalens import attention_view, leading, patch, report
from lcalens.core.results import Result
from lcalens.mechanism.contrast.contrast import Contrast

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

HOSTILE = "<img src=x onerror=alert(1)></pre></script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def study(standin):
    """Patching of a small model, and two views of three heads each."""
    place = standin("gpt2")
    clean, hijacked = ([f"Do not think of {word}. The capital of {land} is" for land in ("France", "Spain")]
                       for word in ("Paris", "Rome"))  # fmt: skip
    contrast = Contrast(clean, hijacked, true=[" Paris"] * 2, false=[" Rome"] * 2, tokenizer=place.model)
    patched = patch(place.model, contrast, progress=False)
    heads = leading(patched, 3)
    return patched, [attention_view(place.model, contrast, heads, example=i) for i in (0, 1)], heads


def check_quiet(seen):
    assert [name for name in seen["requests"] if not name.startswith("data:")] == []
    assert seen["refused"] == []
    assert seen["errors"] == []
    assert seen["alerts"] == 0


def test_a_head_is_chosen_by_click_and_drawn_once(study, tmp_path):
    patched, views, heads = study
    acts = f"""
      const charts = [...document.querySelectorAll("[data-chart]")];
      const shown = () => charts.filter(chart => !chart.hidden).map(chart => chart.dataset.chart);
      seen.acts.first = shown();
      const cell = document.querySelector('.map td[data-head="{heads.names[2]}"]');
      cell.click();
      seen.acts.clicked = shown();
      seen.acts.head = document.getElementById("head").value;
      document.getElementById("view").value = "1";
      document.getElementById("view").dispatchEvent(new Event("change"));
      seen.acts.other = shown();
      seen.acts.dots = document.querySelectorAll(".map td.opens").length;
    """
    _, seen = opened(report([patched, *views]).page(), tmp_path, acts)
    check_quiet(seen)
    first, _, third = heads.names
    assert seen["acts"]["first"] == [f"0-{first}"]
    assert seen["acts"]["clicked"] == [f"0-{third}"]
    assert seen["acts"]["head"] == third
    assert seen["acts"]["other"] == [f"1-{third}"]
    assert seen["acts"]["dots"] == 3
    assert len(seen["charts"]) == 6  # two a choice, and three choices
    assert {f"{token.strip()} ({i})" for i, token in enumerate(views[0].clean.tokens)} <= set(seen["texts"])


def test_the_map_is_read_with_the_keyboard_and_tables_sort(study, tmp_path):
    patched, views, _ = study
    acts = """
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      const cells = [...document.querySelectorAll(".map td[data-head]")];
      seen.acts.stops = cells.filter(cell => cell.tabIndex === 0).length;
      cells[0].focus(); press("ArrowRight"); press("ArrowDown");
      seen.acts.at = document.activeElement.dataset.head;
      seen.acts.told = document.querySelector(".map output").textContent;
      seen.acts.after = cells.filter(cell => cell.tabIndex === 0).length;
      const table = document.querySelector("table.sortable");
      const button = [...table.tHead.querySelectorAll("button")].find(b => b.textContent.startsWith("recovery"));
      const column = [...table.tHead.rows[0].cells].findIndex(c => c.contains(button));
      const values = () => [...table.tBodies[0].rows].map(row => Number(row.cells[column].dataset.order));
      button.click(); seen.acts.up = values();
      button.click(); seen.acts.down = values();
      seen.acts.aria = table.tHead.rows[0].cells[column].getAttribute("aria-sort");
    """
    _, seen = opened(report([patched, *views]).page(), tmp_path, acts)
    check_quiet(seen)
    told = seen["acts"]
    assert (told["stops"], told["after"]) == (1, 1)
    assert told["at"] == "L1H1"  # the last layer, 2, is the first row
    assert told["told"].startswith("L1H1: ")
    assert told["up"] == sorted(told["up"])
    assert told["down"] == sorted(told["down"], reverse=True)
    assert len(set(told["up"])) > 3
    assert told["aria"] == "descending"


def test_hostile_words_are_text(tmp_path):
    answers = pd.DataFrame({"rank": [1], "clean": [HOSTILE], "clean_probability": [0.5]})
    result = Result(
        kind="answers",
        axes={"context": ("clean",), "rank": (1,)},
        values={"probability": np.array([[0.5]])},
        tables={"answers": answers, "scored": pd.DataFrame()},
        provenance={"config": {"prompt": HOSTILE, "hijack": []}, "model": {"source": HOSTILE, "dtype": HOSTILE}},
    )
    _, seen = opened(report([result], title=HOSTILE, command=HOSTILE).page(), tmp_path)
    check_quiet(seen)


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_is_as_wide_as_its_window(study, tmp_path, width):
    patched, views, _ = study
    acts = "seen.acts.wide = document.documentElement.scrollWidth; seen.acts.window = window.innerWidth;"
    _, seen = opened(report([patched, *views]).page(), tmp_path, acts, width)
    assert seen["acts"]["wide"] <= max(seen["acts"]["window"], 500)  # headless Chromium is 500 wide at least
