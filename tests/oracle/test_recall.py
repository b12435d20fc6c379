"""`recall` against TransformerLens's streams and Hugging Face's weights, direct effects, and planted memories."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import standins
from helpers.closeness import assert_near
from helpers.slow_recall import QUANTITIES, slow_measures

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.core.statistics import holm
from lcalens.engine.circuits import gaussian_circuit, spectrum
from lcalens.engine.direct import direct_effects
from lcalens.engine.reading import read_decoder
from lcalens.lca.contrasts import contrast_concepts
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.closed_forms import closed_form_model, theorem1_model
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.llm.models.load import load_model
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.leading import leading
from lcalens.mechanism.patch import patch
from lcalens.mechanism.recall import recall
from lcalens.mechanism.recall_measures import copying_score

FAMILIES = ("gpt2", "gemma", "gemma2", "gemma3", "llama")
POST_NORMS = ("gemma2", "gemma3")
EVERY = [(layer, head) for layer in range(3) for head in range(4)]
WORD = (2, 4)  # the span `word`, whose last token is the source


def toy(m=4, d=8, seed=0):
    torch.manual_seed(seed)
    return LCAForCausalLM(LCAConfig(m=m, d_model=d, d_head=12)).eval()


def neighbours(m=4):
    return {token: [token ^ (1 << bit) for bit in range(m)] for token in range(1 << m)}


def runs_of(model, sizes, seed=1, low=5, **options):
    """Random contexts that end alike, and the two answers whose logits their difference pulls apart the most."""
    generator = torch.Generator().manual_seed(seed)
    clean, hijacked, true, false = [], [], [], []
    for short, long in sizes:
        tail = torch.randint(low, model.cfg.d_vocab, (min(short, long) // 2,), generator=generator)
        rows = [torch.randint(low, model.cfg.d_vocab, (n - len(tail),), generator=generator) for n in (short, long)]
        clean.append(torch.cat([rows[0], tail]))
        hijacked.append(torch.cat([rows[1], tail]))
        change = model(hijacked[-1][None])[0, -1] - model(clean[-1][None])[0, -1]
        true.append(int(change.argmin()))
        false.append(int(change.argmax()))
    return Contrast(clean, hijacked, true=true, false=false, **({"spans": {"word": WORD}} | options))


def told(found, table="summary"):
    """A table with its quantities as columns, by head."""
    return found.wide(table).set_index("head")


# --- the toy --------------------------------------------------------------------------------------------------------


def by_weights(model):
    """W_E^T W_V W_E, an entry at a time: what answer t gets of source s."""
    embed, w_v = model.embed.weight.detach().double(), model.attn.v.weight.detach().double()
    tokens = range(len(embed))
    return np.array([[float(embed[t] @ (w_v @ embed[s])) for t in tokens] for s in tokens])


@pytest.mark.parametrize(("m", "d"), [(3, 8), (4, 8), (4, 20), (5, 6)])
def test_the_toys_table_is_the_memory_between_embeddings(m, d):
    model = toy(m, d)
    found = recall(lca_bridge(model), neighbours(m), [(0, 0)], progress=False)
    assert list(found.axes) == ["head", "source", "answer"]
    assert [len(labels) for labels in found.axes.values()] == [1, 1 << m, 1 << m]
    assert [int(label) for label in found.axes["source"]] == [*range(1 << m)]
    answers = [int(label, 2) for label in found.axes["answer"]]  # the toy's tokens are written as their bits
    assert sorted(answers) == [*range(1 << m)]
    expected = by_weights(model)[:, answers]
    assert_near(found.values["recall"][0], expected, effect=expected)
    assert found.units["recall"] == "logits"


@pytest.mark.parametrize("seed", range(3))
def test_the_toys_quantities_are_the_loops(seed):
    model = toy(seed=seed)
    found = recall(lca_bridge(model), neighbours(), [(0, 0)], progress=False)
    embed = torch.nn.functional.normalize(model.embed.weight.detach().double(), dim=1)
    related = [[t in neighbours()[s] for t in range(16)] for s in range(16)]
    expected = slow_measures(by_weights(model), [*range(16)], related, (embed @ embed.T).numpy())
    table = found.wide("sources")
    assert len(table) == 16
    for name, values in expected.items():
        assert_near(table[name], values, effect=max(1, np.abs(values).max()))
        assert told(found)[name].iloc[0] == pytest.approx(np.mean(values), rel=1e-4)
    assert np.isfinite(table[list(QUANTITIES)].to_numpy(float)).all()


@pytest.mark.parametrize("m", [3, 4, 5])
def test_theorem_1s_memory_recalls_every_neighbour_and_nothing_else(m):
    found = recall(lca_bridge(theorem1_model(LatentConcepts(m))), neighbours(m), [(0, 0)], progress=False)
    table = found.values["recall"][0]
    for source in range(1 << m):
        for answer in range(1 << m):
            assert table[source, answer] == ((source ^ answer).bit_count() == 1)
    row = told(found).iloc[0]
    # Its own token stands with all that are unrelated, and above none of them.
    assert (row["own_first"], row["own_last"], row["own_gap"]) == (0, 0, 0)
    assert row["own_rank"] == m + (1 + (1 << m) - m) / 2
    assert (row["related_auc"], row["related_gap"], row["related_rank"]) == (1, 1, (1 + m) / 2)
    assert row["left"] > 100
    assert np.isnan(row["relative"])  # of an own gap of nothing
    assert told(found, "tests")["p"].iloc[0] == pytest.approx(1 / 101)


def test_the_identity_recalls_what_is_similar_and_is_no_association():
    torch.manual_seed(3)
    embedding = torch.nn.functional.normalize(torch.randn(16, 6), dim=1)
    bridge = lca_bridge(closed_form_model(embedding, torch.eye(6)))
    some = {token: near for token, near in neighbours().items() if token % 2}
    found = recall(bridge, some, [(0, 0)], progress=False)
    row = told(found).iloc[0]
    assert row["own_first"] > 0.8  # not in every row: neighbours that few sources have stand higher less their mean
    assert row["own_gap"] > 0.5
    scores = told(found, "scores").iloc[0]
    assert scores["copying"] == pytest.approx(1, rel=1e-4)
    similar = found.wide("nulls").set_index("null").loc["embedding similarity"]
    for name in ("own_gap", "related_auc", "related_gap"):
        assert row[name] == pytest.approx(similar[name], rel=1e-4)
    assert np.isnan(row["left"])


def test_the_toys_scores():
    model = toy()
    found = recall(lca_bridge(model), neighbours(), [(0, 0)], progress=False)
    values = np.linalg.eigvals(by_weights(model))
    scores = told(found, "scores").iloc[0]
    assert scores["copying"] == pytest.approx(values.sum().real / np.abs(values).sum(), rel=1e-4)
    assert np.isnan(scores["induction"])


def test_contrasts_of_the_toy_read_what_was_redrawn():
    model = toy()
    contrast = contrast_concepts(LatentConcepts(4), limit=12, length=10, seed=2)
    found = recall(lca_bridge(model), contrast, [(0, 0)], related=neighbours(), progress=False)
    sources = [row[max(last for _, last in spans) - 1] for row, spans in
               zip(contrast.hijacked, contrast.spans["redrawn"], strict=True)]  # fmt: skip
    answers = [int(label, 2) for label in found.axes["answer"]]
    assert list(found.axes) == ["head", "example", "answer"]
    assert {*sources, *(row[0] for row in (*contrast.true, *contrast.false))} <= set(answers)
    expected = by_weights(model)[np.ix_(sources, answers)]
    assert_near(found.values["recall"][0], expected, effect=expected)
    # y~ is related to whatever stands there but itself, and so are the token's own neighbours.
    embed = torch.nn.functional.normalize(model.embed.weight.detach().double(), dim=1)
    near = [[t != s and (t == false[0] or t in neighbours()[s]) for t in answers]
            for s, false in zip(sources, contrast.false, strict=True)]  # fmt: skip
    own = [answers.index(s) for s in sources]
    measured = slow_measures(expected, own, near, (embed @ embed.T).numpy()[np.ix_(sources, answers)])
    table = found.wide("sources")
    for name, values in measured.items():
        assert_near(table[name], values, effect=max(1, np.nanmax(np.abs(values))))


def test_in_the_toy_both_levels_are_one():
    bridge = lca_bridge(toy())
    contrast = contrast_concepts(LatentConcepts(4), limit=8, length=10, seed=2)
    tables = [recall(bridge, contrast, [(0, 0)], level=level, progress=False).values["recall"]
              for level in ("embedding", "residual")]  # fmt: skip
    assert_near(*tables, effect=tables[0])


# --- real families --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stirred(standin):
    """Stand-ins whose norms have gains and projections biases: as they are made, these are ones and zeros."""
    made = {}

    def get(family):
        if family not in made:
            stand = standin(family)
            plain = standins.stirred(stand.plain)
            model, hooked = (
                load_model(copy.deepcopy(plain), tokenizer=stand.tokenizer, progress=False) for _ in range(2)
            )
            made[family] = SimpleNamespace(
                family=family, plain=plain, model=model, hooked=hooked, tokenizer=stand.tokenizer
            )
        return made[family]

    return get


def parts_of(plain, family):
    """Hugging Face's own modules, layer by layer, and what makes values and writes of them."""
    if family == "gpt2":
        inner, layers = plain.transformer, []
        for h in inner.h:
            attn = h.attn
            w_v, b_v = attn.c_attn.weight[:, 128:].double(), attn.c_attn.bias[128:].double()
            layers.append(SimpleNamespace(norm=h.ln_1, out=attn.c_proj, w_o=attn.c_proj.weight, w_v=w_v, b_v=b_v))
        return SimpleNamespace(final=inner.ln_f, layers=layers)
    layers = []
    for layer in plain.model.layers:
        attn = layer.self_attn
        w_v = attn.v_proj.weight.T.double()
        layers.append(
            SimpleNamespace(norm=layer.input_layernorm, out=attn.o_proj, w_o=attn.o_proj.weight.T, w_v=w_v,
                            b_v=torch.zeros(w_v.shape[1]), after=layer.post_attention_layernorm)
        )  # fmt: skip
    return SimpleNamespace(final=plain.model.norm, layers=layers)


