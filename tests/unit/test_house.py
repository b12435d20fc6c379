"""The house: rooms depend on each other in one direction, files never in a circle, and only two rooms print or draw."""

import ast
import re
import shutil
from pathlib import Path

import pytest

from tests.house.graph import ALLOWED, Arrow, arrows, back_edges, circles, modules, room

ROOT = Path(__file__).resolve().parents[2]

PRINTING = {"views", "commands"}
DRAWING = {"matplotlib", "circuitsvis", "seaborn", "plotly"}


@pytest.fixture(scope="module")
def found():
    return arrows(ROOT)


def test_no_room_imports_one_that_stands_on_it(found):
    assert back_edges(found) == []


def test_no_circle_of_files(found):
    assert circles(found) == []


def test_the_page_says_how_it_is(found):
    """Sizes are of the day on which the page was made; that there is neither back edge nor circle is of every day."""
    page = (ROOT / "docs/how-it-is-built.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| now \|(.*)\|$", page, flags=re.MULTILINE)
    rooms, *_, back, around = [cell.strip() for cell in row.split("|")][1:]
    assert (int(rooms), int(back), int(around)) == (len(ALLOWED), len(back_edges(found)), len(circles(found)))
    assert set(re.findall(r"^\| `(\w+)/` \|", page, flags=re.MULTILINE)) == set(ALLOWED)


def test_every_module_has_a_room():
    flat = [name for name in modules(ROOT) if name.count(".") == 1 and modules(ROOT)[name].name != "__init__.py"]
    assert flat == ["lcalens.__main__", "lcalens.cli"]


def test_only_views_and_commands_print_or_draw():
    loud = []
    for name, path in modules(ROOT).items():
        if room(name) in PRINTING:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write"):
                loud.append((name, node.lineno))
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                loud += [(name, node.lineno) for one in names if one.partition(".")[0] in DRAWING]
    assert not loud


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "lcalens", tmp_path / "lcalens", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


BACK_EDGES = {
    "at the top": ("core/checks.py", "from lcalens.mechanism.measured import LABELS\n", "lcalens.mechanism.measured"),
    "in a function": ("engine/direct.py", "def late():\n    import lcalens.llm.ask\n", "lcalens.llm.ask"),
    "for types alone": (
        "mechanism/split.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lcalens.llm.facts.facts import Fact\n",
        "lcalens.llm.facts.facts",
    ),
    "through the facade": ("lca/geometry.py", "from lcalens import ask\n", "lcalens.llm.ask"),
    "through a room's facade": (
        "mechanism/knockout.py",
        "from lcalens.lca import train\n",
        "lcalens.lca.training.training",
    ),
    "as an attribute": ("llm/ask.py", "import lcalens\nlcalens.train\n", "lcalens.lca.training.training"),
    "relative": ("core/lazy.py", "from ..views import style\n", "lcalens.views.style"),
}


@pytest.mark.parametrize("how", BACK_EDGES)
def test_a_planted_back_edge_is_seen(copy, how):
    file, code, target = BACK_EDGES[how]
    path = copy / "lcalens" / file
    path.write_text(path.read_text(encoding="utf-8") + "\n" + code, encoding="utf-8")
    source = "lcalens." + file.removesuffix(".py").replace("/", ".")
    assert set(back_edges(arrows(copy))) == {Arrow(source, target)}


def test_a_planted_circle_is_seen(copy):
    path = copy / "lcalens/lca/world/xor.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nfrom lcalens.lca.world import bayes\n", encoding="utf-8")
    planted = circles(arrows(copy))
    assert len(planted) == 1
    assert {"lcalens.lca.world.bayes", "lcalens.lca.world.xor"} <= set(planted[0])


def test_a_facades_table_is_no_arrow(copy):
    assert [arrow.target for arrow in arrows(copy) if arrow.source == "lcalens.lca"] == ["lcalens.core.lazy"]
