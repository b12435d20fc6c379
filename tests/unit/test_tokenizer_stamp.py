"""A tokenizer's stamp is the same for the same tokens wherever it was loaded, and another after any change."""

import copy
import functools
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.standins import TEMPLATE, byte_level_tokenizer, metaspace_tokenizer
from tokenizers import AddedToken, normalizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer

from lcalens import LcalensError, efficacy, load_facts, load_model
from lcalens.core.tokenizer_stamp import ModelTokenizer, loaded_tokenizer, tokenizer_stamp
from lcalens.core.tokens import encode, source_tokenizer

MADE = {"byte-level": byte_level_tokenizer, "metaspace": metaspace_tokenizer, "slow": ByT5Tokenizer}


@pytest.fixture(scope="module", params=MADE)
def made(request):
    return MADE[request.param]()


def used(tokenizer):
    """After somebody has padded, cut, and read too long a text with it."""
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    fresh = tokenizer_stamp(tokenizer)
    tokenizer(["one", "two of them"], padding=True)
    tokenizer(["one", "two of them"], truncation=True, max_length=2)
    tokenizer("a long text " * 200)
    tokenizer.decode([5, 6])
    return fresh, tokenizer_stamp(tokenizer)


def test_use_and_copies_do_not_change_it(made):
    before, after = used(copy.deepcopy(made))
    assert before == after
    assert tokenizer_stamp(copy.deepcopy(made)) == tokenizer_stamp(pickle.loads(pickle.dumps(made)))


