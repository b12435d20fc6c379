"""What `efficacy`, `ask` and `hijack_prompts` say to arguments they cannot use: an LcalensError that names them."""

import contextlib
import copy
import math
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import standins
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lcalens import Fact, LcalensError, ask, efficacy, load_facts, load_model
from lcalens.llm.facts.facts import Facts
from lcalens.llm.prompts.hijack import hijack_prompts

LANDS = list(standins.CAPITALS.items())
FACTS = [
    Fact(case_id=i, relation_id="P36", prompt="The capital of {} is", subject=land, target_true=city,
         target_false=LANDS[i - 1][1])
    for i, (land, city) in enumerate(LANDS[:6])
]  # fmt: skip


class Anything:
    """An object of no type that is meant."""


@pytest.fixture(scope="module")
def model(standin):
    return standin("llama").model


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    """A function to a tokenizer as GPT-2's, without a BOS of its own; each call gives another."""
    folder = tmp_path_factory.mktemp("tokenizer")
    standins.byte_level_tokenizer().save_pretrained(folder)
    return lambda: standins.hugging_face_tokenizer(folder)


@pytest.fixture(scope="module")
def bytes_model(standin, byte_tokenizer):
    return load_model(standin("llama").plain, tokenizer=byte_tokenizer())


def run(model, facts=FACTS, **options):
    return efficacy(model, facts, **({"counts": (0, 1), "progress": False} | options))


@contextlib.contextmanager
def refused_or_fine(argument):
    """Either what is done within succeeds, or lcalens refuses the argument by name."""
    try:
        yield
    except LcalensError as error:
        if not re.match(argument, str(error)):
            raise


# --- wrong values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [[], (), Facts([])], ids=["list", "tuple", "Facts"])
def test_no_facts(model, facts):
    with pytest.raises(LcalensError, match="facts: there are none; load some with load_facts"):
        run(model, facts)


@pytest.mark.parametrize(
    ("argument", "value", "fix"),
    [
        ("schemes", [], "dont-think"),
        ("schemes", "dont_think", "Did you mean 'dont-think'"),
        ("schemes", ["dont-think", "nothing-like-it"], "dont-think"),
        ("schemes", ["all", "dont-think"], "dont-think"),
        ("schemes", "Forget {word}.", "{target_false}"),
        ("schemes", "", "dont-think"),
        ("schemes", {"forget": 3}, "expected names or templates, got 3"),
        ("schemes", {3: "Forget {target_false}."}, "a name must be some text, got 3"),
        ("batch", 0, "whole number of tokens from 1 up"),
        ("batch", True, "whole number of tokens from 1 up"),
        ("batch", 1.5, "whole number of tokens from 1 up"),
        ("counts", [], "whole number from 0 up"),
        ("counts", [-1], "whole number from 0 up"),
        ("counts", [0, 1.5], "whole number from 0 up"),
        ("counts", [math.nan], "whole number from 0 up"),
        ("counts", ["1"], "whole number from 0 up"),
        ("counts", [True], "whole number from 0 up"),
        ("counts", "12", "whole number from 0 up"),
        ("scoring", "Whole", "'whole'"),
        ("scoring", "last", "whole, first"),
        ("related", "wordnet", "table, embedding"),
        ("seed", -1, "from 0 up"),
        ("seed", 10.0, "from 0 up"),
        ("seed", True, "from 0 up"),
        ("chat", "yes", "True or False"),
        ("chat", 1, "True or False"),
        ("chat", True, "chat=False"),
        ("progress", "yes", "True, False or a function"),
        ("progress", None, "True, False or a function"),
    ],
    ids=str,
)
def test_wrong_values_are_named_with_the_fix(model, argument, value, fix):
    with pytest.raises(LcalensError) as caught:
        run(model, **{argument: value})
    assert str(caught.value).startswith(f"{argument}: ")
    assert fix in str(caught.value)


# --- wrong types ----------------------------------------------------------------------------------------------------

WRONG = {
    "facts": [None, 5, "sample", b"x", {"a": 1}, [1], [{"prompt": "x"}], FACTS[0], Anything()],
    "schemes": [None, 5, 1.5, [None], [5], b"dont-think", Anything(), {"dont-think": 1.0, 3: 2}],
    "counts": [None, 1.5, [None], [[0]], Anything(), [Anything()], {0: 1, "x": 2}],
    "scoring": [None, 5, [], ["whole"], Anything()],
    "related": [None, 5, [], ["table"], Anything()],
    "seed": [None, "0", [0], Anything()],
    "n_jobs": [None, "2", [2], 1.5, True, 0, -2, Anything()],
    "chat": [None, 0, [], Anything()],
    "out": [5, 1.5, [], Anything(), "a\0b"],
    "progress": [5, "bar", [], Anything],
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [(argument, value) for argument, values in WRONG.items() for value in values if value is not Anything],
    ids=lambda value: value if isinstance(value, str) else repr(value)[:30].split(" object")[0],
)
def test_wrong_types_are_named(model, argument, value):
    with pytest.raises(LcalensError, match=rf"^{argument}\b"):
        run(model, **{argument: value})


