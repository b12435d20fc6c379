"""Patching against loops over TransformerLens's hooks and Hugging Face's, and against identities."""

from itertools import chain

import numpy as np
import pytest
import torch
import transformer_lens.patching as theirs
from helpers import slow_patching as slow
from helpers import standins
from helpers.closeness import rounding, size_of
from helpers.slow_patching import BY_KEY, HEADLESS, SITES

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import model_info
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.closed_forms import theorem1_model
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.training.config import TrainConfig
from lcalens.lca.training.training import train
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.llm.models.load import load_model
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch

FAMILIES = standins.FAMILIES
WINDOWED = ("gemma2", "gemma3")
METRICS = ("logit-difference", "probability", "kl", "own")
TOYS = ("random", "trained", "theorem 1")


def own(logits, index):
    """A metric of one's own: it depends on the example."""
    return logits[:, ::7].square().mean(1) * (1.0 + index)


def contrast_of(*cases):
    """The contrast that asks for what the cases do."""
    rows = {
        name: [tuple(row) for case in cases for row in getattr(case, name).tolist()] for name in ("clean", "hijacked")
    }
    answers = {
        name: [[answer] for case in cases for answer in getattr(case, name).tolist()] for name in ("true", "false")
    }
    names = cases[0].spans
    spans = {name: [list(case.spans[name]) for case in cases for _ in case.clean] for name in names}
    return Contrast(**rows, **answers, spans=spans)


def asked(model, contrast, **arguments):
    found = patch(model, contrast, progress=False, **arguments)
    assert found.provenance["path"] == "growing batch"
    return found


def by_hand(metric, logits, case):
    """The metric of patched runs (batch, ..., vocab), and the two ends."""
    if metric != "own":
        expected = slow.measured(metric, logits, case.true, case.false, case.logits["clean"], case.cap)
        return expected, slow.ends(metric, case)
    index = torch.arange(len(logits)).view(-1, *(1 for _ in logits.shape[1:-1]))
    flat = own(logits.flatten(0, -2).double(), index.expand(logits.shape[:-1]).flatten())
    ends = [own(case.logits[side].double(), torch.arange(len(logits))) for side in ("clean", "hijacked")]
    return flat.view(logits.shape[:-1]), ends


def close(found, expected, ends, direction, *, relative=1e-4):
    """Values and recovery, within a share of the largest effect; what that is."""
    clean, hijacked = (end.view(-1, *(1 for _ in expected.shape[1:])) for end in ends)
    effect = (expected - (hijacked if direction == "restore" else clean)).abs().amax().item()
    gap = clean - hijacked
    size = max(effect, 0.05 * gap.abs().amax().item())
    rounded = rounding(torch.float32, [1.0, size_of(expected, *ends)], 64)  # sums over 64 dimensions
    allowed = relative * size + rounded
    values = torch.from_numpy(found.values["value"]).view(expected.shape)
    assert (values - expected).abs().amax() <= allowed
    if gap.abs().amin() > 1e-3:
        recovery = torch.from_numpy(found.values["recovery"]).view(expected.shape)
        assert ((recovery - (expected - hijacked) / gap) * gap).abs().amax() <= 2 * allowed
    for name, end in zip(("clean", "hijacked"), ends, strict=True):
        np.testing.assert_allclose(found.examples[name], end, rtol=1e-4, atol=rounded)
    return effect


def compared(model, case, site, plan):
    """Every (positions, direction, metric) of the plan against the loop, which runs once for each direction."""
    contrast = contrast_of(case)
    lengths = case.clean.shape[1], case.hijacked.shape[1]
    found = {}
    for direction in {direction for _, direction, _ in plan}:
        wanted = [(positions, metric) for positions, toward, metric in plan if toward == direction]
        groups = [slow.groups_of(positions, *lengths, case.spans) for positions, _ in wanted]
        logits = slow.patched(model, *slow.sides(case, direction), site, list(chain(*groups)))
        at = 0
        for (positions, metric), own_groups in zip(wanted, groups, strict=True):
            some = logits[:, :, :, at : at + len(own_groups)]
            at += len(own_groups)
            result = asked(
                model,
                contrast,
                site=site,
                positions=positions,
                direction=direction,
                metric=own if metric == "own" else metric,
            )
            expected, ends = by_hand(metric, some, case)
            # Of probabilities and divergences single precision keeps less.
            relative = 5e-4 if metric in ("probability", "kl") else 1e-4
            key = positions if isinstance(positions, str) else "places", direction, metric
            found[key] = close(result, expected, ends, direction, relative=relative)
    return found


