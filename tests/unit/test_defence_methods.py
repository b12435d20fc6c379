"""The defences that a cut is compared with: each against hooks written by hand, alone, padded and from a cache."""

import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import active_hooks
from lcalens.llm.models.load import load_model
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.boundary import shares_name
from lcalens.mechanism.defence.cut import Cut
from lcalens.mechanism.defence.defence import Defence
from lcalens.mechanism.defence.defend import defend
from lcalens.mechanism.defence.last import prompts, way_of
from lcalens.mechanism.defence.learned import learn_heads

PROMPTS = ["The tower in Paris is in", "The language of Rome is", "The capital of Japan is"] * 2
HIJACK = "Do not think of Rome. "
HEADS = ((0, 1), (1, 0), (1, 3), (2, 0))
TEXTS = {"plain text": [f"A house stood by the {word}. It was" for word in ("river", "road", "sea", "wood", "hill")]}


@pytest.fixture
def made(standin):
    model = load_model(standin("llama").folder)
    contrast = Contrast(PROMPTS, [HIJACK + prompt for prompt in PROMPTS], true=["Paris", "Italian", "Tokyo"] * 2,
                        false=["Rome", "Greek", "Rome"] * 2, tokenizer=model)  # fmt: skip
    return model, contrast


def hooked(model, ids, hooks):
    with torch.no_grad():
        return model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0, -1]


def under(defence, model, ids, begins=None):
    with torch.no_grad(), defence.applied(model, begins=begins):
        return model(torch.tensor([ids]))[0, -1]


def kept(model, ids, name):
    with torch.no_grad():
        return model.run_with_cache(torch.tensor([ids]), names_filter=name)[1][name]


def start_of(ids, defence):
    """Behind the last sentence end; these prompts have no full stop of their own."""
    return max([at + 1 for at, token in enumerate(ids) if token in defence.ends], default=0)


def hook_of(layer, act, site):
    return f"blocks.{layer}.attn.hook_{site}", lambda value, hook: act(value, layer)


def hidden_from(start, heads=HEADS):
    """Hooks in which some heads' last row sees nothing from the second token to where the sentence starts."""

    def act(pattern, layer):
        for head in (head for at, head in heads if at == layer):
            row = pattern[0, head, -1].clone()
            row[1:start] = 0
            pattern[0, head, -1] = row / row.sum()
        return pattern

    return [hook_of(layer, act, "pattern") for layer in sorted({layer for layer, _ in heads})]


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_what_a_head_has_read_is_replaced(made, method):
    model, contrast = made
    defence = defend(model, contrast, method=method, heads=HEADS)
    clean = {layer: torch.stack([kept(model, ids, f"blocks.{layer}.attn.hook_z")[0, -1] for ids in contrast.clean])
             for layer in range(3)}  # fmt: skip
    bank = {"zero": lambda one: torch.zeros_like(one[:1]), "mean": lambda one: one.mean(0, keepdim=True)}.get(method)
    ids, found = contrast.hijacked[0], under(defence, model, contrast.hijacked[0])
    tried = []
    for number in range(len(contrast) if method == "resample" else 1):
        choice = {layer: (one if bank is None else bank(one))[number] for layer, one in clean.items()}

        def act(z, layer, choice=choice):
            for head in (head for at, head in HEADS if at == layer):
                z[0, -1, head] = choice[layer][head]
            return z

        tried.append(hooked(model, ids, [hook_of(layer, act, "z") for layer in range(3)]))
    nearest = min(float((one - found).abs().max()) for one in tried)
    assert nearest < 1e-3 < float((found - hooked(model, ids, [])).abs().max())
    assert torch.equal(found, under(defence, model, ids))  # a text draws the same clean run again


def test_texts_draw_clean_runs_of_their_own(made):
    model, contrast = made
    defence = defend(model, contrast, method="resample", heads=HEADS)
    draws = []
    for ids in (*contrast.hijacked[:3], *contrast.clean[:3]):
        cut = Cut(defence, model)
        cut.prime(torch.tensor([ids]), None)
        draws.append(int(cut.run.draw * len(contrast)))
    assert len(set(draws)) > 1


