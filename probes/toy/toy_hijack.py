"""Words of another concept make the model answer it, words of the true one bring it back (sections 5.5 and C.5).

A share of a context of y is redrawn from p(. | y~), the last token kept: how often models answer y, and how often y~.
Beside them Bayes that takes the context for clean and, the ceiling, Bayes that is told the share alone. The controls
redraw the same positions as noise, or from a third concept one bit from y~. Then tokens are added to hijacked contexts.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lcalens import LatentConcepts
from lcalens.lca import LCAForCausalLM
from lcalens.lca.model.closed_forms import constructed_value, with_value
from lcalens.lca.world import bayes
from probes.harness.figures import bars, curves
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import CHANGE, SHARE, Evidence, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_change
from probes.harness.study import Report, Settings
from probes.harness.toy import Reader, answered, means, reader, recipe, wide
from probes.harness.work import Work

RULES = (
    Rule(
        claim="On a context most of which is redrawn from another concept the model misclassifies.",
        source="sections 5.5, C.5, Figure C.13",
        group="paper",
        sentence=FIGURES["Figure C.13"].sentence,
        effect="the error at the share of the settings",
        unit="share of contexts",
        minimum=0.5,
        control="the error of the same models on the same contexts before",
        margin=0.3,
        effect_range=SHARE,
        control_range=SHARE,
        headline="Mixing another concept's tokens in makes the toy model misclassify",
    ),
    Rule(
        claim="What the model then answers is the other concept, more than noise or a concept beside it would make it.",
        source="sections 5.5, C.5; a stronger control",
        group="stronger",
        effect="the rise of Pr(answer = y~) from the clean context to the share of the settings",
        unit="share of contexts",
        minimum=0.3,
        control="the same positions redrawn as noise or from a concept one bit away from y~, whichever gives more y~",
        margin=0.2,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
    Rule(
        claim="More words of the true concept bring the answer back (reverse hijacking).",
        source="sections 5.5, C.6",
        group="ours",
        effect="accuracy gained on hijacked contexts by adding the most tokens of the true concept",
        unit="accuracy",
        minimum=0.1,
        control="as many tokens of uniform noise",
        margin=0.1,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
)
CHOICES = """
How the paper mixes contexts, draws y~ and treats the last token, and its L and recipe, are unknown to us. Here each
position but the last is redrawn with the share as its probability; a larger share redraws the same positions and more.
y~ is uniform over all tokens but y, so mostly about m/2 bits away; by distance, it is uniform at each. Tokens are added
in front.

Bayes "told nothing" takes hijacked contexts for clean ones, so it is no ceiling there: where a model follows it, the
model is fooled as an ideal reader is. Bayes "told the share" is the ceiling; it sums over all pairs (y, y~), so it
reads fewer contexts. "Identity" is trained with W_V = I; "constructed" is the trained model with W_V replaced by the
constructed one. The rules are about the trained W_V. The sweep has their numbers over learning rates and steps.
"""
_BAYES, _AWARE = "Bayes, told nothing", "Bayes, told the share"
_SOURCES = ("y~", "one bit from y~", "noise")


@dataclass(frozen=True, kw_only=True)
class ToyHijack(Settings):
    """Answers on hijacked contexts, and on those with words of the true concept added.

    Attributes:
        m: Numbers of latent bits.
        lengths: Context lengths L.
        lr: Learning rate.
        steps: Training steps.
        contexts: Contexts measured for each run; at each distance and for each number of added tokens, as many.
        aware: Of these, contexts read by Bayes that is told the share.
        shares: Shares redrawn; 0 and `judged` are always added.
        judged: The share at which the first rule is judged.
        half: The share of the figure by distance, and of the contexts that tokens are added to.
        added: Tokens added, in units of L; 0 is always added.
        sweep_m: Latent bits of the sweep, at the smallest L.
        sweep_lr: Learning rates of the sweep.
        sweep_steps: Steps of the sweep.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    lengths: tuple[int, ...] = (64, 128)
    lr: float = 0.03
    steps: int = 1000
    contexts: int = 4000
    aware: int = 128
    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    judged: float = 0.7
    half: float = 0.5
    added: tuple[float, ...] = (0.5, 1.0, 2.0)
    sweep_m: int = 5
    sweep_lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


