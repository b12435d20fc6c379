"""What a result says of its model, and whose functions are attached to it."""

import functools

import pytest
import torch
from matrix import families

from lcalens.core.provenance import active_hooks, fingerprint, model_info

IDS = torch.arange(5, 15)[None]
BOOTED = ("gpt2", "opt", "opt-projected", "granite", "llama", "gemma2", "olmo2", "phi", "bloom", "mixtral")


def run(model):
    with torch.no_grad():
        return model(IDS % int(model.cfg.d_vocab))


class Watcher:
    def __init__(self):
        self.seen = 0

    def look(self, *anything):
        self.seen += 1

    def __call__(self, *anything):
        self.seen += 1


def look(value, hook):
    return None


def look_at_module(module, inputs, output):
    return None


@pytest.mark.parametrize("name", BOOTED)
def test_nobodys_hooks_are_active_at_first_nor_after_runs(name):
    model = families.boot(name)
    assert active_hooks(model) == []
    run(model)
    assert active_hooks(model) == []
    model.run_with_hooks(IDS % int(model.cfg.d_vocab), fwd_hooks=[("blocks.0.hook_out", look)])
    assert active_hooks(model) == []


@pytest.mark.parametrize("name", ["opt", "llama", "granite"])
def test_a_persons_hook_is_seen_however_it_is_wrapped(name):
    model = families.boot(name)
    run(model)
    point = model.blocks[0].hook_out
    watcher = Watcher()
    kinds = (
        look,
        lambda value, hook: None,
        functools.partial(look, hook=None),
        functools.partial(functools.partial(look)),
        watcher.look,
        watcher,
    )
    for kind in kinds:
        point.add_hook(kind)
        assert active_hooks(model), kind
        point.remove_hooks("fwd", including_permanent=True)
        assert active_hooks(model) == []
    inner = model.original_model.get_input_embeddings()
    for kind in (look_at_module, functools.partial(look_at_module), watcher.look, watcher):
        for attach in (inner.register_forward_hook, inner.register_full_backward_hook):
            handle = attach(kind)
            assert len(active_hooks(model)) == 1, kind
            handle.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(look_at_module)
    assert active_hooks(model) == ["every module"]
    handle.remove()
    assert active_hooks(model) == []


def test_a_librarys_function_that_a_person_attached_is_seen():
    from transformer_lens import patching

    model = families.boot("llama")
    model.blocks[0].hook_out.add_hook(functools.partial(patching.layer_pos_patch_setter, index=(0, 0)))
    assert active_hooks(model)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"no_processing": True}, "compatibility mode, no weights processed"),
        (
            {},
            "compatibility mode, layer norms folded, writing weights centred, unembedding centred, value biases folded",
        ),
        (
            {"fold_ln": False, "center_writing_weights": False, "fold_value_biases": False},
            "compatibility mode, unembedding centred",
        ),
        ({"center_unembed": False, "center_writing_weights": False}, None),
    ],
)
def test_processing_after_loading_is_told(options, told):
    model = families.boot("gpt2")
    assert model_info(model).processing == "raw"
    before = fingerprint(model)
    model.enable_compatibility_mode(disable_warnings=True, **options)
    assert model_info(model).processing == (told or "compatibility mode, layer norms folded, value biases folded")
    assert (fingerprint(model) == before) == (options == {"no_processing": True})


def test_the_dtype_told_is_the_models_now():
    model = families.boot("llama")
    assert model_info(model).dtype == "float32"
    model.original_model.double()
    assert model_info(model).dtype == "float64"
    model.original_model.lm_head.half()
    assert model_info(model).dtype == "float64, float16"
