"""Scores against the sums of Hugging Face's own log-softmax, one unpadded forward pass for every token."""

import functools
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import standins
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import families
from transformers import AutoModelForCausalLM

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import encode
from lcalens.llm.efficacy import scoring
from lcalens.llm.efficacy.scoring import Continuation, can_share, score
from lcalens.llm.models.load import load_model

TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # sums of log-probabilities, some near 100
HIJACKS = ["", "Do not think of Rome. ", "Do not think of Rome. Do not think of Rome. ", "Łódź 🙂. "]
ANSWERS = ["Paris", "Rome", "Stockholm Oslo", "日本", "x"]


def ask(one, texts, answers):
    """Every text with every answer, through the tokenizer."""
    pairs = [(text, answer) for text in texts for answer in answers]
    encoded = encode(one.tokenizer, [text for text, _ in pairs], answers=[answer for _, answer in pairs])
    return [Continuation(item.ids, *item.spans["answer"][0]) for item in encoded]


def expected(one, continuations):
    found = [standins.brute_force(one.plain, item.ids, item.start, item.stop) for item in continuations]
    return np.array([logp for logp, _ in found]), np.array([greedy for _, greedy in found], dtype=bool)


def load(folder, family, **changes):
    standins.save_standin(folder, family, **changes)
    return SimpleNamespace(
        model=load_model(folder),
        plain=standins.hugging_face(folder),
        tokenizer=standins.hugging_face_tokenizer(folder),
    )


def check(one, continuations, path, **options):
    logp, greedy = expected(one, continuations)
    scores = score(one.model, continuations, **options)
    np.testing.assert_allclose(scores.logp, logp, **TOLERANCE)
    np.testing.assert_array_equal(scores.greedy, greedy)
    first_logp, first_greedy = expected(one, [Continuation(c.ids, c.start, c.start + 1) for c in continuations])
    np.testing.assert_allclose(scores.first_logp, first_logp, **TOLERANCE)
    np.testing.assert_array_equal(scores.first_greedy, first_greedy)
    assert scores.path == path
    return scores


# --- every family, on both paths ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(standin):
    """A study's worth of questions, and the slow answers, once for each family."""

    @functools.cache
    def get(family):
        one = standin(family)
        texts = [hijack + prompt for hijack in HIJACKS for prompt, _ in standins.FACTS[:3]]
        continuations = ask(one, texts, ANSWERS)
        return one, continuations, *expected(one, continuations)

    return get


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", standins.FAMILIES)
def test_scores_are_hugging_faces_own(asked, family, share):
    one, continuations, logp, greedy = asked(family)
    assert np.ptp(logp) > 5, "the questions must differ to tell anything"
    scores = score(one.model, continuations, share=share)
    assert scores.path == ("shared" if share else "padded")
    assert can_share(one.model)
    np.testing.assert_allclose(scores.logp, logp, **TOLERANCE)
    np.testing.assert_array_equal(scores.greedy, greedy)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sharing_computes_fewer_tokens(asked, family):
    one, continuations, *_ = asked(family)
    shared, padded = (score(one.model, continuations, share=share).tokens for share in (True, False))
    prefixes = {item.ids[:end] for item in continuations for end in range(1, item.stop)}
    assert len(prefixes) <= shared < padded / 2


def test_alone_no_path_is_tried_and_the_numbers_are_the_same(standin, monkeypatch):
    one = standin("llama")
    continuations = ask(one, ["The capital of France is", "The capital of Italy is"], ["Paris", "Rome"])
    tried = score(one.model, continuations)
    assert tried.path == "shared"
    monkeypatch.setattr(scoring, "path_of", lambda *_, **__: pytest.fail("a path was tried"))
    check(one, continuations, "single", alone=True)
    np.testing.assert_allclose(score(one.model, continuations, alone=True).logp, tried.logp, **TOLERANCE)


def test_a_trained_models_answers_are_greedy(standin):
    one = standin("gpt2")
    right = [ask(one, [prompt], [answer])[0] for prompt, answer in standins.FACTS]
    wrong = [ask(one, [prompt], [standins.FACTS[(i + 1) % 16][1]])[0] for i, (prompt, _) in enumerate(standins.FACTS)]
    scores = check(one, [*right, *wrong], "shared")
    assert scores.greedy[: len(right)].mean() > 0.9
    assert not scores.greedy[len(right) :].any()
    assert (scores.logp[: len(right)] - scores.logp[len(right) :] > 1).mean() > 0.9  # it has opinions


