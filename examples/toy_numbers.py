"""The toy world in numbers, as Markdown: `python examples/toy_numbers.py > docs/measured/toy.md` (seven minutes).

Accuracy of trained and identity value matrices beside Bayes, five seeds; every theorem and lemma with its verdict;
Lemma 6 over many initialisations and through training.
"""

import torch

from lcalens import LatentConcepts, TrainConfig, train
from lcalens.lca.theory import every_claim, lemma6_pull

print("## Trained, identity and Bayes\n")
print("Accuracy on 16,000 fresh contexts a run: mean over five seeds ± half of Student's 95% interval. d = V/2, d_a =")
print("min(d, 32), omega .5, beta 1, N = all, 1000 steps of 512 contexts; both learning rates shown, none chosen.\n")
print("| m | L | lr | trained W_V | W_V = I | Bayes | diverged |\n| --- | --- | --- | --- | --- | --- | --- |")
for m in (5, 6, 7, 8):
    for length in (64, 128):
        trained = TrainConfig(length, 1 << (m - 1), min(1 << (m - 1), 32))
        identity = TrainConfig(length, trained.d_model, trained.d_head, value="identity", train_value=False)
        configs = [one for recipe in (trained, identity) for one in recipe.grid(lr=(0.02, 0.05))]
        table = train(LatentConcepts(m), configs, seeds=range(5), out="out/toy_numbers").result.summary
        for lr, rows in table.groupby("lr"):
            cells = rows.set_index("value")
            half = (cells["high"] - cells["low"]) / 2
            shown = [f"{cells['accuracy'][kind]:.4f} ± {half[kind]:.4f}" for kind in ("uniform", "identity")]
            print(
                f"| {m} | {length} | {lr} | {' | '.join(shown)} | {rows['bayes'].mean():.4f} | {rows.diverged.sum()} |"
            )

print("\n## Every statement of the paper, with a verdict\n")
print(
    "A verdict is computed by the rule in each function's docstring. The interval is 95%; a single number is exact.\n"
)
print(
    "| statement | setting | what is measured | measured | expected | verdict |\n| --- | --- | --- | --- | --- | --- |"
)
for claim in every_claim(6, generator=torch.Generator().manual_seed(0)):
    low, high = f"{claim.low:.3g}", f"{claim.high:.3g}"
    measured = f"{claim.measured:.3g}" + (f" [{low}, {high}]" if low != high else "")
    cells = (claim.name, claim.setting, claim.quantity, measured, f"{claim.expected:.3g}", claim.verdict)
    print("| " + " | ".join(cells) + " |")

print("\n## Lemma 6's pull over initialisations, and through training\n")
print("Mean downhill pull on a score inside the last token's cluster less that outside; clusters of one bit.\n")
print("| models | number | above 0 | below 0 | interval holds 0 | mean of the difference |")
print("| --- | --- | --- | --- | --- | --- |")


def show(name: str, claims: list) -> None:
    """One row: how many models have a difference whose interval lies on either side of 0."""
    above, below = sum(claim.low > 0 for claim in claims), sum(claim.high < 0 for claim in claims)
    mean = sum(claim.measured for claim in claims) / len(claims)
    print(f"| {name} | {len(claims)} | {above} | {below} | {len(claims) - above - below} | {mean:.2g} |")


for m in (4, 5, 6, 7):
    concepts = LatentConcepts(m, neighborhood="cluster")
    starts = [lemma6_pull(concepts, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    show(f"m = {m}, initial", starts)
concepts = LatentConcepts(6, neighborhood="cluster")
for steps in (5, 20, 50, 100, 300, 1000):
    runs = train(concepts, TrainConfig(64, 32, 16, steps=steps), seeds=range(5), out="out/toy_numbers")
    generator = torch.Generator().manual_seed(0)
    pulls = [lemma6_pull(concepts, run.model, length=64, generator=generator) for run in runs]
    show(f"m = 6, L = 64, trained for {steps} steps", pulls)