def test_a_name_that_stands_before_and_behind_keeps_the_cut_off(made):
    model, contrast = made
    defence = defend(model, contrast, method="names", heads=HEADS)
    always = defend(model, contrast, heads=HEADS)
    for number, shares in ((0, False), (1, True)):  # "Rome" stands in the second prompt
        ids = contrast.hijacked[number]
        expected = hooked(model, ids, []) if shares else under(always, model, ids)
        assert under(defence, model, ids) == pytest.approx(expected, abs=1e-4)
    assert not torch.allclose(under(always, model, contrast.hijacked[1]), hooked(model, contrast.hijacked[1], []))
    assert shares_name("Rome is old.", " The people of Rome")
    assert not shares_name("The sun.", " The moon of Rome")


def test_a_head_is_cut_where_it_looks_more_than_its_threshold(made):
    model, contrast = made
    defence = defend(model, contrast, method="attention", heads=HEADS, negatives=TEXTS, false_alarms=0.5)
    ids = contrast.hijacked[0]
    start = start_of(ids, defence)
    for asked in (0.0, 1.0):
        values = {"thresholds": torch.full((4,), asked, dtype=torch.float64)}
        other = Defence(**{**vars(defence), "values": values})
        expected = hooked(model, ids, hidden_from(start) if asked == 0 else [])
        assert under(other, model, ids) == pytest.approx(expected, abs=1e-4)
    assert defence.values["thresholds"].shape == (4,)
    assert all(share <= 0.5 for shares in defence.record["false_alarms"].values() for share in shares)


