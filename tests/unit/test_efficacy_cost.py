"""What a study costs is what `efficacy` runs, token by token, and what a plain loop would run."""

import pytest

from lcalens import LcalensError, efficacy, efficacy_cost, load_facts
from lcalens.core.tokens import source_tokenizer
from lcalens.llm.efficacy import parts
from lcalens.llm.prompts.hijack import hijack_prompts

SETTINGS = {"schemes": ("dont-think", "neutral"), "counts": (0, 1, 3)}


@pytest.fixture(scope="module")
def facts():
    return load_facts("sample", limit=12)


@pytest.fixture
def model(standin):
    return standin("llama").model


def test_tokens_are_those_that_efficacy_runs_but_for_padding(model, facts, monkeypatch):
    run, score = [], parts.score

    def spy(*given, **options):
        run.append(score(*given, **options))
        return run[-1]

    monkeypatch.setattr(parts, "score", spy)
    found = efficacy(model, facts, **SETTINGS, progress=False)
    cost = efficacy_cost(model, facts, parameters=1e6, **SETTINGS)
    assert found.provenance["path"] == ["shared"]
    ran = sum(scores.tokens for scores in run)
    assert cost.tokens <= ran <= 1.5 * cost.tokens
    assert cost.prompts == sum(len(scores.logp) // 2 for scores in run)


def test_tokens_apart_are_those_of_a_plain_loop(model, facts):
    tokenizer, count, prompts = source_tokenizer(model), 0, 0
    for scheme, counts in (("neutral", (0,)), ("dont-think", (1, 3)), ("neutral", (1, 3))):
        for prompt in hijack_prompts(facts, scheme, counts=counts).prompts:
            prompts += 1
            for name in (prompt.fact.target_true, prompt.fact.target_false):
                count += len(tokenizer(f"{prompt.text} {name}").input_ids)
    cost = efficacy_cost(model, facts, parameters=1e6, **SETTINGS)
    assert cost.prompts == prompts
    assert cost.tokens_apart == count
    assert cost.tokens < cost.tokens_apart


def test_operations_bytes_and_hours_by_hand(model, facts):
    cost = efficacy_cost(model, facts, parameters=70e9, bytes_each=2, **SETTINGS)
    assert cost.weights == 140e9
    assert cost.operations == 2 * 70e9 * cost.tokens
    assert cost.hours(2, tera_operations=100, share=0.5) == pytest.approx(cost.operations / 1e14 / 3600)
    assert "Counted, not measured." in str(cost)


def test_a_sample_is_scaled_up(model, facts):
    cost, larger = (efficacy_cost(model, facts, parameters=1e9, of=of, **SETTINGS) for of in (None, 1200))
    assert (larger.facts, larger.prompts) == (1200, 100 * cost.prompts)
    assert larger.tokens == 100 * cost.tokens


@pytest.mark.parametrize(("name", "value"), [("parameters", 0), ("of", 3), ("bytes_each", 0), ("counts", (-1,))])
def test_bad_arguments_are_named(model, facts, name, value):
    with pytest.raises(LcalensError, match=f"^{name}: "):
        efficacy_cost(model, facts, **{"parameters": 1e9, name: value})
    for wrong in ({"gpus": 0}, {"share": 2.0}, {"tera_operations": 0.0}):
        with pytest.raises(LcalensError, match=f"^{next(iter(wrong))}: "):
            efficacy_cost(model, facts, parameters=1e9).hours(**wrong)
