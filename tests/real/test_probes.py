"""Every probe at its quick preset on real weights, twice: the second time nothing is measured, and pages are equal."""

import importlib
import re
from dataclasses import fields

import pytest
from matplotlib.image import imread

import probes.__main__ as everything
from probes.harness.run import run_all

NAMES = everything.Name.__args__


@pytest.mark.real
def test_all_probes_run_and_run_again_from_what_was_kept(tmp_path):
    first = run_all(NAMES, "quick", tmp_path)
    folder = tmp_path / "quick"
    pages = {path.name: path.read_text() for path in folder.glob("*.md")}
    assert set(pages) == {"index.md", "figures.md", *(f"{name.split('.')[-1]}.md" for name in NAMES)}
    for outcome in first:
        page = pages[f"{outcome.name}.md"]
        assert outcome.computed > 0, outcome.name
        assert "too little for a verdict" in page
        assert "| nan" not in page.lower()
        figures = re.findall(r"\]\((figures/.*?)\)", page)
        assert figures, outcome.name
        for figure in figures:
            assert imread(folder / figure)[..., :3].std() > 0.01, figure  # something is drawn
        for rule, _ in outcome.report.evidence:
            assert rule.claim in page
    second = run_all(NAMES, "quick", tmp_path)
    assert [outcome.computed for outcome in second] == [0] * len(NAMES)
    for name, page in pages.items():
        again = (folder / name).read_text()
        if name != "index.md":  # which says what the first run took
            assert again == page, name


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_says_beforehand_what_would_make_its_claims_hold(name):
    probe = importlib.import_module(f"probes.{name}")
    assert probe.RULES
    assert set(probe.PRESETS) == {"quick", "standard", "full"}
    for preset, settings in probe.PRESETS.items():
        assert settings.preset == preset
        told = type(settings).__doc__
        for one in fields(settings):
            inherited = any(one.name in base.__annotations__ for base in type(settings).__mro__[1:-1])
            assert inherited or f"{one.name}:" in told, f"{name}: --{one.name} is not explained"
    assert probe.PRESETS["standard"].seeds >= 5
    assert probe.PRESETS["full"].seeds >= 3  # its sweeps are what takes the time
    assert probe.CHOICES.strip()