@pytest.mark.parametrize("wrong", [None, 5, "gpt2", Anything(), Path("."), torch.nn.Linear(2, 2)], ids=type)
def test_a_model_that_is_none(wrong):
    """A name is what people give first: it must say to load it."""
    with pytest.raises(LcalensError, match=r"^model\b.*load_model"):
        run(wrong)


def test_a_hugging_face_model_is_not_yet_a_bridge(standin):
    with pytest.raises(LcalensError, match=r"^model\b.*load_model"):
        run(standin("llama").plain)


def test_numpys_whole_numbers_are_whole_numbers(model):
    """counts=np.arange(3) and a seed from a numpy loop."""
    result = run(model, counts=np.arange(2), seed=np.int64(3))
    assert result.axes["n"] == (0, 1)
    assert [type(n) for n in result.axes["n"]] == [int, int]
    assert result.provenance["config"]["seed"] == 3


def test_one_count_is_a_count(model):
    assert run(model, counts=1).axes["n"] == (0, 1)


def test_facts_twice(model):
    with pytest.raises(LcalensError, match=r"^facts.*case_id 0 occurs twice"):
        run(model, [*FACTS, FACTS[0]])


def test_hijack_prompts_names_its_arguments():
    for options, name in (
        ({"scheme": None}, "schemes"),
        ({"scheme": 5}, "schemes"),
        ({"counts": None}, "counts"),
        ({"counts": 1.5}, "counts"),
    ):
        with pytest.raises(LcalensError, match=rf"^{name}\b"):
            hijack_prompts(FACTS, **options)


# --- models and tokenizers that fail --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_numbers(standin, tmp_path, value):
    plain = copy.deepcopy(standin("llama").plain)
    with torch.no_grad():
        plain.model.layers[1].mlp.down_proj.weight[3, 5] = value
    with pytest.warns(UserWarning, match="weights that are NaN or infinite"):
        broken = load_model(plain, tokenizer=standin("llama").tokenizer)
    with pytest.raises(LcalensError, match="model: its logits are not finite"):
        run(broken, out=tmp_path)
    assert list((tmp_path / "cells").iterdir()) == []


def test_ask_says_so_too(standin):
    plain = copy.deepcopy(standin("llama").plain)
    with torch.no_grad():
        plain.model.layers[1].mlp.down_proj.weight[3, 5] = math.nan
    with pytest.warns(UserWarning, match="weights that are NaN or infinite"):
        broken = load_model(plain, tokenizer=standin("llama").tokenizer)
    with pytest.raises(LcalensError, match="model: its logits are not finite"):
        ask(broken, "The capital of France is")


def test_a_prompt_longer_than_the_context(model):
    fact = Fact(
        case_id=1, relation_id="P36", prompt="word " * 300 + "{} is", subject="France", target_true="Paris",
        target_false="Rome",
    )  # fmt: skip
    with pytest.raises(LcalensError, match="tokens, the model's context holds 160; shorten it, or put fewer sentences"):
        run(model, [fact])


@pytest.mark.parametrize("count", [60, 10_000])
def test_more_sentences_than_the_context_holds(model, count):
    with pytest.raises(LcalensError, match=r"context holds 160; .*(counts|fewer sentences)"):
        run(model, FACTS[:2], counts=(0, count))


def test_counts_past_all_memory_are_refused():
    """A thousand million sentences must fail as an argument, not by filling the machine."""
    script = (
        "from lcalens import Fact, LcalensError\n"
        "from lcalens.llm.prompts.hijack import hijack_prompts\n"
        "fact = Fact(case_id=1, relation_id='P36', prompt='{} is', subject='a', target_true='b', target_false='c')\n"
        "try:\n    hijack_prompts([fact], 'dont-think', counts=(10**9,))\n"
        "except LcalensError as error:\n    print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )
    assert found.stdout.startswith("counts"), found.stderr[-300:]


def test_a_tokenizer_that_drops_the_prompt(standin, byte_tokenizer):
    """A fact whose whole prompt the tokenizer gives no tokens: there is nothing for the answer to follow."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("^¤+ is"), "")
    deaf = load_model(standin("llama").plain, tokenizer=tokenizer)
    fact = Fact(case_id=1, relation_id="P36", prompt="{} is", subject="¤¤", target_true="Paris", target_false="Rome")
    assert tokenizer("¤¤ is").input_ids == []
    reason = "the prompt holds what the tokenizer's vocabulary does not have"
    with pytest.raises(LcalensError, match=f"facts: none of 1 can be scored exactly .{reason}"):
        run(deaf, [fact], counts=(0,))


def test_a_tokenizer_that_drops_an_answer(standin, byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(" ¤+"), "")
    deaf = load_model(standin("llama").plain, tokenizer=tokenizer)
    fact = Fact(case_id=1, relation_id="P36", prompt="{} is", subject="France", target_true="¤", target_false="Rome")
    with pytest.raises(LcalensError, match="answer"):
        run(deaf, [fact], counts=(0,))


def test_related_words_of_a_tokenizer_with_one_whole_word(standin, tmp_path):
    """The only word to choose from is the object's own: nothing is left, which is an answer and no crash."""
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "Ġis": 1, "Ġof": 2, "ĠParis": 3, "Paris": 4}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", bos_token="[UNK]").save_pretrained(tmp_path)
    poor = load_model(standin("llama").plain, tokenizer=standins.hugging_face_tokenizer(tmp_path))
    fact = Fact(
        case_id=1, relation_id="P36", prompt="{} of is", subject="Paris", target_true="of", target_false="Paris"
    )
    nothing = "nothing can be measured of 'related-word'"
    with refused_or_fine("related"):
        with pytest.warns(UserWarning, match=nothing):
            result = run(poor, [fact], schemes="related-word", related="embedding")
        assert result.tables["impossible"]["facts"].tolist() == [1]


