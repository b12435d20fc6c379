"""Activations through files: what Hugging Face's plain model passes through its modules is what our hooks show."""

import pytest
import torch
from helpers import standins
from helpers.closeness import rounding
from safetensors.torch import load_file, save_file
from transformer_lens import ActivationCache

from lcalens import Contrast, LcalensError, load_activations, patch, run_with_cache, save_activations
from lcalens.mechanism.module_names import hooks_of

STREAM = "model.layers.1.output"
TEXTS = ["The capital of France is", "The capital of Italy is", "The capital of Spain is"]
# Where a site goes into or comes out of a module of the second layer.
OF_LLAMA = {
    "model.layers.1.input": "resid_pre",
    "model.layers.1.output": "resid_post",
    "model.layers.1.self_attn.o_proj.input": "z",
    "model.layers.1.self_attn.v_proj.output": "v",
}
MODULES = {
    "llama": OF_LLAMA | {
        "model.layers.1.self_attn.output": "attn_out",
        "model.layers.1.mlp.output": "mlp_out",
        "model.layers.1.self_attn.q_proj.output": "q",
        "model.layers.1.self_attn.k_proj.output": "k",
    },
    "gpt2": {
        "transformer.h.1.input": "resid_pre",
        "transformer.h.1.output": "resid_post",
        "transformer.h.1.attn.c_proj.input": "z",
        "transformer.h.1.attn.output": "attn_out",
        "transformer.h.1.mlp.output": "mlp_out",
    },
    "gemma": OF_LLAMA | {"model.layers.1.mlp.output": "mlp_out"},
    "gemma2": OF_LLAMA | {"model.layers.1.post_feedforward_layernorm.output": "mlp_out"},
    "gemma3": OF_LLAMA | {"model.layers.1.post_attention_layernorm.output": "attn_out"},
}  # fmt: skip


def passed(model, ids, names):
    """What goes through modules of Hugging Face's own model, under the names that nnsight has for it."""
    kept = {}

    def look(name):
        def keep(module, args, kwargs, output):
            value = next(iter((*args, *kwargs.values()))) if name.endswith(".input") else output
            kept[name] = (value[0] if isinstance(value, tuple) else value).clone()

        return keep

    handles = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(look(name), with_kwargs=True)
        for name in names
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return kept


@pytest.fixture(scope="module")
def contrast_of(standin):
    def make(family):
        one = standin(family)
        rows = [one.tokenizer(text).input_ids for text in TEXTS]
        length = min(map(len, rows))
        rows = [row[:length] for row in rows]
        other = [[*row[:-1], (row[-1] + 1) % one.model.cfg.d_vocab] for row in rows]
        return Contrast(rows, other, true=[[5]] * 3, false=[[6]] * 3)

    return make


@pytest.mark.parametrize("family", standins.FAMILIES)
def test_modules_of_hugging_face_are_the_hooks(standin, contrast_of, family, tmp_path):
    one, contrast = standin(family), contrast_of(family)
    theirs = passed(one.plain, torch.tensor(contrast.clean), MODULES[family])
    save_file({name: value.contiguous() for name, value in theirs.items()}, tmp_path / "theirs.safetensors")
    loaded = load_activations(one.model, tmp_path / "theirs.safetensors")
    _, cache = run_with_cache(one.model, contrast)
    assert isinstance(loaded, ActivationCache)
    assert set(loaded) == {f"blocks.1.{name}" for name in map(hook_of, MODULES[family].values())}
    for name, value in loaded.items():
        scale = float(cache[name].abs().max())
        assert scale > 1e-3
        assert value.shape == cache[name].shape
        torch.testing.assert_close(value, cache[name], rtol=0, atol=rounding(torch.float32, scale, 3 * 64))


def hook_of(site):
    return f"attn.hook_{site}" if site in ("z", "q", "k", "v") else f"hook_{site}"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cache_goes_through_a_file_to_the_bit(standin, contrast_of, family, tmp_path):
    one, contrast = standin(family), contrast_of(family)
    _, cache = run_with_cache(one.model, contrast)
    file = save_activations(tmp_path / "deep" / "cache.safetensors", cache)
    loaded = load_activations(one.model, file)
    assert set(loaded) == set(cache)
    assert all(torch.equal(loaded[name], cache[name]) for name in cache)
    assert torch.equal(load_file(file)["blocks.1.attn.hook_z"], cache["z", 1])
    ours = patch(one.model, contrast, source=cache, progress=False)
    theirs = patch(one.model, contrast, source=loaded, progress=False)
    assert (ours.values["effect"] == theirs.values["effect"]).all()


