"""How fast facts are scored, against what a user writes by hand; one thread, one run, the same facts and scores.

Peers: (1) a plain Hugging Face loop, one prompt at a time; (2) padded batches of 16, nothing shared, logits of the last
tokens alone. The bound is what the token counts allow over (2): its tokens, padding included, over ours.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lcalens import efficacy, load_facts, load_model
from lcalens.core.cache import cache_root
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.llm.efficacy import scoring
from lcalens.llm.models.gguf import embedded_smollm2
from lcalens.llm.prompts.hijack import hijack_prompts

COUNTS = (0, 1, 2, 3, 5, 10)
FACTS = 60
BATCH = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bridge():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def plain(bridge):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded_smollm2(cache_root()).folder).eval()


def _texts(tokenizer, facts):
    prompts = hijack_prompts(facts, "dont-think", counts=COUNTS).prompts
    pairs = [(p.text, answer) for p in prompts for answer in (p.fact.target_true, p.fact.target_false)]
    items = encode(tokenizer, [text for text, _ in pairs], answers=[answer for _, answer in pairs])
    return [(item.ids, *item.spans["answer"][0]) for item in items]


@torch.no_grad()
def _one_at_a_time(model, texts):
    found = []
    for ids, start, stop in texts:
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(logp[i - 1, ids[i]].item() for i in range(start, stop)))
    return found


@torch.no_grad()
def _padded(model, texts):
    found, tokens = [], 0
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        longest = max(len(ids) for ids, _, _ in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (item, _, _) in enumerate(batch):
            ids[row, longest - len(item) :], mask[row, longest - len(item) :] = torch.tensor(item), 1
        keep = 1 + max(len(item) - start for item, start, _ in batch)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits.log_softmax(-1)
        tokens += ids.numel()
        for row, (item, start, stop) in enumerate(batch):
            shift = len(item) - keep
            found.append(sum(logits[row, i - 1 - shift, item[i]].item() for i in range(start, stop)))
    return found, tokens


def _timed(function, *arguments):
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def test_facts_per_second(benchmark, bridge, plain, monkeypatch, capsys):
    tokenizer, facts = source_tokenizer(bridge), load_facts("sample", limit=FACTS)
    counted = []
    original = scoring.score
    monkeypatch.setattr(
        "lcalens.llm.efficacy.parts.score", lambda *a, **k: counted.append(original(*a, **k)) or counted[-1]
    )

    def ours():
        return efficacy(bridge, facts, schemes=("dont-think",), counts=COUNTS, progress=False)

    scoring.can_share(bridge)  # found once per model, not per study
    result, seconds = _timed(lambda: benchmark.pedantic(ours, rounds=1))
    texts, tokenising = _timed(_texts, tokenizer, facts)
    loop, loop_seconds = _timed(_one_at_a_time, plain, texts)
    (padded, padded_tokens), padded_seconds = _timed(_padded, plain, texts)

    frame = result.to_frame().sort_values(["case_id", "n"], kind="stable")
    order = [fact.case_id for fact in facts]
    frame = frame.set_index(["case_id", "n"]).loc[[(case, n) for case in order for n in COUNTS]]
    mine = frame[["logp_true", "logp_false"]].to_numpy().ravel()
    assert np.abs(mine - loop).max() < 1e-4
    assert np.abs(mine - padded).max() < 1e-4
    assert {item.path for item in counted} == {"shared"}

    tokens = sum(item.tokens for item in counted)
    bound = padded_tokens / tokens
    rows = {
        "facts": FACTS,
        "lcalens, facts/s": FACTS / seconds,
        "plain loop, facts/s": FACTS / (loop_seconds + tokenising),
        "padded batches of 16, facts/s": FACTS / (padded_seconds + tokenising),
        "ratio over the plain loop (aim 8)": (loop_seconds + tokenising) / seconds,
        "ratio over padded batches": (padded_seconds + tokenising) / seconds,
        "bound: what the token counts allow": bound,
        "share of the bound (aim 0.85)": (padded_seconds + tokenising) / seconds / bound,
        "largest difference of a score": float(max(np.abs(mine - loop).max(), np.abs(mine - padded).max())),
    }
    benchmark.extra_info.update(rows)
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:38}{value:10.3g}" for name, value in rows.items()))


def test_second_load_over_first(benchmark, tmp_path, capsys):
    code = (
        "import time; import transformers, transformer_lens.model_bridge; from lcalens import load_model; "
        "t = time.perf_counter(); load_model('smollm2'); print(time.perf_counter() - t)"
    )

    def load():
        command = [sys.executable, "-W", "ignore", "-c", code]
        return float(
            subprocess.run(
                command, env=os.environ | {"LCALENS_CACHE": str(tmp_path)}, capture_output=True, text=True, check=True
            ).stdout
        )

    first = load()
    second = benchmark.pedantic(load, rounds=1)
    rows = {"first load, s": first, "second load, s": second, "ratio (aim 5)": first / second}
    benchmark.extra_info.update(rows)
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:38}{value:10.3g}" for name, value in rows.items()))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is reset through Linux's /proc")
@pytest.mark.parametrize("count", [1000, 10_000])
def test_memory_over_the_number_of_facts(benchmark, count, capsys):
    """A model of one narrow layer with SmolLM2's vocabulary: what grows with the facts is ours, not the model's."""
    code = f"""
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from lcalens import Fact, efficacy, load_model
from lcalens.llm.facts.facts import Facts
from lcalens.core.cache import cache_root
from lcalens.llm.models.gguf import embedded_smollm2
folder = embedded_smollm2(cache_root()).folder
config = LlamaConfig(vocab_size=49152, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
model = load_model(LlamaForCausalLM(config), tokenizer=AutoTokenizer.from_pretrained(folder))
names = ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Cairo"]
facts = Facts([Fact(case_id=i, relation_id="P17", prompt="{{}} is located in", subject=f"Place number {{i}}",
                    target_true=names[i % 8], target_false=names[(i + 1 + i // 8 % 7) % 8]) for i in range({count})])
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

open("/proc/self/clear_refs", "w").write("5")  # from here on; loading took more
before = peak()
efficacy(model, facts, schemes=("dont-think",), counts={COUNTS}, progress=False)
print((peak() - before) / 1024)
"""

    def grown():
        command = [sys.executable, "-W", "ignore", "-c", code]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    megabytes = benchmark.pedantic(grown, rounds=1)
    benchmark.extra_info["peak growth, MiB"] = megabytes
    with capsys.disabled():
        print(f"\n{count} facts: peak memory grows by {megabytes:.0f} MiB (aim: under 3 GB beside SmolLM2)")
    assert megabytes < 3000
