"""Every public name has an example in its docstring, and every example of the library runs on a real model."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import lcalens
from lcalens.llm import defences
from lcalens.llm.plain import plain_texts

FINDER = doctest.DocTestFinder(recurse=True, exclude_empty=True)


def modules():
    for module in pkgutil.walk_packages(lcalens.__path__, "lcalens."):
        if not module.name.endswith("__main__"):
            yield importlib.import_module(module.name)


def examples():
    for module in modules():
        for test in FINDER.find(module):
            if test.examples:
                yield pytest.param(test, id=test.name)


class Outcome(doctest.OutputChecker):
    """An example that shows no outcome may have any: tables and figures are not spelt out."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def names():
    model = lcalens.load_model("smollm2", progress=False)
    facts = lcalens.load_facts("sample", limit=3)
    contrast = lcalens.contrast_facts(model, facts, scheme="dont-think", control="neutral")
    public = {name: getattr(lcalens, name) for name in lcalens.__all__}
    return public | {"lcalens": lcalens, "model": model, "facts": facts, "contrast": contrast}


@pytest.mark.parametrize("name", lcalens.__all__)
def test_public_names_have_an_example(name):
    what = getattr(lcalens, name)
    if callable(what):
        assert ">>> " in inspect.getdoc(what)


@pytest.mark.parametrize("test", list(examples()))
def test_examples_run(test, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defences, "plain_texts", lambda *parts, **options: plain_texts(*parts, **options)[:12])
    test.globs = {**test.globs, **names}
    runner = doctest.DocTestRunner(Outcome(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    told = []
    failed = runner.run(test, out=told.append, clear_globs=True).failed
    assert not failed, "".join(told)
