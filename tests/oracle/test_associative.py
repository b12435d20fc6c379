"""`memory` against matrices, hooks and least squares by hand; the toy's value swap; memories planted and absent."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import standins
from helpers.closeness import assert_near
from helpers.slow_memory import ByHand, matrix, scores_of
from scipy.stats import binom

from lcalens.core.results import Result
from lcalens.engine.circuits import Circuit, gaussian_circuit, random_circuit, value_circuit
from lcalens.engine.reading import read_decoder
from lcalens.lca.contrasts import contrast_concepts
from lcalens.lca.geometry import cosine, principal_angles
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.closed_forms import constructed_value, nearest, theorem1_model, with_value
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.training.config import TrainConfig
from lcalens.lca.training.training import train
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.llm.models.load import load_model
from lcalens.mechanism.association import Maker
from lcalens.mechanism.associative import memory
from lcalens.mechanism.associative_tables import share_as_large
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.recall import recall
from lcalens.mechanism.recall_measures import measures
from probes.toy.value_swap import swapped

FAMILIES = ("gpt2", "llama", "gemma3")
KINDS = ("sum", "centred", "answers", "writes")
WORD = (2, 3)


def toy(m=4, d=8, seed=0):
    torch.manual_seed(seed)
    model = LCAForCausalLM(LCAConfig(m=m, d_model=d, d_head=12)).eval()
    with torch.no_grad():
        model.attn.v.weight.mul_(8)  # logits of some size
    return model


def neighbours(m):
    return {token: [token ^ (1 << bit) for bit in range(m)] for token in range(1 << m)}


def told(found, table="summary"):
    return found.wide(table).set_index("memory")


# --- the toy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d"), [(3, 12), (4, 8), (5, 12)])
def test_in_the_toy_the_sum_over_neighbours_is_the_papers_value_matrix(m, d):
    model, concepts = toy(m, d), LatentConcepts(m)
    contrast = contrast_concepts(concepts, limit=30, length=10, seed=1)
    found = memory(lca_bridge(model), contrast, (0, 0), pairs=neighbours(m), rank=m, draws=2, progress=False)
    embedding, value = model.embed.weight.detach().double(), model.attn.v.weight.detach().double()
    made = constructed_value(concepts, embedding)
    row = told(found, "beside").loc["sum"]
    assert row["cosine"] == pytest.approx(cosine(value, made), rel=1e-4)
    angles = principal_angles(value, made, m)
    assert (row["writes_angle"], row["reads_angle"]) == pytest.approx(angles.smallest, rel=1e-3)
    assert row["writes_mean_angle"] == pytest.approx(angles.left.mean(), rel=1e-3)
    assert row["reads_mean_angle"] == pytest.approx(angles.right.mean(), rel=1e-3)
    assert row["size"] == pytest.approx(float(made.norm() / value.norm()), rel=1e-4)
    own = told(found, "beside").loc["circuit"]
    assert (own["cosine"], own["writes_angle"]) == pytest.approx((1, 0), abs=1e-3)
    # Every token is a cue, so a memory of all of them in the circuit's place is a model with another W_V.
    changed = with_value(model, (made * value.norm() / made.norm()).float())
    place = found.axes["memory"].index("sum")
    logits = [
        changed(torch.tensor(side)).logits[:, -1].detach().double() for side in (contrast.clean, contrast.hijacked)
    ]
    true, false = (torch.tensor([row[0] for row in side])[:, None] for side in (contrast.true, contrast.false))
    metric = [(one.gather(1, false) - one.gather(1, true))[:, 0].numpy() for one in logits]
    assert_near(found.values["hijack_all"][:, place], metric[1] - metric[0], effect=metric[1] - metric[0])
    assert np.abs(metric[1] - metric[0]).max() > 1
    right = (logits[0].argmax(1) == true[:, 0]).double().numpy()
    np.testing.assert_array_equal(found.values["right_all"][:, place], right)


@pytest.fixture(scope="module")
def trained():
    """A toy that has learnt: m = 4, half of a context speaks of the concept."""
    config = TrainConfig(context_length=32, d_model=12, d_head=12, steps=400, batch_size=128)
    return train(LatentConcepts(4), config, progress=False)[0]


def contexts_of(counts, last):
    """Contexts with these counts of tokens and this last one; order says nothing in the toy."""
    rows = []
    for count, end in zip(counts.tolist(), last.tolist(), strict=True):
        count[end] -= 1
        rows.append([token for token, times in enumerate(count) for _ in range(int(times))] + [end])
    return rows


def test_figure_c2s_accuracy_after_the_swap(trained):
    """The same contexts through the probe and through `memory` with every token's neighbours as pairs."""
    size = 300
    accuracies, _ = swapped(trained, size)
    generator = torch.Generator().manual_seed(trained.seed)
    counts, last, target = trained.concepts.sample_counts(size, trained.config.context_length, generator)
    rows = contexts_of(counts, last)
    other = [token ^ 1 for token in target.tolist()]
    contrast = Contrast(rows, rows, true=target, false=other, spans={"redrawn": (0, len(rows[0]) - 1)})
    found = memory(lca_bridge(trained.model), contrast, (0, 0), pairs=neighbours(4), draws=1, progress=False)
    table = told(found)
    assert 0.3 < accuracies["constructed"] < 1
    assert table.loc["circuit", "right_all"] == pytest.approx(accuracies["trained"], abs=1e-9)
    assert table.loc["sum", "right_all"] == pytest.approx(accuracies["constructed"], abs=1e-9)


