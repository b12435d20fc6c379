"""Knocking attention out, against a hook on TransformerLens's pattern that zeroes it entry by entry."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import standins
from helpers.closeness import assert_near, rounding

from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.knockout import knockout

SPAN, INSIDE = {"sentence": (2, 5), "tail": (6, 8)}, (2, 3, 4)


def pairs(model, length=9, cut=True, batch=2):
    """A prompt with a sentence in it; the clean run has another sentence, or none."""
    clean, hijacked = slow.pair(model.cfg.d_vocab, length, INSIDE, batch=batch, least=0 if slow.toy(model) else 5)
    if cut:
        clean = torch.cat([clean[:, :2], clean[:, 5:]], 1)
    logits = [slow.plain(model, tokens) for tokens in (clean, hijacked)]
    true, false = slow.torn(*logits)
    cap = slow.cap_of(model)
    contrast = Contrast(clean, hijacked, true=true[:, None], false=false[:, None], spans=SPAN)
    return SimpleNamespace(
        contrast=contrast,
        hijacked=hijacked,
        true=true,
        false=false,
        clean_logits=logits[0],
        ends=[slow.measured("logit-difference", one, true, false, logits[0], cap).numpy() for one in logits],
        cap=cap,
    )


def cut(model, tokens, queries, inside, heads, renormalise):
    """Last logits with the pattern's entries set to 0, one head, query and key after another."""

    def hook_of(layer):
        def edit(value, hook):
            value = value.clone()
            for head in (head for at, head in heads if at == layer):
                for row in range(len(value)):
                    for query in set(queries) - set(inside):
                        for key in inside:
                            value[row, head, query, key] = 0
                        left = value[row, head, query].sum()
                        if renormalise and left > 0:
                            value[row, head, query] /= left
            return value

        return edit

    hooks = [(f"blocks.{layer}.attn.hook_pattern", hook_of(layer)) for layer in sorted({at for at, _ in heads})]
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]


def every_head(model):
    return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def close(found, expected, ends):
    effect = np.abs(expected - ends[1]).max()
    assert_near(found, expected, effect=effect, rounding=rounded(expected))
    return effect


def rounded(metric):
    """What another order of summation does to sums over a stand-in's 64 dimensions."""
    return rounding(torch.float32, metric, 64)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("family", standins.FAMILIES)