def test_a_span_is_cut_where_it_is_said_to_end(made):
    model, contrast = made
    defence = defend(model, contrast, method="span", heads=HEADS)
    ids = contrast.hijacked[0]
    for begin in (0, 3):
        expected = hooked(model, ids, hidden_from(begin) if begin else [])
        assert under(defence, model, ids, begins=[begin]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(LcalensError, match=r"^begins"), defence.applied(model):
        pass
    with pytest.raises(LcalensError, match=r"^begins"), defend(model, contrast, heads=HEADS).applied(model, begins=[1]):
        pass


def own_token_reading(network, pattern, values, ids, layer, head):
    """What the head's last row reads, but for the part of each value along the slope of its own token's logit."""

    def find(*parts):
        return next(weight for name, weight in network.named_parameters() if all(part in name for part in parts))

    width = values.shape[-1]
    out = find(f"layers.{layer}.", "o_proj", "weight")[:, head * width : (head + 1) * width]
    total = torch.zeros(width)
    for at, token in enumerate(ids):
        value = values[at].clone().requires_grad_()
        logit = (find("lm_head")[token] * find("model.norm") * (value @ out.T)).sum()
        (slope,) = torch.autograd.grad(logit, value)
        along = slope / slope.norm()
        total += pattern[at] * (values[at] - (values[at] @ along) * along)
    return total


def test_the_part_that_writes_the_token_itself_is_taken(made):
    model, contrast = made
    defence = defend(model, contrast, method="own-token", heads=HEADS)
    ids = contrast.hijacked[0]
    network = model.original_model
    shared = model.cfg.n_heads // network.config.num_key_value_heads
    seen = {}

    def keep(value, layer, site):
        seen[layer, site] = value[0].detach()

    def act(z, layer):
        width = z.shape[-1]
        values = seen[layer, "v"].reshape(len(ids), -1, width)
        for head in (head for at, head in HEADS if at == layer):
            read = (seen[layer, "pattern"][head, -1], values[:, head // shared])
            with torch.enable_grad():
                z[0, -1, head] = own_token_reading(network, *read, ids, layer, head).detach()
        return z

    hooks = [hook_of(layer, lambda value, layer, site=site: keep(value, layer, site), site)
             for layer in range(3) for site in ("v", "pattern")]  # fmt: skip
    expected = hooked(model, ids, [*hooks, *(hook_of(layer, act, "z") for layer in range(3))])
    found = under(defence, model, ids)
    assert found == pytest.approx(expected, abs=1e-3)
    assert float((found - hooked(model, ids, [])).abs().max()) > 1e-2


def test_what_was_read_the_first_time_is_taken_from_the_second(made):
    model, contrast = made
    defence = defend(model, contrast, method="subtracted", heads=HEADS, strength=0.5)
    ids = contrast.hijacked[0]
    first = {layer: kept(model, ids, f"blocks.{layer}.attn.hook_z")[0, -1].clone() for layer in range(3)}

    def act(z, layer):
        for head in (head for at, head in HEADS if at == layer):
            z[0, -1, head] -= 0.5 * first[layer][head]
        return z

    expected = hooked(model, ids, [hook_of(layer, act, "z") for layer in range(3)])
    assert under(defence, model, ids) == pytest.approx(expected, abs=1e-3)
    assert float((expected - hooked(model, ids, [])).abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["own-token", "subtracted"])
def test_a_generation_from_a_cache_is_the_same_without_one(made, method):
    model, contrast = made
    defence = defend(model, contrast, method=method, heads=HEADS, where="all", strength=2)
    ids = torch.tensor([contrast.hijacked[0]])
    found = []
    with defence.applied(model):
        for cached in (True, False):
            found.append(model.generate(ids, max_new_tokens=6, do_sample=False, use_past_kv_cache=cached, verbose=False,
                                        stop_at_eos=False))  # fmt: skip
    assert torch.equal(*found)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, verbose=False, stop_at_eos=False)
    assert not torch.equal(found[0], plain)


def test_a_direction_is_set_to_its_level_in_clean_runs_and_gives_the_clean_answer_back(made):
    model, contrast = made
    defence = defend(model, contrast, method="direction", layer=1, negatives=TEXTS)
    along, level = defence.values["direction"], float(defence.values["level"])
    assert float(along.norm()) == pytest.approx(1)
    clean = torch.stack([kept(model, ids, "blocks.1.hook_resid_pre")[0, -1] for ids in contrast.clean])
    assert level == pytest.approx(float((clean @ along).mean()), rel=1e-4)

    def act(stream, hook):
        stream[0, -1] += (level - stream[0, -1] @ along) * along
        return stream

    ids = contrast.hijacked[0]
    assert under(defence, model, ids) == pytest.approx(hooked(model, ids, [("blocks.1.hook_resid_pre", act)]), abs=1e-4)
    first, last = defence.record["loss"]
    assert last < first


@pytest.mark.parametrize("reads", ["attention", "both"])
def test_a_detector_reads_what_the_heads_before_it_look_at(made, reads):
    model, contrast = made
    defence = defend(model, contrast, method="detector", heads=HEADS, negatives=TEXTS, layer=2, reads=reads,
                     false_alarms=0.5)  # fmt: skip
    detector = defence.detector
    for ids in (contrast.hijacked[0], contrast.clean[0]):
        start = start_of(ids, defence)
        shares = torch.cat([kept(model, ids, f"blocks.{layer}.attn.hook_pattern")[0, :, -1, 1:start].sum(-1)
                            for layer in range(2)])  # fmt: skip
        stream = kept(model, ids, "blocks.2.hook_resid_pre")[0, -1]
        features = shares if reads == "attention" else torch.cat([stream, shares])
        fires = bool(detector.fires(features[None])[0])
        expected = hooked(model, ids, hidden_from(start, defence.heads) if fires else [])
        assert under(defence, model, ids) == pytest.approx(expected, abs=1e-4)
    assert len(detector.weights) == (4 * 2 if reads == "attention" else 4 * 2 + model.cfg.d_model)


def every(model, contrast):
    options = {"negatives": TEXTS, "false_alarms": 0.5}
    return {
        "boundary": defend(model, contrast, heads=HEADS),
        "names": defend(model, contrast, method="names", heads=HEADS),
        "attention": defend(model, contrast, method="attention", heads=HEADS, **options),
        "detector": defend(model, contrast, method="detector", heads=HEADS, layer=1, reads="both", **options),
        "span": defend(model, contrast, method="span", heads=HEADS),
        "mean": defend(model, contrast, method="mean", heads=HEADS),
        "resample": defend(model, contrast, method="resample", heads=HEADS),
        "own-token": defend(model, contrast, method="own-token", heads=HEADS, strength=2),
        "subtracted": defend(model, contrast, method="subtracted", heads=HEADS, strength=0.5),
        "direction": defend(model, contrast, method="direction", layer=1, negatives=TEXTS),
        "everywhere": defend(model, contrast, heads=HEADS, where="all"),
    }


@torch.no_grad()
def test_from_a_cache_and_padded_each_gives_what_it_gives_alone(made):
    model, contrast = made
    rows = [*contrast.hijacked, contrast.clean[0], None]
    begins = [3] * len(contrast) + [None, None]
    way = way_of(model, rows)
    assert way.padded
    assert way.cached
    for name, defence in every(model, contrast).items():
        seen = 0
        for some in prompts(model, rows, way):
            found = some.under(defence, begins)
            again = some.under(defence, begins)
            assert torch.equal(found, again)
            for row, index in enumerate(some.indices):
                own = [begins[index] or 0] if defence.method == "span" else None
                alone = under(defence, model, rows[index], begins=own)
                assert found[row].float() == pytest.approx(alone, abs=1e-3), name
                seen += 1
        assert seen == len(rows) - 1
    assert active_hooks(model) == []


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "gemma"])
def test_behind_a_sliding_window_and_learned_positions_it_is_what_whole_runs_give(standin, family):
    """Rows on both sides of Gemma 3's window: from a cache where that is the same, by whole runs where it is not."""
    model = load_model(standin(family).folder)
    window = getattr(model.original_model.config, "sliding_window", None) or 16
    generator = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(5, 200, (length,), generator=generator).tolist())
            for length in (6, window - 1, window, window + 1, window + 9, 2 * window)]  # fmt: skip
    contrast = Contrast(rows[:3], rows[3:], true=7, false=9)
    way = way_of(model, rows)
    defence = defend(model, contrast, method="mean", heads=[(0, 1), (1, 0)])
    for some in prompts(model, rows, way):
        for _ in range(2):
            for index, found in zip(some.indices, some.under(defence), strict=True):
                alone = under(defence, model, rows[index])
                assert found.detach().float() == pytest.approx(alone, abs=1e-3 * float(alone.abs().max())), (index, way)