def test_what_a_trained_toy_recalls_is_n1(trained):
    """The label's neighbours are what its tokens are; the table has them, and nothing else, high."""
    found = recall(lca_bridge(trained.model), neighbours(4), [(0, 0)], progress=False)
    answers = found.provenance["answers"]
    truth = nearest(trained.concepts).numpy()[np.ix_(answers, found.provenance["sources"])].T.astype(bool)
    table = found.values["recall"][0]
    assert (table[truth].min() > table[~truth].max()) or np.mean(
        [table[i][truth[i]].min() > np.delete(table[i], np.flatnonzero(truth[i])).max() for i in range(16)]
    ) > 0.8
    assert found.wide().loc[0, "related_auc"] > 0.95
    assert found.wide("tests").loc[0, "p"] == pytest.approx(1 / 101)


def test_a_result_is_saved_loaded_and_drawn(tmp_path):
    contrast = contrast_concepts(LatentConcepts(4), limit=6, length=8, seed=0)
    found = memory(lca_bridge(toy()), contrast, (0, 0), pairs=neighbours(4), draws=2, progress=False)
    found.save(tmp_path / "memory")
    again = Result.load(tmp_path / "memory")
    assert again.wide().equals(found.wide())
    figure = again.plot()
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["circuit", "nothing", "sum", "centred", "answers", "writes"]
    lines = {line.get_label(): line for line in left.get_lines()}
    table = found.wide().set_index("memory").loc[names]
    np.testing.assert_allclose(lines["held out"].get_xdata(), table["stays"])
    np.testing.assert_allclose(lines["memory of all cues"].get_xdata(), table["stays_all"])
    drawn = {line.get_label(): line for line in right.get_lines()}
    np.testing.assert_allclose(
        drawn["held out"].get_xdata(), found.wide("held_out").set_index("memory").loc[names, "auc"]
    )


# --- real families --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stirred(standin):
    """Stand-ins whose norms have gains and projections biases: as they are made, these are ones and zeros."""
    made = {}

    def get(family):
        if family not in made:
            stand = standin(family)
            plain = standins.stirred(stand.plain)
            plain.set_attn_implementation("eager")
            model = load_model(copy.deepcopy(plain), tokenizer=stand.tokenizer, progress=False)
            made[family] = SimpleNamespace(plain=plain, model=model)
        return made[family]

    return get


CUES = (30, 31, 32, 33, 34, 35, 36)


