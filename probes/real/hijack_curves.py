"""Sentences that change no fact make models prefer the false object (Figure 2).

The efficacy score ES is the share of facts whose false object is the likelier one; it rises under hijacking. What falls
is retention, 1 - ES, shown beside it. Measured over the number n of sentences before the prompt, on facts drawn
at random (Figure 2a), on relation P190 (Figure 2b), and on a few facts of every relation. Every scheme stands beside
sentences of its own form that name an unrelated object, or none.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lcalens import efficacy, load_facts
from lcalens.core.estimates import matched
from lcalens.core.tokens import source_tokenizer
from lcalens.llm.facts.facts import Facts
from lcalens.llm.prompts.schemes import relations
from probes.harness.facts import FactCurves, shares_table
from probes.harness.figures import curves, dots
from probes.harness.rules import CHANGE, Evidence, Rule
from probes.harness.run import main
from probes.harness.study import Report, Settings
from probes.harness.work import Work, facts_source, facts_table, model_names

_rises = partial(
    Rule, effect="the rise in ES from no sentence to the largest n", unit="share of facts", minimum=0.1,
    margin=0.1, effect_range=CHANGE, control_range=CHANGE)  # fmt: skip
RULES = (
    _rises(
        claim='"Do not think of" the false object makes it likelier than the true object.',
        source="Figure 2a",
        group="paper",
        sentence="Figure 2(a) shows that the efficacy score drops significantly after the hijack.",
        control="the same sentence about an object of another relation",
    ),
    _rises(
        claim="True negated sentences make the false object likelier than the true object.",
        source="Figure 2b",
        group="paper",
        sentence="We see a similar pattern (of factually correct sentences, such as: The Eiffel Tower is not in Guam).",
        control="a negated sentence of the subject and an object of another relation",
    ),
    _rises(
        claim="The more sentences, the stronger the hijack.",
        source="Figure 2b",
        group="paper",
        sentence="... that is, the more sentences are added, the lower the ES score.",
        effect="the rise in ES from one sentence to the largest n",
        minimum=0.05,
        control="as many sentences about an object of another relation",
        margin=0.05,
    ),
    _rises(
        claim="Sentences in which nothing false or negated is said hijack too.",
        source="the second scheme, with true sentences alone",
        group="ours",
        control="as many plain sentences that name no object",
    ),
    _rises(
        claim="A word near the false object hijacks without naming it.",
        source="section 3, French and France",
        group="paper",
        sentence=(
            "It is worth noting that one can hijack even by including only words semantically close to the false "
            "target (for the false target French, for instance, France)."
        ),
        minimum=0.05,
        control="the same words dealt out to other objects",
        margin=0.05,
    ),
    _rises(
        claim="Naming the true object improves recall.",
        source="section 5.5, Figure B.1",
        group="paper",
        sentence="In reverse context hijacking, adding sentences that contain the true target improves factual recall.",
        effect="the change in ES from no sentence to the largest n",
        minimum=-0.05,
        control="as many sentences of the same form that do not name it",
        margin=0.05,
        sense="at most",
    ),
)
CHOICES = """
The paper does not say how often the true object must be the likelier one to begin with (here: all facts are counted,
and the known ones beside), how an object of several tokens is scored (here: the whole string), nor how an instruct
model is asked (here: in plain text). The sweep shows the first scheme by its wording, the scoring and the way of
asking. The negated control on many relations at once has one wording for all of them; on P190 the relation's own. A
largest n that fewer than half of a scheme's facts reach is left out. The known facts were chosen by their answer at
n = 0, so their ES begins low by the choice itself.
"""
_NEGATED = "{subject} is not {unrelated}."
_TWIN = relations()["P190"]["negation"].replace("{object}", "{unrelated}")
_CONTROLS = {
    "dont-think": "unrelated",
    "negation": _NEGATED,
    "factual": "neutral-various",
    "related-word": "unrelated-word",
    "reverse-dont-think": "unrelated",
    "reverse-factual": "neutral-various",
}
_CLAIMS = dict(zip(_CONTROLS, (0, 1, 3, 4, 5, 5), strict=True))
_FEW = ("related-word", "unrelated-word", "reverse-dont-think", "reverse-factual")


@dataclass(frozen=True, kw_only=True)
class HijackCurves(Settings):
    """ES over the number of sentences.

    Attributes:
        models: Models: names, hub ids or folders; `paper` stands for the paper's own.
        facts: Facts drawn at random.
        counts: Numbers of sentences n.
        few: The same where no claim is about growth: related words and the reverse.
        p190: At most so many facts of relation P190.
        each: At most so many facts of every relation, at n = 0 and 1.
        sweep: Facts of the sweep.
        wordings: Schemes or sentences of the sweep.
        seed: Of what is drawn at random.
    """

    models: tuple[str, ...] = ("smollm2",)
    facts: int = 200
    counts: tuple[int, ...] = (0, 1, 3, 10)
    few: tuple[int, ...] = (0, 1, 3)
    p190: int = 60
    each: int = 8
    sweep: int = 40
    wordings: tuple[str, ...] = ("dont-think", "Forget about {target_false}.", "{target_false}.")
    seed: int = 0


PRESETS = {
    "quick": HijackCurves(
        preset="quick", facts=2, counts=(0, 1), few=(0, 1), p190=2, each=1, sweep=2, wordings=("dont-think",)
    ),
    "standard": HijackCurves(),
    "full": HijackCurves(
        preset="full", models=("smollm2", "gemma3-270m"), counts=(0, 1, 2, 3, 5, 10), facts=500, each=30, sweep=100
    ),
}


def grid(settings: HijackCurves) -> list[dict[str, Any]]:
    """A cell for each model, set of facts and scheme, controls like any other."""
    schemes = list(dict.fromkeys([*_CONTROLS, *_CONTROLS.values(), "neutral"]))
    plan = [("random", settings.facts, s, settings.few if s in _FEW else settings.counts, False) for s in schemes]
    plan += [("P190", settings.p190, s, settings.counts, False) for s in ("negation", _TWIN, "neutral")]
    plan += [("relations", settings.each, s, (0, 1), False) for s in ("negation", _NEGATED)]
    plan += [("sweep", settings.sweep, s, settings.few, chat) for chat in (False, True) for s in settings.wordings]
    names = ("part", "limit", "scheme", "counts", "chat")
    common = {"source": facts_source(), "seed": settings.seed}
    return [
        {"model": model} | common | dict(zip(names, one, strict=True))
        for model in model_names(settings.models)
        for one in plan
    ]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """For every fact and n whether the false object is the likelier one; a row a scoring."""
    facts, there = _facts(cell)
    model = work.model(cell["model"])
    if not len(facts) or (cell["chat"] and not getattr(source_tokenizer(model), "chat_template", None)):
        return []
    rows = []
    for scoring in ("whole", "first") if cell["part"] == "sweep" else ("whole",):
        asked = {"counts": cell["counts"], "chat": cell["chat"], "seed": cell["seed"], "scoring": scoring}
        found = efficacy(model, facts, schemes=(cell["scheme"],), **asked, out=work.parts, progress=False)
        odds = (found.values["logp_false"] - found.values["logp_true"])[:, 0]
        about = {"known": found.examples["known"].tolist(), "relation": found.examples["relation_id"].tolist()}
        false = np.where(np.isnan(odds), np.nan, odds > 0)
        rows.append(
            cell | {"scoring": scoring, "there": there, "counts": list(found.axes["n"]), "false": false} | about
        )
    return rows


def _facts(cell: dict[str, Any]) -> tuple[Facts, int]:
    """The cell's facts, and from how many they were drawn; the same for every scheme."""
    everything = load_facts(cell["source"]["name"])
    limit, seed = cell["limit"], cell["seed"]
    if cell["part"] == "P190":
        if "P190" not in everything.relations:
            return everything[:0], 0
        everything = everything.where(relations="P190")
    if cell["part"] != "relations":
        return everything.sample(limit, seed), len(everything)
    chosen = [fact for name in everything.relations for fact in everything.where(relations=name).sample(limit, seed)]
    return Facts(chosen, pool=everything.pool, source=everything.source), len(everything)