def test_it_is_the_same_in_any_process_and_by_any_path(made, tmp_path):
    made.save_pretrained(tmp_path / "saved")
    here = tokenizer_stamp(AutoTokenizer.from_pretrained(tmp_path / "saved"))
    code = (
        "import sys; from transformers import AutoTokenizer; from lcalens.core.tokenizer_stamp import tokenizer_stamp; "
        "print(tokenizer_stamp(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    env = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[2])}
    there = subprocess.run(
        [sys.executable, "-c", code, "saved"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here
    assert here != tokenizer_stamp(AutoTokenizer.from_pretrained(saved_with_another_word(made, tmp_path)))


def saved_with_another_word(made, folder):
    another = copy.deepcopy(made)
    another.add_tokens(["zzyzx"])
    another.save_pretrained(folder / "another")
    return folder / "another"


CHANGES = {
    "a token": lambda one: one.add_tokens(["Kyoto"]),
    "a special token": lambda one: one.add_special_tokens({"additional_special_tokens": ["<|turn|>"]}),
    "another eos": lambda one: setattr(one, "eos_token", "a"),
    "a chat template": lambda one: setattr(one, "chat_template", TEMPLATE),
    "an attribute of its own": lambda one: setattr(one, "some_switch", 3),
}
OF_THE_BACKEND = {
    "normalizer": lambda fast: setattr(fast, "normalizer", normalizers.Lowercase()),
    "post-processor": lambda fast: setattr(
        fast, "post_processor", processors.TemplateProcessing(single="$A a", special_tokens=[("a", 5)])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_changes_it(made, change):
    another = copy.deepcopy(made)
    CHANGES[change](another)
    assert tokenizer_stamp(another) != tokenizer_stamp(made)


@pytest.mark.parametrize("change", OF_THE_BACKEND)
def test_a_change_of_the_backend_changes_it(change):
    one = byte_level_tokenizer()
    another = copy.deepcopy(one)
    OF_THE_BACKEND[change](another.backend_tokenizer)
    assert tokenizer_stamp(another) != tokenizer_stamp(one)


def test_code_of_a_class_of_ones_own_counts():
    class Loud(ByT5Tokenizer):
        def _tokenize(self, text):
            return super()._tokenize(text.upper())

    class Quiet(ByT5Tokenizer):
        def _tokenize(self, text):
            return super()._tokenize(text.lower())

    Quiet.__qualname__, Quiet.__name__ = Loud.__qualname__, Loud.__name__
    assert Loud()("Ab")["input_ids"] != Quiet()("Ab")["input_ids"]
    assert tokenizer_stamp(Loud()) != tokenizer_stamp(Quiet())


def test_what_decides_tokens_without_being_text_counts():
    one, another = ByT5Tokenizer(), ByT5Tokenizer()
    one.add_tokens([AddedToken("foo", single_word=False)])
    another.add_tokens([AddedToken("foo", single_word=True)])
    assert one("xfoo")["input_ids"] != another("xfoo")["input_ids"]
    assert tokenizer_stamp(one) != tokenizer_stamp(another)
    one, another = ByT5Tokenizer(), ByT5Tokenizer()
    one.pattern, another.pattern = re.compile("a"), re.compile("b")
    assert tokenizer_stamp(one) != tokenizer_stamp(another)
    one.pattern = re.compile("b")
    assert tokenizer_stamp(one) == tokenizer_stamp(another)


def patched(method, *, default=0, held=0, on_class=None):
    """A tokenizer whose method was replaced, with a default value and a value that is held."""
    table = {"held": [held]}

    def _tokenize(text, shift=default, *, times=(default,)):
        return [chr(97 + (ord(letter) + shift + table["held"][0]) % 26) for letter in text]

    one = ByT5Tokenizer()
    setattr(one, method, _tokenize)
    return one


def test_code_that_was_put_in_counts_with_what_it_holds(monkeypatch):
    stamps = {tokenizer_stamp(patched("_tokenize", **changes)) for changes in ({}, {"default": 1}, {"held": 1})}
    assert len(stamps | {tokenizer_stamp(ByT5Tokenizer())}) == 4
    assert tokenizer_stamp(patched("_tokenize")) in stamps
    before = tokenizer_stamp(ByT5Tokenizer())
    monkeypatch.setattr(ByT5Tokenizer, "_tokenize", lambda self, text: list(text.upper()))
    assert tokenizer_stamp(ByT5Tokenizer()) != before


def test_a_class_method_of_ones_own_counts():
    def made(number):
        class Own(ByT5Tokenizer):
            @classmethod
            def shift(cls):
                return 1 if number else 2

        return Own

    first, second = made(0), made(0)
    assert tokenizer_stamp(first()) == tokenizer_stamp(second())

    def other(cls):
        return 5

    second.shift = classmethod(other)
    assert tokenizer_stamp(first()) != tokenizer_stamp(second())


class Remembers(ByT5Tokenizer):
    """What it has worked out is kept on it, as some slow tokenizers do."""

    @functools.cached_property
    def table(self):
        return {"a": 1}

    def _tokenize(self, text):
        self.cache = {text: len(text)}
        return super()._tokenize(text) if self.table else []


def test_what_is_worked_out_on_the_way_does_not_count():
    one = Remembers()
    before = tokenizer_stamp(one)
    one("some text")
    assert "table" in vars(one)
    assert tokenizer_stamp(one) == before
    one.pad_token, one.padding_side, one.model_max_length = one.eos_token, "left", 77
    assert tokenizer_stamp(one) == before


class Upper:
    """Part of a tokenizer in Python."""

    def normalize(self, text):
        text.uppercase()


def test_parts_in_python_are_refused_where_something_is_kept_or_sent(standin, tmp_path):
    model, facts = standin("gpt2").model, load_facts("sample", limit=3)
    asked = {"schemes": "dont-think", "counts": (0, 1), "progress": False}
    own = load_model(copy.deepcopy(model.original_model), tokenizer=byte_level_tokenizer())
    source_tokenizer(own).backend_tokenizer.normalizer = normalizers.Normalizer.custom(Upper())
    efficacy(own, facts, **asked)
    with pytest.raises(LcalensError, match=r"^out: this tokenizer has parts that cannot be written down .*n_jobs=1"):
        efficacy(own, facts, **asked, out=tmp_path)


def test_what_cannot_be_read_is_refused_and_not_left_out():
    one = ByT5Tokenizer()
    one.lock = threading.RLock()
    assert tokenizer_stamp(one)
    one.words = (word for word in ("a", "b"))
    with pytest.raises(LcalensError, match=r"^out: .* cannot be written down \(a generator of builtins\)"):
        tokenizer_stamp(one)


def test_a_tokenizer_that_cuts_at_random_is_refused():
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    with pytest.raises(LcalensError, match=r"^texts: this tokenizer cuts words at random \(dropout=0.5\)"):
        encode(tokenizer, ["The capital of France is"])
    tokenizer.backend_tokenizer.model.dropout = None
    encode(tokenizer, ["The capital of France is"])


def test_another_process_takes_its_own(standin):
    one = standin("gpt2")
    sent = pickle.loads(pickle.dumps(ModelTokenizer(one.model)))
    assert len(pickle.dumps(sent)) < 1000  # a stamp, no vocabulary
    assert sent.of(one.model) is ModelTokenizer(one.model).of(one.model)
    assert loaded_tokenizer(one.model) == sent.stamp != loaded_tokenizer(standin("llama").model)
