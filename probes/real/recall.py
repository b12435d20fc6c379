"""Is what carries a hijack an associative memory: of related words, and in the shape that the paper gives it?

The heads that lead are 5% of the model's, rounded down, ranked by exact patching on one half of the facts; all that
is said of them is measured on the other. First their value circuits are read: whether they raise the logit of a word
that is related to the one they look at, when its own token and whatever resembles it in the embedding are regressed
out. Then one of them loses its value circuit: of the first five the one that reads most of the hijack from the
hijacking word itself. In its place stands a memory made of pairs of cues and answers, the paper's W_V less what all
cues and all answers share.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens import LatentConcepts, contrast_concepts, contrast_facts, lca_bridge, leading, memory, patch, recall
from lcalens.core.estimates import over_seeds, ratio_of_facts
from lcalens.llm.prompts.related import related_pairs
from probes.harness.figures import dots
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
        claim="What carries a hijack recalls related words, not the word alone nor what resembles it.",
        source="the link",
        group="ours",
        effect="how far leading heads' value circuits raise a related answer above unrelated ones, own token and "
        "similarity regressed out",
        unit="standard deviations of the unrelated",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.5,
        control="the same of the other heads of their layers, on average",
        margin=0.5,
    ),
    Rule(
        claim="A memory of cues and answers does in the head's place what the head does, of cues that it holds.",
        source="the link",
        group="ours",
        effect="the share of what the head's reading of the cue carries that stays with the memory in its place",
        unit="share of the head's part",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.5,
        control="the same with cues shuffled among the answers",
        margin=0.3,
    ),
    Rule(
        claim="It does so for cues that it was not made of.",
        source="the link",
        group="ours",
        effect="the same, every cue read through a memory of other cues",
        unit="share of the head's part",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.1,
        control="the same with cues shuffled among the answers",
        margin=0.1,
    ),
)
CHOICES = """
Related words are those of lcalens' shipped table that share no stem and no token with the false object; the answer
that is to be raised is the false object. Circuits are read as the word stands in the hijacked run. The other heads
are all that do not lead, in the layers of those that do. In the second part cues are the false objects themselves,
where they are one token: what is held out is then copying. A memory has the circuit's Frobenius norm, so of the cues
that it is made of it may be louder than the head, and a share above 1. The toy's one head is shown beside, with every
token and its neighbours for cues and answers, and not counted: it has no other head, and its memory has every token
for a cue. Intervals resample whole relations; the toy's are Student's over seeds. The minima of the memories were
written when 100 other facts of SmolLM2 had been seen (docs/mechanism.md), and nothing of Gemma 3. In a first run
facts without a one-token word spoilt the choice of the head, which fell on L15H3 in Gemma 3; the rules were not
changed.
"""
_PERCENT = 5
_TRIED = 5  # of the leading heads, whether they read the hijacking word themselves
_OWN, _NOTHING, _MADE = "circuit", "nothing", "centred"


@dataclass(frozen=True, kw_only=True)
class Recall(Settings):
    """What value circuits recall, and memories in their place.

    Attributes:
        models: As `lcalens.load_model` takes them.
        facts: How many; heads are ranked on one half and measured on the other.
        draws: Shuffled pairings, and random circuits of the head's spectrum.
        m: Latent bits of the toys.
        length: Their context length L.
        steps: Their training steps.
        contexts: Contexts a toy model is measured on.
    """

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    facts: int = 400
    draws: int = 20
    m: tuple[int, ...] = (6, 8)
    length: int = 64
    steps: int = 1000
    contexts: int = 200


PRESETS = {
    "quick": Recall(
        preset="quick", models=("smollm2",), seeds=2, facts=40, draws=2, m=(4,), length=16, steps=30, contexts=20
    ),
    "standard": Recall(),
    "full": Recall(preset="full", facts=800, steps=3000),
}


def grid(settings: Recall) -> list[dict[str, Any]]:
    """Two cells a real model, and one a toy."""
    cells: list[dict[str, Any]] = [
        {"part": part, "model": model, "source": facts_source(), "facts": settings.facts, "draws": settings.draws}
        for model in model_names(settings.models)
        for part in ("recall", "memory")
    ]
    toy = {name: getattr(settings, name) for name in ("length", "steps", "seeds", "contexts", "draws")}
    return cells + [{"part": "toy", "m": m} | toy for m in settings.m]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Rows of one cell: numbers a fact, or numbers a seed."""
    part = {"recall": _recall, "memory": _memory, "toy": _toy}[cell["part"]]
    known = {name: cell[name] for name in ("part", "model", "m") if name in cell}
    return [known | row for row in part(cell, work)]


