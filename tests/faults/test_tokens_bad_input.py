"""Texts, spans and answers that cannot be tokenised: one error, which names the argument."""

import pytest
from helpers import standins

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import encode, tokenize
from lcalens.llm.models.load import load_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return standins.save_standin(tmp_path_factory.mktemp("whole") / "whole", "llama")


@pytest.mark.parametrize("text", [None, 3, b"x", ["x"], "lone \ud800 surrogate"])
def test_what_is_no_text(whole, text):
    tokenizer = standins.hugging_face_tokenizer(whole)
    with pytest.raises(LcalensError, match="texts"):
        encode(tokenizer, ["x", text])
    with pytest.raises(LcalensError, match="answers"):
        encode(tokenizer, ["x"], answers=[text])


def test_one_string_is_not_taken_for_its_letters(whole):
    with pytest.raises(LcalensError, match="texts"):
        encode(standins.hugging_face_tokenizer(whole), "abc")


@pytest.mark.parametrize(("span", "found"), [((1, 1), "covers no token"), ((5, 9), "covers no token")])
def test_a_span_of_nothing(whole, span, found):
    with pytest.raises(LcalensError, match=found):
        encode(standins.hugging_face_tokenizer(whole), ["x y"], spans=[{"it": [span]}])


def test_spans_and_answers_for_other_texts(whole):
    tokenizer = standins.hugging_face_tokenizer(whole)
    with pytest.raises(LcalensError, match="spans: 2 for 1"):
        encode(tokenizer, ["x"], spans=[{}, {}])
    with pytest.raises(LcalensError, match="answers: 0 for 1"):
        encode(tokenizer, ["x"], answers=[])


def test_no_texts_for_a_model(whole):
    with pytest.raises(LcalensError, match="nothing to pad"):
        tokenize(load_model(whole), [])
