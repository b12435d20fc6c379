"""Every probe at its quick preset on real weights, twice: the second time nothing is measured, and pages are equal."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from matplotlib.image import imread

import probes.__main__ as everything

ROOT = Path(__file__).parents[2]
NAMES = everything.Name.__args__


SCRIPT = """
import json, sys
from pathlib import Path
from probes.__main__ import Name
from probes.harness.run import run_all
found = run_all(Name.__args__, "quick", Path(sys.argv[1]))
print(json.dumps([[one.name, one.computed, [rule.claim for rule, _ in one.report.evidence]] for one in found]))
"""


def run(folder):
    """All probes in a process of their own, as they are run: a type checker in between takes most of the time."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.real
def test_all_probes_run_and_run_again_from_what_was_kept(tmp_path):
    first = run(tmp_path)
    folder = tmp_path / "quick"
    pages = {path.name: path.read_text() for path in folder.glob("*.md")}
    assert set(pages) == {"index.md", "figures.md", *(f"{name.split('.')[-1]}.md" for name in NAMES)}
    for name, computed, claims in first:
        page = pages[f"{name}.md"]
        assert computed > 0, name
        assert "too little for a verdict" in page
        assert "| nan" not in page.lower()
        figures = re.findall(r"\]\((figures/.*?)\)", page)
        assert figures, name
        for figure in figures:
            assert imread(folder / figure)[..., :3].std() > 0.01, figure  # something is drawn
        for claim in claims:
            assert claim in page
    assert [computed for _, computed, _ in run(tmp_path)] == [0] * len(NAMES)
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
        told = type(settings).__doc__ or ""
        for one in fields(settings):
            inherited = any(one.name in base.__annotations__ for base in type(settings).__mro__[1:-1])
            assert inherited or f"{one.name}:" in told, f"{name}: --{one.name} is not explained"
    assert probe.PRESETS["standard"].seeds >= 5
    assert probe.PRESETS["full"].seeds >= 3  # its sweeps are what takes the time
    assert probe.CHOICES.strip()
