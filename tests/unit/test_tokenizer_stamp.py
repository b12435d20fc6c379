"""A tokenizer's stamp is the same for the same tokens wherever it was loaded, and another after any change."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.standins import TEMPLATE, byte_level_tokenizer, metaspace_tokenizer
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer

from lcalens.core.tokenizer_stamp import ModelTokenizer, loaded_tokenizer, tokenizer_stamp

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


def test_another_process_takes_its_own(standin):
    one = standin("gpt2")
    sent = pickle.loads(pickle.dumps(ModelTokenizer(one.model)))
    assert len(pickle.dumps(sent)) < 1000  # a stamp, no vocabulary
    assert sent.of(one.model) is ModelTokenizer(one.model).of(one.model)
    assert loaded_tokenizer(one.model) == sent.stamp != loaded_tokenizer(standin("llama").model)