def test_heads_cut_together_and_apart(standin, family, renormalise):
    model = standin(family).model
    case = pairs(model)
    asked = {"renormalise": renormalise, "progress": False}
    for positions, queries in (("all", range(9)), ("last", [8]), ("tail", [6, 7]), ([-1, 5], [8, 5])):
        chosen = [(0, 1), (2, 3), (2, 0)] if positions == "tail" else every_head(model)
        logits = cut(model, case.hijacked, queries, INSIDE, chosen, renormalise)
        expected = slow.measured("logit-difference", logits, case.true, case.false, case.clean_logits, case.cap).numpy()
        heads = chosen if positions == "tail" else "all"
        found = knockout(model, case.contrast, positions=positions, heads=heads, **asked)
        effect = close(found.values["value"], expected, case.ends)
        assert effect > 0.01 or positions != "all"
        recovery = (expected - case.ends[1]) / (case.ends[0] - case.ends[1])
        np.testing.assert_allclose(found.values["recovery"], recovery, rtol=1e-3, atol=1e-4)
        assert found.kind == "knockout"
    expected = np.zeros((2, 3, 4))
    for layer, head in every_head(model):
        logits = cut(model, case.hijacked, range(9), INSIDE, [(layer, head)], renormalise)
        expected[:, layer, head] = slow.measured("kl", logits, case.true, case.false, case.clean_logits)
    found = knockout(model, case.contrast, heads="each", metric="kl", **asked)
    kl = [
        slow.measured("kl", one, case.true, case.false, case.clean_logits).numpy()
        for one in (case.clean_logits, slow.plain(model, case.hijacked))
    ]
    effect = np.abs(expected - kl[1][:, None, None]).max()
    np.testing.assert_allclose(found.values["value"], expected, rtol=0, atol=5e-4 * effect + rounded(1))
    assert effect > 5e-4


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_sentence_beyond_the_window(standin, family):
    model = standin(family).model
    case = pairs(model, length=76)
    heads = every_head(model)
    logits = cut(model, case.hijacked, range(76), INSIDE, heads, True)
    expected = slow.measured("logit-difference", logits, case.true, case.false, case.clean_logits, case.cap).numpy()
    close(knockout(model, case.contrast, progress=False).values["value"], expected, case.ends)
    each = knockout(model, case.contrast, heads="each", positions="last", progress=False).values["value"]
    for layer, head in ((0, 0), (1, 2), (2, 3)):
        logits = cut(model, case.hijacked, [75], INSIDE, [(layer, head)], True)
        expected = slow.measured("logit-difference", logits, case.true, case.false, case.clean_logits, case.cap).numpy()
        np.testing.assert_allclose(each[:, layer, head], expected, rtol=1e-4, atol=rounded(case.ends))
    unmoved = np.broadcast_to(case.ends[1][:, None], (2, 4))
    np.testing.assert_allclose(each[:, 0], unmoved, rtol=0, atol=rounded(case.ends))


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_toy(renormalise):
    torch.manual_seed(0)
    plain = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval()
    with torch.no_grad():
        plain.embed.weight.mul_(2)
        plain.attn.v.weight.mul_(4)
    model = lca_bridge(plain)
    case = pairs(model, cut=True)
    logits = cut(model, case.hijacked, range(9), INSIDE, [(0, 0)], renormalise)
    expected = slow.measured("logit-difference", logits, case.true, case.false, case.clean_logits, case.cap).numpy()
    for heads in ("all", [(0, 0)]):
        found = knockout(model, case.contrast, heads=heads, renormalise=renormalise, progress=False)
        assert close(found.values["value"], expected, case.ends) > 0.1
    each = knockout(model, case.contrast, heads="each", renormalise=renormalise, progress=False)
    np.testing.assert_allclose(each.values["value"][:, 0, 0], expected, rtol=0, atol=rounded(case.ends))
    if renormalise:  # without causal order, positions or MLP, what is not seen is not there
        np.testing.assert_allclose(each.values["recovery"], 1, atol=1e-4)


def test_several_lengths_and_spans(standin):
    model = standin("llama").model
    one, other = pairs(model, 9, batch=1), pairs(model, 12, batch=1)
    both = Contrast(
        [*one.contrast.clean, *other.contrast.clean],
        [*one.contrast.hijacked, *other.contrast.hijacked],
        true=[*one.contrast.true, *other.contrast.true],
        false=[*one.contrast.false, *other.contrast.false],
        spans={"sentence": [[(2, 5)], [(2, 3), (4, 6)]]},
    )
    found = knockout(model, both, progress=False).values["value"]
    for i, (case, inside) in enumerate(((one, INSIDE), (other, (2, 4, 5)))):
        logits = cut(model, case.hijacked, range(case.hijacked.shape[1]), inside, every_head(model), True)
        expected = slow.measured("logit-difference", logits, case.true, case.false, case.clean_logits, case.cap)
        assert found[i] == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


def test_cutting_what_is_the_same_in_both_runs_is_no_identity_but_cutting_nothing_is(standin):
    """Heads that no later query reads from: the last position alone, cut at a query before it, in the last layer."""
    model = standin("llama").model
    case = pairs(model)
    found = knockout(model, case.contrast, positions=[6], heads=[(2, head) for head in range(4)], progress=False)
    np.testing.assert_allclose(found.values["value"], case.ends[1], rtol=0, atol=rounded(case.ends))
    np.testing.assert_allclose(found.values["recovery"], 0, atol=1e-4)