def report(settings: HijackCurves, rows: pd.DataFrame) -> Report:
    """Changes in ES by scheme, clustered by relation; ES and retention of all facts and of the known ones."""
    evidence: list[list[Evidence]] = [[] for _ in RULES]
    drawn, table, by_relation, swept = [], [], [], []
    for model, of_model in rows.groupby("model", sort=False):
        parts = {part: FactCurves.of(one) for part, one in of_model[of_model["part"] != "sweep"].groupby("part")}
        views = [(str(model), parts["random"], scheme, control) for scheme, control in _CONTROLS.items()]
        if "P190" in parts:
            views.insert(2, (f"{model}, P190", parts["P190"], "negation", _TWIN))
        for name, curve, scheme, control in views:
            evidence[_CLAIMS[scheme]].append(curve.evidence(name, scheme, control))
            if scheme in ("dont-think", "negation"):
                evidence[2].append(curve.evidence(name, scheme, control, since=1))
            lines = {"the scheme": scheme, "its control": control, "neutral sentence": "neutral"}
            drawn += [{"panel": f"{name}: {scheme}"} | row for row in curve.lines(lines)]
        for part in ("random", "P190"):
            table += [{"model": model, "facts of": part} | row for row in parts[part].table()] if part in parts else []
        both = {"negation": "negation", "its control": _NEGATED}
        by_relation += [{"model": model} | row for row in parts["relations"].by_relation(both)]
        swept += [_swept(row) for row in of_model[of_model["part"] == "sweep"].to_dict("records")]
    relation = pd.DataFrame(by_relation)
    order = relation[relation["series"] == "negation"].groupby("relation")["mean"].mean().sort_values()
    relation = relation.set_index("relation").loc[order.index[::-1]].reset_index()
    labels = {name: relations().get(name, {}).get("label", "") for name in order.index}
    relation["setting"] = [f"{labels[name]} ({name}, {n})" for name, n in relation[["relation", "facts"]].to_numpy()]
    above = relation[relation["low"] > 0].groupby("series").size()
    there = rows.groupby("part")["there"].max()
    return Report(
        evidence=tuple(zip(RULES, evidence, strict=True)),
        figures={
            "Efficacy score ES over the number of sentences n, with 95% Wilson bands; retention is "
            "1 - ES. The three lines of a panel are of the same facts.": curves(
                pd.DataFrame(drawn),
                x="n",
                y="mean",
                xlabel="sentences n",
                ylabel="efficacy score ES",
                panel="panel",
                series="series",
                ylim=(-0.03, 1.03),
            ),
            f"Change in ES after one negated sentence, by relation; at most {settings.each} facts each, so the 95% "
            "intervals (Agresti and Min's) are wide.": dots(
                relation, xlabel="change in ES", series="series", panel="model"
            ),
        },
        tables={
            "The facts": facts_table(rows["source"].iloc[0]),
            "Efficacy score ES by n, with Wilson's 95% interval": shares_table(table),
            "Retention, 1 - ES, by n": shares_table(table, retention=True),
            f"The sweep: change in ES of {settings.sweep} facts by wording, asking and scoring": pd.DataFrame(swept),
        },
        notes=(
            f"Relation P190: {there.get('P190', 0)} facts are in the file, at most {settings.p190} are measured.",
            f"Of {len(order)} relations, the interval of the change lies above 0 in {above.get('negation', 0)} with "
            f"the negated sentence of the false object, in {above.get('its control', 0)} with the control, all models.",
            "p is McNemar's, exact, of the largest n against no sentence, Holm-corrected over its column. Each row has "
            "the facts for which all its n exist.",
        ),
    )


def _swept(row: dict[Any, Any]) -> dict[str, Any]:
    """The change in ES under one way of asking."""
    frame = pd.DataFrame(row["false"], columns=row["counts"], dtype=float).dropna()
    asked = {"wording": row["scheme"], "asked": "chat" if row["chat"] else "raw", "scored": row["scoring"]}
    changes = {f"n = {n}": str(matched(frame[0], frame[n])) for n in row["counts"] if n}
    return {"model": row["model"]} | asked | {"facts": len(frame)} | changes


if __name__ == "__main__":
    sys.exit(main(__name__))
