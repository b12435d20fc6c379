"""The model against loops in double precision, its training step against autograd and torch's AdamW."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers.closeness import rounding
from scipy.stats import kstest
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lcalens.lca.model.model import LCAConfig, LCAForCausalLM, lca_tokenizer
from lcalens.lca.training.stack import NAMES, Stack, weights_of
from lcalens.lca.world.concepts import LatentConcepts

FREEZING = [
    dict(zip(("train_embedding", "train_value", "train_attention"), flags, strict=True))
    for flags in itertools.product((True, False), repeat=3)
]
FROZEN_IDS = ["".join(name[6] if on else "-" for name, on in flags.items()) for flags in FREEZING]


def model(seed=0, **config):
    torch.manual_seed(seed)
    return LCAForCausalLM(LCAConfig(**({"m": 4, "d_model": 10, "d_head": 6} | config))).eval()


def sharper(made, factor=4.0):
    """Weights large enough that the attention is far from uniform."""
    with torch.no_grad():
        for weight in (made.attn.q.weight, made.attn.k.weight):
            weight.mul_(factor)
    return made


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def contexts(m=4, length=7, rows=12, seed=0):
    world = LatentConcepts(m)
    tokens, targets = world.sample(rows, length, torch.Generator().manual_seed(seed))
    return tokens, targets, *world.count(tokens)


def slow(made, context):
    """Column by column: W_E^T W_V U softmax((W_K U)^T (W_Q U) / sqrt(d_a)); returns logits and pattern by query."""
    weights = {name: weight.detach().double().numpy() for name, weight in weights_of(made).items()}
    embed, value, key, query = (weights[name] for name in NAMES)
    logits, patterns = [], []
    for j in context:
        scores = [(key @ embed[i]) @ (query @ embed[j]) / math.sqrt(len(key)) for i in context]
        exps = [math.exp(score - max(scores)) for score in scores]
        pattern = [one / math.fsum(exps) for one in exps]
        mean = sum(share * embed[i] for share, i in zip(pattern, context, strict=True))
        recalled = value @ mean
        logits.append([float(one @ recalled) for one in embed])
        patterns.append(pattern)
    return np.array(logits), np.array(patterns)


# --- three forwards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 40])
@pytest.mark.parametrize(("m", "d_model", "d_head"), [(2, 3, 1), (4, 10, 6), (5, 40, 8)])
def test_the_three_forwards_are_the_formula(m, d_model, d_head, length):
    made = sharper(model(m=m, d_model=d_model, d_head=d_head))
    tokens, _, counts, last = contexts(m, length)
    with torch.no_grad():
        full = made(tokens, output_attentions=True)
        one, counted = made(tokens, logits_to_keep=1, output_attentions=True), made.from_counts(counts, last)
        looked = made.attention_from_counts(counts, last)
    assert full.logits.shape == (12, length, 2**m)
    assert one.logits.shape == (12, 1, 2**m)
    assert full.attentions[0].shape == (12, 1, length, length)
    torch.testing.assert_close(full.logits[:, -1], counted, rtol=0, atol=1e-5)
    torch.testing.assert_close(full.logits[:, -1:], one.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(full.attentions[0][:, :, -1:], one.attentions[0], rtol=0, atol=1e-5)
    for row, context in enumerate(tokens.tolist()):
        logits, pattern = slow(made, context)
        np.testing.assert_allclose(full.logits[row].numpy(), logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(full.attentions[0][row, 0].numpy(), pattern, rtol=0, atol=1e-5)
        by_token = np.zeros(2**m)
        np.add.at(by_token, context, pattern[-1])
        np.testing.assert_allclose(looked[row].numpy(), by_token, rtol=0, atol=1e-5)
        assert (looked[row].numpy()[by_token == 0] == 0).all()


def test_in_double_precision_the_three_forwards_agree_to_1e_12(double):
    made = sharper(model())
    tokens, _, counts, last = contexts(length=30)
    with torch.no_grad():
        found = [made(tokens).logits[:, -1], made(tokens, logits_to_keep=1).logits[:, -1]]
        found.append(made.from_counts(counts.double(), last))
    expected = np.array([slow(made, context)[0][-1] for context in tokens.tolist()])
    for one in found:
        np.testing.assert_allclose(one.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep", [1, 3, 7])
def test_the_last_positions_are_those_of_all(keep):
    made, (tokens, *_) = model(), contexts()
    with torch.no_grad():
        torch.testing.assert_close(made(tokens, logits_to_keep=keep).logits, made(tokens).logits[:, -keep:])


def test_the_order_of_all_tokens_but_the_last_does_not_matter():
    made, (tokens, *_) = sharper(model()), contexts()
    with torch.no_grad():
        a, b = (made(one, logits_to_keep=1).logits for one in (tokens, tokens[:, [3, 5, 0, 1, 2, 4, 6]]))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize("keep", [0, 1])
def test_left_padding_changes_nothing(padding, keep):
    made, (tokens, *_) = sharper(model()), contexts()
    mask = torch.cat([torch.zeros(12, padding), torch.ones(12, 7)], 1).long()
    for filler in (0, 9):
        padded = torch.cat([torch.full((12, padding), filler), tokens], 1)
        with torch.no_grad():
            found = made(padded, attention_mask=mask, logits_to_keep=keep, output_attentions=True)
            expected = made(tokens, logits_to_keep=keep)
        torch.testing.assert_close(found.logits[:, -1], expected.logits[:, -1], rtol=0, atol=1e-5)
        assert (found.attentions[0][..., :padding] == 0).all()


def test_rows_may_be_padded_by_different_lengths():
    made, (tokens, *_) = sharper(model()), contexts(rows=7)
    mask = (torch.arange(7) >= torch.arange(7)[:, None]).long()  # row r lacks its first r tokens
    with torch.no_grad():
        found = made(tokens, attention_mask=mask).logits[:, -1]
        for row in range(7):
            torch.testing.assert_close(found[row], made(tokens[row : row + 1, row:]).logits[0, -1], rtol=0, atol=1e-5)


def test_a_mask_of_ones_is_no_mask():
    made, (tokens, *_) = model(), contexts()
    with torch.no_grad():
        assert torch.equal(made(tokens).logits, made(tokens, attention_mask=torch.ones_like(tokens)).logits)


@pytest.mark.parametrize("keep", [0, 1])
def test_the_loss_is_the_cross_entropy_at_the_last_position(keep):
    made, (tokens, targets, *_) = sharper(model()), contexts()
    found = made(tokens, labels=targets, logits_to_keep=keep)
    each = []
    for context, y in zip(tokens.tolist(), targets.tolist(), strict=True):
        logits = slow(made, context)[0][-1].tolist()
        each.append(math.log(math.fsum(map(math.exp, logits))) - logits[y])
    assert found.loss.item() == pytest.approx(math.fsum(each) / 12, abs=1e-5)
    assert found.attentions is None
    assert made(tokens).loss is None


# --- Hugging Face ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", FREEZING, ids=FROZEN_IDS)
def test_flags_say_what_has_a_gradient_before_and_after_loading(tmp_path, flags):
    made = model(**flags)
    made.save_pretrained(tmp_path)
    for one in (made, AutoModelForCausalLM.from_pretrained(tmp_path)):
        has = {name: weight.requires_grad for name, weight in weights_of(one).items()}
        assert has == {
            "embed": flags["train_embedding"],
            "v": flags["train_value"],
            "k": flags["train_attention"],
            "q": flags["train_attention"],
        }


@pytest.mark.parametrize(
    "config",
    [{}, {"embedding": "orthonormal", "d_model": 16, "value": "identity", "attention": "zero"}],
    ids=["trained", "closed form"],
)
def test_a_model_saved_and_loaded_is_the_same(tmp_path, config):
    made = sharper(model(3, **config))
    with torch.no_grad():
        made.attn.q.weight.add_(0.1)  # unlike any start
    made.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= written <= {
        "config.json", "model.safetensors", "generation_config.json"
    }  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is LCAForCausalLM
    assert all(torch.equal(weight, weights_of(made)[name]) for name, weight in weights_of(loaded).items())
    tokens, _, counts, last = contexts()
    torch.testing.assert_close(loaded(tokens).logits, made(tokens).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.from_counts(counts, last), made.from_counts(counts, last), rtol=0, atol=1e-5)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is LCAConfig
    assert read.vocab_size == 16
    for name in LCAConfig.__annotations__:
        assert getattr(read, name) == getattr(made.config, name), name
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "lca"


def test_one_embedding_reads_tokens_and_writes_logits():
    made = model()
    assert sum(weight.numel() for weight in made.parameters()) == 16 * 10 + 10 * 10 + 2 * 6 * 10
    assert made.get_input_embeddings() is made.embed


@pytest.mark.parametrize("m", [2, 3, 7])
def test_a_tokenizer_spells_tokens_as_their_bits(tmp_path, m):
    made = lca_tokenizer(m)
    made.save_pretrained(tmp_path)
    tokens = [*range(2**m), 0, 0, 2**m - 1]
    text = " ".join(format(token, f"0{m}b") for token in tokens)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == tokenizer.vocab_size == 2**m
        assert tokenizer(text)["input_ids"] == tokens
        assert tokenizer.decode(tokens) == text
        assert tokenizer.convert_tokens_to_ids(format(1, f"0{m}b")) == 1
        assert tokenizer(f"  {text.replace(' ', chr(10))}\t")["input_ids"] == tokens


def test_the_tokenizer_reads_its_own_example():
    assert lca_tokenizer(3)("101 000")["input_ids"] == [5, 0]
    assert lca_tokenizer(3).decode([5, 0]) == "101 000"


@pytest.mark.parametrize("m", [2, 9, 14])
def test_every_token_has_its_own_word(m):
    vocabulary = lca_tokenizer(m).get_vocab()
    assert vocabulary == {format(token, f"0{m}b"): token for token in range(2**m)}


def test_a_model_and_its_tokenizer_share_a_folder(tmp_path):
    model().save_pretrained(tmp_path)
    lca_tokenizer(4).save_pretrained(tmp_path)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    logits = loaded(**tokenizer("0101 0000 1111", return_tensors="pt")).logits
    torch.testing.assert_close(logits, loaded(torch.tensor([[5, 0, 15]])).logits)


# --- starts ---------------------------------------------------------------------------------------------------------


def uniform(weight, bound):
    assert weight.abs().max() <= bound
    return kstest(weight.detach().flatten().double().numpy(), "uniform", args=(-bound, 2 * bound)).pvalue


@pytest.mark.parametrize("d", [16, 64])
def test_gaussian_embeddings_have_variance_1_over_d_and_the_rest_is_uniform(d):
    made = model(m=10, d_model=d, d_head=32)
    embed = made.embed.weight.detach().flatten().double().numpy()
    assert kstest(embed * math.sqrt(d), "norm").pvalue > 1e-4
    assert embed.var() * d == pytest.approx(1, abs=5 * math.sqrt(2 / len(embed)))
    for weight in (made.attn.v.weight, made.attn.q.weight, made.attn.k.weight):
        assert uniform(weight, 1 / math.sqrt(d)) > 1e-4
    assert not torch.equal(made.attn.q.weight, made.attn.k.weight)


@pytest.mark.parametrize(("m", "d"), [(3, 8), (3, 20), (7, 128), (7, 200)])
def test_orthonormal_embeddings_are_orthonormal(m, d):
    embed = model(m=m, d_model=d, embedding="orthonormal").embed.weight
    torch.testing.assert_close(embed @ embed.T, torch.eye(2**m), rtol=0, atol=rounding(torch.float32, 1, d))
    assert not torch.equal(embed, model(1, m=m, d_model=d, embedding="orthonormal").embed.weight)


def test_the_closed_form_starts_are_exact():
    made = model(value="identity", attention="zero")
    assert torch.equal(made.attn.v.weight, torch.eye(10))
    assert (made.attn.q.weight == 0).all()
    assert (made.attn.k.weight == 0).all()
    tokens, *_ = contexts()
    embed = made.embed.weight
    torch.testing.assert_close(made(tokens, logits_to_keep=1).logits[:, 0], embed[tokens].mean(1) @ embed.T)


def test_the_same_seed_starts_alike():
    same = [weights_of(model(5)) for _ in range(2)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in NAMES)
    assert not torch.equal(same[0]["v"], weights_of(model(6))["v"])


# --- gradients and steps --------------------------------------------------------------------------------------------


def batches(runs, m=4, length=9, rows=11, seed=0):
    drawn = [LatentConcepts(m).sample(rows, length, torch.Generator().manual_seed(seed + 100 * r)) for r in range(runs)]
    tokens, targets = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    counts = torch.zeros(runs, rows, 2**m).scatter_add_(2, tokens, torch.ones(tokens.shape))
    return tokens, counts.log(), tokens[..., -1].contiguous(), targets


def close(found, expected, tolerance):
    """Within `tolerance` of the largest number of the expected tensor."""
    scale = float(expected.abs().max()) or 1.0
    assert float((found - expected).abs().max()) <= tolerance * scale


def gradients(made, tokens, targets):
    made.zero_grad()
    loss = cross_entropy(made(tokens).logits[:, -1], targets)
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in weights_of(made).items()}


def check_gradients(runs, flags, tolerance, **config):
    models = [sharper(model(seed, **flags, **config), 3.0) for seed in range(runs)]
    stack = Stack(models, [0.1] * runs, [0.0] * runs)
    for rows in (11, 4, 11):  # the workspace follows the batch
        tokens, log_counts, last, targets = batches(runs, rows=rows, seed=rows)
        loss = stack.backward(log_counts, last, targets)
        assert loss.shape == (runs,)
        for run, made in enumerate(models):
            expected, wanted = gradients(made, tokens[run], targets[run])
            assert float(loss[run]) == pytest.approx(float(expected), rel=tolerance)
            assert set(stack.gradients) == {name for name in NAMES if weights_of(made)[name].requires_grad}
            for name, found in stack.gradients.items():
                close(found[run], wanted[name], tolerance)


@pytest.mark.parametrize("flags", FREEZING, ids=FROZEN_IDS)
@pytest.mark.parametrize("runs", [1, 3])
def test_gradients_are_those_of_autograd(double, runs, flags):
    check_gradients(runs, flags, 1e-12)


@pytest.mark.parametrize("flags", FREEZING, ids=FROZEN_IDS)
def test_gradients_in_single_precision_are_those_of_autograd(flags):
    check_gradients(3, flags, 1e-4, d_model=20, d_head=3)


def test_the_stacks_logits_are_the_models():
    models = [sharper(model(seed)) for seed in range(3)]
    tokens, log_counts, last, _ = batches(3)
    found = Stack(models, [0.1] * 3, [0.0] * 3).forward(log_counts, last)
    for run, made in enumerate(models):
        torch.testing.assert_close(found[run], made(tokens[run]).logits[:, -1], rtol=0, atol=2e-5)


def train_both(runs, flags, steps=20, **config):
    """Stack and torch side by side, rates falling; yields the two losses of every step and ends with the weights."""
    rates, decays = [0.03, 0.01, 0.002][:runs], [0.01, 0.3, 0.0][:runs]
    models = [model(seed, **flags, **config) for seed in range(runs)]
    stack = Stack(models, rates, decays)
    optimisers = [
        torch.optim.AdamW([one for one in made.parameters() if one.requires_grad], lr=rate, weight_decay=decay)
        for made, rate, decay in zip(models, rates, decays, strict=True)
    ]  # fmt: skip
    for step in range(steps):
        tokens, log_counts, last, targets = batches(runs, seed=step)
        factor = 1 - step / steps
        found = stack.step(log_counts, last, targets, factor)
        for run, (made, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            optimiser.zero_grad()
            loss = cross_entropy(made(tokens[run]).logits[:, -1], targets[run])
            loss.backward()
            optimiser.param_groups[0]["lr"] = rates[run] * factor
            optimiser.step()
            yield found[run], loss.detach()
    assert stack.steps == steps
    for run, made in enumerate(models):
        written = model(run, **flags, **config)
        start = {name: weight.detach().clone() for name, weight in weights_of(written).items()}
        stack.write(written, run)
        for name, weight in weights_of(written).items():
            yield weight.detach(), weights_of(made)[name].detach()
            assert torch.equal(weight, start[name]) != weight.requires_grad


@pytest.mark.parametrize("flags", FREEZING[:-1], ids=FROZEN_IDS[:-1])
@pytest.mark.parametrize("runs", [1, 3])
def test_twenty_steps_are_those_of_torchs_adamw(double, runs, flags):
    for found, expected in train_both(runs, flags):
        close(found, expected, 1e-9)


@pytest.mark.parametrize("flags", FREEZING[:-1], ids=FROZEN_IDS[:-1])
def test_twenty_steps_in_single_precision_are_those_of_torchs_adamw(flags):
    for found, expected in train_both(3, flags):
        close(found, expected, 1e-4)


def test_with_everything_frozen_a_step_changes_nothing():
    made = model(**FREEZING[-1])
    stack = Stack([made], [0.1], [0.1])
    _, log_counts, last, targets = batches(1)
    first = stack.step(log_counts, last, targets, 1.0)
    assert torch.equal(first, stack.step(log_counts, last, targets, 1.0))
    assert all(torch.equal(stack.parameters[name][0], weights_of(made)[name]) for name in NAMES)


def test_a_rate_of_0_changes_nothing_and_models_are_not_written_to():
    models = [model(seed) for seed in range(2)]
    kept = [{name: weight.detach().clone() for name, weight in weights_of(made).items()} for made in models]
    stack = Stack(models, [0.1, 0.2], [0.5, 0.5])
    _, *batch = batches(2)
    stack.step(*batch, 0.0)
    assert all(torch.equal(stack.parameters[name][run], kept[run][name]) for name in NAMES for run in range(2))
    stack.step(*batch, 1.0)
    assert not torch.equal(stack.parameters["v"][0], kept[0]["v"])
    assert all(torch.equal(weights_of(models[run])[name], kept[run][name]) for name in NAMES for run in range(2))


def test_a_run_is_the_same_alone_and_in_a_stack():
    several, alone = (Stack([model(s) for s in seeds], [0.03] * len(seeds), [0.1] * len(seeds)) for seeds in
                      ((0, 1, 2), (1,)))  # fmt: skip
    for step in range(10):
        _, *batch = batches(3, seed=step)
        several.step(*batch, 1.0)
        alone.step(*(part[1:2] for part in batch), 1.0)
    for name in NAMES:
        close(several.parameters[name][1], alone.parameters[name][0], 1e-5)


def test_a_dropped_run_is_0_for_ever_and_the_others_go_on():
    stacks = [Stack([model(s) for s in range(3)], [0.03] * 3, [0.1] * 3) for _ in range(2)]
    for step in range(6):
        _, *batch = batches(3, seed=step)
        for stack in stacks:
            stack.step(*batch, 1.0)
        if step == 2:
            stacks[1].drop(1)
    for name in NAMES:
        assert (stacks[1].parameters[name][1] == 0).all()
        assert torch.equal(stacks[0].parameters[name][[0, 2]], stacks[1].parameters[name][[0, 2]])


@pytest.mark.parametrize("flags", FREEZING, ids=FROZEN_IDS)
def test_any_run_can_be_dropped_whatever_is_trained(flags):
    stack = Stack([model(s, **flags) for s in range(3)], [0.03] * 3, [0.1] * 3)
    with torch.no_grad():
        stack.parameters["v"][1] = torch.nan
    stack.drop(1)
    _, *batch = batches(3)
    assert stack.step(*batch, 1.0).isfinite().all()
    assert all((stack.parameters[name][1] == 0).all() and (stack.parameters[name][0] != 0).any() for name in NAMES)