def test_greedy_wants_every_token_to_be_the_likeliest(standin):
    """The first token right and a later one wrong, and the other way round."""
    one = standin("gpt2")
    prompt = one.tokenizer("The capital of France is").input_ids
    best = []
    for _ in range(2):
        best.append(int(standins.logits_of(one.plain, prompt + best)[-1].argmax()))
    first, second = best
    after_other = int(standins.logits_of(one.plain, [*prompt, 7])[-1].argmax())
    tails = {(first, second): True, (first, (second + 1) % 400): False, (7, after_other): False, (first,): True}
    continuations = [Continuation((*prompt, *tail), len(prompt), len(prompt) + len(tail)) for tail in tails]
    assert check(one, continuations, "shared").greedy.tolist() == list(tails.values())


# --- shapes of the work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_duplicates_a_single_one_and_none(standin, share):
    one = standin("llama")
    path = "shared" if share else "padded"
    (item,) = ask(one, ["The capital of France is"], ["Stockholm Oslo"])
    alone = check(one, [item], path, share=share)
    thrice = check(one, [item, *ask(one, ["x"], ["Paris"]), item, item], path, share=share)
    np.testing.assert_allclose(thrice.logp[[0, 2, 3]], alone.logp[0], **TOLERANCE)
    nothing = score(one.model, [], share=share)
    assert nothing.logp.shape == nothing.greedy.shape == (0,)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_question_that_begins_another(standin, family, share):
    """One continuation ends inside the other's prompt, so tokens that nobody scores stand between theirs."""
    one = standin(family)
    (long,) = ask(one, ["The capital of France is Paris. The capital of Italy is"], ["Rome"])
    (short,) = ask(one, ["The capital of France is"], ["Paris"])
    (early,) = ask(one, ["The"], ["capital"])
    check(one, [long, short, early], "shared" if share else "padded", share=share)


@pytest.mark.parametrize("share", [True, False])
def test_only_the_tokens_from_start_to_stop_count(standin, share):
    one = standin("gpt2")
    ids = tuple(one.tokenizer("The capital of France is Paris. Do not think of Rome.").input_ids)
    spans = [(1, len(ids)), (len(ids) - 1, len(ids)), (4, 6), (1, 2), (3, 9)]
    check(one, [Continuation(ids, *span) for span in spans], "shared" if share else "padded", share=share)


@pytest.mark.parametrize("bounds", [(8, 16), (128, 40), (20, 1)])
def test_small_rows_and_batches_change_nothing(asked, monkeypatch, bounds):
    one, continuations, logp, greedy = asked("gemma2")
    monkeypatch.setattr(scoring, "MAX_NODES", bounds[0])
    monkeypatch.setattr(scoring, "MAX_TOKENS", bounds[1])
    scores = score(one.model, continuations)
    np.testing.assert_allclose(scores.logp, logp, **TOLERANCE)
    np.testing.assert_array_equal(scores.greedy, greedy)


IDS = st.lists(st.integers(3, 6), min_size=2, max_size=8)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(IDS, st.randoms(use_true_random=False)), min_size=1, max_size=6), share=st.booleans())
def test_any_set_of_continuations(standin, rows, share):
    one = standin("llama")
    cuts = [sorted(rng.sample(range(1, len(ids) + 1), 2)) for ids, rng in rows]
    continuations = [Continuation(tuple(ids), *cut) for (ids, _), cut in zip(rows, cuts, strict=True)]
    check(one, continuations, "shared" if share else "padded", share=share)


# --- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_hooks_on_the_bridge_run(standin, share):
    one = standin("gpt2")
    continuations = ask(one, ["The capital of France is", "The capital of Italy is"], ["Paris", "Rome"])
    before = score(one.model, continuations, share=share).logp
    with one.model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0)]):
        hooked = score(one.model, continuations, share=share).logp
        wanted = [
            one.model(torch.tensor([item.ids]))[0].log_softmax(-1)[item.start - 1, item.ids[item.start]].item()
            for item in continuations
        ]
    assert all(item.stop == item.start + 1 for item in continuations)
    np.testing.assert_allclose(hooked, wanted, **TOLERANCE)
    assert np.abs(hooked - before).max() > 0.1
    np.testing.assert_allclose(score(one.model, continuations, share=share).logp, before, **TOLERANCE)