def test_several_names_of_one_hook_and_of_none(standin):
    model = standin("llama").model
    # Transformers leaves hooks of its own once a model has been asked for its attentions, as other tests ask this one.
    before = [dict(module._forward_hooks) for module in model.original_model.modules()]
    known = {
        "model.layers.1": "blocks.1.hook_resid_post",
        "model.layers.1.output[0]": "blocks.1.hook_resid_post",
        "model.model.layers.1.output": "blocks.1.hook_resid_post",
        "model.layers.2.inputs[0][0]": "blocks.2.hook_resid_pre",
        "model.layers.0.input": "blocks.0.hook_resid_pre",
        "model.layers.1.self_attn.output.0": "blocks.1.hook_attn_out",
        "model.layers.1.self_attn.o_proj": "blocks.1.hook_attn_out",
        "model.layers.1.mlp.gate_proj": "blocks.1.mlp.gate.hook_out",
        "blocks.1.mlp.gate.hook_out": "blocks.1.mlp.gate.hook_out",
        "blocks.1.attn.hook_pattern": "blocks.1.attn.hook_pattern",
    }
    hooks = hooks_of(model, list(known))
    assert {name: hook.name for name, hook in hooks.items()} == known
    for name, said in (
        ("model.layers.9.output", "neither a hook nor a module"),
        ("model.layrs.1.output", "names are such as 'blocks.0.attn.hook_z' or 'model.layers.0.output'"),
        ("blocks.1.attn.hook_zz", r"Did you mean 'blocks.1.attn.hook_z'\?"),
        ("blocks.9.attn.hook_z", "in no layer of this model's 3"),
        ("hook_z", "in no layer"),
        ("model", "passes no tensor"),
        ("model.layers", "is never run"),
        ("model.layers.1.mlp.act_fn", "no hook of this model shows"),
    ):
        with pytest.raises(LcalensError, match=rf"^path: .*{said}"):
            hooks_of(model, [name])
    assert [dict(module._forward_hooks) for module in model.original_model.modules()] == before


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blocks.1.attn.hook_z": torch.zeros(1, 5, 3, 16)}, r"\(1, 5, 3, 16\), and .* \(examples, positions, 4, 16"),
        ({STREAM: torch.zeros(1, 5, 65)}, r"shape \(1, 5, 65\).* \(examples, positions, 64\)"),
        ({STREAM: torch.zeros(5, 64)}, r"shape \(5, 64\)"),
        ({"blocks.1.attn.hook_pattern": torch.zeros(1, 3, 5, 5)}, r"\(examples, 4, queries, keys\)"),
        ({STREAM: torch.zeros(1, 5, 64, dtype=torch.long)}, "give floating-point numbers"),
        ({STREAM: torch.zeros(1, 0, 64)}, "has the shape"),
        ({STREAM: torch.zeros(1, 5, 64), "blocks.1.hook_resid_post": torch.ones(1, 5, 64)}, "keep one"),
        ({}, "holds no tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(standin, tmp_path, tensors, said):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LcalensError, match=rf"^path: .*{said}"):
        load_activations(standin("llama").model, tmp_path / "a.safetensors")


def test_files_that_are_none(standin, tmp_path):
    model = standin("llama").model
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "b.safetensors").mkdir()
    for file, said in (
        ("a.safetensors", "damaged or no safetensors"),
        ("b.safetensors", "there is no file"),
        ("aa.safetensors", r"Did you mean '.*a\.safetensors'"),
        ("a.pt", "expected a file that ends with .safetensors"),
    ):
        with pytest.raises(LcalensError, match=rf"^path: .*{said}"):
            load_activations(model, tmp_path / file)
    with pytest.raises(LcalensError, match=r"^path: expected a file"):
        save_activations(tmp_path / "a.pt", {"x": torch.zeros(1)})
    with pytest.raises(LcalensError, match=r"^path: .* cannot be written"):
        save_activations(tmp_path / "b.safetensors", {"x": torch.zeros(1)})
    for wrong in ({}, torch.zeros(1), {"x": (torch.zeros(1),)}, {3: torch.zeros(1)}):
        with pytest.raises(LcalensError, match=r"^activations: "):
            save_activations(tmp_path / "c.safetensors", wrong)
    assert not (tmp_path / "c.safetensors").exists()
