"""The oracle held against itself and against what Hugging Face gives, family by family, before it judges anything."""

import numpy as np
import pytest
import torch

from tests.matrix import oracle
from tests.matrix.families import FAMILIES
from tests.matrix.oracle import Answers
from tests.matrix.plain import Plain

NAMES = [name for name in FAMILIES if name not in ("mamba", "t5")]


@pytest.fixture(scope="module", params=NAMES)
def plain(request):
    return Plain(request.param, dtype=torch.float64)


@pytest.fixture
def runs(plain):
    size = plain.config.get_text_config().vocab_size
    tokens = torch.randint(3, size, (2, 2, 12), generator=torch.Generator().manual_seed(1))
    change = (plain.run(tokens[0]).logits - plain.run(tokens[1]).logits)[:, -1]
    return tokens[0], tokens[1], Answers(change.argmax(-1), change.argmin(-1))


ALL = [tuple(range(-12, 0))]


def test_hooks_change_nothing_and_patterns_are_hugging_faces(plain, runs):
    tokens = runs[0]
    run = plain.run(tokens, keep=["pattern", "values", "z", "resid_pre", "resid_post", "attn_out", "mlp_out"])
    options = {} if plain.kind == "lca" else {"use_cache": False}
    bare = plain.model(input_ids=tokens, **options).logits
    assert torch.allclose(run.logits, bare, rtol=1e-9, atol=1e-9)
    if plain.kind not in ("lca",):
        attentions = plain.model(input_ids=tokens, output_attentions=True, **options).attentions
        for layer, attention in enumerate(attentions):
            assert torch.allclose(run.kept["pattern"][layer].double(), attention.double(), atol=1e-5), layer
    for layer in range(plain.layers):
        kept = {site: found[layer].double() for site, found in run.kept.items()}
        values = kept["values"].expand(-1, plain.places[0].heads, -1, -1)
        z = torch.einsum("bhqk,bhkw->bqhw", kept["pattern"], values)
        assert torch.allclose(z, kept["z"], atol=1e-5), layer
        after = kept["attn_out"] + kept["mlp_out"] + (kept["resid_pre"] if plain.residual else 0)
        if plain.name not in ("opt-post-norm", "gemma4"):
            assert torch.allclose(after, kept["resid_post"], atol=1e-5), layer


def test_clean_into_clean_changes_nothing(plain, runs):
    clean, _, answers = runs
    before = oracle.read(plain.run(clean), answers).numpy()
    for site in oracle.SITES:
        if site == "k" and "k" not in plain.places[0].projections:
            continue
        found = oracle.patched(plain, clean, clean, answers, site, ALL)
        assert np.allclose(found, before[:, None, None, None], rtol=0, atol=1e-5), site


def test_all_heads_at_once_are_the_attention_output_and_effects_are_large(plain, runs):
    clean, hijacked, answers = runs
    base = oracle.read(plain.run(hijacked), answers).numpy()
    other = oracle.read(plain.run(clean), answers).numpy()
    every = [list(range(plain.places[0].heads))]
    z = oracle.patched(plain, hijacked, clean, answers, "z", ALL, heads=every)
    attn_out = oracle.patched(plain, hijacked, clean, answers, "attn_out", ALL)
    assert np.allclose(z, attn_out, rtol=0, atol=1e-5)
    assert np.abs(attn_out - base[:, None, None, None]).max() > 1
    assert np.abs(other - base).max() > 1
    first = oracle.patched(plain, hijacked, clean, answers, "resid_pre", ALL)[:, 0, 0, 0]
    assert np.allclose(first, other, rtol=0, atol=1e-5) or plain.kind == "gemma4_text"
    for site in ("pattern", "v"):  # both are not the sum of each
        assert (
            np.abs(oracle.patched(plain, hijacked, clean, answers, site, ALL) - base[:, None, None, None]).max() > 0.1
        )


def test_gradients_are_finite_differences(plain, runs):
    clean, hijacked, answers = runs
    step = 3e-5 if plain.kind == "mpt" else 3e-4  # others have norms in float32 whatever their dtype; MPT has kinks
    for site in ("resid_pre", "z", "q", "v", "pattern", "attn_scores"):
        effects = oracle.attributed(plain, hijacked, clean, answers, site, ALL)[..., 0].sum(-1)
        values, source = (plain.run(tokens, keep=[site]).kept[site] for tokens in (hijacked, clean))
        slopes = []
        for layer in range(plain.layers):
            (difference,) = oracle._apart(site, values[layer], source[layer], ALL)

            def moved(sign, layer=layer, difference=difference, site=site):
                def edit(name, at, value):
                    return value + sign * step * difference if (name, at) == (site, layer) else value

                with torch.no_grad():
                    return oracle.read(plain.run(hijacked, edit=edit), answers).numpy()

            slopes.append((moved(1) - moved(-1)) / (2 * step))
        assert np.allclose(effects, np.stack(slopes, 1), rtol=0, atol=0.02 * np.abs(effects).max()), site


def test_direct_effects_sum_to_the_metric(plain, runs):
    if plain.name in ("opt-post-norm", "gemma4"):
        pytest.skip("the residual stream is not the sum of what is written to it")
    tokens, _, answers = runs
    found = oracle.direct(plain, tokens, answers)
    assert np.allclose(found.total, found.metric, rtol=1e-5, atol=1e-5)