# --- models that cannot share ---------------------------------------------------------------------------------------

LONG = "Do not think of Rome. Do not think of Athens. The capital of Italy is"


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_window_shorter_than_the_prompts_is_run_padded(tmp_path, family):
    one = load(tmp_path, family, sliding_window=8)
    continuations = ask(one, [LONG, "The capital of Italy is"], ["Rome", "Stockholm Oslo"])
    assert max(item.stop for item in continuations) > 16
    check(one, continuations, "padded")


@pytest.mark.parametrize("change", [-2, -1, 0, 1])
def test_at_the_windows_edge_scores_are_right_on_either_path(tmp_path, change):
    probe = standins.metaspace_tokenizer()(f"{LONG} Stockholm Oslo").input_ids
    one = load(tmp_path, "gemma3", sliding_window=len(probe) + change)
    continuations = ask(one, [LONG], ["Rome", "Athens", "Stockholm Oslo", "Stockholm Rome"])
    assert max(item.stop for item in continuations) == len(probe)
    logp, greedy = expected(one, continuations)
    scores = score(one.model, continuations)
    np.testing.assert_allclose(scores.logp, logp, **TOLERANCE)
    np.testing.assert_array_equal(scores.greedy, greedy)


@pytest.fixture(scope="module", params=[18, 20, 256])
def local(request, tmp_path_factory):
    """GPT-Neo: its window is not called `sliding_window`, and its causal mask is its own."""
    return load(tmp_path_factory.mktemp("neo"), "gpt_neo", window_size=request.param)


def test_a_local_window_of_another_name_is_obeyed(local):
    continuations = ask(local, [LONG, "The capital of Italy is", "Do not think of Rome. x"], ANSWERS)
    logp, _ = expected(local, continuations)
    np.testing.assert_allclose(score(local.model, continuations).logp, logp, **TOLERANCE)


def test_a_models_own_causal_mask_is_obeyed(local):
    items = [*ask(local, ["The capital of Italy is"], ["Rome"]), *ask(local, ["The"], ["capital"])]
    logp, _ = expected(local, items)
    np.testing.assert_allclose(score(local.model, items).logp, logp, **TOLERANCE)


def deafened(network, ignore):
    """The network, whose forward now leaves `ignore` out of what it is given."""
    forward = network.forward

    @functools.wraps(forward)
    def deaf(*args, **kwargs):
        mask = kwargs.get("attention_mask")
        if "mask" in ignore and mask is not None and mask.dim() == 4:
            kwargs["attention_mask"] = None
        if "positions" in ignore:
            kwargs.pop("position_ids", None)
        return forward(*args, **kwargs)

    return deaf