def _ranked(cell: dict[str, Any], work: Work, model: Any) -> tuple[Any, list[tuple[int, int]]]:
    """The facts that are measured on, and the heads that lead on the others."""
    facts = judged_facts(cell["source"]).sample(cell["facts"], 0)
    found = patch(model, contrast_facts(model, facts[::2]), out=work.parts, progress=False)
    return facts, list(leading(found, max(1, found.values["value"][0].size * _PERCENT // 100), by="carrying"))


def _recall(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    model = work.model(cell["model"])
    facts, heads = _ranked(cell, work, model)
    known = {pair.object for pair in related_pairs() if pair.stratum == "associate"}
    contrast = contrast_facts(model, [fact for fact in facts[1::2] if fact.target_false in known],
                              scheme="related-word")  # fmt: skip
    layers = sorted({layer for layer, _ in heads})
    every = [(layer, head) for layer in layers for head in range(model.cfg.n_heads)]
    found = recall(model, contrast, every, level="residual", draws=1, progress=False)
    table = found.wide("sources")
    clusters = contrast.examples["cluster"].astype(str).tolist()
    for (layer, head), (_, part) in zip(every, table.groupby("head", sort=False), strict=True):
        yield {"head": f"L{layer}H{head}", "leads": (layer, head) in heads, "cluster": clusters} | {
            name: part[name].to_numpy(dtype=float) for name in ("left", "related_auc", "own_rank")
        }


def _memory(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    model = work.model(cell["model"])
    facts, heads = _ranked(cell, work, model)
    first, second = (contrast_facts(model, facts[start::2]) for start in (0, 1))
    reads = {head: _read(memory(model, first, head, draws=1, progress=False)) for head in heads[:_TRIED]}
    head = max(reads, key=lambda one: reads[one])
    found = memory(model, second, head, draws=cell["draws"], progress=False)
    judged = found.examples["judged"].to_numpy()
    told = {f"L{layer}H{number}": value for (layer, number), value in reads.items()}
    yield {"set": "ends", "head": f"L{head[0]}H{head[1]}", "reads": told, "of": len(heads), "judged": judged,
           "cluster": second.examples["cluster"].astype(str).tolist(),
           "whole": found.examples["whole"].to_numpy()}  # fmt: skip
    for name in found.axes["memory"]:
        held, every = _part(found, name)
        yield {"set": str(name), "held": held, "every": every}


def _read(found: Any) -> float:
    """What a head's reading of the hijacking word carries, on the facts whose word is one token."""
    judged = found.examples["judged"].to_numpy()
    return float(_part(found, _OWN)[1][judged].mean())


def _part(found: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What a memory adds to nothing in the circuit's place: held out, and of all cues."""
    names = list(found.axes["memory"])
    at, nothing = names.index(name), names.index(_NOTHING)
    held, every = (found.values[quantity] for quantity in ("hijack", "hijack_all"))
    return held[:, at] - held[:, nothing], every[:, at] - every[:, nothing]


def _toy(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    concepts = LatentConcepts(cell["m"])
    runs = work.train(concepts, recipe(cell["m"], cell["length"], steps=cell["steps"]), cell["seeds"])
    pairs = {token: [token ^ (1 << bit) for bit in range(cell["m"])] for token in range(2 ** cell["m"])}
    contrast = contrast_concepts(concepts, limit=cell["contexts"], length=cell["length"],
                                 generator=torch.Generator().manual_seed(0))  # fmt: skip
    for run in runs:
        bridge = lca_bridge(run.model)
        found = memory(bridge, contrast, (0, 0), pairs=pairs, draws=cell["draws"], progress=False)
        own = _part(found, _OWN)[1].mean()
        read = recall(bridge, pairs, [(0, 0)], draws=cell["draws"], progress=False)
        nulls = read.wide("nulls").set_index("null")["left"]
        row = {"seed": run.seed, "left": float(read.wide()["left"].iloc[0]), "random": float(nulls["same spectrum"])}
        for name in (_MADE, f"{_MADE}, shuffled"):
            held, every = _part(found, name)
            row |= {f"{name}, held": float(held.mean() / own), f"{name}, all": float(every.mean() / own)}
        yield row


def report(settings: Recall, rows: pd.DataFrame) -> Report:
    """What leading heads recall beside the others, and what stays with memories in a head's place."""
    evidence: list[list[Evidence]] = [[], [], []]
    tables: dict[str, list[dict[str, Any]]] = {"recall": [], "memory": []}
    shown, stays = [], []
    for name, part in rows[rows["part"] == "recall"].groupby("model", sort=False):
        model = model_label(str(name))
        sets = {leads: np.array(some["left"].tolist(), dtype=float) for leads, some in part.groupby("leads")}
        clusters, each = np.array(part["cluster"].iloc[0]), np.ones(sets[True].shape[1])
        ends = [sets[True].mean(0), sets[False].mean(0)]
        known = np.isfinite(ends[0]) & np.isfinite(ends[1])
        effect, control, excess = (
            ratio_of_facts(values[known], each[known], clusters[known]) for values in (*ends, ends[0] - ends[1])
        )
        setting = f"{model}, {len(sets[True])} heads beside {len(sets[False])}, {int(known.sum())} facts"
        evidence[0].append(Evidence(setting=setting, effect=effect, control=control, excess=excess,
                                    counted=int(known.sum()) >= FEWEST))  # fmt: skip
        shown += [{"setting": model, "of": "leading heads"} | effect._asdict(),
                  {"setting": model, "of": "other heads"} | control._asdict()]  # fmt: skip
        tables["recall"] += [_of_head(model, row, clusters) for row in part[part["leads"]].to_dict("records")]
    for name, part in rows[rows["part"] == "memory"].groupby("model", sort=False):
        model, ends = model_label(str(name)), part[part["set"] == "ends"].iloc[0]
        clusters, judged, whole = (np.array(ends[column]) for column in ("cluster", "judged", "whole"))
        kept = {row["set"]: row for row in part[part["set"] != "ends"].to_dict("records")}
        own = np.array(kept[_OWN]["every"], dtype=float)
        setting = f"{model}, {ends['head']}, {int(judged.sum())} facts"

        def share(
            values: Any, own: np.ndarray = own, judged: np.ndarray = judged, clusters: np.ndarray = clusters
        ) -> Any:
            return ratio_of_facts(np.array(values, dtype=float)[judged], own[judged], clusters[judged])

        for number, kind in ((1, "every"), (2, "held")):
            made, mixed = (np.array(kept[one][kind], dtype=float) for one in (_MADE, f"{_MADE}, shuffled"))
            shares = {"effect": share(made), "control": share(mixed), "excess": share(made - mixed)}
            evidence[number].append(Evidence(setting=setting, **shares, counted=int(judged.sum()) >= FEWEST))
        carries = ratio_of_facts(own[judged], whole[judged], clusters[judged])
        for memory_name, row in kept.items():
            tables["memory"].append({"model": model, "head": ends["head"], "it carries of the hijack": str(carries),
                                     "in its place": memory_name, "held out": str(share(row["held"])),
                                     "of all cues": str(share(row["every"]))})  # fmt: skip
            if memory_name not in (_OWN, _NOTHING):
                for cues, kind in (("held out", "held"), ("all cues", "every")):
                    dot = {"panel": f"{model}, {ends['head']}", "setting": memory_name, "made of": cues}
                    stays.append(dot | share(row[kind])._asdict())
    toys = rows[rows["part"] == "toy"]
    for m in sorted(set(toys["m"].astype(int).tolist())):
        part, setting = toys[toys["m"] == m], f"toy, m = {m}"
        evidence[0].append(paired(setting, part["left"], part["random"], counted=False))
        for number, kind in ((1, "all"), (2, "held")):
            evidence[number].append(paired(setting, part[f"{_MADE}, {kind}"], part[f"{_MADE}, shuffled, {kind}"],
                                           counted=False))  # fmt: skip
        shown.append({"setting": setting, "of": "leading heads"}
                     | over_seeds(part["left"])._asdict())  # fmt: skip
    return Report(
        evidence=tuple(zip(RULES, evidence, strict=True)),
        figures={
            "How far related answers stand above unrelated ones in what heads' value circuits write, own token and "
            "similarity regressed out. 95% intervals.": dots(
                pd.DataFrame(shown), xlabel="standard deviations", series="of"
            ),
            "What stays of a head's part of the hijack with a memory in its place: 1 is the head, 0 is nothing. 95% "
            "intervals.": dots(pd.DataFrame(stays), xlabel="share of the head's part", series="made of", panel="panel"),
        },
        tables={
            "The leading heads' value circuits, of related words": pd.DataFrame(tables["recall"]),
            "Memories in the place of the head that reads most of the word": pd.DataFrame(tables["memory"]),
            "The facts": facts_table(facts_source()),
        },
        notes=left_out(facts_source()),
    )


def _of_head(model: str, row: Any, clusters: np.ndarray) -> dict[str, Any]:
    told: dict[str, Any] = {"model": model, "head": row["head"]}
    for name in ("left", "related_auc", "own_rank"):
        values = np.array(row[name], dtype=float)
        known = np.isfinite(values)
        told[name] = str(ratio_of_facts(values[known], np.ones(known.sum()), clusters[known]))
    return told


if __name__ == "__main__":
    sys.exit(main(__name__))