# --- output and callbacks -------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_out(model, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(LcalensError, match=r"^out: .* cannot be written"):
        run(model, out=tmp_path / "out")
    with pytest.raises(LcalensError, match=r"^out: .* cannot be written"):
        run(model, out=tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_out_that_cannot_be_written_is_told_before_the_work(model, tmp_path):
    (tmp_path / "out").write_text("mine")
    calls = []
    with pytest.raises(LcalensError):
        run(model, out=tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == []


def test_errors_of_the_callers_own_callback_come_through(model, tmp_path):
    def broken(done, total, what):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run(model, progress=broken, out=tmp_path)
    assert len(run(model, out=tmp_path).values["logp_true"].ravel()) == 12


# --- text that is hard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
@pytest.mark.parametrize("text", ["東京", "🎈🎈", "{}", "%s", "\\n", "a" * 60, "<bos>", "<|endoftext|>", "é\u0301"])
def test_any_names_are_scored(model, bytes_model, kind, text):
    facts = [
        Fact(case_id=1, relation_id="P36", prompt="{} is", subject=text, target_true="Paris", target_false="Rome"),
        Fact(case_id=2, relation_id="P36", prompt="{} is", subject="x", target_true=text, target_false="Rome"),
    ]
    result = run(model if kind == "metaspace" else bytes_model, facts, counts=(0,))
    assert np.isfinite(result.values["logp_true"]).all()
    assert result.values["logp_true"].size == 2


def test_facts_of_the_sample_that_are_too_long_are_told(model):
    """Whatever the facts: an answer or a named error, never a crash."""
    with refused_or_fine("texts|counts"):
        assert len(run(model, load_facts(limit=5), counts=(0,)).values["logp_true"].ravel()) == 5


# --- ask ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("prompt", None), ("prompt", 5), ("prompt", b"x"), ("prompt", ["x"]), ("prompt", ""), ("prompt", "\ud800"),
        ("hijack", 5), ("hijack", [5]), ("hijack", [None]), ("hijack", b"x"),
        ("answers", None), ("answers", 5), ("answers", [5]), ("answers", [""]), ("answers", b"x"),
        ("top", 0), ("top", -1), ("top", 10**9), ("top", "5"), ("top", 1.5), ("top", None), ("top", True),
        ("chat", True), ("chat", "yes"),
    ],
    ids=str,
)  # fmt: skip
def test_what_ask_refuses(model, argument, value):
    with pytest.raises(LcalensError, match=rf"^{argument}\b"):
        ask(model, **({"prompt": "The capital of France is"} | {argument: value}))


@pytest.mark.parametrize("wrong", [None, "gpt2", torch.nn.Linear(2, 2)], ids=type)
def test_ask_of_a_model_that_is_none(wrong):
    with pytest.raises(LcalensError, match=r"^model\b.*load_model"):
        ask(wrong, "The capital of France is")


def test_one_answer_is_not_its_letters(model):
    """A string where a list is meant: one answer, or an error; never P, a, r, i, s."""
    with refused_or_fine("answers"):
        table = ask(model, "The capital of France is", answers="Paris").tables["scored"]
        assert table["answer"].tolist() == ["Paris"]


@pytest.mark.parametrize("nothing", ["", "  ", [""]])
def test_an_empty_hijack_changes_nothing_or_is_refused(model, nothing):
    """Not a question with a space before it."""
    clean = ask(model, "The capital of France is")
    with refused_or_fine("hijack"):
        hijacked = ask(model, "The capital of France is", hijack=nothing)
        np.testing.assert_allclose(hijacked.values["probability"][-1], clean.values["probability"][0], atol=1e-5)
