"""Movers, amplifiers and counter-heads among the leading twenty, and what draws the movers to the hijacking word.

Run: python examples/kinds_of_heads.py [smollm2 gemma3-270m] [--facts 60]; heads are ranked on as many other facts.
"""

import argparse
import os

from lcalens import contrast_facts, head_kinds, held_out, leading, load_facts, load_model, patch, score_parts

parser = argparse.ArgumentParser()
parser.add_argument("models", nargs="*", default=["smollm2"])
parser.add_argument("--facts", type=int, default=60)
options = parser.parse_args()
source = "counterfact" if os.environ.get("LCALENS_COUNTERFACT") else "sample"
for name in options.models:
    model = load_model(name)
    contrast = contrast_facts(model, held_out(load_facts(source)), scheme="dont-think", limit=2 * options.facts)
    heads = leading(patch(model, contrast[::2]), 20)
    contrast = contrast[1::2]
    found = head_kinds(model, contrast, heads, out=f"kinds_of_heads_{name}")
    print(f"\n{name}, {len(contrast)} facts of {contrast.examples['cluster'].nunique()} relations: {heads}\n")
    shares = [f"{of}_share{end}" for of in ("direct", "total", "heard") for end in ("", "_low", "_high")]
    columns = ["head", "kind", *shares, "on_keys", "on_others", "looks_low"]
    print(found.wide()[columns].round(3).to_string(index=False))
    print(found.wide("counts").round(2).to_string(index=False))
    found.plot().savefig(f"kinds_of_heads_{name}.png", dpi=200)
    movers = [head for head, mover in zip(sorted(heads), found.wide()["mover"], strict=True) if mover]
    if movers:
        parts = score_parts(model, contrast, movers)
        print(f"largest error {parts.provenance['largest_error']:.2g}")
        print(parts.wide("heads").round(2).to_string(index=False))
        print(parts.wide("kinds").round(2).to_string(index=False))
        leaders = parts.wide().sort_values("score", key=abs, ascending=False).groupby(["head", "side"]).head(5)
        print(leaders.sort_values(["head", "side"], kind="stable").round(2).to_string(index=False))
        print(parts.wide("pairs").groupby("head").head(4).round(2).to_string(index=False))
        parts.plot().savefig(f"score_parts_{name}.png", dpi=200)
