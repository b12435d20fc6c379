"""The table of the paper's figures, and the bars of Figures 3a, C.1 and C.13."""

import pandas as pd
import pytest

from lcalens.core.errors import LcalensError
from probes.harness.figures import bars
from probes.harness.order import ORDER
from probes.harness.paper_figures import FIGURES, beside, span


def test_every_figure_of_the_paper_is_in_the_table_with_its_settings_and_its_sentence():
    assert set(FIGURES) == set(ORDER)
    for name, figure in FIGURES.items():
        assert figure.title, name
        assert figure.settings.endswith("."), name
        assert figure.sentence.rstrip("'\"").endswith("."), name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Figure 3b", "m = 8."),
        ("Figure C.5", "m = 7 and 8."),
        ("Figure C.9", "m = 7, d = 32"),
        ("Figure C.12", "m = 8, d = 64"),
        ("Figure C.4", ".01, .001"),
        ("Figure C.1", "L = 64 and 128"),
    ],
)
def test_settings_are_the_papers(name, settings):
    assert settings in FIGURES[name].settings


def test_what_stands_beside_a_figure_names_whose_settings_are_whose():
    found = beside("Figure 3a", "d = V/2.", "a caption", "A paragraph.")
    assert found.settings == "the paper's are m = 5 to 8, L = 64. Ours are d = V/2."
    assert found.sentence == FIGURES["Figure 3a"].sentence
    with pytest.raises(LcalensError, match="figure: 'Figure 9'"):
        beside("Figure 9", "", "", "")


def test_spans():
    assert span([0.5, 0.25, float("nan")]) == "0.25 to 0.5"
    assert span([1.0]) == "1"
    assert span([]) == "no number"


def test_bars_have_the_heights_of_their_rows():
    rows = [(5, "a", 0.2), (6, "a", 0.3), (5, "b", 0.4), (6, "b", 0.5)]
    frame = pd.DataFrame(rows, columns=["m", "kind", "mean"]).assign(low=0.1, high=0.6, panel="one")
    figure = bars(frame, x="m", y="mean", xlabel="m", ylabel="accuracy", series="kind", panel="panel")
    heights = sorted(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == pytest.approx([0.2, 0.3, 0.4, 0.5])
