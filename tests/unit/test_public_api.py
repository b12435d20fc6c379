"""What users may rely on: `lcalens.X` with its parameters, and for one version the module names of 0.1."""

import json
import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import lcalens
from lcalens.core.moved import MOVED
from tests.house import api

FIRST_MODULES = {  # every module of 0.1, by folder
    "": """
        cache checks cli errors lazy lca llm mechanism progress provenance quiet results runs screen
        statistics tensors tokens trace views
    """,
    "lca": """
        attention bayes bridge claims concepts contrasts embeddings geometry lemma6 lemmas memory
        model native recipe sampling steps summaries theorem3 theorems theory trainer training
        value_role
    """,
    "llm": """
        ask contrasts efficacy facts faults files hijack models packing records related schemes
        scoring sources summary weights
    """,
    "mechanism": """
        attribution contrast decoder direct exchange gradients hooked knockout measured metrics
        patching positions ranking shapley sites split summary tracing whole
    """,
    "views": """
        attention bars effects efficacy labels style toy
    """,
}
OLD_NAMES = [
    ".".join(filter(None, ("lcalens", room, name))) for room, names in FIRST_MODULES.items() for name in names.split()
]


@pytest.fixture(scope="module")
def promised():
    return json.loads(api.FILE.read_text(encoding="utf-8"))


def test_no_public_name_or_parameter_is_gone(promised):
    broken = api.broken(promised, api.surface(lcalens))
    assert not broken, f"{broken}; if it is meant, say so in CHANGELOG.md and run `{api.COMMAND}`"


def test_every_public_name_is_promised(promised):
    assert set(promised) == set(lcalens.__all__), f"run `{api.COMMAND}`"


CHANGES = {
    "a name": lambda now: now.pop("patch"),
    "a parameter": lambda now: now["patch"]["call"].pop("seed"),
    "a default": lambda now: now["patch"]["call"].update(seed="keyword, required"),
    "its place": lambda now: now["patch"]["call"].update(contrast="keyword, required"),
    "a new one that must be given": lambda now: now["patch"]["call"].update(more="keyword, required"),
    "a method": lambda now: now["Result"]["members"].pop("to_frame"),
    "a method's parameter": lambda now: now["Result"]["members"]["mean"].pop("cluster"),
    "a property": lambda now: now["Result"]["members"].pop("summary"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_taken_away_is_seen(promised, what):
    before, now = (
        {
            **promised,
            "patch": {
                "call": {"model": "positional, required", "contrast": "positional, required", "seed": "keyword"},
                "members": {},
            },
        }
        for _ in range(2)
    )
    now = json.loads(json.dumps(now))
    CHANGES[what](now)
    assert len(api.broken(before, now)) == 1


def test_what_is_added_breaks_nothing(promised):
    now = json.loads(json.dumps(promised))
    now["patch"]["call"]["more"] = "keyword"
    now["another"] = {"call": {}, "members": {}}
    assert not api.broken(promised, now)


@pytest.mark.parametrize("old", OLD_NAMES)
def test_module_names_of_0_1_still_import(old):
    sys.modules.pop(old, None) if old in MOVED else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = import_module(old)
    told = [str(warning.message) for warning in caught if issubclass(warning.category, DeprecationWarning)]
    told = [message for message in told if message.startswith("lcalens.")]
    assert told == (
        [f"{old} is {MOVED[old]} since lcalens 0.2; the old name goes in 0.3. Import {MOVED[old]}."]
        if old in MOVED
        else []
    )
    assert module is import_module(MOVED.get(old, old))
    assert module.__name__ == MOVED.get(old, old)


NAMES = {
    "lcalens.provenance": "model_info fingerprint versions",
    "lcalens.tokens": "encode check_length",
    "lcalens.results": "Result EXAMPLE",
    "lcalens.llm.scoring": "Continuation score",
    "lcalens.llm.models": "load_model",
    "lcalens.llm.facts": "Fact Facts Skipped load_facts",
    "lcalens.llm.efficacy": "efficacy EfficacyConfig check_config",
    "lcalens.lca.memory": "constructed_value theorem1_model gaussian_embedding",
    "lcalens.lca.model": "LCAConfig LCAForCausalLM lca_tokenizer",
    "lcalens.lca.training": "Run Runs train",
    "lcalens.lca.bayes": "posterior walsh_hadamard",
    "lcalens.mechanism.contrast": "Contrast answer_ids",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", NAMES)
def test_names_of_0_1_import_from_where_they_were(old):
    import_module("lcalens.llm.efficacy.measure"), import_module("lcalens.lca.training.training")
    scope = {}
    exec(f"from {old} import {', '.join(NAMES[old].split())}", scope)
    for name in NAMES[old].split():
        assert type(scope[name]).__name__ != "module"


def test_the_warning_points_at_the_users_line():
    script = "import lcalens\nimport lcalens.progress"
    told = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert told.startswith("<string>:2: DeprecationWarning: lcalens.progress is lcalens.core.progress since")


def test_a_name_that_never_was_is_an_import_error():
    with pytest.raises(ModuleNotFoundError, match=r"lcalens\.nothing"):
        import_module("lcalens.nothing")
