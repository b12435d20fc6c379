"""Small models and tokenizers built here from Hugging Face's own parts, and the slow answers they are held against.

Nothing of lcalens is used: what these say is what Hugging Face says.
"""

import copy
import functools
import json

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Poland": "Warsaw",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
}
LANGUAGES = {
    "Dante": "Italian",
    "Cervantes": "Spanish",
    "Goethe": "German",
    "Tolstoy": "Russian",
    "Camus": "French",
    "Mishima": "Japanese",
    "Homer": "Greek",
    "Ibsen": "Norwegian",
}
FACTS = [(f"The capital of {land} is", city) for land, city in CAPITALS.items()] + [
    (f"The mother tongue of {name} is", tongue) for name, tongue in LANGUAGES.items()
]
CORPUS = [f"{prompt} {answer}" for prompt, answer in FACTS] + [f"Do not think of {answer}." for _, answer in FACTS]
FAMILIES = ("gpt2", "gemma", "gemma2", "gemma3", "llama")
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def byte_level_tokenizer():
    """As GPT-2's: byte-level BPE, a word's leading space in its token, no BOS of its own accord."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def metaspace_tokenizer(prepend="never"):
    """As Gemma's: BPE over ▁ for spaces, bytes for the unknown, a BOS first; with `prepend="first"` as LLaMA 2's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def capital_records():
    """16 facts of two relations, as a file has them."""
    cities = list(CAPITALS.values())
    return [
        {
            "case_id": i,
            "relation_id": "P36" if i % 2 else "P1376",
            "prompt": "The capital of {} is",
            "subject": land,
            "target_true": cities[i],
            "target_false": cities[i - 3],
        }
        for i, land in enumerate(CAPITALS)
    ]


def stirred(plain, seed=7):
    """A copy whose norms have gains and projections biases: as models are made, these are ones and zeros."""
    network, generator = copy.deepcopy(plain), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return network


def loud_toy():
    """A toy model whose embeddings and attention are large enough for where it looks to matter."""
    torch.manual_seed(0)
    model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(2)
        for linear in (model.attn.q, model.attn.k, model.attn.v):
            linear.weight.mul_(4)
    return lca_bridge(model)


def config_of(family, vocabulary, **changes):
    """A small configuration of each family, with what sets the family apart; its weights are large on purpose."""
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 160,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    if family == "gpt2":
        small = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 160, "initializer_range": 0.1}
        return GPT2Config(**({"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0} | small | changes))
    if family == "gpt_neo":
        small = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        same = {"vocab_size": vocabulary, "max_position_embeddings": 160, "initializer_range": 0.2}
        return GPTNeoConfig(**(same | small | {"bos_token_id": 0, "eos_token_id": 0} | changes))
    if family == "gemma":
        return GemmaConfig(**(common | {"num_key_value_heads": 1} | changes))
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 15.0, "query_pre_attn_scalar": 24}
        return Gemma2Config(**(common | caps | {"sliding_window": 64} | changes))
    if family == "gemma3":
        layers = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 64}
        return Gemma3TextConfig(**(common | layers | {"query_pre_attn_scalar": 24} | changes))
    return LlamaConfig(**(common | {"tie_word_embeddings": False} | changes))


def tokenizer_of(family):
    return byte_level_tokenizer() if family.startswith("gpt") else metaspace_tokenizer()


def save_standin(folder, family, *, train_steps=0, **changes):
    """A model and its tokenizer as a Hugging Face folder, trained on CORPUS where asked to."""
    tokenizer = tokenizer_of(family)
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, len(tokenizer), **changes))
    if train_steps:
        _train(model, tokenizer, train_steps)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train(model, tokenizer, steps):
    # One sentence alone, or behind another: the answers must not hang on their place.
    lines = CORPUS + [f"{a}. {b}" for a, b in zip(CORPUS, CORPUS[7:] + CORPUS[:7], strict=True)]
    rows = [tokenizer(line).input_ids for line in lines]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def hugging_face(folder, **options):
    """The folder's model as Hugging Face loads it, eager and in float32."""
    options = {"attn_implementation": "eager", "dtype": torch.float32} | options
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def hugging_face_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def logits_of(model, ids):
    """One sequence's logits from a plain forward pass: no padding, no mask, no cache."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def brute_force(model, ids, start, stop):
    """The log-probability of tokens start to stop, one forward pass for each, and whether each is the likeliest."""
    total, greedy = 0.0, True
    for at in range(start, stop):
        logp = _next_token(model, tuple(ids[:at]))
        total += logp[ids[at]].item()
        greedy &= int(logp.argmax()) == ids[at]
    return total, greedy


@functools.lru_cache(maxsize=8192)  # questions have many a beginning in common; the plain models never change
def _next_token(model, ids):
    return torch.log_softmax(logits_of(model, ids)[-1].double(), -1)


def token_bytes(tokenizer, ids, *, byte_level):
    """What each token stands for, in bytes, read off the vocabulary; nothing for special tokens."""
    alphabet = _byte_alphabet()
    found = []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in tokenizer.all_special_tokens:
            found.append(b"")
        elif byte_level:
            found.append(bytes(alphabet[character] for character in token))
        elif len(token) == 6 and token.startswith("<0x"):
            found.append(bytes([int(token[3:5], 16)]))
        else:
            found.append(token.replace("▁", " ").encode())
    return found


def _byte_alphabet():
    """GPT-2's table: printable bytes stand for themselves, the rest for 256, 257, ... (Radford et al., encoder.py)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(other)}


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def save_tiny_gguf(path, *, seed=0, architecture="llama"):
    """A two-layer LLaMA as a GGUF file, as llama.cpp's converter writes one; the model it was made from is returned."""
    tokenizer = byte_level_tokenizer()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    config = config_of("llama", len(tokenizer), bos_token_id=0, eos_token_id=0, num_hidden_layers=2)
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(spec["vocab"], key=spec["vocab"].get))
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(spec["vocab"]) - 1))
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spec["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:  # llama.cpp keeps the rotated pairs side by side
                values = values.reshape(heads, 2, -1, config.hidden_size).swapaxes(1, 2).reshape(values.shape)
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def raising(model, contrast):
    """The contrast with both answers exchanged where the hijack lowers the metric, so that it raises it everywhere."""
    from lcalens import Contrast, patch

    ends = patch(model, contrast, site="attn_out", progress=False).examples
    lowers = ends["hijacked"] < ends["clean"]
    pairs = list(zip(contrast.true, contrast.false, lowers, strict=True))
    return Contrast(
        [list(row) for row in contrast.clean],
        [list(row) for row in contrast.hijacked],
        true=[list(false if lower else true) for true, false, lower in pairs],
        false=[list(true if lower else false) for true, false, lower in pairs],
        spans={name: [list(row) for row in rows] for name, rows in contrast.spans.items()},
    )