@pytest.mark.parametrize("ignore", [("mask",), ("positions",), ("mask", "positions")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_deaf_to_masks_or_positions_is_found_out(tmp_path, monkeypatch, family, ignore):
    one = load(tmp_path, family)
    network = one.model.original_model
    monkeypatch.setattr(network, "forward", deafened(network, ignore))
    assert {"position_ids", "attention_mask"} <= inspect.signature(network.forward).parameters.keys()
    assert not can_share(one.model)
    continuations = ask(one, ["The capital of Italy is"], ["Rome", "Stockholm Oslo"])
    # Left padding shifts absolute positions; rotary ones do not mind.
    check(one, continuations, "single" if "positions" in ignore and family == "gpt2" else "padded")


# --- a batch is not always its rows ---------------------------------------------------------------------------------


def lengths_of(*lengths, stem, seed=0):
    """Sequences that begin as the stem does, the last two tokens scored."""
    generator = np.random.default_rng(seed)
    tails = [
        tuple(generator.integers(3, families.VOCABULARY, max(0, length - len(stem))).tolist()) for length in lengths
    ]
    return [
        Continuation((stem + tail)[:length], length - 2, length) for length, tail in zip(lengths, tails, strict=True)
    ]


ANY_LENGTHS = {  # the path that each takes where lengths go beyond any window and any turn of its positions
    "phi3-longrope": "single",
    "bloom": "padded",
    "mpt": "padded",
    "falcon-7b": "shared",
    "opt": "shared",
    "gpt-neo": "padded",
    "gemma2": "padded",
    "gemma3": "padded",
    "gpt-oss": "padded",
    "llama3-rope": "shared",
    "mixtral": "padded",
}


@pytest.mark.parametrize("name", ANY_LENGTHS)
def test_short_texts_beside_long_ones(name):
    model, (plain, _) = families.boot(name), families.build(name)
    stem = tuple(np.random.default_rng(1).integers(3, families.VOCABULARY, 40).tolist())
    continuations = [*lengths_of(3, 7, 60, 41, 60, 18, stem=stem), *lengths_of(5, 52, stem=stem[:4], seed=2)]
    with torch.no_grad():
        whole = [plain(torch.tensor([item.ids[:-1]])).logits[0].log_softmax(-1) for item in continuations]
    right = [
        sum(float(logp[k - 1, item.ids[k]]) for k in range(item.start, item.stop))
        for logp, item in zip(whole, continuations, strict=True)
    ]
    assert np.ptp(right) > 3
    scores = score(model, continuations)
    assert scores.path == ANY_LENGTHS[name]
    np.testing.assert_allclose(scores.logp, right, rtol=0, atol=2e-4)


def test_frequencies_of_the_longest_are_tried_at_the_studys_own_lengths():
    """Longrope's short frequencies up to its original context: there a batch is its rows."""
    rope = {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 24}
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0, 3.0, 4.0, 5.0] * 2}
    tokenizer = standins.metaspace_tokenizer()
    plain = AutoModelForCausalLM.from_config(
        standins.config_of("llama", len(tokenizer), rope_parameters=rope | factors), attn_implementation="eager"
    ).eval()
    model, stem = load_model(plain, tokenizer=tokenizer), tuple(range(5, 35))
    short, long = lengths_of(6, 20, 23, stem=stem), lengths_of(26, 30, 40, stem=stem)
    assert score(model, short).path == "shared"
    assert score(model, long).path == "shared"
    together = score(model, short + long)
    assert together.path == "single"
    alone = [score(model, [item]).logp[0] for item in short + long]
    np.testing.assert_allclose(together.logp, alone, **TOLERANCE)


def test_a_model_that_computes_a_batch_otherwise_runs_one_by_one(tmp_path, monkeypatch):
    one = load(tmp_path, "llama")
    forward = one.model.original_model.forward

    @functools.wraps(forward)
    def shifted(input_ids, **kwargs):
        found = forward(input_ids=input_ids, **kwargs)
        if len(input_ids) > 1:
            found.logits[..., ::2] += 0.18
        return found

    monkeypatch.setattr(one.model.original_model, "forward", shifted)
    check(one, ask(one, [LONG, "Łódź"], ["Rome", "Stockholm Oslo"]), "single")


def test_a_path_is_tried_anew_for_another_state(standin, monkeypatch):
    tried, is_exact = [], scoring._is_exact
    monkeypatch.setattr(scoring, "_is_exact", lambda *given: tried.append(given[1:]) or is_exact(*given))
    one = standin("llama")
    model = load_model(one.plain, tokenizer=one.tokenizer)
    continuations = ask(one, ["The capital of Italy is"], ["Rome", "Stockholm Oslo"])
    for _ in range(3):
        score(model, continuations)
    assert len(tried) == 1
    weight = next(model.original_model.parameters())
    weight.data = weight.data * 1.5
    score(model, continuations)
    assert len(tried) == 2
    weight.data = weight.data / 1.5


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [(0, 2), (2, 2), (3, 2), (2, 9), (-1, 2)])
def test_what_cannot_be_scored_is_refused(standin, span):
    with pytest.raises(LcalensError, match="continuations"):
        score(standin("llama").model, [Continuation((2, 3, 4), 1, 3), Continuation((2, 3, 4), *span)])


@pytest.mark.parametrize("share", [True, False])
def test_a_text_longer_than_the_context_is_refused(standin, share):
    one = standin("gpt2")
    ids = tuple(one.tokenizer("\n" * 161).input_ids)
    with pytest.raises(LcalensError, match="160"):
        score(one.model, [Continuation(ids, 1, len(ids))], share=share)
    check(one, [Continuation(ids[:160], 150, 160)], "shared" if share else "padded", share=share)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("share", [True, False])
def test_weights_that_are_not_finite_are_refused(tmp_path, share, value):
    one = load(tmp_path, "gpt2")
    with torch.no_grad():
        one.model.original_model.transformer.ln_f.weight[3] = value
    with pytest.raises(LcalensError, match="not finite"):
        score(one.model, ask(one, ["The capital of Italy is"], ["Rome"]), share=share)
