"""GGUF files that are not whole, or say what cannot be carried over: refused, by the name of the tensor or the key."""

import pytest
import torch
import transformers
from helpers import ggufs, standins

from lcalens.core.errors import LcalensError
from lcalens.llm.models import gguf as gguf_cache
from lcalens.llm.models import gguf_file, memory
from lcalens.llm.models.load import load_model

CONFIG = transformers.LlamaConfig(**ggufs.COMMON, rms_norm_eps=1e-5, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def model():
    return ggufs.made(CONFIG)


def refusal(path, tmp_path, **options):
    with pytest.raises(LcalensError) as caught:
        load_model(path, cache_dir=tmp_path / "cache", progress=False, **options)
    left = tmp_path / "cache" / "models"
    assert not left.exists() or not [path for path in left.iterdir() if path.is_dir()], "nothing is kept"
    return str(caught.value)


def written(tmp_path, model, *, name="it.gguf", architecture="llama", **options):
    keys = ggufs.keys_of(CONFIG, **options.pop("keys", {}))
    ggufs.write(tmp_path / name, model, architecture, keys, **options)
    return tmp_path / name


# --- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", ["blk.2.", "blk.1.ffn_up.", "output_norm", "token_embd", "blk.0.attn_norm"])
def test_a_tensor_that_is_missing(model, tmp_path, absent):
    said = refusal(written(tmp_path, model, leave_out=[absent]), tmp_path)
    assert "it.gguf" in said
    assert absent in said
    assert "missing" in said or "lacks" in said


def test_a_tensor_that_the_model_has_no_place_for(model, tmp_path):
    spare = {"blk.0.attn_q_norm.weight": torch.ones(8).numpy()}
    assert "blk.0.attn_q_norm.weight" in refusal(written(tmp_path, model, tensors=spare), tmp_path)


def test_more_layers_than_the_file_says(model, tmp_path):
    assert "blk.2." in refusal(written(tmp_path, model, keys={"block_count": 2}), tmp_path)


def test_a_tensor_of_another_shape(model, tmp_path):
    assert "shape" in refusal(written(tmp_path, model, keys={"feed_forward_length": 48}), tmp_path)
    assert "embedding has" in refusal(written(tmp_path, model, keys={"embedding_length": 16}), tmp_path)
    assert "embedding has" in refusal(written(tmp_path, model, keys={"vocab_size": 100}), tmp_path)


@pytest.mark.parametrize("name", ["it-00001-of-00003.gguf", "it.gguf"])
def test_a_part_without_the_others(model, tmp_path, name):
    path = written(tmp_path, model, name=name, split=(0, 3, 99), leave_out=["blk.2."])
    said = refusal(path, tmp_path)
    assert "of 3" in said or "3 parts" in said
    assert "llama-gguf-split --merge" in said
    assert name == "it.gguf" or "it-00002-of-00003.gguf, it-00003-of-00003.gguf are not beside it" in said


def test_parts_that_are_mixed_up(model, tmp_path):
    for number, inside in ((1, 1), (2, 0)):
        written(tmp_path, model, name=f"it-0000{number}-of-00002.gguf", split=(inside, 2, 30))
    assert "is not part 1 of 2" in refusal(tmp_path / "it-00001-of-00002.gguf", tmp_path)


def test_parts_that_hold_less_than_they_promise(model, tmp_path):
    for number in (1, 2):
        written(tmp_path, model, name=f"it-0000{number}-of-00002.gguf", split=(number - 1, 2, 99))
    assert "promises 99 tensors" in refusal(tmp_path / "it-00001-of-00002.gguf", tmp_path)


def test_what_an_older_reader_converted_is_not_trusted(model, tmp_path):
    path = written(tmp_path, model)
    load_model(path, cache_dir=tmp_path / "cache", progress=False)
    (folder,) = (entry for entry in (tmp_path / "cache" / "models").iterdir() if entry.is_dir())
    assert folder.name.endswith(f"-{gguf_cache._LAYOUT}")
    assert int(gguf_cache._LAYOUT) >= 2


# --- keys -----------------------------------------------------------------------------------------------------------

KEYS = {
    "expert_count": 4,
    "expert_used_count": 2,
    "logit_scale": 0.5,
    "residual_scale": 0.5,
    "embedding_scale": 12.0,
    "attention.scale": 0.3,
    "attention.clamp_kqv": 8.0,
    "attention.causal": False,
    "attention.max_alibi_bias": 8.0,
    "attn_logit_softcapping": 30.0,
    "final_logit_softcapping": 30.0,
    "attention.value_length": 4,
    "attention.head_count_kv": [2, 2, 1],
    "rope.dimension_count": 4,
    "rope.scaling.attn_factor": 1.2,
    "rope.scaling.type": "longrope",
    "rope.scaling.alpha": 2.0,
    "nextn_predict_layers": 1,
    "a.key.of.tomorrow": 1,
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_cannot_be_carried(model, tmp_path, key):
    keys = {key: KEYS[key]} | ({"attention.key_length": 8} if key == "attention.value_length" else {})
    said = refusal(written(tmp_path, model, keys=keys), tmp_path)
    assert key.split(".")[-1] in said or "values of width 4" in said or "rope_factors" in said or "shape" in said


@pytest.mark.parametrize(
    "more",
    [
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 0.1},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5},
        {"rope.scaling.type": "su", "rope.scaling.factor": 4.0},
    ],
)
def test_a_scaling_that_cannot_be_carried(model, tmp_path, more):
    assert "rope.scaling" in refusal(written(tmp_path, model, keys=more), tmp_path)


