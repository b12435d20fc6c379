"""Heads together: Shapley values of the ten heads that carry a hijack, on facts that did not rank them.

Run: python examples/heads_together.py [smollm2 gemma3-270m]
"""

import os
import sys

from lcalens import contrast_facts, held_out, leading, load_facts, load_model, patch, shapley

source = "counterfact" if os.environ.get("LCALENS_COUNTERFACT") else "sample"
for name in sys.argv[1:] or ["smollm2"]:
    model = load_model(name)
    facts = held_out(load_facts(source))
    contrast = contrast_facts(model, facts, scheme="dont-think", limit=400)
    heads = leading(patch(model, contrast[::2]), 10, by="carrying")
    found = shapley(model, contrast[1::2], heads)
    print(f"\n{name}, {len(contrast[1::2])} facts: {heads}\n")
    print(found.wide().round(3).to_string(index=False))
    print(found.wide("together").round(3).to_string(index=False))
    print(found.wide("pairs").sort_values("interaction").head(3).round(3).to_string(index=False))
    print(found.wide("curve")[["size", "recovery", "recovery_low", "recovery_high"]].round(3).to_string(index=False))
    found.plot().savefig(f"heads_together_{name}.png", dpi=200)
