"""What a related word keeps of a hijack, in plain PyTorch and transformers: `python related_words.py ROWS MODEL`."""

import json
import sys
from functools import cache, lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    """The model in float32 and its tokenizer, from a folder or a GGUF file."""
    path = Path(path)
    where, options = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(where, **options)


def shares(rows, path):
    """By stratum its facts, and against each beginning the hijack in nats and the shares of it that words keep."""
    model, tokenizer = load(path)

    @lru_cache(maxsize=4)
    def log_probs(ids):
        """Log-probabilities (positions, vocabulary) of each next token."""
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def log_prob(prompt, answer):
        """Log Pr[all tokens of the answer, in order, behind the prompt]."""
        before, ids = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {answer}"))
        if ids[: len(before)] != before or len(ids) == len(before):
            raise ValueError(f"{answer!r} has no tokens of its own behind {prompt!r}")
        found = log_probs(tuple(ids[:-1]))
        return sum(found[i - 1, ids[i]].item() for i in range(len(before), len(ids)))

    @cache
    def log_odds(prompt, false, true):
        return log_prob(prompt, false) - log_prob(prompt, true)

    odds = {}
    for row in rows:
        named = [f"Do not think of {word}." for word in (row["false"], row["related"], row["unrelated"], "anything")]
        prompts = [row["prompt"], *(f"{sentence} {row['prompt']}" for sentence in named)]
        odds.setdefault(row["stratum"], []).append([log_odds(one, row["false"], row["true"]) for one in prompts])
    found = {}
    for stratum, each in odds.items():
        bare, false, related, unrelated, anything = torch.tensor(each, dtype=torch.float64).mean(0).tolist()
        found[stratum] = {"facts": len(each)}
        for name, start in (("no sentence", bare), ("a sentence that names nothing", anything)):
            hijack, near, far = (end - start for end in (false, related, unrelated))
            found[stratum][name] = {"hijack": hijack, "related": near / hijack, "unrelated": far / hijack}
    return found


if __name__ == "__main__":
    print(json.dumps(shares(json.loads(Path(sys.argv[1]).read_text("utf-8")), sys.argv[2]), indent=1))