# --- every site, against the loop -----------------------------------------------------------------------------------


def moved(model, case):
    """The metric moves by much more than 1, so that tolerances mean something."""
    clean, hijacked = slow.ends("logit-difference", case)
    assert (hijacked - clean).amin() > 1
    return (hijacked - clean).amin().item()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_the_hook_loop(standin, family, site):
    model = standin(family).model
    case = slow.case(model, length=7, changed=(2, 3, 5))
    gap = moved(model, case)
    turn = FAMILIES.index(family) + SITES.index(site)
    kinds = ("last", "each", "all", "word", (1, -1, 3, -4))
    plan = [
        (positions, ("restore", "corrupt")[(turn // 2 + i) % 2], METRICS[(turn + i) % 4])
        for i, positions in enumerate(kinds)
    ]
    found = compared(model, case, site, plan)
    # Some place matters: no comparison of nothing with nothing.
    assert max(effect for (_, _, metric), effect in found.items() if metric != "kl") > min(0.1, 0.01 * gap)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", WINDOWED)
def test_prompts_longer_than_the_window(standin, family, site):
    model = standin(family).model
    # The window is 64: what differs at the start is out of the last position's sight in some layers, not in others.
    case = slow.case(model, length=78, changed=(1, 3, 4, 70), spans={"word": ((1, 5),)})
    moved(model, case)
    plan = [("last", "restore", "logit-difference"), ("word", "restore", "logit-difference")]
    plan += [("all", "corrupt", "logit-difference"), ((-8, -7, 40), "restore", "kl")]
    compared(model, case, site, plan[SITES.index(site) % 2 :])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_loop_that_runs_rows_together_is_the_loop(standin, family):
    model = standin(family).model
    case = slow.case(model, length=6, changed=(1, 3))
    for site in ("resid_pre", "head", "v", "pattern"):
        groups = [(-1,), (-5, -3)]
        one, rows = (
            slow.patched(model, *slow.sides(case, "restore"), site, groups, one_by_one=alone) for alone in (True, False)
        )
        assert (one - rows).abs().amax() < 1e-5 * one.abs().amax()


# --- the toy world --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    made = {}

    def get(kind):
        if kind not in made:
            concepts = LatentConcepts(4)
            if kind == "random":
                torch.manual_seed(0)
                model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval()
                with torch.no_grad():
                    model.embed.weight.mul_(2)
                    for linear in (model.attn.q, model.attn.k, model.attn.v):
                        linear.weight.mul_(4)
            elif kind == "trained":
                recipe = TrainConfig(context_length=10, d_model=16, d_head=8, batch_size=64, steps=150)
                model = train(concepts, recipe, seeds=[0], progress=False)[0].model
            else:
                model = theorem1_model(concepts)
            made[kind] = lca_bridge(model)
        return made[kind]

    return get


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", TOYS)
def test_the_toy_is_the_hook_loop(toy, kind, site):
    model = toy(kind)
    case = slow.case(model, length=8, changed=(0, 2, 3, 5, 7), seed=3)
    clean, hijacked = slow.ends("logit-difference", case)
    assert (hijacked - clean).amin() > (0.3 if kind == "theorem 1" else 1)  # recall of 1 for each of 8 tokens
    plan = [(positions, "restore", "logit-difference") for positions in ("last", "each", "word")]
    plan += [("all", "corrupt", METRICS[SITES.index(site) % 4]), ((0, -1, 3), "corrupt", "kl")]
    found = compared(model, case, site, plan)
    # There is no MLP, and of Theorem 1's model W_K and W_Q are 0.
    if site != "mlp_out" and (kind != "theorem 1" or site not in ("q", "k", "pattern", "attn_scores")):
        assert max(found.values()) > 0.05


def test_the_toys_last_token_can_differ(toy):
    model = toy("random")
    case = slow.case(model, length=8, changed=(2, 7), seed=1)
    for site in ("q", "head", "pattern", "resid_pre", "k"):
        assert compared(model, case, site, [("last", "restore", "logit-difference")])


# --- TransformerLens's own ------------------------------------------------------------------------------------------

THEIRS = {
    "resid_pre": ("resid_pre", "each"),
    "attn_out": ("attn_out", "each"),
    "mlp_out": ("mlp_out", "each"),
    "attn_head_out_all_pos": ("head", "all"),
    "attn_head_out_by_pos": ("head", "each"),
    "attn_head_q_all_pos": ("q", "all"),
    "attn_head_q_by_pos": ("q", "each"),
    "attn_head_k_all_pos": ("k", "all"),
    "attn_head_v_all_pos": ("v", "all"),
    "attn_head_v_by_pos": ("v", "each"),
    "attn_head_pattern_all_pos": ("pattern", "all"),
    "attn_head_pattern_by_pos": ("pattern", "each"),
}


@pytest.mark.parametrize(("name", "what"), THEIRS.items(), ids=THEIRS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformerlenss_functions(standin, family, name, what, monkeypatch):
    model = standin(family).model
    site, positions = what
    case = slow.case(model, length=5, changed=(1, 3), batch=1, spans={})
    monkeypatch.setattr(theirs, "tqdm", lambda rows: rows)
    hooks = [f"blocks.{layer}.{slow.HOOKS[site]}" for layer in range(model.cfg.n_layers)]
    true, false = case.true.item(), case.false.item()
    with torch.no_grad():
        _, cache = model.run_with_cache(case.clean, names_filter=hooks)
        expected = getattr(theirs, f"get_act_patch_{name}")(
            model, case.hijacked, cache, lambda logits: logits[0, -1, false] - logits[0, -1, true]
        )
    if positions == "each" and site not in (*HEADLESS, "pattern"):
        expected = expected.transpose(1, 2)  # theirs: layer, position, head; but of the pattern layer, head, position
    found = asked(model, contrast_of(case), site=site, positions=positions)
    close(found, expected[None].double(), slow.ends("logit-difference", case), "restore")


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_into_clean_changes_nothing(standin, family):
    model = standin(family).model
    case = slow.case(model, length=7, changed=(2, 4))
    answers = {"true": case.true[:, None], "false": case.false[:, None]}
    same = Contrast(case.clean, case.clean, **answers)
    base = slow.ends("logit-difference", case)[0].numpy()
    for i, site in enumerate(SITES):
        found = asked(model, same, site=site, positions=("each", "all", "last")[i % 3])
        value = found.values["value"]
        np.testing.assert_allclose(
            value, base.reshape(-1, *[1] * (value.ndim - 1)) + 0 * value, rtol=0, atol=rounding(torch.float32, base, 64)
        )
        assert np.isnan(found.values["recovery"]).all()  # there is nothing to recover
        assert np.isnan(found.wide()["recovery"]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_patched_is_the_other_run(standin, family):
    model = standin(family).model
    case = slow.case(model, length=9, changed=(2, 4, 8))
    contrast = contrast_of(case)
    for direction, whole in (("restore", 1), ("corrupt", 0)):
        first = asked(model, contrast, site="resid_pre", positions="all", direction=direction)
        np.testing.assert_allclose(first.values["recovery"], whole, atol=1e-4)  # in every layer
        last = asked(model, contrast, site="resid_post", positions="all", direction=direction)
        np.testing.assert_allclose(last.values["recovery"], whole, atol=1e-4)
        final = asked(model, contrast, site="resid_post", positions="last", direction=direction)
        np.testing.assert_allclose(final.values["recovery"][:, -1], whole, atol=1e-4)
        assert np.abs(final.values["recovery"][:, 0] - whole).max() > 1e-3  # but not in the first


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_pattern(standin, family):
    model = standin(family).model
    contrast = contrast_of(slow.case(model, length=8, changed=(2, 3, 5)))
    for positions in ("last", "all"):
        one, other = (
            asked(model, contrast, site=site, positions=positions).values["value"]
            for site in ("pattern", "attn_scores")
        )
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_one_head_alone_is_attention(toy):
    """One head, no residual stream and no MLP: the head's output, attention's and the layer's are one."""
    model = toy("random")
    contrast = contrast_of(slow.case(model, length=8, changed=(2, 3, 7), seed=3))
    values = [
        asked(model, contrast, site=site).values["recovery"].ravel() for site in ("head", "attn_out", "resid_post")
    ]
    for value in values:
        np.testing.assert_allclose(value, 1, atol=1e-4)


def test_query_key_and_value_together_are_the_head(toy):
    """q and k give the pattern; the pattern and v give all: where one of the two does nothing, the other does all."""
    model = toy("theorem 1")
    contrast = contrast_of(slow.case(model, length=8, changed=(2, 3, 7), seed=3))
    for site, whole in (("q", 0), ("k", 0), ("pattern", 0), ("v", 1), ("resid_pre", 1)):
        found = asked(model, contrast, site=site, positions="all")
        np.testing.assert_allclose(found.values["recovery"], whole, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_is_single(standin, family):
    model = standin(family).model
    contrast = contrast_of(slow.case(model, length=7, batch=4), slow.case(model, length=10, batch=2, seed=5))
    for site, positions in (("head", "last"), ("k", "word"), ("resid_post", "each")):
        whole = asked(model, contrast, site=site, positions=positions).values["value"]
        for i in range(0, len(contrast), 2):
            alone = asked(model, contrast[i : i + 1], site=site, positions=positions).values["value"][0]
            row = whole[i][..., -alone.shape[-1] :] if positions == "each" else whole[i]
            np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-4)
            if positions == "each":
                assert np.isnan(whole[i][..., : -alone.shape[-1]]).all()


# --- examples of several lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_of_lengths_is_each_by_itself(standin, family):
    model = standin(family).model
    cases = [slow.case(model, length=length, seed=length, batch=1) for length in (9, 7, 9, 12)]
    contrast = contrast_of(*cases)
    for site, positions in (("head", "all"), ("v", "word"), ("mlp_out", "last"), ("pattern", (-1, -3))):
        found = asked(model, contrast, site=site, positions=positions)
        for i, case in enumerate(cases):
            length = case.clean.shape[1]
            groups = slow.groups_of(positions, length, length, case.spans)
            expected, ends = by_hand(
                "logit-difference", slow.patched(model, *slow.sides(case, "restore"), site, groups), case
            )
            effect = (expected - ends[1]).abs().amax().item()
            values = torch.from_numpy(found.values["value"][i]).view(expected.shape)
            assert (values - expected).abs().amax() <= 1e-4 * max(effect, 0.05 * abs(ends[0] - ends[1]).item())


def unequal(model, *, shorter, seed=0):
    """Pairs whose clean run is shorter or longer: another beginning, the same end."""
    long = slow.case(model, length=11, changed=(2, 3), seed=seed)
    cut = (lambda ids: torch.cat([ids[:, :1], ids[:, 4:]], 1)) if shorter else (lambda ids: ids)
    case = slow.SimpleNamespace(clean=cut(long.clean), hijacked=long.hijacked, spans={"word": ((6, 8), (9, 10))})
    if not shorter:
        case.hijacked = torch.cat([long.hijacked[:, :1], long.hijacked[:, 4:]], 1)
        case.spans = {"word": ((3, 5), (6, 7))}
    case.logits = {side: slow.plain(model, getattr(case, side)) for side in ("clean", "hijacked")}
    case.cap = slow.cap_of(model)
    case.true, case.false = slow.torn(case.logits["clean"], case.logits["hijacked"])
    return case


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_unequal_lengths_align_from_the_end(standin, family, shorter):
    model = standin(family).model
    case = unequal(model, shorter=shorter)
    moved(model, case)
    for i, site in enumerate(site for site in SITES if site not in BY_KEY):
        plan = [("last", "restore", METRICS[i % 3]), ("each", "corrupt", "logit-difference")]
        plan += [("word", "restore", "logit-difference")] if i % 2 else [("all", "restore", "logit-difference")]
        compared(model, case, site, plan)


def test_unequal_lengths_in_the_toy(toy):
    model = toy("random")
    for shorter in (True, False):
        case = unequal(model, shorter=shorter, seed=2)
        for site in ("resid_pre", "q", "head", "attn_out"):
            compared(model, case, site, [("last", "restore", "logit-difference"), ("all", "corrupt", "kl")])


def test_unequal_and_longer_than_the_window(standin):
    model = standin("gemma3").model
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, model.cfg.d_vocab, (2, 80), generator=generator)
    case = slow.SimpleNamespace(
        clean=torch.cat([ids[:, :1], ids[:, 10:]], 1), hijacked=ids, spans={"word": ((70, 76),)}
    )
    case.logits = {side: slow.plain(model, getattr(case, side)) for side in ("clean", "hijacked")}
    case.cap = slow.cap_of(model)
    case.true, case.false = slow.torn(case.logits["clean"], case.logits["hijacked"])
    for site in ("resid_pre", "head", "q"):
        compared(model, case, site, [("word", "restore", "logit-difference"), ("all", "corrupt", "logit-difference")])


# --- whole answers --------------------------------------------------------------------------------------------------


def hugging_face_places(plain, family):
    """For each site Hugging Face's own modules, which side of them it is, and its heads' width (None: no heads)."""
    layers = plain.transformer.h if family == "gpt2" else plain.model.layers
    attention = [layer.attn if family == "gpt2" else layer.self_attn for layer in layers]
    out = [part.c_proj if family == "gpt2" else part.o_proj for part in attention]
    after = family in WINDOWED
    places = {
        "resid_pre": (layers, "in", None),
        "resid_post": (layers, "out", None),
        "head": (out, "in", 16),
        "attn_out": ([layer.post_attention_layernorm for layer in layers] if after else out, "out", None),
        "mlp_out": ([layer.post_feedforward_layernorm if after else layer.mlp for layer in layers], "out", None),
    }
    if family != "gpt2":
        for name in "qkv":
            places[name] = ([getattr(part, f"{name}_proj") for part in attention], "out", 16)
    return places


def watched(module, side, edit):
    """A Hugging Face module's input or output, read or edited."""

    def before(_, given):
        return (edit(given[0]), *given[1:])

    def after(_, __, found):
        return (edit(found[0]), *found[1:]) if isinstance(found, tuple) else edit(found)

    return module.register_forward_pre_hook(before) if side == "in" else module.register_forward_hook(after)


def hugging_face_answers(plain, modules, side, width, case, direction, group, answers):
    """log Pr[false] - log Pr[true] of whole answers, one token and one patched run after another."""
    base, source = slow.sides(case, direction)
    rows, values = len(base), []
    for row in range(rows):
        per_layer = []
        for module in modules:
            kept = {}
            handle = watched(module, side, lambda value, kept=kept: kept.setdefault("source", value.clone()))
            standins.logits_of(plain, source[row].tolist())
            handle.remove()
            heads = range(kept["source"].shape[-1] // width) if width else [None]
            per_head = []
            for head in heads:
                some = slice(None) if head is None else slice(head * width, (head + 1) * width)
                total = 0.0
                for sign, answer in ((1, answers["false"][row]), (-1, answers["true"][row])):
                    for known in range(len(answer)):

                        def edit(value, some=some, kept=kept, known=known):
                            value = value.clone()
                            for place in group:
                                to, at = base.shape[1] + place, source.shape[1] + place
                                value[:, to, some] = kept["source"][:, at, some]
                            return value

                        handle = watched(module, side, edit)
                        logits = standins.logits_of(plain, base[row].tolist() + list(answer[:known]))[-1]
                        handle.remove()
                        total += sign * logits.double().log_softmax(-1)[answer[known]].item()
                per_head.append(total)
            per_layer.append(per_head)
        values.append(per_layer)
    return torch.tensor(values, dtype=torch.float64)


def multi(model, case):
    """Answers of one to three tokens, the first of which are those that the runs are torn between."""
    vocabulary = model.cfg.d_vocab
    return {
        "true": [[int(first), 9, 30][: 1 + 2 * i] for i, first in enumerate(case.true)],
        "false": [[int(first), vocabulary - 7][: 2 - i] for i, first in enumerate(case.false)],
    }


@pytest.mark.parametrize(("family", "direction"), [("gpt2", "restore"), ("gemma2", "restore"), ("llama", "corrupt")])
def test_whole_answers_are_hugging_faces(standin, family, direction):
    stand = standin(family)
    case = slow.case(stand.model, length=7, changed=(2, 3, 5), spans={"word": ((2, 4),)})
    answers = multi(stand.model, case)
    contrast = Contrast(case.clean, case.hijacked, **answers, spans={"word": (2, 4)})
    ends = [
        torch.tensor(
            [
                sum(
                    sign * standins.brute_force(stand.plain, [*ids[row].tolist(), *answer], 7, 7 + len(answer))[0]
                    for sign, answer in ((1, answers["false"][row]), (-1, answers["true"][row]))
                )
                for row in range(2)
            ],
            dtype=torch.float64,
        )
        for ids in (case.clean, case.hijacked)
    ]
    assert (ends[0] - ends[1]).abs().amin() > 1
    places = hugging_face_places(stand.plain, family)
    for i, (site, (modules, side, width)) in enumerate(places.items()):
        positions, group = [("word", (-5, -4)), ("last", (-1,)), ("all", tuple(range(-7, 0)))][i % 3]
        if family == "gemma2" and site in ("q", "k"):
            positions, group = "all", tuple(range(-7, 0))
        expected = hugging_face_answers(stand.plain, modules, side, width, case, direction, group, answers)
        found = asked(stand.model, contrast, site=site, positions=positions, direction=direction, metric="whole-answer")
        expected = expected if width else expected[..., 0]
        close(found, expected, ends, direction)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_answers_are_the_hook_loop(standin, family, site):
    """The patch acts on what is read of the answer's own tokens too; pattern and scores of the context's queries."""
    model = standin(family).model
    case = slow.case(model, length=7, changed=(2, 3, 5), spans={"word": ((2, 4),)})
    answers = multi(model, case)
    contrast = Contrast(case.clean, case.hijacked, **answers, spans={"word": (2, 4)})
    turn = FAMILIES.index(family) + SITES.index(site)
    positions, direction = ("word", "each", "all")[turn % 3], ("restore", "corrupt")[turn % 2]
    groups = slow.groups_of(positions, 7, 7, case.spans)
    base, source = slow.sides(case, direction)
    rows, ends = [], []
    for row in range(2):
        total, plain = 0.0, [0.0, 0.0]
        for sign, answer in ((1, answers["false"][row]), (-1, answers["true"][row])):
            told, beyond = torch.tensor([answer]), len(answer) - 1

            def read(logits, told=told):
                return (
                    logits[:, -told.shape[1] :]
                    .double()
                    .log_softmax(-1)
                    .gather(2, told.expand(len(logits), -1)[..., None])
                    .sum((1, 2))
                )

            ids = torch.cat([base[row : row + 1], told[:, :beyond]], 1)
            found = slow.patched(model, ids, source[row : row + 1], site, groups, beyond=beyond, read=read)
            total = total + sign * found
            for i, side in enumerate((case.clean, case.hijacked)):
                with torch.no_grad():
                    plain[i] += sign * read(model(torch.cat([side[row : row + 1], told[:, :beyond]], 1))).item()
        rows.append(total)
        ends.append(plain)
    ends = list(torch.tensor(ends, dtype=torch.float64).T)
    found = asked(model, contrast, site=site, positions=positions, direction=direction, metric="whole-answer")
    close(found, torch.cat(rows), ends, direction)


def test_a_whole_answer_of_one_token_is_its_log_probability(toy):
    model = toy("random")
    case = slow.case(model, length=8, changed=(2, 3, 7), seed=3)
    logits = slow.patched(model, *slow.sides(case, "restore"), "v", [(-6, -5)])
    chances = logits.double().log_softmax(-1)
    rows = torch.arange(2)
    expected = chances[rows, 0, 0, 0, case.false] - chances[rows, 0, 0, 0, case.true]
    found = asked(model, contrast_of(case), site="v", positions=[2, 3], metric="whole-answer")
    np.testing.assert_allclose(found.values["value"].ravel(), expected, rtol=1e-4)


# --- what is not read by layers -------------------------------------------------------------------------------------


def test_a_model_with_hooks_of_its_users_is_patched_by_hooks(tmp_path):
    model = load_model(standins.save_standin(tmp_path / "neo", "gpt_neo"), progress=False)
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value)
    case = slow.case(model, length=7, changed=(2, 3, 5))
    moved(model, case)
    for i, site in enumerate(SITES):
        positions, direction = ("last", "word", "each")[i % 3], ("restore", "corrupt")[i % 2]
        metric = METRICS[i % 3]
        arguments = {"site": site, "positions": positions, "direction": direction, "metric": metric, "progress": False}
        if site in slow.BY_QUERY:  # its attention is inside Hugging Face's module: edits would be lost
            with pytest.raises(LcalensError, match=f"^site: '{site}' cannot be patched in this model"):
                patch(model, contrast_of(case), **arguments)
            continue
        found = patch(model, contrast_of(case), **arguments)
        groups = slow.groups_of(positions, 7, 7, case.spans)
        logits = slow.patched(model, *slow.sides(case, direction), site, groups)
        assert found.provenance["path"].startswith("hooks: ")
        assert "attached" in found.provenance["path"]
        expected, ends = by_hand(metric, logits, case)
        close(found, expected, ends, direction)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_active_hook_stays_and_is_said(standin, family):
    model = standin(family).model
    fast = asked(model, contrast_of(slow.case(model, length=7)), site="head", positions="all")
    model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * 1.5)
    try:
        case = slow.case(model, length=7)
        for site, positions in (("head", "all"), ("k", "word"), ("resid_pre", "each"), ("v", "last")):
            found = patch(model, contrast_of(case), site=site, positions=positions, progress=False)
            assert "blocks.1" in found.provenance["path"]
            assert found.provenance["path"].startswith("hooks: ")
            groups = slow.groups_of(positions, 7, 7, case.spans)
            logits = slow.patched(model, *slow.sides(case, "restore"), site, groups)
            expected, ends = by_hand("logit-difference", logits, case)
            close(found, expected, ends, "restore")
    finally:
        model.reset_hooks()
    again = asked(model, contrast_of(slow.case(model, length=7)), site="head", positions="all")
    np.testing.assert_array_equal(fast.values["value"], again.values["value"])


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_both_paths_agree(standin, family):
    model = standin(family).model
    cases = [slow.case(model, length=6, batch=1), slow.case(model, length=7, seed=4, batch=1)]
    contrast = contrast_of(*cases)
    model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value)
    try:
        slowly = {
            site: patch(model, contrast, site=site, positions="word", direction="corrupt", progress=False)
            for site in ("q", "v", "attn_out")
        }
    finally:
        model.reset_hooks()
    for site, found in slowly.items():
        assert found.provenance["path"].startswith("hooks: ")
        fast = asked(model, contrast, site=site, positions="word", direction="corrupt")
        assert fast.axes == found.axes
        np.testing.assert_allclose(fast.values["value"], found.values["value"], rtol=1e-4, atol=1e-4)


def test_edited_weights_are_seen(tmp_path):
    model = load_model(standins.save_standin(tmp_path / "llama", "llama"), progress=False)
    contrast = contrast_of(slow.case(model, length=7))
    before = asked(model, contrast, site="head", positions="all")
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    case = slow.case(model, length=7)
    case.true, case.false = (torch.tensor([row[0] for row in rows]) for rows in (contrast.true, contrast.false))
    found = asked(model, contrast, site="head", positions="all")
    logits = slow.patched(model, *slow.sides(case, "restore"), "head", [tuple(range(-7, 0))])
    expected, ends = by_hand("logit-difference", logits, case)
    close(found, expected, ends, "restore")
    assert np.abs(before.values["value"] - found.values["value"]).max() > 0.1


# --- real weights ---------------------------------------------------------------------------------------------------

PAIRS = [("The capital of France is", " Paris", "Rome"), ("The mother tongue of Dante is", " Italian", "Greek")]


REAL = [
    ("smollm2", "head", "last", 3),
    ("smollm2", "head", "all", 2),
    ("smollm2", "v", "word", 2),
    ("smollm2", "resid_pre", "word", 1),
    ("gemma3-270m", "head", "last", 3),
    ("gemma3-270m", "v", "word", 2),
    pytest.param("gemma3-270m", "head", "all", 2, marks=pytest.mark.slow),
    pytest.param("gemma3-270m", "resid_pre", "word", 1, marks=pytest.mark.slow),
]


def facts_asked(model):
    return Contrast(
        [f"Do not think of Monday. {prompt}" for prompt, _, _ in PAIRS],
        [f"Do not think of {false}. {prompt}" for prompt, _, false in PAIRS],
        true=[true for _, true, _ in PAIRS],
        false=[f" {false}" for _, _, false in PAIRS],
        tokenizer=model,
        spans={"word": [false for _, _, false in PAIRS]},
    )


@pytest.mark.real
@pytest.mark.parametrize(("name", "site", "positions", "picks"), REAL)
def test_real_models_are_the_hook_loop(real_model, name, site, positions, picks):
    model = real_model(name)
    contrast = facts_asked(model)
    some = contrast[:1] if positions == "all" else contrast  # a pair takes as long as all else together
    found = asked(model, some, site=site, positions=positions)
    for i in range(len(some)):
        clean, hijacked = (torch.tensor([getattr(contrast, side)[i]]) for side in ("clean", "hijacked"))
        true, false = contrast.true[i][0], contrast.false[i][0]
        (group,) = slow.groups_of(positions, clean.shape[1], hijacked.shape[1], {"word": contrast.spans["word"][i]})
        values = found.values["value"][i]
        sources = slow.kept(model, clean, site)
        gap = found.examples["hijacked"][i] - found.examples["clean"][i]
        assert gap > 1
        # The sites that move the metric most, and one in the middle.
        leading = np.argsort(-np.abs(values - found.examples["hijacked"][i]), axis=None)[:picks]
        for at in {*leading.tolist(), values.size // 2}:
            layer, *head = np.unravel_index(at, values.shape)

            def put(value, hook, source=sources[layer], head=int(head[0]) if head else 0, group=group):
                new = value.clone()
                slow.put(new, source, site, head, group)
                return new

            with torch.no_grad():
                hooks = [(f"blocks.{int(layer)}.{slow.HOOKS[site]}", put)]
                logits = model.run_with_hooks(hijacked, fwd_hooks=hooks)[0, -1]
            expected = (logits[false] - logits[true]).item()
            assert values.flat[at] == pytest.approx(expected, abs=2e-4 * max(1.0, gap))


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_real_models_are_restored_whole_by_every_layer(real_model, name):
    model = real_model(name)
    whole = asked(model, facts_asked(model), site="resid_pre", positions="all").values["recovery"]
    np.testing.assert_allclose(whole, 1, atol=1e-3)


def test_the_models_are_those_that_are_meant(standin):
    assert [model_info(standin(family).model).to_dict()["family"] for family in FAMILIES] == [
        "gpt2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "llama",
    ]