@pytest.mark.parametrize("count", [2, 4])
def test_frequency_factors_that_do_not_fit(model, tmp_path, count):
    options = {"keys": {"rope.scaling.factor": 2.0}} if count == 4 else {}
    path = written(tmp_path, model, tensors={"rope_freqs.weight": [2.0] * count}, **options)
    assert "rope_freqs.weight" in refusal(path, tmp_path)


def test_a_key_without_which_there_is_no_model(model, tmp_path):
    assert "llama.block_count" in refusal(written(tmp_path, model, keys={"block_count": None}), tmp_path)


def test_keys_with_the_values_that_mean_nothing(model, tmp_path):
    neutral = {"expert_count": 0, "logit_scale": 1.0, "attention.causal": True, "rope.scaling.finetuned": True}
    load_model(written(tmp_path, model, keys=neutral), cache_dir=tmp_path / "cache", progress=False)


def test_what_is_no_model(model, tmp_path):
    assert "holds no model but: adapter" in refusal(
        written(tmp_path, model, keys={"general.type": "adapter"}), tmp_path
    )


@pytest.mark.parametrize("architecture", ["falcon", "qwen2moe", "mamba", "granite"])
def test_architectures_that_are_not_proven(model, tmp_path, architecture):
    path = tmp_path / "it.gguf"
    standins.save_tiny_gguf(path, architecture=architecture)
    said = refusal(path, tmp_path)
    assert f"architecture '{architecture}'" in said
    assert "proven for llama" in said


# --- tokenizers and memory ------------------------------------------------------------------------------------------


def test_a_tokenizer_that_cuts_text_in_an_unknown_way(model, tmp_path):
    path = written(tmp_path, model, pre="of-tomorrow")
    with pytest.raises(LcalensError, match=r"tokenizer\.ggml\.pre is 'of-tomorrow'.*tokenizer="):
        load_model(path, cache_dir=tmp_path / "cache", progress=False)
    mine = standins.byte_level_tokenizer()
    load_model(path, tokenizer=mine, cache_dir=tmp_path / "cache", progress=False)


def test_digits_are_apart_where_the_model_was_trained_so(model, tmp_path):
    path = written(tmp_path, model, pre="smollm")
    bridge = load_model(path, cache_dir=tmp_path / "cache", progress=False)
    tokens = bridge.lcalens_info.tokenizer.tokenize("a  7")
    assert tokens[-1] == "7"
    assert "Ġ7" not in tokens


def test_a_file_that_cannot_fit_is_refused_before_it_is_read(model, tmp_path, monkeypatch):
    path = written(tmp_path, model)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(gguf_file.GGUF, "read", lambda *arguments: pytest.fail("read"))
    assert "does not fit into memory" in refusal(path, tmp_path)
