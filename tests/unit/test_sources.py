"""A finished cell is found again only by the code that made it: what a change of the sources does to its key."""

import functools
import shutil
from pathlib import Path

import pytest

import lcalens
from lcalens.core.cells import cell_key, content_key
from lcalens.core.sources import Place, Tree, sources

ROOT = Path(lcalens.__file__).parent.parent
PATCH = (Place("lcalens.mechanism.patch_cells", "measure"), Place("lcalens.engine.reading", "read_decoder"))
TRAIN = (Place("lcalens.lca.training.trainer", "Trainer"),)
SCORE = (Place("lcalens.llm.efficacy.scoring", "score"),)
PROBE = (Place("probes.toy.value_role", "measure"),)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for package in ("lcalens", "probes"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def digest(folder, places):
    return Tree({name: folder / name for name in ("lcalens", "probes")}).digest(places)


@functools.cache
def unedited(places):
    return digest(ROOT, places)


@pytest.fixture
def edited(copied):
    """A function that says whether the digest changes when `old` becomes `new` in a file."""

    def changes(places, file, old, new):
        path, before = copied / file, unedited(places)
        text = path.read_text()
        assert text.count(old) >= 1, "the test edits what is not there"
        path.write_text(text.replace(old, new, 1))
        try:
            return digest(copied, places) != before
        finally:
            path.write_text(text)

    return changes


def test_the_copy_is_read_as_the_original(copied):
    for places in (PATCH, TRAIN, SCORE, PROBE):
        assert digest(copied, places) == digest(ROOT, places)


MISSES = [
    # the library's constructed value matrix, negated: what a probe of it measured is another number
    (PROBE, "lcalens/lca/model/closed_forms.py", "def constructed_value(", "def constructed_value(sign, "),
    (PROBE, "lcalens/lca/model/closed_forms.py", "def _nearest_offsets(", "def _nearest_offsets(x, "),
    (PROBE, "lcalens/lca/world/bayes.py", "_TIE = ", "_TIE = 2 * "),
    (PROBE, "probes/toy/value_role.py", "def measure(", "def measure(x, "),
    (PROBE, "probes/harness/toy.py", "def recipe(", "def recipe(x, "),
    (TRAIN, "lcalens/lca/training/stack.py", "_EPS = ", "_EPS = 2 * "),
    (TRAIN, "lcalens/lca/world/sampling.c", "{", "{ "),
    (
        TRAIN,
        "lcalens/lca/world/concepts.py",
        "class LatentConcepts",
        "class Other:\n    pass\n\n\nclass LatentConcepts",
    ),
    (PATCH, "lcalens/engine/forward.py", "def trace(", "def trace(x, "),
    (PATCH, "lcalens/engine/metrics.py", "def read(", "def read(x, "),
    (PATCH, "lcalens/engine/by_hooks.py", "def patch_hooked(", "def patch_hooked(x, "),
    (SCORE, "lcalens/llm/efficacy/tries.py", "def pack(", "def pack(x, "),
]
HITS = [
    (PROBE, "probes/toy/value_role.py", "def report(", "def report(x, "),
    (PROBE, "probes/harness/page.py", "def page(", "def page(x, "),
    (PROBE, "probes/harness/rules.py", "class Rule", "class Other:\n    pass\n\n\nclass Rule"),
    (PROBE, "lcalens/lca/model/closed_forms.py", '"""', '"""Another docstring. '),
    (PROBE, "lcalens/lca/model/closed_forms.py", "\ndef ", "\n# a comment\ndef "),
    (PROBE, "lcalens/lca/model/closed_forms.py", "\n\n\ndef ", "\n\n\n\n\n\ndef "),
    (PATCH, "lcalens/views/effects.py", "def plot_effects(", "def plot_effects(x, "),
    (PATCH, "lcalens/views/effects.py", "import", "import sys\nimport"),
    (PATCH, "lcalens/lca/training/trainer.py", "DIVERGED = ", "DIVERGED = 2 * "),
    (PATCH, "lcalens/mechanism/split.py", "def split(", "def split(x, "),
    (TRAIN, "lcalens/mechanism/patch_cells.py", "def measure(", "def measure(x, "),
    (TRAIN, "lcalens/commands/trace.py", "import", "import sys\nimport"),
]


@pytest.mark.parametrize(("places", "file", "old", "new"), MISSES, ids=lambda value: str(value)[:40])
def test_what_a_cell_reaches_makes_it_another(edited, places, file, old, new):
    assert edited(places, file, old, new)


@pytest.mark.parametrize(("places", "file", "old", "new"), HITS, ids=lambda value: str(value)[:40])
def test_what_a_cell_does_not_reach_and_what_is_no_code_leave_it(edited, places, file, old, new):
    assert not edited(places, file, old, new)


@pytest.mark.parametrize("places", [PATCH, TRAIN, SCORE], ids=["patch", "train", "score"])
def test_every_function_reached_counts(copied, places):
    """Each function that is reached gets another body in turn."""
    tree = Tree({"lcalens": copied / "lcalens"})
    before = unedited(places)
    functions = [
        (place, node)
        for place, nodes in tree.reached(places).items()
        for node in nodes
        if type(node).__name__ == "FunctionDef"
    ]
    assert len(functions) > 8
    for place, node in functions[::6]:
        path = copied.joinpath(*place.module.split(".")).with_suffix(".py")
        if not path.exists():
            continue
        text = path.read_text()
        lines = text.splitlines(keepends=True)
        last = node.body[-1]
        lines.insert(last.end_lineno, " " * last.col_offset + "x = 1\n")
        path.write_text("".join(lines))
        try:
            assert digest(copied, places) != before, place
        finally:
            path.write_text(text)


SMALL = {
    "pack/__init__.py": "from lcalens.core.lazy import lazy_names\n_HOMES = {'shown': 'pack.deep.home'}\n",
    "pack/deep/__init__.py": "",
    "pack/deep/home.py": "import pack.other as alias\ndef shown():\n    return alias.number + alias.Kind().get()\n",
    "pack/other.py": "number = 1\nnumber += 1\nclass Kind:\n"
    "    def get(self):\n        from .last import three\n        return three\n",
    "pack/last.py": "try:\n    three = 3\nexcept ValueError:\n    three = 4\nunused = 5\nprint('registered')\n",
    "pack/main.py": "import pack\ndef begin(x: 'Typed'):\n    return pack.shown()\ndef idle():\n    return 0\n"
    "class Typed:\n    field = 0\nif __name__ == '__main__':\n    idle()\n",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("other.py", "+= 1", "+= 2", True),
        ("last.py", "= 3", "= 33", True),
        ("last.py", "= 4", "= 44", True),
        ("last.py", "registered", "entered", True),
        ("last.py", "= 5", "= 55", False),
        ("deep/home.py", "+ alias", "- alias", True),
        ("main.py", "field = 0", "field = 1", True),
        ("main.py", "return 0", "return 1", False),
    ],
)
def test_names_through_facades_aliases_methods_and_annotations(tmp_path, file, old, new, seen):
    for name, text in SMALL.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    begin = [Place("pack.main", "begin")]
    before = Tree({"pack": tmp_path / "pack"}).digest(begin)
    path = tmp_path / "pack" / file
    path.write_text(path.read_text().replace(old, new))
    assert (Tree({"pack": tmp_path / "pack"}).digest(begin) != before) == seen


def test_functions_classes_and_methods_are_roots():
    from lcalens.lca.training.trainer import Trainer
    from lcalens.llm.efficacy.scoring import score

    assert sources(Trainer) == sources(Trainer.train) == digest(ROOT, TRAIN)
    assert sources(score) == digest(ROOT, SCORE)
    assert sources(test_functions_classes_and_methods_are_roots)


def test_a_key_is_of_its_code_its_content_and_the_version(monkeypatch):
    plain = cell_key(sources, [1])
    assert plain == cell_key([sources], [1])
    others = {cell_key(content_key, [1]), cell_key(sources, [2]), cell_key([sources, content_key], [1])}
    monkeypatch.setattr(lcalens, "__version__", "another")
    assert len(others | {plain, cell_key(sources, [1])}) == 5
