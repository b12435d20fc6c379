"""The tokenizer that a GGUF describes, as transformers rebuilds it, and mended where that splits text otherwise."""

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from lcalens.llm.models.gguf_file import GGUF

# How llama.cpp calls the ways to cut text before merging. Those of GPT-2 are what transformers falls back to; it knows
# more by name. A way that neither knows would give other tokens than the model was trained on.
_AS_GPT2 = frozenset({"default", "gpt-2", "gpt2", "olmo", "jais", "phi-2", "dolma"})
_DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def tokenizer_problem(gguf: GGUF) -> str:
    """Why the file's own tokenizer cannot be trusted; empty where it can."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind = str(gguf.metadata.values.get("tokenizer.ggml.model", ""))
    way = str(gguf.metadata.values.get("tokenizer.ggml.pre", "default"))
    if kind == "llama":
        return ""
    if kind != "gpt2":
        return f"tokenizer.ggml.model is {kind!r}"
    if way in _AS_GPT2 | _DIGIT_BY_DIGIT or way in GGUF_PRE_TOKENIZER_SPLITS:
        return ""
    return f"tokenizer.ggml.pre is {way!r}"


def tokenizer_of(gguf: GGUF) -> Any:
    """The file's tokenizer as transformers reads it, digits apart where the model was trained so."""
    from transformers import AutoTokenizer

    path: Path = gguf.paths[0]
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if str(gguf.metadata.values.get("tokenizer.ggml.pre")) in _DIGIT_BY_DIGIT:
        # "  7": two spaces and a digit, where GPT-2's way alone takes the second space to the digit.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer
