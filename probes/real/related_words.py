"""How much of a hijack is association: what a related word keeps of it (the question that the paper leaves open).

The sentence names a word *related* to the false object in place of the object itself; beside it, an unrelated word of
the same kind, which is the control. What is kept is the change of log Pr[false] - log Pr[true] against "Do not
think of anything.", which names nothing, as a share of the change that the object's own name makes; from the bare
prompt on associates keep less (docs/measured/independent.md). In the toy, part of the context is replaced by
one word at some Hamming distance from the hijacking concept y~, against a random word as far from the true concept y,
both as a share of what y~ itself does there to logit(y~) - logit(y).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens import LatentConcepts, efficacy
from lcalens.core.estimates import over_seeds, ratio_of_facts
from lcalens.llm.prompts.related import related_pairs
from lcalens.llm.prompts.schemes import relations
from probes.harness.figures import curves, dots
from probes.harness.rules import ANY, Evidence, Rule, paired
from probes.harness.run import main
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import (
    FEWEST,
    Work,
    facts_source,
    facts_table,
    judged_facts,
    left_out,
    model_label,
    model_names,
)

RULES = (
    Rule(
        claim="A related word keeps a part of the hijack: it is association, not mention alone.",
        source="the link",
        group="ours",
        effect="the share of the hijack that is left with a related word",
        unit="share of the hijack",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.1,
        control="the share with an unrelated word of the same kind",
        margin=0.1,
    ),
)
CHOICES = """
Which words are related is open. Here they are of lcalens' shipped table, in three strata: a *name* is the country of a
language (French: France, the rendering's own example), a *form* is any other form of the object's name (France:
French), an *associate* shares no stem and no token with it (French: baguette). P1412, whose objects are languages,
stands by itself: the table has no other forms of languages than their countries. In the toy, the share of the context
that is replaced and the distance of y~ from y are open: the last table goes over both. Shares are ratios of means; real
ones have 95% bootstrap intervals that resample whole relations (facts, where there is one relation), the toy's are
Student's over seeds.
"""
_STRATA = {"name": "form", "form": "form", "associate": "word"}
"""The strata, with what their schemes are called."""
_KINDS = tuple(dict.fromkeys(_STRATA.values()))
_SCHEMES = ("dont-think", "neutral", *(f"{word}-{kind}" for kind in _KINDS for word in ("related", "unrelated")))
_WORDS = ("related", "unrelated")
_RELATED_TO = "P1412"


@dataclass(frozen=True, kw_only=True)
class RelatedWords(Settings):
    """What a related and an unrelated word keep of a hijack, in real models and in the toy.

    Attributes:
        models: As `lcalens.load_model` takes them; `paper` stands for the paper's own.
        facts: How many of all relations.
        p1412: How many of P1412 alone.
        fewest: Relations with fewer facts are left out of the figure.
        m: Latent bits of the toys.
        length: Their context length L.
        steps: Their training steps.
        contexts: Contexts a toy model is measured on.
        shares: Shares of the context that are replaced; the verdict is of the first.
        distances: Distances of y~ from y; the verdict is of the first.
    """

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    facts: int = 400
    p1412: int = 100
    fewest: int = 6
    m: tuple[int, ...] = (6, 8)
    length: int = 64
    steps: int = 1000
    contexts: int = 1000
    shares: tuple[float, ...] = (0.5, 0.25)
    distances: tuple[int, ...] = (3, 2)


PRESETS = {
    "quick": RelatedWords(
        preset="quick",
        models=("smollm2",),
        seeds=2,
        facts=6,
        p1412=2,
        fewest=1,
        m=(4,),
        length=16,
        steps=30,
        contexts=50,
        shares=(0.5,),
        distances=(2,),
    ),
    "standard": RelatedWords(),
    "full": RelatedWords(preset="full", facts=1000, steps=3000),
}


def grid(settings: RelatedWords) -> list[dict[str, Any]]:
    """A cell a real model, and one a toy, share and distance."""
    cells: list[dict[str, Any]] = [
        {"part": "real", "model": model, "source": facts_source(), "relations": relation, "facts": limit}
        for model in model_names(settings.models)
        for relation, limit in ((None, settings.facts), (_RELATED_TO, settings.p1412))
    ]
    sizes = {name: getattr(settings, name) for name in ("length", "steps", "seeds", "contexts")}
    for m in settings.m:
        for part in settings.shares:
            cells += [{"part": "toy", "m": m, "share": part, "distance": far} | sizes for far in settings.distances]
    return cells


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row a fact with the log odds behind each sentence; or a row a seed and distance with the shares kept."""
    if cell["part"] == "real":
        about = {"part": "real", "model": cell["model"], "of": cell["relations"] or "all relations"}
        return [about | row for row in _real(cell, work)]
    return [{name: cell[name] for name in ("part", "m", "share", "distance")} | row for row in _toy(cell, work)]


def _real(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    facts = judged_facts(cell["source"], cell["relations"])
    if not len(facts):
        return
    facts = facts.sample(cell["facts"], 0)
    kinds = {pair.object: pair.kind for pair in related_pairs() if pair.stratum == "form"}
    result = efficacy(work.model(cell["model"]), facts, schemes=_SCHEMES, counts=(1,), out=work.parts, progress=False)
    odds = (result.values["logp_false"] - result.values["logp_true"])[:, :, result.axes["n"].index(1)]
    for index, relation in enumerate(result.examples["relation_id"]):
        name = kinds.get(result.examples["target_false"].iloc[index]) == "country"
        yield {"relation": relation, "form": "name" if name else "form"} | dict(
            zip(_SCHEMES, odds[index].tolist(), strict=True)
        )


@torch.no_grad()
def _toy(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    concepts = LatentConcepts(cell["m"])
    runs = work.train(concepts, recipe(cell["m"], cell["length"], steps=cell["steps"]), cell["seeds"])
    generator = torch.Generator().manual_seed(0)
    tokens, y = concepts.sample(cell["contexts"], cell["length"], generator)
    other = y ^ _offset(concepts, torch.full_like(y, cell["distance"]), generator)
    replaced = torch.rand(tokens.shape, generator=generator) < cell["share"]
    replaced[:, -1] = False
    rows = []
    for far in range(1, concepts.m + 1):
        word = other ^ _offset(concepts, torch.full_like(y, far), generator)
        alike = y ^ _offset(concepts, concepts.distance(word, y), generator)
        for run in runs:
            metrics = []
            for put in (None, other, word, alike):
                ids = tokens if put is None else torch.where(replaced, put[:, None], tokens)
                logits = run.model(ids, logits_to_keep=1).logits[:, -1].double()
                metrics.append((logits.gather(1, other[:, None]) - logits.gather(1, y[:, None])).mean().item())
            clean, named, *words = metrics
            kept = [(one - clean) / (named - clean) for one in words]
            rows.append({"far": far, "seed": run.seed} | dict(zip(_WORDS, kept, strict=True)))
    return rows


def _offset(concepts: LatentConcepts, distances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each a mask of that many bits, all equally likely."""
    order = torch.rand(len(distances), concepts.m, generator=generator).argsort(1)
    return ((order < distances[:, None]).long() << torch.arange(concepts.m)).sum(1)


def report(settings: RelatedWords, rows: pd.DataFrame) -> Report:
    """Shares kept: by model, stratum and relation; by distance in the toy."""
    evidence, dotted, strata = _related(rows[rows["part"] == "real"], settings.fewest)
    toy = rows[rows["part"] == "toy"].astype({"m": int, "far": int, "distance": int})
    drawn, swept = [], []
    for (m, part_of, distance), part in toy.groupby(["m", "share", "distance"], sort=False):
        shares = {far: [over_seeds(at[word]) for word in _WORDS] for far, at in part.groupby("far")}
        near = {f"{word}, distance 1": str(one) for word, one in zip(_WORDS, shares[1], strict=True)}
        swept.append({"m": m, "share replaced": part_of, "D_H(y, y~)": distance} | near)
        if (part_of, distance) == (settings.shares[0], settings.distances[0]):
            at = part[part["far"] == 1]
            evidence.append(paired(f"toy, m = {m}, a word at distance 1 from y~", at["related"], at["unrelated"]))
            for far, pair in shares.items():
                drawn += [
                    {"panel": f"toy, m = {m}", "far": far, "word": word} | one._asdict()
                    for word, one in zip(_WORDS, pair, strict=True)
                ]
    return Report(
        evidence=((RULES[0], evidence),),
        figures={
            "Real models: the share of the hijack that a related word keeps, by relation and over all, beside an "
            "unrelated word of the same kind; 95% intervals over a relation's facts, and over relations for all.": dots(
                dotted, xlabel="share kept", series="word", panel="panel"
            ),
            "Toy: the share that a word keeps, over its distance from the hijacking concept, beside a random word as "
            "far from the true one.": curves(
                pd.DataFrame(drawn), x="far", y="mean", xlabel="distance from y~", ylabel="share kept", panel="panel",
                series="word",
            ),
        },
        tables={
            "By stratum: the share of the hijack that is kept": strata,
            "The toy's sweep: what a word next to y~ keeps": pd.DataFrame(swept),
            "The facts": facts_table(facts_source()),
        },
        notes=left_out(facts_source()),
    )  # fmt: skip


def _related(rows: pd.DataFrame, fewest: int) -> tuple[list[Evidence], pd.DataFrame, pd.DataFrame]:
    """Evidence, dots and a table, a row for each model, set of facts and stratum."""
    evidence, dotted, table = [], [], []
    for (name, of), part in rows.groupby(["model", "of"], sort=False):
        model = model_label(str(name))
        for stratum, kind in _STRATA.items():
            there = part[part["form"] == stratum] if kind == "form" else part
            there = there.dropna(subset=["dont-think", "neutral", *(f"{word}-{kind}" for word in _WORDS)])
            if not len(there):
                continue
            whole, kept = _kept(there, kind)
            clusters = there["relation"].to_numpy()
            shares = [ratio_of_facts(one, whole, clusters) for one in (*kept, kept[0] - kept[1])]
            evidence.append(
                Evidence(
                    setting=f"{model}, {of}: {stratum}, {len(there)} facts",
                    effect=shares[0],
                    control=shares[1],
                    excess=shares[2],
                    counted=len(there) >= FEWEST,
                )
            )
            words = dict(zip((*_WORDS, "difference"), map(str, shares), strict=True))
            table.append({"model": model, "facts of": of, "stratum": stratum, "facts": len(there)} | words)
            panel = {"panel": f"{model}\n{stratum}"}
            dotted += [
                panel | {"setting": of, "word": word} | one._asdict()
                for word, one in zip(_WORDS, shares[:2], strict=True)
            ]
            if of != _RELATED_TO:
                dotted += [panel | dot for dot in _by_relation(there, kind, fewest)]
    return evidence, pd.DataFrame(dotted), pd.DataFrame(table)


def _kept(rows: pd.DataFrame, kind: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """For every fact the whole hijack, and what a related and an unrelated word keep of it, in log odds."""
    neutral = rows["neutral"].to_numpy()
    return rows["dont-think"].to_numpy() - neutral, [rows[f"{word}-{kind}"].to_numpy() - neutral for word in _WORDS]


def _by_relation(rows: pd.DataFrame, kind: str, fewest: int) -> Iterator[dict[str, Any]]:
    """A dot for each word and relation with enough facts."""
    for relation, part in rows.groupby("relation"):
        if len(part) < fewest:
            continue
        whole, kept = _kept(part, kind)
        name = f"{relations().get(str(relation), {}).get('label', '')} ({relation})".strip()
        for word, one in zip(_WORDS, kept, strict=True):
            share = ratio_of_facts(one, whole, part["relation"].to_numpy())
            yield {"setting": name, "word": word} | share._asdict()


if __name__ == "__main__":
    sys.exit(main(__name__))
