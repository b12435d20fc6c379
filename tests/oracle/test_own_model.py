"""A model of one's own: trained some steps, saved by transformers, loaded from the folder: Hugging Face's logits."""

import pytest
import torch
from helpers import standins
from helpers.closeness import rounding
from transformers import LlamaConfig, LlamaForCausalLM

from lcalens import LcalensError, ask, efficacy, load_facts, load_model
from lcalens.core.provenance import fingerprint, model_info

TEXT = "Do not think of Rome. The capital of France is"
TOLERANCE = {"rtol": 0, "atol": rounding(torch.float32, 20, 3 * 64)}
FACTS = load_facts(standins.capital_records())[:4]


def built(vocabulary):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture
def tuned(standin, tmp_path):
    """A function that saves a model with the stand-in's tokenizer; and a model, before and after three steps."""
    tokenizer = standin("llama").tokenizer

    def save(model, name):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    model = built(len(tokenizer))
    before = save(model, "before")
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return save, model.eval(), before, save(model, "after"), ids


def test_what_was_trained_is_what_is_loaded(tuned):
    _, model, before, after, ids = tuned
    bridge, other = load_model(after), load_model(before)
    with torch.no_grad():
        wanted = model(ids).logits
        torch.testing.assert_close(bridge(ids), wanted, **TOLERANCE)
        assert (other(ids) - wanted).abs().max() > 1
    assert fingerprint(bridge) != fingerprint(other)
    in_memory = load_model(model, tokenizer=model_info(bridge).tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(in_memory(ids), wanted, **TOLERANCE)


def test_half_precision_is_loaded_in_full_without_loss(tuned):
    save, model, _, _, ids = tuned
    folder = save(model.bfloat16(), "half")
    bridge = load_model(folder)
    assert model_info(bridge).dtype == "float32"
    with torch.no_grad():
        whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        torch.testing.assert_close(bridge(ids), whole(ids).logits, **TOLERANCE)
    for name, weight in model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], weight.float())
    assert model_info(load_model(folder, dtype="bfloat16")).dtype == "bfloat16"


def test_a_merged_adapter_is_a_whole_model(tuned):
    """What merging does, by hand: the low-rank product goes into the weight."""
    save, model, _, after, ids = tuned
    layer = model.model.layers[1].self_attn.q_proj
    up, down = torch.randn(32, 4), torch.randn(4, 32)
    hook = layer.register_forward_hook(lambda module, inputs, output: output + inputs[0] @ down.T @ up.T)
    with torch.no_grad():
        adapted = model(ids).logits
        hook.remove()
        layer.weight += up @ down
        bridge = load_model(save(model, "merged"))
        torch.testing.assert_close(bridge(ids), adapted, rtol=0, atol=5e-4)
        assert (load_model(after)(ids) - adapted).abs().max() > 1


def test_tokens_beyond_the_embedding_are_refused(standin, tmp_path):
    tokenizer = standin("llama").tokenizer
    built(max(tokenizer(TEXT).input_ids)).save_pretrained(tmp_path)
    bridge = load_model(tmp_path, tokenizer=tokenizer)
    said = r"^texts: token \d+ of the tokenizer is none of the model's \d+; load the model with the tokenizer"
    with pytest.raises(LcalensError, match=said):
        ask(bridge, TEXT)
    with pytest.raises(LcalensError, match=said):
        efficacy(bridge, FACTS, counts=(0, 1), progress=False)