def seen_of(plain, modules, ids):
    """What goes into or comes out of modules at the last position of a plain forward pass, in double precision."""
    seen = {}

    def keep(name, side):
        def hook(module, given, found):
            seen[name] = (given[0] if side == "in" else found).detach().double()[0, -1]

        return hook

    handles = [module.register_forward_hook(keep(name, side)) for name, (module, side) in modules.items()]
    with torch.no_grad():
        plain(input_ids=torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


class ByHand:
    """A head's circuit as Hugging Face's weights have it, with the norms' scales of one run."""

    def __init__(self, stand, ids=None):
        self.family, self.plain, self.parts = stand.family, stand.plain, parts_of(stand.plain, stand.family)
        modules = {"final": (self.parts.final, "in")}
        modules |= {f"raw{i}": (layer.out, "out") for i, layer in enumerate(self.parts.layers)}
        self.seen = None if ids is None else seen_of(stand.plain, modules, ids)

    def gain(self, norm):
        return norm.weight.detach().double() + (1 if self.family.startswith("gemma") else 0)

    def scale(self, name):
        """Of the norm that reads what was seen; 1 where no run was."""
        if self.seen is None:
            return 1.0
        x = self.seen[name]
        if self.family == "gpt2":
            return 1 / (x.var(correction=0) + 1e-5).sqrt()
        return 1 / (x.square().mean() + self.plain.config.rms_norm_eps).sqrt()

    @torch.no_grad()
    def logits(self, layer, head, stream):
        """What every logit gets for a unit of attention to a source whose residual stream before the layer is this."""
        part = self.parts.layers[layer]
        values = part.norm(stream.float()[None])[0].double() @ part.w_v + part.b_v
        kv = len(values) // 16
        write = values.unflatten(0, (kv, 16))[head * kv // 4] @ part.w_o.double().unflatten(0, (4, 16))[head]
        if self.family in POST_NORMS:
            write = write * self.scale(f"raw{layer}") * self.gain(part.after)
        if self.family == "gpt2":
            write = write - write.mean()
        return self.plain.lm_head.weight.double() @ (write * self.scale("final") * self.gain(self.parts.final))


def answer_ids(found):
    """The answers' ids, in the order of the axis."""
    assert len(found.provenance["answers"]) == len(found.axes["answer"])
    return found.provenance["answers"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_is_the_circuit_by_hand_at_the_residual_stream(stirred, family):
    stand = stirred(family)
    contrast = runs_of(stand.model, [(9, 9), (6, 9), (11, 8), (9, 9), (6, 9)])
    found = recall(stand.model, contrast, EVERY, level="residual", draws=2, progress=False)
    answers = answer_ids(found)
    assert len(set(answers)) == len(found.axes["answer"])
    first = {row[0] for row in (*contrast.true, *contrast.false)}
    assert set(answers) == first | {row[WORD[1] - 1] for row in contrast.hijacked}
    expected = np.zeros(found.values["recall"].shape)
    for example, (clean, hijacked) in enumerate(zip(contrast.clean, contrast.hijacked, strict=True)):
        hand = ByHand(stand, clean)
        _, cache = stand.hooked.run_with_cache(torch.tensor([hijacked]))
        for place, (layer, head) in enumerate(EVERY):
            stream = cache[f"blocks.{layer}.hook_resid_pre"][0, WORD[1] - 1]
            expected[place, example] = hand.logits(layer, head, stream)[answers]
    for place in range(len(EVERY)):
        assert np.abs(expected[place]).max() > 0.05
        assert_near(found.values["recall"][place], expected[place], effect=expected[place])


def embedded_by_hand(stand, token, at=4):
    """The stream before the first layer where this token stands at this position."""
    hand = parts_of(stand.plain, stand.family).layers[0].norm
    seen = []
    handle = hand.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    with torch.no_grad():
        stand.plain(input_ids=torch.tensor([[0] * at + [token]]), use_cache=False)
    handle.remove()
    return seen[0][0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_is_the_circuit_by_hand_at_the_embedding(stirred, family):
    stand = stirred(family)
    contrast = runs_of(stand.model, [(9, 9), (6, 9), (11, 8)])
    found = recall(stand.model, contrast, EVERY, draws=2, progress=False)
    answers = answer_ids(found)
    for example, (clean, hijacked) in enumerate(zip(contrast.clean, contrast.hijacked, strict=True)):
        hand = ByHand(stand, clean)
        stream = embedded_by_hand(stand, hijacked[WORD[1] - 1])
        for place, (layer, head) in enumerate(EVERY):
            expected = hand.logits(layer, head, stream)[answers]
            assert_near(found.values["recall"][place, example], expected, effect=expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_have_the_scale_that_provenance_says(stirred, family):
    stand = stirred(family)
    objects = {30: [31, 32], 40: [41], 50: [51, 31], 60: 61}
    found = recall(stand.model, objects, EVERY, draws=2, progress=False)
    answers = answer_ids(found)
    assert set(answers) == {30, 31, 32, 40, 41, 50, 51, 60, 61}
    hand = ByHand(stand)
    for place, (layer, head) in enumerate(EVERY):
        scale = found.provenance["scale"][place]
        assert scale > 0
        for row, token in enumerate(objects):
            expected = scale * hand.logits(layer, head, embedded_by_hand(stand, token))[answers]
            assert_near(found.values["recall"][place, row], expected, effect=expected)


@pytest.mark.parametrize("family", [*FAMILIES, "toy"])
def test_attention_times_recall_is_the_heads_direct_effect(stirred, family):
    """A source at every place of one run, which is its own clean run, so that the norms' scales are its own."""
    model = lca_bridge(toy()) if family == "toy" else stirred(family).model
    length, heads = 9, [(0, 0)] if family == "toy" else EVERY
    one = runs_of(model, [(length, length)], low=0 if family == "toy" else 5)
    run, true, false = one.hijacked[0], one.true[0][0], one.false[0][0]
    contrast = Contrast(
        [run] * length, [run] * length, true=true, false=false, spans={"word": [[(i, i + 1)] for i in range(length)]}
    )
    found = recall(model, contrast, heads, level="residual", draws=2, progress=False)
    effects = direct_effects(read_decoder(model), torch.tensor([run]), torch.tensor([true]), torch.tensor([false]))
    answers = answer_ids(found)
    part = found.values["recall"][..., answers.index(false)] - found.values["recall"][..., answers.index(true)]
    for place, (layer, head) in enumerate(heads):
        by_source = effects.pattern[0, layer, head].numpy() * part[place]
        assert_near(by_source, effects.heads_by_source[0, layer, head], effect=effects.heads_by_source[0, layer, head])
        total = effects.heads[0, layer, head].item()
        size = np.abs(by_source).sum()
        assert by_source.sum() == pytest.approx(total, abs=1e-4 * size)


# --- the tables beside ----------------------------------------------------------------------------------------------


def test_summary_nulls_and_tests_are_of_the_sources(stirred):
    model = stirred("llama").model
    objects = {token: [token + 100, token + 200] for token in range(20, 32)}
    heads = [(0, 1), (1, 0), (1, 3)]
    found = recall(model, objects, heads, draws=19, progress=False)
    every = recall(model, objects, EVERY, draws=1, progress=False)
    table = found.wide("sources")
    assert len(table) == 3 * 12
    assert next(iter(found.tables)) == "summary"
    for name, rows in table.groupby("head"):
        row = told(found).loc[name]
        for quantity in QUANTITIES:
            assert row[quantity] == pytest.approx(rows[quantity].mean(), rel=1e-9)
            assert row[f"{quantity}_low"] <= row[quantity] <= row[f"{quantity}_high"]
        assert row["relative"] == pytest.approx(rows["related_gap"].sum() / rows["own_gap"].sum(), rel=1e-9)
    summary = told(every)
    nulls = found.wide("nulls").set_index(["head", "null"])
    for layer, head in heads:
        name = f"L{layer}H{head}"
        others = [f"L{layer}H{h}" for h in range(4) if h != head]
        away = [f"L{at}H{h}" for at, h in EVERY if (at, h) not in heads]
        for quantity in QUANTITIES:
            for null, which in (("other heads of the layer", others), ("all other heads", away)):
                row, values = nulls.loc[(name, null)], summary.loc[which, quantity]
                assert row[quantity] == pytest.approx(values.mean(), rel=1e-9)
                assert row[f"{quantity}_low"] == pytest.approx(values.quantile(0.025), rel=1e-9)
                assert row[f"{quantity}_high"] == pytest.approx(values.quantile(0.975), rel=1e-9)
    tests = told(found, "tests")
    assert np.allclose(tests["p"] * 20, np.round(tests["p"] * 20))
    assert (tests["p"] >= 1 / 20).all()
    assert tests["p_holm"].tolist() == pytest.approx(holm(tests["p"].tolist()))
    scores = told(found, "scores")
    answers = answer_ids(found)
    own = [answers.index(token) for token in objects]
    for place, name in enumerate(found.axes["head"]):
        square = found.values["recall"][place][:, own]
        assert scores.loc[name, "copying"] == pytest.approx(copying_score(square), rel=1e-9)
        assert -1 <= scores.loc[name, "copying"] <= 1
        assert 0 <= scores.loc[name, "induction"] <= 1
    drawn = nulls.xs("same spectrum", level="null")
    assert (drawn["left_low"] < drawn["left_high"]).all()


def test_similarity_and_the_logit_lens_are_of_the_streams(stirred):
    stand = stirred("llama")
    contrast = runs_of(stand.model, [(9, 9)] * 6)
    found = recall(stand.model, contrast, [(0, 0), (2, 1)], level="residual", draws=1, progress=False)
    answers = answer_ids(found)
    sources = [row[WORD[1] - 1] for row in contrast.hijacked]
    own = [answers.index(token) for token in sources]
    related = [[a == false[0] and a != s for a in answers]
               for s, false in zip(sources, contrast.false, strict=True)]  # fmt: skip
    weights = torch.nn.functional.normalize(stand.plain.model.embed_tokens.weight.detach().double(), dim=1)
    similarity = (weights[sources] @ weights[answers].T).numpy()
    nulls = found.wide("nulls").set_index(["head", "null"])
    for layer, head in ((0, 0), (2, 1)):
        lens = []
        for row in contrast.hijacked:
            _, cache = stand.hooked.run_with_cache(torch.tensor([row]))
            stream = cache[f"blocks.{layer}.hook_resid_pre"][0, WORD[1] - 1]
            with torch.no_grad():
                lens.append(stand.plain.lm_head(stand.plain.model.norm(stream))[answers].double().numpy())
        for null, table in (("embedding similarity", similarity), ("logit lens", np.array(lens))):
            expected = slow_measures(table, own, related, similarity)
            for name in QUANTITIES:
                known = expected[name][~np.isnan(expected[name])]
                value = nulls.loc[(f"L{layer}H{head}", null), name]
                if len(known):
                    assert value == pytest.approx(known.mean(), rel=1e-3, abs=1e-3)
                else:
                    assert np.isnan(value)


def test_a_heads_spectrum_and_circuits_of_the_same(stirred):
    for family in ("gpt2", "llama", "gemma"):
        stand = stirred(family)
        layers = read_decoder(stand.model).layers
        for layer, head in ((0, 0), (1, 3), (2, 2)):
            part = parts_of(stand.plain, family).layers[layer]
            kv = part.w_v.shape[1] // 16
            into = part.w_v.unflatten(1, (kv, 16))[:, head * kv // 4]
            whole = into @ part.w_o.double().unflatten(0, (4, 16))[head]
            expected = torch.linalg.svdvals(whole)[:16]
            values = spectrum(layers[layer], head)
            assert_near(values, expected, effect=expected)
            eye = torch.eye(64)
            drawn = gaussian_circuit(eye, values, eye.double(), torch.Generator().manual_seed(1))
            assert_near(torch.linalg.svdvals(drawn)[:16], expected, effect=expected)
            assert torch.linalg.svdvals(drawn)[16:].max() < 1e-9
    model = toy(d=8)
    values = spectrum(read_decoder(lca_bridge(model)).layers[0], 0)
    expected = torch.linalg.svdvals(model.attn.v.weight.detach().double())
    assert_near(values, expected, effect=expected)


def test_induction_is_the_attention_to_the_token_behind_the_last_occurrence(standin, monkeypatch):
    """A run whose pattern is written by hand: head 1 looks there and nowhere else, the others one beside it."""
    model = standin("llama").model

    def planted(decoder, tokens, keep):
        rows, length = tokens.shape
        pattern = torch.zeros(rows, 4, length, length)
        for row in range(rows):
            for q in range(length):
                before = [k for k in range(q) if tokens[row, k] == tokens[row, q]]
                last = before[-1] if before else q
                for head, at in enumerate((last, min(last + 1, q), min(last + 2, q), 0)):
                    pattern[row, head, q, at] = 1
        return SimpleNamespace(kept={"pattern": [pattern] * 3})

    monkeypatch.setattr("lcalens.mechanism.recall.trace", planted)
    found = recall(model, [30, 40, 50], [(1, head) for head in range(4)], draws=1, progress=False)
    scores = told(found, "scores")["induction"]
    assert scores["L1H1"] > 0.9
    assert (scores[["L1H0", "L1H2", "L1H3"]] < 0.1).all()


# --- planted and random ---------------------------------------------------------------------------------------------


def planted(stand, heads, pairs):
    """The stand-in with a memory in some heads: of cue i the value is the i-th axis, which writes along answer i.

    Args:
        heads: For each head, (layer, head), its cues and answers, up to 16 of each.
    """
    plain = copy.deepcopy(stand.plain)
    rows = plain.model.embed_tokens.weight.detach().double()
    for (layer, head), (cues, answers) in zip(heads, pairs, strict=True):
        part = plain.model.layers[layer]
        read = torch.stack([part.input_layernorm(rows[cue].float()).detach().double() for cue in cues])
        write = plain.lm_head.weight.detach().double()[list(answers)]
        kv = slice(16 * (head // 2), 16 * (head // 2 + 1))
        w_v, w_o = torch.zeros(16, 64, dtype=torch.float64), torch.zeros(64, 16, dtype=torch.float64)
        w_v[: len(cues)] = torch.linalg.pinv(read).T
        w_o[:, : len(cues)] = write.T
        with torch.no_grad():
            part.self_attn.v_proj.weight[kv] = w_v.float()
            part.self_attn.o_proj.weight[:, 16 * head : 16 * (head + 1)] = w_o.float()
    return load_model(plain, tokenizer=stand.tokenizer, progress=False)


def test_a_planted_memory_is_found_and_stands_out(standin):
    stand, cues, answers = standin("llama"), range(300, 312), range(400, 412)
    model = planted(stand, [(1, 2)], [(cues, answers)])
    found = recall(model, dict(zip(cues, answers, strict=True)), [(1, 2), (0, 0), (2, 3)], draws=99, progress=False)
    row, tests = told(found).loc["L1H2"], told(found, "tests")
    assert tests.loc["L1H2", "p"] == pytest.approx(0.01)
    assert tests.loc["L1H2", "p_holm"] == pytest.approx(0.03)
    assert row["left"] > 3
    assert row["related_auc"] > 0.99
    assert row["related_rank"] == pytest.approx(1, abs=0.2)
    assert row["own_first"] == 0
    nulls = found.wide("nulls").set_index(["head", "null"]).loc["L1H2"]
    assert (nulls["left_high"].dropna() < row["left"]).all()
    assert (nulls["left"].dropna() < row["left"] / 3).all()
    assert np.isnan(nulls.loc["embedding similarity", "left"])  # nothing is left of it beside itself
    for name in ("L0H0", "L2H3"):
        assert told(found).loc[name, "left"] < 1


def test_a_head_that_moves_tokens_is_no_association(standin):
    """It has its own token first, and related answers that are no sources stand neither above nor below others."""
    stand, generator = standin("llama"), np.random.default_rng(5)
    few, lefts = 0, []
    for _ in range(3):
        # Six heads that share no values, each with tokens of its own.
        drawn = [generator.permutation(np.arange(10, 550))[:24].tolist() for _ in range(6)]
        model = planted(stand, EVERY[::2], [(cues[:12], cues[:12]) for cues in drawn])
        for place, cues in zip(EVERY[::2], drawn, strict=True):
            found = recall(model, dict(zip(cues[:12], cues[12:], strict=True)), [place], draws=19, progress=False)
            assert told(found)["own_first"].iloc[0] > 0.9
            assert told(found, "scores")["copying"].iloc[0] > 0.8
            few += told(found, "tests")["p"].iloc[0] < 0.051
            lefts.append(told(found)["left"].iloc[0])
    assert few <= 4  # of 18 at .05: more with a probability of .0015
    assert abs(np.mean(lefts)) < 4 * np.std(lefts) / np.sqrt(len(lefts))


def test_random_circuits_are_found_one_time_in_twenty(standin):
    stand, shares = standin("llama"), []
    for number in range(17):
        if number % 4 == 0:  # new weights now and then; in between, tokens of which no other trial has any
            plain = copy.deepcopy(stand.plain)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for layer in plain.model.layers:
                    for part in (layer.self_attn.v_proj, layer.self_attn.o_proj):
                        part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
            model = load_model(plain, tokenizer=stand.tokenizer, progress=False)
        first = 10 + 24 * number
        objects = {token: token + 12 for token in range(first, first + 12)}
        found = recall(model, objects, EVERY, draws=19, seed=number, progress=False)
        shares += told(found, "tests")["p"].tolist()
    assert len(shares) == 204
    assert sum(share < 0.051 for share in shares) <= 20  # of 204 at .05: more with a probability of .001
    assert np.mean(shares) == pytest.approx(0.525, abs=4 * 0.288 / np.sqrt(204))


# --- words, and results ---------------------------------------------------------------------------------------------

LANDS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Greece": "Athens", "Norway": "Oslo", "Peru": "Lima"}


def single(stand, words):
    """Those of some words that are one token behind another word, with their ids."""
    found = {word: stand.tokenizer(f"is {word}", add_special_tokens=False).input_ids for word in words}
    before = stand.tokenizer("is", add_special_tokens=False).input_ids
    return {word: ids[-1] for word, ids in found.items() if len(ids) == len(before) + 1}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_words_are_their_tokens_behind_a_text_and_those_of_several_are_named(standin, family):
    stand = standin(family)
    ids = single(stand, [*standins.CAPITALS, *standins.CAPITALS.values(), *standins.LANGUAGES.values()])
    lands = dict(zip([*ids][::2], [*ids][1::2], strict=False))
    assert len(lands) >= 3
    found = recall(stand.model, lands | {"Liechtenstein": "Vaduz"}, [(1, 2)], draws=2, progress=False)
    assert found.axes["source"] == tuple(lands)
    assert found.provenance["sources"] == [ids[land] for land in lands]
    assert set(answer_ids(found)) == {ids[word] for word in (*lands, *lands.values())}
    assert set(found.provenance["left_out"]) == {"Liechtenstein", "Vaduz"}
    same = recall(stand.model, {ids[a]: [ids[b]] for a, b in lands.items()}, [(1, 2)], draws=2, progress=False)
    assert np.array_equal(same.values["recall"], found.values["recall"])
    assert np.array_equal(told(same)["left"], told(found)["left"])
    # The same by the words and what is related to them apart, whether by words or by tokens.
    for related in (lands, {ids[a]: ids[b] for a, b in lands.items()}):
        for objects in ([*lands], [ids[land] for land in lands]):
            apart = recall(stand.model, objects, [(1, 2)], related=related, draws=2, progress=False)
            pd.testing.assert_frame_equal(told(apart), told(found))
    with pytest.raises(LcalensError, match=r"^sources: three or more.*Liechtenstein"):
        recall(stand.model, [*[*lands][:2], "Liechtenstein"], [(1, 2)], progress=False)


def test_what_is_related_is_taken_from_both_places(standin):
    model = standin("llama").model
    both = recall(model, {30: 40, 31: [], 32: 42}, [(0, 0)], related={31: (41, 45), 32: [43]}, draws=2, progress=False)
    one = recall(model, {30: [40], 31: [41, 45], 32: [42, 43]}, [(0, 0)], draws=2, progress=False)
    pd.testing.assert_frame_equal(told(both), told(one))
    assert set(answer_ids(both)) == {30, 31, 32, 40, 41, 42, 43, 45}


def test_of_nothing_related_there_is_nothing_to_say(standin):
    found = recall(standin("llama").model, [30, 31, 32, 33], [(0, 0), (1, 1)], progress=False)
    for name in ("related_rank", "related_auc", "related_gap", "left", "relative"):
        assert told(found)[name].isna().all()
    assert told(found)[["own_first", "own_rank", "own_gap"]].notna().all(axis=None)
    assert told(found, "tests")["p"].isna().all()


def test_a_head_that_writes_nothing_recalls_nothing(standin):
    stand = standin("llama")
    plain = copy.deepcopy(stand.plain)
    with torch.no_grad():
        plain.model.layers[1].self_attn.o_proj.weight[:, :16] = 0
    model = load_model(plain, tokenizer=stand.tokenizer, progress=False)
    found = recall(model, {30: 40, 31: 41, 32: 42, 33: 43}, [(1, 0), (1, 1)], draws=5, progress=False)
    assert not found.values["recall"][0].any()
    assert told(found).loc["L1H0", ["own_first", "own_last", "own_gap", "related_gap"]].eq(0).all()
    assert np.isnan(told(found).loc["L1H0", "left"])
    assert np.isnan(told(found, "tests").loc["L1H0", "p"])
    assert np.isnan(told(found, "scores").loc["L1H0", "copying"])
    assert told(found, "tests").loc["L1H1", "p_holm"] == told(found, "tests").loc["L1H1", "p"]


def test_a_contrasts_false_answer_is_related_where_the_word_is_another(standin):
    stand = standin("gpt2")
    cities = [*single(stand, LANDS.values())]
    assert len(cities) >= 4
    texts = [f"The capital of {land} is" for land in list(LANDS)[: len(cities)]]
    options = {"true": " Vienna", "tokenizer": stand.model}

    def contrast(words, false):
        return Contrast(
            [f"Do not think of Vienna. {text}" for text in texts],
            [f"Do not think of {word}. {text}" for word, text in zip(words, texts, strict=True)],
            false=false, spans={"word": words}, **options,
        )  # fmt: skip

    itself = recall(stand.model, contrast(cities, cities), [(1, 2)], draws=2, progress=False)
    assert told(itself)["left"].isna().all()
    assert told(itself)["own_gap"].notna().all()
    turned = cities[1:] + cities[:1]
    other = recall(stand.model, contrast(cities, turned), [(1, 2)], draws=2, progress=False)
    ids = single(stand, cities)
    own, answers = [ids[word] for word in cities], answer_ids(other)
    table, expected = other.values["recall"][0], []
    for row, word in enumerate(turned):
        entry = (table - table.mean(0))[row]
        far = [j for j, a in enumerate(answers) if a not in (own[row], ids[word])]
        expected.append(entry[answers.index(ids[word])] - entry[far].mean())
    assert told(other)["related_gap"].iloc[0] == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_false_object_of_several_tokens_is_not_related_to_itself(standin):
    """The source is then its last token, the answer its first: two tokens, and one word."""
    stand = standin("gpt2")
    words = ["Vladivostok", "Reykjavik", "Ouagadougou", "Tegucigalpa"]
    assert not single(stand, words)
    contrast = Contrast(
        "Do not think of Rome. The capital of Italy is",
        "Do not think of Rome. The capital of Italy is",
        true="Rome", false=words[0], tokenizer=stand.model,
    )  # fmt: skip
    assert len(contrast.false[0]) > 1
    contrast = Contrast(
        ["Do not think of Rome. The capital of Italy is"] * 4,
        [f"Do not think of {word}. The capital of Italy is" for word in words],
        true="Rome", false=words, tokenizer=stand.model, spans={"word": words},
    )  # fmt: skip
    found = recall(stand.model, contrast, [(1, 2)], draws=2, progress=False)
    assert told(found)["related_gap"].isna().all()
    assert found.provenance["sources"] == [row[-1] for row in contrast.false]


def test_words_left_out_of_what_is_related_to_a_contrast_are_named(standin):
    stand = standin("gpt2")
    contrast = runs_of(stand.model, [(9, 9)] * 3)
    found = recall(
        stand.model, contrast, [(0, 0)], related={contrast.hijacked[0][3]: ["Liechtenstein"]}, draws=2, progress=False
    )
    assert found.provenance["left_out"] == ["Liechtenstein"]


def test_the_same_call_gives_the_same_and_a_seed_moves_draws_alone(standin):
    model = standin("llama").model
    objects, heads = {token: token + 100 for token in range(30, 40)}, [(0, 1), (2, 2)]
    first, again, other = (recall(model, objects, heads, draws=9, seed=seed, progress=False) for seed in (0, 0, 1))
    for found in (again, other):
        assert np.array_equal(found.values["recall"], first.values["recall"])
        for name in ("summary", "sources"):
            pd.testing.assert_frame_equal(found.tables[name], first.tables[name])
    for name in first.tables:
        pd.testing.assert_frame_equal(again.tables[name], first.tables[name])
    nulls = [found.wide("nulls").set_index(["null", "head"]) for found in (first, other)]
    drawn = [one.loc["same spectrum", "left"] for one in nulls]
    assert (drawn[0] != drawn[1]).all()
    for null in {name for name, _ in nulls[0].index} - {"same spectrum"}:
        pd.testing.assert_frame_equal(nulls[0].loc[null], nulls[1].loc[null])
    pd.testing.assert_series_equal(told(first, "scores")["copying"], told(other, "scores")["copying"])
    assert (told(first, "scores")["induction"] != told(other, "scores")["induction"]).any()


@pytest.mark.parametrize("kind", ["objects", "contrast"])
def test_a_result_is_saved_and_loaded_whole(standin, tmp_path, kind):
    stand = standin("gpt2")
    sources = {30: [31, 32], 40: [41], 50: []} if kind == "objects" else runs_of(stand.model, [(9, 9)] * 4)
    found = recall(stand.model, sources, [(0, 1), (2, 2)], draws=4, progress=False)
    found.save(tmp_path / "kept")
    same = Result.load(tmp_path / "kept")
    assert same.axes == found.axes
    assert np.array_equal(same.values["recall"], found.values["recall"])
    assert [*same.tables] == [*found.tables] == ["summary", "nulls", "tests", "scores", "sources"]
    for name, table in found.tables.items():
        pd.testing.assert_frame_equal(same.tables[name], table, check_dtype=False)
    assert same.provenance["answers"] == found.provenance["answers"]
    assert len(found.to_frame()) == found.values["recall"].size


def test_leading_heads_go_in_as_they_are(standin):
    model = standin("gpt2").model
    contrast = runs_of(model, [(9, 9)] * 4)
    heads = leading(patch(model, contrast, progress=False), 3)
    found = recall(model, contrast, heads, draws=2, progress=False)
    assert set(found.axes["head"]) == set(heads.names)
    assert found.provenance["heads_rule"] == heads.rule


def test_clusters_of_a_contrast_are_resampled_whole(standin):
    model = standin("llama").model
    contrasts = [runs_of(model, [(9, 9)] * 6, examples=pd.DataFrame({"cluster": labels}))
                 for labels in ([0, 0, 0, 1, 1, 1], [*range(6)])]  # fmt: skip
    ends = [told(recall(model, contrast, [(0, 0)], draws=2, progress=False))["own_gap_low"].iloc[0]
            for contrast in contrasts]  # fmt: skip
    assert ends[0] != ends[1]


def test_progress_is_told(standin):
    said = []
    recall(standin("llama").model, [30, 40, 50], [(0, 0)], draws=1, progress=lambda *told: said.append(told))
    assert said[-1][:2] == (3, 3)
