"""The stamp of a model's state sees whatever changes its numbers, and nothing else."""

import copy
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lcalens import LcalensError
from lcalens.core.checksums import checksum, mixed_sums
from lcalens.core.stamp import PerState, holds_steady, stamp, state_of, steady
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.llm.models.load import load_model

FAMILIES = ("gpt2", "llama", "gemma2", "gemma3")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(scope="module")
def fresh(standin):
    """A function from a family to a bridge of its own, which a test may spoil."""

    def get(family):
        if family == "lca":
            torch.manual_seed(0)
            return lca_bridge(LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval())
        one = standin(family)
        return load_model(copy.deepcopy(one.plain), tokenizer=one.tokenizer)

    return get


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 13)[None])[0, -1].clone()


# --- what it sees ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "lca"])
def test_one_element_of_each_tensor_edited_through_data(fresh, family):
    model = fresh(family)
    network = model.original_model
    tensors = [*network.named_parameters(), *network.named_buffers()]
    assert len(tensors) > 3
    before = stamp(model)
    for name, tensor in tensors:
        element = tensor.data[tuple(size // 2 for size in tensor.shape)]
        kept, version = element.clone(), tensor._version
        element.view(BITS[element.element_size()]).bitwise_xor_(1)  # the last bit
        assert tensor._version == version, "an edit through .data that torch counts would be no test"
        assert stamp(model) != before, name
        element.copy_(kept)
        assert stamp(model) == before, name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_given_another_storage_through_data(fresh, family):
    model = fresh(family)
    for name, weight in model.original_model.named_parameters():
        before, kept, version = state_of(model), weight.data, weight._version
        weight.data = weight.data * 3 + 1
        assert weight._version == version
        assert stamp(model) != before.digest, name
        weight.data = kept.clone()  # equal numbers elsewhere: what refers to the others is not valid
        assert stamp(model) == before.digest, name
        assert state_of(model) != before, name


def _edit_config(model):
    model.original_model.config.rms_norm_eps = 0.5


def _edit_submodule_config(model):
    own = copy.deepcopy(model.original_model.config)
    own.final_logit_softcapping = 3.0
    model.original_model.model.layers[1].self_attn.config = own


def _edit_rope_parameters(model):
    model.original_model.config.rope_parameters["rope_theta"] = 7.0


def _edit_scaling(model):
    next(module for module in model.original_model.modules() if hasattr(module, "scaling")).scaling = 0.5


def _edit_eps(model):
    next(m for m in model.original_model.modules() if hasattr(m, "variance_epsilon")).variance_epsilon = 0.5


def _assign_buffer(model):
    for module in model.original_model.modules():
        if "inv_freq" in module._buffers:
            module.inv_freq = module.inv_freq * 0.5


def _load_state_dict(model):
    state = {name: tensor * 1.5 for name, tensor in model.original_model.state_dict().items()}
    model.original_model.load_state_dict(state)


def _half(model):
    model.original_model.half()


def _parametrize(model):
    class Shift(nn.Module):
        def forward(self, weight):
            return weight + 1

    linear = next(m for m in model.original_model.modules() if isinstance(m, nn.Linear))
    nn.utils.parametrize.register_parametrization(linear, "weight", Shift())


def _wrap_like_lora(model):
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down = base, nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    for module in model.original_model.modules():
        for name, inner in module._modules.items():
            if isinstance(inner, nn.Linear):
                module._modules[name] = Adapted(inner)
                return


def _unregistered_tensor(model):
    attention = next(m for m in model.original_model.modules() if hasattr(m, "scaling"))
    attention.steering = torch.ones(3)


def _other_activation(model):
    gated = next(m for m in model.original_model.modules() if hasattr(m, "act_fn"))
    gated.act_fn = nn.ReLU()


def _other_function(model):
    next(m for m in model.original_model.modules() if hasattr(m, "act_fn")).scale_by = lambda x: 2 * x


def _patched_forward(model):
    linear = next(m for m in model.original_model.modules() if isinstance(m, nn.Linear))
    plain = linear.forward
    linear.forward = lambda input: 2 * plain(input)


def _train_mode(model):
    model.original_model.train()


def _one_dropout_in_train_mode(model):
    next(m for m in model.original_model.modules() if isinstance(m, nn.Linear)).training = True


def _compatibility(model):
    model.enable_compatibility_mode(disable_warnings=True)


def _untie(model):
    head = model.original_model.lm_head
    head = getattr(head, "original_component", head)
    head.weight = nn.Parameter(head.weight.detach().clone() + 1)


EDITS = [
    edit
    for name, edit in list(globals().items())
    if name.startswith("_") and getattr(edit, "__module__", "") == __name__
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_whatever_else_decides_the_numbers(fresh, edit):
    model = fresh("llama")
    before = stamp(model)
    edit(model)
    assert stamp(model) != before


def test_soft_caps_windows_and_layer_types(fresh):
    model = fresh("gemma2")
    seen = {stamp(model)}
    for config in {id(m.config): m.config for m in model.original_model.modules() if hasattr(m, "config")}.values():
        if hasattr(config, "final_logit_softcapping"):
            config.final_logit_softcapping = None
    seen.add(stamp(model))
    for module in model.original_model.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = 3.0
            seen.add(stamp(model))
            break
    for module in model.original_model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 5
            seen.add(stamp(model))
            break
    assert len(seen) == 4


def test_a_scale_that_rides_on_a_parameter(fresh):
    """As bitsandbytes keeps the scales of its blocks."""
    model = fresh("llama")
    weight = next(model.original_model.parameters())
    scales = torch.ones(4)
    weight.quant_state = SimpleNamespace(absmax=scales)
    before = stamp(model)
    scales.data[2] += 1
    assert stamp(model) != before


def test_surroundings(fresh):
    model = fresh("llama")
    plain = stamp(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert stamp(model) != plain
    torch.set_default_dtype(torch.float64)
    try:
        assert stamp(model) != plain
    finally:
        torch.set_default_dtype(torch.float32)
    assert stamp(model) == plain


# --- what it does not see -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "lca"])
def test_running_the_model_changes_nothing(fresh, family):
    model = fresh(family)
    before = state_of(model)
    logits(model)
    model.run_with_cache(torch.arange(5, 11)[None])
    assert state_of(model) == before


def test_equal_models_have_equal_stamps_in_any_process(standin, tmp_path):
    one = standin("llama")
    moved = tmp_path / "elsewhere"
    one.plain.save_pretrained(moved)
    one.tokenizer.save_pretrained(moved)
    script = (
        "import sys; from lcalens import load_model; from lcalens.core.stamp import stamp; "
        "print(stamp(load_model(sys.argv[1], progress=False)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(moved)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert told.stdout.split()[-1] == stamp(load_model(one.folder)) == stamp(load_model(one.folder))


# --- checksums ------------------------------------------------------------------------------------------------------

SUMS = {"xxh3": checksum, "mixed": lambda tensor: str(mixed_sums(tensor.reshape(-1).view(torch.uint8)))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("size", [1, 3, 64, 1001])
@pytest.mark.parametrize("how", SUMS)
def test_swaps_signs_and_last_bits_are_seen(how, size, dtype):
    generator = torch.Generator().manual_seed(size)
    plain = (torch.rand(size, generator=generator) * 90 + 1).to(dtype)
    seen, tried = {SUMS[how](plain)}, 1
    bits = torch.int8 if dtype is torch.int8 else BITS[plain.element_size()]
    for place in {0, size // 2, size - 1}:
        for bit in (0, 1, 7):
            other = plain.clone()
            other.view(bits)[place] ^= 1 << bit if bit < 7 or bits is not torch.int8 else -128
            seen.add(SUMS[how](other))
            tried += 1
        other = plain.clone()
        other[place] = -other[place]
        seen.add(SUMS[how](other))
        tried += dtype is not torch.int8 or int(plain[place]) != 0
    assert len(seen) == tried


@pytest.mark.parametrize("how", SUMS)
def test_exchanged_values_are_seen_even_x_and_minus_x(how):
    plain = torch.arange(1, 4097, dtype=torch.float32)
    plain[1::2] *= -1
    plain[2000], plain[3000] = 5.0, -5.0
    seen = {SUMS[how](plain)}
    for first, second in ((0, 1), (0, 2), (0, 4095), (17, 1024), (2000, 3000), (2001, 3001)):
        other = plain.clone()
        other[[first, second]] = plain[[second, first]]
        seen.add(SUMS[how](other))
    rows = plain.view(64, 64)
    seen |= {SUMS[how](rows.flip(0).reshape(-1)), SUMS[how](rows.flip(1).reshape(-1)), SUMS[how](rows.T.reshape(-1))}
    seen.add(SUMS[how](-plain))
    assert len(seen) == 11


def test_the_view_of_a_transposed_or_sliced_tensor_is_its_contents():
    plain = torch.randn(6, 10)
    assert checksum(plain.T) == checksum(plain.T.contiguous()) != checksum(plain)
    assert checksum(plain[:, ::2]) == checksum(plain[:, ::2].contiguous())
    assert checksum(torch.zeros(3)) != checksum(torch.zeros(4))
    assert mixed_sums(torch.zeros(8, dtype=torch.uint8)) != mixed_sums(torch.zeros(16, dtype=torch.uint8))


# --- the door -------------------------------------------------------------------------------------------------------


def test_train_mode_is_taken_out_and_given_back_module_by_module(fresh):
    model = fresh("gpt2")
    expected, plain = logits(model), stamp(model)
    modules = list(model.original_model.modules())
    for module in modules[::3]:
        module.training = True
    modes = [module.training for module in modules]
    with steady(model) as held:
        assert held == plain
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
        assert not any(module.training for module in modules)
    assert [module.training for module in modules] == modes
    with pytest.raises(ZeroDivisionError), steady(model):
        raise ZeroDivisionError
    assert [module.training for module in modules] == modes


def test_autocast_and_absent_weights_are_refused(fresh):
    model = fresh("llama")
    refused = pytest.raises(LcalensError, match="model: autocast to bfloat16")
    with torch.autocast("cpu", torch.bfloat16), refused, steady(model):
        pass
    with pytest.raises(LcalensError, match="model: expected a TransformerBridge"), steady("model"):
        pass
    next(iter(model.original_model.modules())).to("meta")
    with pytest.raises(LcalensError, match="not in memory"), steady(model):
        pass


def test_contents_are_read_once_inside_and_again_outside(fresh, monkeypatch):
    model, read = fresh("llama"), []
    monkeypatch.setattr("lcalens.core.state.checksum", lambda tensor: str(read.append(0) or tensor.sum().item()))
    remembered = PerState()

    @holds_steady
    def measure(model, times):
        for _ in range(times):
            stamp(model)
            remembered.get(model, lambda: made.append(0))

    made = []
    measure(model, 1)
    once = len(read)
    measure(model, 5)
    assert len(read) == 2 * once
    assert len(made) == 1
    next(model.original_model.parameters()).data += 1
    measure(model, times=1)
    assert len(made) == 2


def test_what_is_remembered_is_not_of_objects_that_were_replaced(fresh):
    """Equal numbers elsewhere: what refers to the old tensor would miss the next edit of the new, or follow the old."""
    model, remembered = fresh("llama"), PerState()
    linear = next(m for m in model.original_model.modules() if isinstance(m, nn.Linear))
    old = remembered.get(model, lambda: linear.weight)
    linear.weight = nn.Parameter(old.detach().clone())
    old.data += 1
    assert remembered.get(model, lambda: linear.weight) is linear.weight
