"""Any small model of a LLaMA's or a GPT-2's shape: whatever its sizes, ratios, lengths and dtype, identities hold.

Shapes are drawn by hypothesis, the same at every run. Weights are large, so that effects are above rounding, and what
`doctor` calls exact has an effect; on models this small that is nearly all of it in float32.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lcalens
from lcalens.core.verdicts import wrong_on
from tests.matrix.families import FAMILIES, tokenizer_of

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = 259  # of the tokenizer of bytes
FEW = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
FIRST = ("batch and single", "layer by layer", "head outputs", "averaged values", "patch z", "patch v", "exchange",
         "Shapley sum", "paths to the logits", "direct effects", "split", "clean into clean", "patch together",
         "patch again", "scores", "Hugging Face's logits")  # fmt: skip


@st.composite
def shapes(draw):
    """A configuration: layers, heads, how many share keys and values, widths, context, biases, activation."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    return {
        "kind": draw(st.sampled_from(["llama", "gpt2"])),
        "layers": draw(st.integers(1, 4)),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([4, 6, 8, 10])),
        "wide": draw(st.integers(1, 3)),
        "context": draw(st.integers(16, 48)),
        "tied": draw(st.booleans()),
        "biases": draw(st.booleans()),
        "eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "seed": draw(st.integers(0, 99)),
    }


def built(shape, dtype=torch.float32):
    """A TransformerBridge of that shape with large random weights, and Hugging Face's model of the same."""
    import transformers

    width = shape["heads"] * shape["head_dim"]
    if shape["kind"] == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * shape["wide"],
            num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"],
            max_position_embeddings=shape["context"], tie_word_embeddings=shape["tied"],
            attention_bias=shape["biases"], mlp_bias=shape["biases"], rms_norm_eps=shape["eps"],
        )  # fmt: skip
    else:
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_inner=8 * shape["wide"], n_layer=shape["layers"],
            n_head=shape["heads"], n_positions=shape["context"], tie_word_embeddings=shape["tied"],
            layer_norm_epsilon=shape["eps"], scale_attn_by_inverse_layer_idx=shape["biases"],
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(shape["seed"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            gain = 1.2 / width**0.5 if weight.ndim > 1 and "embed" not in name and "wte" not in name else 1.0
            weight.copy_(noise * gain if weight.ndim > 1 else weight.mean() + 0.3 * noise)
        if not shape["tied"]:
            model.get_output_embeddings().weight.mul_(10)
    model = model.to(dtype).eval()
    return lcalens.load_model(model, tokenizer=tokenizer_of(FAMILIES["llama"])), model


def words(result):
    return dict(zip(result.tables["verdicts"]["identity"], result.tables["verdicts"]["verdict"], strict=True))


@FEW
@given(shapes())
def test_identities_hold_whatever_the_shape(shape):
    model, _ = built(shape)
    found = words(lcalens.doctor(model, only=FIRST, progress=False))
    assert "wrong" not in found.values(), (shape, found)
    assert sum(word == "exact" for word in found.values()) >= len(FIRST) - 2, (shape, found)


@FEW
@given(shapes())
def test_rounding_to_bfloat16_is_never_wrong(shape):
    model, _ = built(shape, torch.bfloat16)
    found = words(lcalens.doctor(model, only=FIRST[:8], progress=False))
    assert "wrong" not in found.values(), (shape, found)


@FEW
@given(shapes(), st.data())
def test_examples_of_any_lengths_together_are_what_each_is_alone(shape, data):
    model, plain = built(shape)
    lengths = data.draw(st.lists(st.tuples(*[st.integers(2, 12)] * 2), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(shape["seed"])
    rows = [[torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in pair]
            for pair in lengths]  # fmt: skip
    contrast = lcalens.Contrast([pair[0] for pair in rows], [pair[1] for pair in rows], true=5, false=9)
    together = lcalens.patch(model, contrast, progress=False)
    again = lcalens.patch(model, contrast, progress=False)
    assert together.values["value"].tobytes() == again.values["value"].tobytes()
    for index, one in enumerate(contrast):
        alone = lcalens.patch(model, one, progress=False).values["value"][0]
        logits = plain(torch.tensor([one.hijacked[0]])).logits[0, -1].double()
        size = float(logits.abs().max())
        assert abs(alone - together.values["value"][index]).max() <= 2e-5 * size
        hijacked = float(logits[9] - logits[5])
        assert abs(together.examples["hijacked"][index] - hijacked) <= 2e-5 * size


def test_nothing_of_these_models_is_kept():
    model, _ = built({"kind": "llama", "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 4, "wide": 1, "context": 16,
                      "tied": False, "biases": False, "eps": 1e-6, "seed": 0})  # fmt: skip
    lcalens.doctor(model, only=FIRST[:1], progress=False)
    from lcalens.core.stamp import stamp

    assert wrong_on(stamp(model)) == {}