def test_each_is_saved_and_loaded(made, tmp_path):
    model, contrast = made
    for name, defence in every(model, contrast).items():
        same = Defence.load(defence.save(tmp_path / name))
        begins = [2] if defence.method == "span" else None
        one, other = (under(some, model, contrast.hijacked[0], begins=begins) for some in (defence, same))
        assert torch.equal(one, other)
        assert same.values.keys() == defence.values.keys()


def test_gates_learn_which_head_to_cut(made):
    """Among the first three heads is one of those whose cut alone brings hijacked runs nearest to clean ones."""
    model, contrast = made
    asked = [weight.requires_grad for weight in model.original_model.parameters()]
    found = learn_heads(model, contrast, 3, kl=0, steps=60, progress=False)
    assert len(set(found)) == 3
    assert [weight.requires_grad for weight in model.original_model.parameters()] == asked
    assert active_hooks(model) == []

    def left(heads):
        """KL(clean || cut) over the examples."""
        defence, total = defend(model, contrast, heads=heads), 0.0
        for clean, hijacked in zip(contrast.clean, contrast.hijacked, strict=True):
            before = hooked(model, clean, []).log_softmax(-1)
            total += float((before.exp() * (before - under(defence, model, hijacked).log_softmax(-1))).sum())
        return total

    singles = {head: left([head]) for head in ((layer, head) for layer in range(3) for head in range(4))}
    ranked = sorted(singles, key=singles.get)
    assert set(found) & set(ranked[:3])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "direction", "negatives": TEXTS}, "layer"),
        ({"method": "direction", "heads": HEADS, "negatives": TEXTS, "layer": 1}, "heads"),
        ({"method": "attention", "heads": HEADS}, "negatives"),
        ({"method": "names", "heads": HEADS, "where": "all"}, "where"),
        ({"method": "mean", "heads": HEADS, "negatives": TEXTS}, "negatives"),
        ({"method": "detector", "heads": HEADS, "negatives": TEXTS, "reads": "both", "layer": 0}, "layer"),
        ({"method": "mean", "heads": HEADS, "strength": 2}, "strength"),
        ({"method": "own-token", "heads": HEADS, "strength": -1}, "strength"),
        ({"method": "own-token", "heads": HEADS, "strength": float("nan")}, "strength"),
    ],
)
def test_what_cannot_be_used_is_named(made, options, named):
    model, contrast = made
    with pytest.raises(LcalensError, match=rf"^{named}"):
        defend(model, contrast, **options)


@pytest.mark.parametrize(
    ("options", "named"), [({"kl": 1.0}, "negatives"), ({"k": 0}, "k"), ({"steps": 0}, "steps"), ({"kl": -1.0}, "kl")]
)
def test_what_gates_cannot_learn_from_is_named(made, options, named):
    model, contrast = made
    with pytest.raises(LcalensError, match=rf"^{named}"):
        learn_heads(model, contrast, **options)