def runs(model, count=9, clean_has_cues=False, seed=1):
    """Random contexts in whose span stands a cue (elsewhere none does), and answers that they pull apart."""
    generator = torch.Generator().manual_seed(seed)
    clean, hijacked, true, false = [], [], [], []
    for example in range(count):
        rows = torch.randint(60, model.cfg.d_vocab, (2, 9 + example % 2), generator=generator)
        rows[:, -4:] = rows[0, -4:]
        rows[1, WORD[0]] = CUES[example % len(CUES)]
        if clean_has_cues:
            rows[0, WORD[0]] = CUES[(example + 2) % len(CUES)]
        change = model(rows[1][None])[0, -1] - model(rows[0][None])[0, -1]
        clean.append(rows[0])
        hijacked.append(rows[1])
        true.append(int(change.argmin()))
        false.append(int(change.argmax()))
    return Contrast(clean, hijacked, true=true, false=false, spans={"word": WORD})


PAIRS = {30: 40, 31: [41, 42], 32: 43, 33: [43, 44], 34: 45, 35: 46, 36: 47}


def by_hand(stand, family, head, contrast, pairs, scale, half, level):
    """What `memory` should give: by memory and by whether it is of all cues, the hijack of every example."""
    hand = ByHand(stand.plain, family, head)
    read = {run: hand.run(run) for run in {*contrast.clean, *contrast.hijacked}}
    cues = sorted({cue for cue, _ in pairs})
    if level == "residual":
        streams = {
            cue: np.mean([read[run][0][WORD[0]] for run in contrast.hijacked if run[WORD[0]] == cue], 0) for cue in cues
        }
    else:
        plain = {cue: ByHand(stand.plain, family, (0, 0)) for cue in cues[:1]}[cues[0]]
        seen = {}
        for cue in cues:
            stream = []
            hook = plain.parts.norm.register_forward_hook(lambda module, given, found, to=stream: to.append(given[0]))
            plain.run([0, 0, 0, 0, cue])
            hook.remove()
            with torch.no_grad():
                seen[cue] = hand.parts.norm(stream[0][:, -1:])[0, 0].double().numpy()
        streams = seen
    directions = {answer: hand.direction(answer) for _, answer in pairs}

    def made(kind, which):
        return matrix(kind, hand.map, streams, directions, [pair for pair in pairs if pair[0] in which], scale)

    halves = [{cue for cue in cues if half[cue] == one} for one in (0, 1)]
    found = {}
    for kind in (*KINDS, "nothing"):
        whole, parts = made(kind, set(cues)), [made(kind, some) for some in halves]
        for name in ("hijack", "hijack_all"):
            rows = []
            for clean, hijacked, true, false in zip(
                contrast.clean, contrast.hijacked, contrast.true, contrast.false, strict=True
            ):
                metric = []
                for run in (clean, hijacked):
                    x, looked, logits = read[run]
                    change = np.zeros(len(hand.map))
                    for at, token in enumerate(run):
                        if token in cues:
                            other = whole if name == "hijack_all" else parts[1 - half[token]]
                            change += looked[at] * ((other - hand.map) @ x[at])
                    if change.any():
                        logits = hand.run(run, change)[2]
                    metric.append(logits[false[0]] - logits[true[0]])
                rows.append(metric[1] - metric[0])
            found[kind, name] = np.array(rows)
    recalled = {}
    for kind in KINDS:
        for one in (0, 1):
            some = sorted(halves[one])
            theirs = sorted({answer for cue, answer in pairs if cue in some})
            other = made(kind, halves[1 - one])
            table = [[directions[answer] @ other @ streams[cue] for answer in theirs] for cue in some]
            right = [[(cue, answer) in pairs for answer in theirs] for cue in some]
            recalled |= {(kind, cue): values for cue, *values in zip(some, *scores_of(table, right), strict=True)}
    beside = {}
    for kind in KINDS:
        whole = made(kind, set(cues))
        beside[kind] = (whole * hand.map).sum() / (np.linalg.norm(whole) * np.linalg.norm(hand.map))
    return found, recalled, beside


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("head", "scale", "clean_has_cues", "level"),
    [((1, 2), "norm", False, "residual"), ((0, 3), "writes", True, "residual"), ((2, 1), "norm", True, "embedding")],
)
def test_every_number_is_the_hooks_and_the_least_squares_by_hand(stirred, family, head, scale, clean_has_cues, level):
    stand = stirred(family)
    contrast = runs(stand.model, clean_has_cues=clean_has_cues)
    found = memory(stand.model, contrast, head, pairs=PAIRS, scale=scale, level=level, draws=2, progress=False)
    assert found.provenance["cues"] == list(CUES)
    half = dict(zip(CUES, found.provenance["half"], strict=True))
    assert half[32] == half[33]  # they share an answer
    assert not found.provenance["halves_share_answers"]
    pairs = [(cue, answer) for cue, some in PAIRS.items() for answer in ([some] if isinstance(some, int) else some)]
    hijack, recalled, beside = by_hand(stand, family, head, contrast, pairs, scale, half, level)
    whole = found.examples["whole"].to_numpy()
    own = found.values["hijack"][:, found.axes["memory"].index("circuit")]
    assert_near(own, whole, effect=whole)
    effect = np.abs(hijack["nothing", "hijack"] - whole).max()
    assert effect > 0.01
    for (kind, name), expected in hijack.items():
        values = found.values[name][:, found.axes["memory"].index(kind)]
        assert_near(values, expected, effect=effect, share=3e-3)
        table = told(found)
        behind = name.removeprefix("hijack")
        assert table.loc[kind, f"stays{behind}"] == pytest.approx(expected.sum() / whole.sum(), rel=1e-2, abs=1e-3)
        nothing = hijack["nothing", "hijack"]
        of_head = (expected - nothing).sum() / (whole - nothing).sum()
        assert table.loc[kind, f"of_head{behind}"] == pytest.approx(of_head, rel=1e-2, abs=1e-2)
    by_cue = found.wide("cues")
    for kind in KINDS:
        rows = by_cue[by_cue["memory"] == kind]
        expected = np.array([recalled[kind, cue] for cue in CUES])
        np.testing.assert_allclose(rows[["first", "auc", "rank"]].to_numpy(), expected, rtol=0, atol=1e-9)
        assert told(found, "held_out").loc[kind, "auc"] == pytest.approx(np.nanmean(expected[:, 1]))
        assert told(found, "beside").loc[kind, "cosine"] == pytest.approx(beside[kind], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_as_loud_as_the_head_and_circuits_of_its_spectrum(stirred, family):
    decoder = read_decoder(stirred(family).model)
    own = value_circuit(decoder.layers[1], 2)
    dense = own.write @ own.read
    assert own.size == pytest.approx(float(dense.norm()))
    left, values, right = own.svd()
    assert_near(left * values @ right.T, dense, effect=dense)
    drawn = random_circuit(64, values, torch.Generator().manual_seed(0))
    assert_near(torch.linalg.svdvals(drawn.write @ drawn.read)[:16], values, effect=values)
    assert own.inner(drawn) == pytest.approx(float((dense * (drawn.write @ drawn.read)).sum()))
    hand = ByHand(stirred(family).plain, family, (1, 2))
    assert_near(dense, hand.map, effect=hand.map)


def test_by_default_pairs_are_a_contrasts_words_and_false_answers(stirred):
    model = stirred("llama").model
    contrast = runs(model)
    found = memory(model, contrast, (1, 2), draws=1, progress=False)
    expected = {}
    for run, false in zip(contrast.hijacked, contrast.false, strict=True):
        expected.setdefault(run[WORD[0]], set()).add(false[0])
    assert found.provenance["cues"] == sorted(expected)
    pairs = {cue: sorted(some) for cue, some in expected.items()}
    same = memory(model, contrast, (1, 2), pairs=pairs, draws=1, progress=False)
    for name, values in found.values.items():
        np.testing.assert_array_equal(values, same.values[name])


def test_what_is_drawn_is_a_mean_with_its_middle(stirred):
    model = stirred("llama").model
    contrast = runs(model)
    many = memory(model, contrast, (1, 2), pairs=PAIRS, draws=5, progress=False)
    table = told(many)
    for name in ("sum, shuffled", "same spectrum"):
        row = table.loc[name]
        assert row["stays_low"] <= row["stays"] <= row["stays_high"]
        values = many.values["hijack"][:, many.axes["memory"].index(name)]
        assert row["stays"] == pytest.approx(values.sum() / many.examples["whole"].sum(), rel=1e-4)
    tests = many.wide("tests")
    assert np.allclose(tests["stays"] * 6, np.round(tests["stays"] * 6))
    assert tests["cosine"].between(1 / 6, 1).all()
    again = memory(model, contrast, (1, 2), pairs=PAIRS, draws=5, progress=False)
    other = memory(model, contrast, (1, 2), pairs=PAIRS, draws=5, seed=1, progress=False)
    assert again.wide().equals(many.wide())
    assert not other.wide().equals(many.wide())


# --- planted memories -----------------------------------------------------------------------------------------------


def plant(plain, head, pairs, streams, directions):
    """Give a LLaMA's head the circuit that writes each answer's direction for its cue, and nothing else."""
    attn = plain.model.layers[head[0]].self_attn
    x = torch.stack([streams[cue] for cue in pairs])
    u = torch.stack([directions[answer] for answer in pairs.values()])
    kv = head[1] // 2
    with torch.no_grad():
        dual = torch.linalg.pinv(x).T  # reads one cue each
        attn.v_proj.weight[kv * 16 : kv * 16 + len(pairs)] = dual.float()
        attn.o_proj.weight[:, head[1] * 16 : (head[1] + 1) * 16] = 0
        attn.o_proj.weight[:, head[1] * 16 : head[1] * 16 + len(pairs)] = u.T.float()


def planted_model(standin):
    stand = standin("llama")
    plain, head = copy.deepcopy(stand.plain), (1, 2)
    generator = np.random.default_rng(0)
    tokens = generator.permutation(np.arange(60, 300))[:24].tolist()
    pairs = dict(zip(tokens[:12], tokens[12:], strict=True))
    hand = ByHand(plain, "llama", head)
    with torch.no_grad():
        embedded = plain.model.embed_tokens.weight
        streams = {cue: hand.parts.norm(embedded[cue][None])[0].double() for cue in pairs}
    directions = {answer: torch.from_numpy(hand.direction(answer)) for answer in pairs.values()}
    plant(plain, head, pairs, streams, directions)
    return load_model(plain, tokenizer=stand.tokenizer, progress=False), head, pairs


def test_a_planted_memory_is_found_in_its_head_and_in_no_other(standin):
    model, head, pairs = planted_model(standin)
    heads = [(0, 1), (1, 0), head, (2, 3)]
    found = recall(model, pairs, heads, draws=100, progress=False)
    tests, table = (found.wide(name).set_index("head") for name in ("tests", "summary"))
    assert tests.loc["L1H2", "p_holm"] < 0.05
    assert table.loc["L1H2", "related_auc"] > 0.95
    assert table.loc["L1H2", "left"] > 2 * table["left"].drop("L1H2").max()
    assert (tests["p_holm"].drop("L1H2") > 0.05).all()
    contrast = Contrast([[50, 51, 52, 53]] * 2, [[50, 60, 52, 53]] * 2, true=1, false=2, spans={"word": (1, 2)})
    options = {"level": "embedding", "draws": 50, "progress": False}
    for at in (head, (1, 0), (2, 1)):
        p = memory(model, contrast, at, pairs=pairs, **options).wide("tests").set_index(["memory", "control"])["cosine"]
        for kind in ("sum", "centred", "answers"):
            some = p[kind][[f"{kind}, shuffled", "same spectrum"]]
            if at == head:
                assert (some <= 0.02).all(), (kind, some)
            else:
                assert some.max() > 0.05, (at, kind, some)
    # Other pairs of the same cues and answers are not what was planted.
    cues, answers = list(pairs), list(pairs.values())
    wrong = dict(zip(cues, answers[1:] + answers[:1], strict=True))
    assert recall(model, wrong, [head], draws=100, progress=False).wide("tests").loc[0, "p"] > 0.05


def random_toy(seed, m=3, d=12):
    """A toy without a memory: Gaussian embeddings and a Gaussian W_V."""
    model = LCAForCausalLM(LCAConfig(m=m, d_model=d, d_head=4)).eval()
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for weight in (model.embed.weight, model.attn.v.weight):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def at_most(level, count, deviations=4):
    """How many of so many true nulls may be below a level."""
    return level * count + deviations * np.sqrt(binom.var(count, level))


def chance(model, m, draws, seed):
    """The p values of a toy's circuit against N1 that `recall` and `memory` give, from their parts and no run."""
    embedded, value = (weight.detach().double() for weight in (model.embed.weight, model.attn.v.weight))
    right, own = nearest(LatentConcepts(m)).numpy().astype(bool), np.arange(1 << m)
    unit = torch.nn.functional.normalize(embedded, dim=1)
    values, generator = torch.linalg.svdvals(value), torch.Generator().manual_seed(seed)
    tables = [(embedded @ value.T) @ embedded.T]
    tables += [gaussian_circuit(embedded, values, embedded, generator) for _ in range(draws)]
    left = [np.mean(measures(table.numpy(), own, right, (unit @ unit.T).numpy())["left"]) for table in tables]
    found = {"recall": share_as_large(left[0], left[1:])}
    circuit = Circuit(value, torch.eye(len(value), dtype=torch.float64))
    maker = Maker(circuit, embedded, embedded, right, "norm")
    generator = torch.Generator().manual_seed(seed)
    orders = [own, *(np.random.default_rng([seed, draw]).permutation(own) for draw in range(draws))]
    made = [maker.made("sum", own, order) for order in orders]
    drawn = [random_circuit(len(value), values, generator) for _ in range(draws)]
    for name, others in (("sum, shuffled", made[1:]), ("same spectrum", drawn)):
        cosines = [circuit.inner(one) / (circuit.size * one.size) for one in (made[0], *others)]
        found[name] = share_as_large(cosines[0], cosines[1:])
    return found


def test_the_chances_are_those_that_the_verbs_tell():
    contrast = contrast_concepts(LatentConcepts(3), limit=2, length=6, seed=0)
    for seed in range(4):
        bridge = lca_bridge(random_toy(seed))
        options = {"draws": 19, "seed": seed, "progress": False}
        found = memory(bridge, contrast, (0, 0), pairs=neighbours(3), **options).wide("tests")
        told_by_memory = found.set_index(["memory", "control"])["cosine"]
        expected = chance(random_toy(seed), 3, 19, seed)
        for name in ("sum, shuffled", "same spectrum"):
            assert told_by_memory["sum", name] == pytest.approx(expected[name])
        told_by_recall = recall(bridge, neighbours(3), [(0, 0)], **options).wide("tests")["p"][0]
        assert told_by_recall == pytest.approx(expected["recall"])


def test_of_200_random_circuits_at_most_one_in_twenty_is_taken_for_a_memory():
    """Taken for one is what none of 39 controls equals, p = 1/40; at .05 there are as many as chance allows."""
    count, draws = 200, 39
    p = pd.DataFrame([chance(random_toy(seed), 3, draws, seed) for seed in range(count)])
    for name, values in p.items():
        assert (values <= 1.5 / (1 + draws)).sum() <= 0.05 * count, name
        assert (values <= 0.05).sum() <= at_most(0.05, count), name
        # Nor too seldom: p is uniform.
        assert values.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / count)), name


def test_theorem_1s_model_is_found():
    bridge = lca_bridge(theorem1_model(LatentConcepts(4)))
    contrast = contrast_concepts(LatentConcepts(4), limit=4, length=6, seed=0)
    found = memory(bridge, contrast, (0, 0), pairs=neighbours(4), rank=4, draws=100, progress=False)
    assert told(found, "beside").loc["sum", "cosine"] == pytest.approx(1, rel=1e-5)
    tests = found.wide("tests").set_index(["memory", "control"])["cosine"]
    assert tests["sum", "sum, shuffled"] == pytest.approx(1 / 101)
    assert tests["sum", "same spectrum"] == pytest.approx(1 / 101)
    assert told(found).loc["sum", "stays_all"] == pytest.approx(1, rel=1e-4)
