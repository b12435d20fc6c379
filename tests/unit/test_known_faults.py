"""Libraries that compute some models wrongly: who is warned, and where it is said."""

from pathlib import Path

import pytest
from packaging.version import Version

from lcalens import contrast_facts, load_facts, load_model, patch
from lcalens.core import known_faults as table
from lcalens.core.known_faults import KnownFault, faults_of, known_faults

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("family", "version", "warned"),
    [
        ("olmo3", "5.0.0", True),
        ("olmo3", "5.12.1", True),
        ("olmo3", "5.13.0", False),
        ("olmo3", "4.57.0", False),
        ("olmo2", "5.5.0", False),
        ("olmo3", "not installed", False),
    ],
)
def test_a_version_within_the_range_is_warned_of(family, version, warned):
    found = faults_of(family, {"transformers": version})
    assert len(found) == warned
    if warned:
        assert f"Version {version} is installed; take 5.13 or later" in found[0]
        assert "https://github.com/" in found[0]


def test_every_fault_says_where_it_is_from_and_is_in_the_documentation():
    page = (DOCS / "models.md").read_text()
    for fault in known_faults():
        assert Version(fault.first) < Version(fault.fixed)
        assert fault.source.startswith("https://")
        cells = (
            f"{fault.library} {fault.first} to {fault.fixed}",
            ", ".join(fault.families),
            fault.what,
            f"<{fault.source}>",
        )
        assert f"| {' | '.join(cells)} |" in page


def test_a_fault_is_said_at_loading_and_in_every_result(standin, monkeypatch):
    fault = KnownFault("transformers", "1.0", "1000.0", ("llama",), "everything", "https://github.com/none")
    monkeypatch.setattr(table, "known_faults", lambda: (fault,))
    with pytest.warns(UserWarning, match=r"load_model: transformers 1.0 to 1000.0 compute llama wrongly: everything"):
        model = load_model(standin("llama").folder, progress=False)
    found = patch(model, contrast_facts(model, load_facts("sample", limit=2)), progress=False)
    assert len(found.provenance["known_faults"]) == 1
    monkeypatch.undo()
    model = load_model(standin("llama").folder, progress=False)
    assert (
        "known_faults"
        not in patch(model, contrast_facts(model, load_facts("sample", limit=2)), progress=False).provenance
    )