PRESETS = {
    "quick": ToyHijack(
        preset="quick", seeds=2, m=(4,), lengths=(32,), steps=60, contexts=1000, sweep_lr=(0.03,), sweep_steps=(30,)
    ),
    "standard": ToyHijack(),
    "full": ToyHijack(preset="full", seeds=3, lengths=(64, 128, 256), steps=3000),
}


def grid(settings: ToyHijack) -> list[dict[str, Any]]:
    """A cell for each m, L and recipe; the sweep has the ends of the curves alone."""
    ends = {"shares": sorted({0.0, settings.judged}), "added": sorted({0.0, max(settings.added)})}
    whole = {name: sorted({*getattr(settings, name), *points}) for name, points in ends.items()}
    plan = [("grid", m, length, settings.lr, settings.steps) for m in settings.m for length in settings.lengths]
    size = (settings.sweep_m, min(settings.lengths))
    plan += [("sweep", *size, lr, steps) for lr in settings.sweep_lr for steps in settings.sweep_steps]
    names = ("part", "m", "L", "lr", "steps")
    shared = {"half": settings.half, "contexts": settings.contexts, "aware": settings.aware, "seeds": settings.seeds}
    return [dict(zip(names, one, strict=True)) | shared | (whole if one[0] == "grid" else ends) for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Train, hijack, and add tokens; a row for each run, reader and point of a curve."""
    concepts, whole = LatentConcepts(cell["m"]), cell["part"] == "grid"
    ours = recipe(cell["m"], cell["L"], cell["lr"], cell["steps"])
    plain = replace(ours, value="identity", train_value=False)
    runs = work.train(concepts, [ours, plain] if whole else ours, cell["seeds"])
    rows = []
    for index, run in enumerate(runs[: cell["seeds"]]):
        readers: dict[str, Reader] = {"trained": reader(run)}
        if whole:
            readers |= {"identity": reader(runs[cell["seeds"] + index]), "constructed": reader(run, _constructed)}
            readers[_BAYES] = partial(bayes.log_likelihood, concepts)
        same = {name: cell[name] for name in ("part", "m", "L", "lr", "steps")} | {"seed": run.seed}
        for curve, x, source, tokens, y, other in hijacked(concepts, cell, torch.Generator().manual_seed(run.seed)):
            place, few = same | {"curve": curve, "x": x, "source": source}, slice(cell["aware"])
            counts, last = concepts.count(tokens)
            for name, read in readers.items():
                true, false = answered(read, counts, last, y, other)
                rows.append(place | {"reader": name, "y": true, "y~": false})
            if whole and curve == "share" and source == "y~":
                told = partial(bayes.mixture_posterior, concepts, share=x)
                true, false = answered(told, counts[few], last[few], y[few], other[few])
                rows.append(place | {"reader": _AWARE, "y": true, "y~": false})
    return rows


def hijacked(
    concepts: LatentConcepts, cell: dict[str, Any], generator: torch.Generator
) -> Iterator[tuple[str, float, str, Tensor, Tensor, Tensor]]:
    """The curve, where on it, what was put in; then contexts, their y and their y~."""
    length, half = cell["L"], cell["half"]
    tokens, y = concepts.sample(cell["contexts"], length, generator)
    other = y ^ torch.randint(1, concepts.vocab_size, y.shape, generator=generator)
    fresh, order = redrawn(concepts, tokens, y, other, generator), torch.rand(tokens.shape, generator=generator)
    for share in cell["shares"]:
        for source, everywhere in fresh.items():
            yield "share", share, source, torch.where(order < share, everywhere, tokens), y, other
    start = torch.where(order < half, fresh["y~"], tokens)
    # The last token of a context comes from another distribution: it is left out of what is added.
    more = {
        name: concepts.sample_mixture(one[:, None], (1.0,), round(max(cell["added"]) * length) + 1, generator)[:, :-1]
        for name, one in {"y": y, "y~": other}.items()
    }
    more["noise"] = torch.randint(concepts.vocab_size, more["y"].shape, generator=generator)
    for times in cell["added"]:
        for source, words in more.items():
            yield "added", times, source, torch.cat([words[:, : round(times * length)], start], 1), y, other
    for distance in range(1, concepts.m + 1) if cell["part"] == "grid" else ():
        offsets = torch.nonzero(concepts.offset_distance == distance).squeeze(1)
        other = y ^ offsets[torch.randint(len(offsets), y.shape, generator=generator)]
        yield "distance", distance, "y~", concepts.hijack(tokens, y, other, share=half, generator=generator), y, other


def redrawn(
    concepts: LatentConcepts, tokens: Tensor, y: Tensor, other: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Every token but the last redrawn: from y~, from a concept one bit away from it that is not y, and as noise."""
    bit = torch.randint(concepts.m, y.shape, generator=generator)
    beside = other ^ (1 << bit)
    beside = torch.where(beside == y, other ^ (1 << (bit + 1) % concepts.m), beside)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    drawn = [concepts.hijack(tokens, y, one, positions=everywhere, generator=generator) for one in (other, beside)]
    noise = torch.randint(concepts.vocab_size, tokens.shape, generator=generator)
    noise[:, -1] = tokens[:, -1]
    return dict(zip(_SOURCES, (*drawn, noise), strict=True))


def _constructed(model: LCAForCausalLM) -> LCAForCausalLM:
    return with_value(model, constructed_value(LatentConcepts(model.config.m), model.embed.weight.detach()))


def report(settings: ToyHijack, rows: pd.DataFrame) -> Report:
    """Evidence by m and L; curves over the share, the distance and the tokens added."""
    where = [f"m = {m}, L = {length}" for m, length in zip(rows["m"], rows["L"], strict=True)]
    words = rows["reader"].str.split(",").str[0] + ", more " + rows["source"]
    rows = rows.assign(error=1 - rows["y"], panel=where, words=words, share=rows["x"], distance=rows["x"])
    main_part, sweep = rows[rows["part"] == "grid"], rows[rows["part"] == "sweep"]
    found = {str(panel): _numbers(settings, part) for panel, part in main_part.groupby("panel", sort=False)}
    share, distance, added = (main_part[main_part["curve"] == curve] for curve in ("share", "distance", "added"))
    judged = share[(share["x"] == settings.judged) & (share["reader"] == "trained")]
    share = share[share["source"] == "y~"]
    shown = share[share["x"].isin([0.0, settings.half, settings.judged])]
    added = added[(added["reader"] == "trained") | ((added["reader"] == _BAYES) & (added["source"] == "y"))]
    swept = []
    for (lr, steps), part in sweep.groupby(["lr", "steps"]):
        numbers = zip(("rise of y~", "control", "accuracy gained", "of noise"), _numbers(settings, part), strict=True)
        broken = {"diverged": part[part["y"].isna()]["seed"].nunique()}
        swept.append({"lr": lr, "steps": steps} | {name: str(mean_change(one)) for name, one in numbers} | broken)
    models = main_part[main_part["reader"].isin(["trained", "identity"])]
    lost = models[models["y"].isna()].drop_duplicates(["panel", "reader", "seed"])
    many, at = f"mean and 95% interval over {settings.seeds} seeds", f"at a share of {settings.half:g}"
    errors = [_error(settings, str(panel), part) for panel, part in main_part.groupby("panel", sort=False)]
    caption = (
        f"Errors by the share redrawn from y~; {many}. Bayes told nothing is no ceiling here; Bayes told the share is, "
        f"and reads {settings.aware} contexts a seed."
    )
    seen = (
        f"With a share of {settings.judged:g} redrawn from y~ the trained models err in "
        f"{span(one.effect.mean for one in errors)} of contexts over all m and L, on the clean ones in "
        f"{span(one.control.mean for one in errors)}. Much of it is information that is gone: beside the bars stands "
        "Bayes, told nothing and told the share."
    )
    ours = f"L = {', '.join(map(str, settings.lengths))}, d = V/2, how contexts are mixed, y~, the recipe; Bayes."
    return Report(
        evidence=(
            (RULES[0], errors),
            (RULES[1], [paired(panel, rise, control) for panel, (rise, control, _, _) in found.items()]),
            (RULES[2], [paired(panel, gain, noise) for panel, (_, _, gain, noise) in found.items()]),
        ),
        figures={
            caption: _bars(share, settings.judged),
            f"Errors over the share redrawn from y~; {many}.": _drawn(share, "error", "error", "share redrawn"),
            f"How often the answer is y~; {many}.": _drawn(share, "y~", "Pr(answer = y~)", "share redrawn"),
            f"The same by the distance of y~ from y, {at}; {many}.": _drawn(distance, "y~", "Pr(answer = y~)", "D_H"),
            f"Accuracy once tokens are added to contexts hijacked {at}; {many}.": _drawn(
                added, "y", "accuracy", "tokens added / L", "words"
            ),
        },
        tables={
            "Errors by share": wide(shown, ("m", "L", "share"), "reader", "error"),
            "How often the answer is y~, by share": wide(shown, ("m", "L", "share"), "reader", "y~"),
            "How often a trained model answers y~, by what is put in": wide(
                judged, ("m", "L", "share"), "source", "y~"
            ),
            f"How often the answer is y~, by distance, {at}": wide(distance, ("m", "L", "distance"), "reader", "y~"),
            f"The sweep: m = {settings.sweep_m}, L = {min(settings.lengths)}": pd.DataFrame(swept),
        },
        paper=(beside("Figure C.13", ours, caption, seen),),
        notes=(f"Runs that diverged, of the trained and the identity together: {len(lost)}.",),
    )


def _numbers(settings: ToyHijack, part: pd.DataFrame) -> list[pd.Series]:
    """Rise of y~ and of its control, gain of the true concept's words and of noise; of the trained model, by seed."""
    kept = part[(part["reader"] == "trained") & (part["curve"] != "distance")]
    over = kept.pivot(index="seed", columns=["curve", "source", "x"], values=["y", "y~"])
    rise, *control = (over["y~", "share", one, settings.judged] - over["y~", "share", one, 0.0] for one in _SOURCES)
    most = max(settings.added)
    gains = [over["y", "added", one, most] - over["y", "added", one, 0.0] for one in ("y", "noise")]
    return [rise, pd.concat(control, axis=1).max(axis=1, skipna=False), *gains]


def _error(settings: ToyHijack, panel: str, part: pd.DataFrame) -> Evidence:
    """The trained model's error at the share that is judged, beside that on the same contexts before."""
    kept = part[(part["reader"] == "trained") & (part["curve"] == "share") & (part["source"] == "y~")]
    over = kept.pivot(index="seed", columns="x", values="error")
    return paired(panel, over[settings.judged], over[0.0])


def _bars(share: pd.DataFrame, judged: float) -> Any:
    """Errors as bars: the shares that are a multiple of a fifth, the one that is judged, and the last."""
    fifths = (share["x"] * 5 - (share["x"] * 5).round()).abs().lt(1e-9)
    shown = share[fifths | share["x"].isin([judged, share["x"].max()])]
    over = means(shown, ("panel", "x", "reader"), "error")
    words = {"xlabel": "share redrawn", "ylabel": "error", "series": "reader", "panel": "panel"}
    return bars(over, x="x", y="mean", **words, ylim=(0, 1.03))


def _drawn(part: pd.DataFrame, what: str, ylabel: str, xlabel: str, series: str = "reader") -> Any:
    over, ends = means(part, ("panel", "x", series), what), (-0.03, 1.03)
    return curves(over, x="x", y="mean", xlabel=xlabel, ylabel=ylabel, panel="panel", series=series, ylim=ends)


if __name__ == "__main__":
    sys.exit(main(__name__))
