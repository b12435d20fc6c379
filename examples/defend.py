"""Turning a hijack off: a boundary cut and its detector, judged on facts, relations and words they have not seen.

Run: python examples/defend.py [model] [heads] [layer of the detector]; smollm2 takes a quarter of an hour on one core.
"""

import os
import random
import sys

from lcalens import (
    Defence,
    contrast_facts,
    defend,
    evaluate_defence,
    held_out,
    leading,
    load_facts,
    load_model,
    patch,
    path,
)
from lcalens.llm.facts import Facts
from lcalens.llm.plain import honest_contexts, plain_texts

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
count = int(sys.argv[2]) if len(sys.argv) > 2 else 10
layer = int(sys.argv[3]) if len(sys.argv) > 3 else None

# Half of the relations are kept away from heads and detector; of the other half's facts some are judged on too.
facts = held_out(load_facts("counterfact" if os.environ.get("LCALENS_COUNTERFACT") else "sample"))
relations = sorted({fact.relation_id for fact in facts})
random.Random(0).shuffle(relations)
unseen = set(relations[: len(relations) // 2])
known = Facts([fact for fact in facts if fact.relation_id not in unseen], pool=facts.pool)
train = known.sample(160, 0)
taken = {fact.case_id for fact in train}
others = Facts([fact for fact in known if fact.case_id not in taken], pool=facts.pool).sample(100, 1)
new = Facts([fact for fact in facts if fact.relation_id in unseen], pool=facts.pool).sample(100, 1)
judged = Facts([*others, *new], pool=facts.pool)

model = load_model(name)
ranked = patch(model, contrast_facts(model, train))
heads = {k: leading(ranked, k, by="carrying") for k in (count // 2, count, 2 * count)}
print(heads[count])

bare = contrast_facts(model, train, control="none")
negatives = {"plain text": plain_texts("train", cuts=1)}
negatives |= {kind: [text for text in honest_contexts(train, kind) if text] for kind in ("fiction", "correction")}
late = sorted(layer for layer, _ in heads[count])[count // 5]  # before it a fifth of the heads have run
fitted = {"negatives": negatives, "layer": late if layer is None else layer}
defences: dict[str, Defence | list[Defence]] = {
    f"boundary cut, {k} heads": defend(model, bare, heads=heads[k]) for k in heads
}
for reads in ("residual", "attention"):
    made = defend(model, bare, method="detector", heads=heads[count], reads=reads, **fitted)
    print(reads, {name: made.record[name] for name in ("layer", "caught", "auc", "false_alarms", "too_early")})
    defences[f"detector of {reads}, {count} heads"] = made
cut_by_attention = defend(model, bare, method="attention", heads=heads[count], negatives=negatives)
defences[f"attention, {count} heads"] = cut_by_attention
direct = leading(path(model, contrast_facts(model, train), senders="heads"), count, by="carrying")
defences[f"pruned, {count} heads by direct paths"] = defend(model, bare, method="zero", heads=direct, where="all")
for strength in (1, 2):
    taken_away = defend(model, bare, method="own-token", heads=heads[count], strength=strength)
    defences[f"own token, {strength} times"] = taken_away
for method in ("names", "span", "zero", "mean", "resample", "subtracted"):
    defences[f"{method}, {count} heads"] = defend(model, bare, method=method, heads=heads[count])
defences[f"random {count} heads"] = [
    defend(model, bare, method="random", heads=heads[count], seed=seed) for seed in range(5)
]

schemes = ("dont-think", "Forget about {target_false}.", "negation", "factual", ("factual", 5),
           "Without thinking of {target_false},")  # fmt: skip
found = evaluate_defence(model, defences, judged, schemes=schemes, texts=plain_texts("evaluation", cuts=1))
table = found.wide()
columns = [
    name for name in ("es", "flips", "accuracy", "recovery", "returned", "kept", "kl", "perplexity") if name in table
]
print(table.groupby(["defence", "condition"], sort=False)[columns].first().round(3).to_string())
found.plot().savefig(f"defence_{name}.png", dpi=200)
