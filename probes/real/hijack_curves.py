"""Sentences that change no fact make models prefer the false object (Figures 2, B.1 to B.4).

The efficacy score ES is the share of facts whose false object is the likelier one; it rises under hijacking. What falls
is retention, 1 - ES, shown beside it. Measured over the number n of sentences before the prompt: on facts drawn at
random (Figures 2a, B.1), on four relations (2b, B.2, B.3), on the languages of P1412 with words related to them (B.4),
and on a few facts of every relation. Every scheme stands beside sentences of its own form that name an unrelated
object, or none. That the false object is the likelier of the two does not make it the answer: how often greedy decoding
gives it is in a table of its own.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from lcalens import efficacy
from lcalens.core.estimates import matched
from lcalens.core.tokens import source_tokenizer
from lcalens.llm.facts.facts import Facts
from lcalens.llm.prompts.schemes import relations
from probes.harness.facts import FactCurves, shares_table
from probes.harness.figures import curves, dots
from probes.harness.rules import ANY, CHANGE, Evidence, Rule
from probes.harness.run import main
from probes.harness.study import Counterpart, Report, Settings
from probes.harness.work import (
    Work,
    facts_source,
    facts_table,
    judged_facts,
    left_out,
    model_label,
    model_names,
    parameters_of,
)

_rises = partial(
    Rule,
    effect="the rise in ES from no sentence to the largest n",
    unit="share of facts",
    minimum=0.1,
    margin=0.1,
    effect_range=CHANGE,
    control_range=CHANGE,
)
_RELATED = (
    "It is worth noting that one can hijack even by including only words semantically close to the false target (for "
    "the false target French, for instance, France)."
)
RULES = (
    _rises(
        claim='"Do not think of" the false object makes it likelier than the true object.',
        headline='"Do not think of Chicago" makes the false answer likelier than the true one',
        source="Figure 2a",
        group="paper",
        sentence="Figure 2(a) shows that the efficacy score drops significantly after the hijack.",
        control="the same sentence about an object of another relation",
    ),
    _rises(
        claim="True negated sentences make the false object likelier than the true object.",
        headline='So do true negated sentences: "The Eiffel Tower is not in Chicago"',
        source="Figures 2b, B.2",
        group="paper",
        sentence=(
            "The second scheme adds factually correct sentences. Figure 2(b) reports the results based on relation "
            "P190 (twin city). We see a similar pattern."
        ),
        control="a negated sentence of the subject and an object of another relation",
    ),
    Rule(
        claim="The more sentences, the stronger the hijack.",
        source="Figure 2b",
        group="paper",
        sentence="... a similar pattern: the more sentences are added, the lower the ES score.",
        effect="the rise in log odds from one sentence to the largest n",
        unit="nats",
        minimum=0.0,
        control="as many sentences about an object of another relation",
        margin=0.0,
        effect_range=ANY,
        control_range=ANY,
    ),
    _rises(
        claim="A name near the false object (France, for French) hijacks without naming it.",
        headline="A word near the false answer (France, for French) hijacks too",
        source="section 3, Figure B.4",
        group="paper",
        sentence=_RELATED,
        minimum=0.05,
        control="the same names dealt out to other objects",
        margin=0.05,
    ),
    _rises(
        claim="An associate that shares no stem with the false object (baguette, for French) hijacks too.",
        source="section 3",
        group="stronger",
        minimum=0.05,
        control="the same words dealt out to other objects",
        margin=0.05,
    ),
    _rises(
        claim="Sentences in which nothing false or negated is said hijack too.",
        source="the second scheme, with true sentences about others",
        group="ours",
        control="as many plain sentences that name no object",
    ),
    _rises(
        claim="Naming the true object makes it likelier than the false one more often.",
        headline="Naming the true answer helps recall (reverse hijacking)",
        source="section 5.5, Figures B.1, B.3",
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
The rendering does not say how often the true object must be the likelier one to begin with (here: all facts are
counted; the strata stand beside), how an object of several tokens is scored (here: the whole string), nor how an
instruct model is asked (here: in plain text). The sweep shows the first scheme by its wording, the scoring and the way
of asking. On many relations at once the negated sentence and its control are shown and not counted: the paper's figures
are of one relation each. A largest n that fewer than half of a scheme's facts reach is left out. The known facts, and
those that prefer the true object, were chosen by their answer at n = 0, so their ES begins low by the choice itself.
A negated sentence with the true object is false; Figure B.3 is taken to show such sentences. """
AFTERWARDS = """
P1412 was given 80 facts in place of 50 when a first run had been seen, in which 38 of the 50 had a country's name and
no verdict could be given.
"""
_NEGATED = "{subject} is not {unrelated}."
_CONTROLS = {
    "dont-think": "unrelated",
    "negation": _NEGATED,
    "factual": "neutral-various",
    "related-word": "unrelated-word",
    "reverse-dont-think": "unrelated",
    "reverse-factual": "neutral-various",
}
_CLAIMS = dict(zip(_CONTROLS, (0, 1, 5, 4, 6, 6), strict=True))
_GROWS, _NAMES = 2, 3
_OURS = ("negation", "reverse-factual")
"""Schemes that the paper's figures do not have on many relations at once: shown, not counted."""
_LONG = ("dont-think", "unrelated", "negation", _NEGATED, "neutral")
_RELATED_TO = "P1412"
_P1412 = ("related-form", "unrelated-form", "related-word", "unrelated-word", "dont-think", "neutral")


def _of_relation(name: str) -> dict[str, str]:
    """The relation's negated sentence about the false object, an unrelated one, and the true one."""
    negation = relations()[name]["negation"]
    return {
        "false": "negation",
        "unrelated": negation.replace("{object}", "{unrelated}"),
        "true": negation.replace("{object}", "{target_true}"),
    }


@dataclass(frozen=True, kw_only=True)
class HijackCurves(Settings):
    """ES over the number of sentences.

    Attributes:
        models: Models: names, hub ids or folders; `paper` stands for the paper's own.
        facts: Facts drawn at random.
        counts: Numbers of sentences n.
        few: The same where no claim is about growth: true sentences, related words and the reverse.
        relations: Relations with curves of their own.
        of_relation: At most so many facts of each of them.
        of_related: At most so many facts of P1412, not all of which have related words.
        each: At most so many facts of every relation, at n = 0 and 1.
        sweep: Facts of the sweep.
        wordings: Schemes or sentences of the sweep.
        seed: Of what is drawn at random.
    """

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    facts: int = 200
    counts: tuple[int, ...] = (0, 1, 3, 10)
    few: tuple[int, ...] = (0, 1, 3)
    relations: tuple[str, ...] = ("P103", "P131", "P190", "P641")
    of_relation: int = 50
    of_related: int = 80
    each: int = 8
    sweep: int = 40
    wordings: tuple[str, ...] = ("dont-think", "Forget about {target_false}.", "{target_false}.")
    seed: int = 0


PRESETS = {
    "quick": HijackCurves(
        preset="quick", models=("smollm2",), facts=2, counts=(0, 1), few=(0, 1), relations=("P190",), of_relation=2,
        of_related=2, each=1, sweep=2, wordings=("dont-think",),
    ),
    "standard": HijackCurves(),
    "full": HijackCurves(
        preset="full", counts=(0, 1, 2, 3, 5, 10), facts=500, of_relation=100, of_related=150, each=30, sweep=100
    ),
}  # fmt: skip


def grid(settings: HijackCurves) -> list[dict[str, Any]]:
    """A cell for each model, set of facts and scheme, controls like any other."""
    schemes = list(dict.fromkeys([*_CONTROLS, *_CONTROLS.values(), "neutral"]))
    plan = [("random", settings.facts, s, settings.counts if s in _LONG else settings.few, False) for s in schemes]
    for name in settings.relations:
        plan += [
            (name, settings.of_relation, s, settings.counts, False) for s in (*_of_relation(name).values(), "neutral")
        ]
    plan += [(_RELATED_TO, settings.of_related, s, settings.few, False) for s in _P1412]
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
    """For every fact and n the log odds, and whether greedy decoding gives the false object; a row a scoring."""
    facts, there = _facts(cell)
    model = work.model(cell["model"])
    if not len(facts) or (cell["chat"] and not getattr(source_tokenizer(model), "chat_template", None)):
        return []
    size = parameters_of(model)
    rows = []
    for scoring in ("whole", "first") if cell["part"] == "sweep" else ("whole",):
        asked = {"counts": cell["counts"], "chat": cell["chat"], "seed": cell["seed"], "scoring": scoring}
        found = efficacy(model, facts, schemes=(cell["scheme"],), **asked, out=work.parts, progress=False)
        odds = (found.values["logp_false"] - found.values["logp_true"])[:, 0]
        about = {"known": found.examples["known"].tolist(), "relation": found.examples["relation_id"].tolist()}
        about |= {"scoring": scoring, "there": there, "parameters": size, "says": found.values["greedy_false"][:, 0]}
        rows.append(cell | {"counts": list(found.axes["n"]), "odds": odds} | about)
    return rows


def _facts(cell: dict[str, Any]) -> tuple[Facts, int]:
    """The cell's facts, and from how many they were drawn; the same for every scheme."""
    limit, seed = cell["limit"], cell["seed"]
    if cell["part"] in relations():
        of_relation = judged_facts(cell["source"], cell["part"])
        return (of_relation.sample(limit, seed) if len(of_relation) else of_relation), len(of_relation)
    everything = judged_facts(cell["source"])
    if cell["part"] != "relations":
        return everything.sample(limit, seed), len(everything)
    chosen = [fact for name in everything.relations for fact in everything.where(relations=name).sample(limit, seed)]
    return Facts(chosen, pool=everything.pool, source=everything.source), len(everything)


def report(settings: HijackCurves, rows: pd.DataFrame) -> Report:
    """Changes in ES by scheme, clustered by relation; ES and retention by stratum; what is said; sizes of models."""
    evidence: list[list[Evidence]] = [[] for _ in RULES]
    drawn: dict[str, list[dict[str, Any]]] = {name: [] for name in ("2a", "2b", "B.1", "B.4", "others")}
    shares, said, by_relation, swept, sizes = [], [], [], [], []
    for name, of_model in rows.groupby("model", sort=False):
        model = model_label(str(name))
        parts = {str(part): FactCurves.of(one) for part, one in of_model[of_model["part"] != "sweep"].groupby("part")}
        _judge(evidence, settings, model, parts)
        for figure, lines in _lines(settings, model, parts).items():
            drawn[figure] += lines
        named = [("random", "random"), *((part, part) for part in (*settings.relations, _RELATED_TO) if part in parts)]
        for part, title in named:
            about = {"model": model, "facts of": title}
            shares += [about | row for row in parts[part].table()]
            hijacks = [s for s in ("dont-think", "negation", "factual") if s in parts[part].frames]
            said += [about | row for row in parts[part].said(hijacks)]
        both = {"negation": "negation", "its control": _NEGATED}
        by_relation += [{"model": model} | row for row in parts["relations"].by_relation(both)]
        swept += [_swept(row) for row in of_model[of_model["part"] == "sweep"].to_dict("records")]
        sizes.append(_size(model, int(of_model["parameters"].iloc[0]), parts["random"]))
    relation, note = _by_relation(pd.DataFrame(by_relation))
    captions = _captions(settings)
    there = rows.groupby("part")["there"].max()
    words: dict[str, Any] = {"x": "n", "y": "mean", "xlabel": "sentences n", "ylabel": "efficacy score ES"}
    words |= {"panel": "panel", "series": "series", "ylim": (-0.03, 1.03)}
    figures = {captions[name]: curves(pd.DataFrame(lines), **words) for name, lines in drawn.items() if lines}
    figures[captions["relations"]] = dots(relation, xlabel="change in ES", series="series", panel="model")
    source = rows["source"].iloc[0]
    return Report(
        evidence=tuple(zip(RULES, evidence, strict=True)),
        figures=figures,
        tables={
            "The facts": facts_table(source),
            "Models by size: change in ES on facts drawn at random": pd.DataFrame(
                sorted(sizes, key=_parameters)
            ),
            "Share of facts for which greedy decoding gives the false object, by n": pd.DataFrame(said),
            "Efficacy score ES by n, with Wilson's 95% interval": shares_table(shares),
            "Retention, 1 - ES, by n": shares_table(shares, retention=True),
            f"The sweep: change in ES of {settings.sweep} facts by wording, asking and scoring": pd.DataFrame(swept),
        },
        notes=(
            *left_out(source),
            "Facts by relation: " + "; ".join(
                f"{name} {there.get(name, 0)}, of which at most {limit} are measured"
                for name, limit in [*((name, settings.of_relation) for name in settings.relations),
                                    (_RELATED_TO, settings.of_related)]
            ) + ".",
            note,
            "p is McNemar's, exact, of the largest n against no sentence, Holm-corrected over its column. Each row has "
            "the facts for which all its n exist. *prefers-true* are the facts whose true object is the likelier one "
            "at n = 0, *known* those for which greedy decoding gives it.",
        ),
        paper=_counterparts(settings, captions, [model_label(name) for name in dict.fromkeys(rows["model"])]),
    )  # fmt: skip


def _judge(evidence: list[list[Evidence]], settings: HijackCurves, model: str, parts: dict[str, FactCurves]) -> None:
    """Add one model's settings to every rule's evidence."""
    random = parts["random"]
    for scheme, control in _CONTROLS.items():
        evidence[_CLAIMS[scheme]].append(random.evidence(model, scheme, control, counted=scheme not in _OURS))
    for scheme in ("dont-think", "negation"):
        counted = scheme not in _OURS
        evidence[_GROWS].append(random.evidence(model, scheme, _CONTROLS[scheme], since=1, odds=True, counted=counted))
    for name in settings.relations:
        if name not in parts:
            continue
        of, where = _of_relation(name), f"{model}, {name}"
        evidence[_CLAIMS["negation"]].append(parts[name].evidence(where, of["false"], of["unrelated"]))
        evidence[_GROWS].append(parts[name].evidence(where, of["false"], of["unrelated"], since=1, odds=True))
        evidence[_CLAIMS["reverse-dont-think"]].append(parts[name].evidence(where, of["true"], of["unrelated"]))
    if _RELATED_TO in parts:
        names, where = parts[_RELATED_TO], f"{model}, {_RELATED_TO}"
        evidence[_NAMES].append(names.evidence(where, "related-form", "unrelated-form"))
        evidence[_CLAIMS["related-word"]].append(names.evidence(where, "related-word", "unrelated-word"))


def _lines(settings: HijackCurves, model: str, parts: dict[str, FactCurves]) -> dict[str, list[dict[str, Any]]]:
    """One model's lines for each of the figures of curves."""
    found: dict[str, list[dict[str, Any]]] = {}

    def draw(figure: str, panel: str, curve: FactCurves, lines: dict[str, str]) -> None:
        title = f"{model}\n{panel}".replace(" (", "\n(")
        found.setdefault(figure, []).extend({"panel": title} | row for row in curve.lines(lines))

    for scheme, control in _CONTROLS.items():
        figure = {"dont-think": "2a", "reverse-dont-think": "B.1"}.get(scheme, "others")
        lines = {"the scheme": scheme, "its control": control, "neutral sentence": "neutral"}
        draw(figure, scheme, parts["random"], lines)
    for name in settings.relations:
        if name in parts:
            of = _of_relation(name)
            lines = {"the false object": of["false"], "the true object": of["true"]}
            lines |= {"an object of another relation": of["unrelated"], "neutral sentence": "neutral"}
            draw("2b", name, parts[name], lines)
    if _RELATED_TO in parts:
        lines = {"the object": "dont-think", "its country": "related-form", "another country": "unrelated-form"}
        lines |= {"an associate": "related-word", "another's associate": "unrelated-word"}
        draw("B.4", _RELATED_TO, parts[_RELATED_TO], lines)
    return found


def _captions(settings: HijackCurves) -> dict[str, str]:
    bands = "with 95% Wilson bands; the lines of a panel are of the same facts"
    return {
        "2a": f'ES over the number of sentences "Do not think of", {bands}. Retention is 1 - ES.',
        "2b": f"ES over the number of negated sentences, by relation, {bands}.",
        "B.1": f'ES over the number of sentences "Do not think of" the true object, {bands}.',
        "B.4": f"ES over the number of sentences that name a word related to the false object, P1412, {bands}.",
        "others": f"ES over n for the other schemes, {bands}.",
        "relations": f"Change in ES after one negated sentence, by relation; at most {settings.each} facts each, so "
        "the 95% intervals (Agresti and Min's) are wide.",
    }  # fmt: skip


def _counterparts(settings: HijackCurves, captions: dict[str, str], models: list[str]) -> tuple[Counterpart, ...]:
    ours = "The paper's models are GPT-2, Gemma 2B (base and instruct) and Llama 2 7B; ours here: " + ", ".join(models)
    ours += ". The paper's number of facts is unknown to us"
    many = f"{ours}; ours: {settings.facts}, n = {', '.join(map(str, settings.counts))}."
    fewer = f"{ours}; ours: {settings.facts}, n = {', '.join(map(str, settings.few))}."
    some = f"{ours}; ours: at most {settings.of_relation} a relation, n = {', '.join(map(str, settings.counts))}."
    up = (
        "The paper's sentence speaks of a score that drops. The efficacy score as defined there, the share of facts "
        "with the false object likelier, rises; what drops is retention, 1 - ES. "
    )
    related = f"At most {settings.of_related} facts of P1412, n = {', '.join(map(str, settings.few))}."
    return (
        Counterpart(
            figure="Figure 2a",
            settings=many,
            sentence=RULES[0].sentence,
            caption=captions["2a"],
            paragraph=up + "The control's sentence has the same form and names an object of another relation.",
        ),
        *(
            Counterpart(figure=figure, settings=f"{relation}. {some}", sentence=sentence, caption=captions["2b"],
                        paragraph=words)
            for figure, relation, sentence, words in (
                ("Figure 2b", "P190", RULES[1].sentence, up + "Every sentence before the prompt is true."),
                ("Figure B.2", "P103, P131, P190 and P641, with the false object", RULES[2].sentence,
                 "The relation's own negated sentence about the false object, which is true."),
                ("Figure B.3", "P103, P131, P190 and P641, with the true object", RULES[6].sentence,
                 "The same sentence about the true object. It is a false one, and lowers ES all the same where the "
                 "line falls."),
            )
        ),
        Counterpart(figure="Figure B.1", settings=fewer, sentence=RULES[6].sentence, caption=captions["B.1"],
                    paragraph="Naming the true object, even in order not to think of it, is the reverse of a hijack."),
        Counterpart(
            figure="Figure B.4",
            settings=f"P1412, whose objects are languages. {ours}. {related}",
            sentence=_RELATED,
            caption=captions["B.4"],
            paragraph="The language's country stands in the language's place; beside it associates that share no stem "
            "with it, and the same words dealt out to other languages. Which words the paper used is unknown to us but "
            "for French and France. Shares of the hijack by stratum are on [related_words](related_words.md).",
        ),
    )  # fmt: skip


def _size(model: str, parameters: int, curve: FactCurves) -> dict[str, Any]:
    """A model's change in ES with one sentence and the most, for the table by size."""
    row: dict[str, Any] = {"model": model, "parameters": parameters}
    for scheme in ("dont-think", "negation"):
        (frame,), _ = curve.together(scheme)
        most = max(list(frame.columns))
        row |= {f"{scheme}, n = {n}": str(matched(frame[0], frame[n])) for n in frame if n in (1, most)}
    return row


def _parameters(row: dict[str, Any]) -> int:
    return row["parameters"]


def _by_relation(relation: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The changes by relation, the largest first, and in how many the interval lies above 0."""
    order = relation[relation["series"] == "negation"].groupby("relation")["mean"].mean().sort_values()
    relation = relation.set_index("relation").loc[order.index[::-1]].reset_index()
    labels = {name: relations().get(name, {}).get("label", "") for name in order.index}
    relation["setting"] = [f"{labels[name]} ({name}, {n})" for name, n in relation[["relation", "facts"]].to_numpy()]
    above = relation[relation["low"] > 0].groupby("series").size()
    models = relation["model"].nunique()
    return relation, (
        f"Of {len(order)} relations and {models} {'models' if models > 1 else 'model'}, the interval of the change "
        f"lies above 0 in {above.get('negation', 0)} with the negated sentence of the false object, in "
        f"{above.get('its control', 0)} with the control."
    )


def _swept(row: dict[Any, Any]) -> dict[str, Any]:
    """The change in ES under one way of asking."""
    odds = pd.DataFrame(row["odds"], columns=row["counts"], dtype=float).dropna()
    frame = (odds > 0).astype(float)
    asked = {"wording": row["scheme"], "asked": "chat" if row["chat"] else "raw", "scored": row["scoring"]}
    changes = {f"n = {n}": str(matched(frame[0], frame[n])) for n in row["counts"] if n}
    return {"model": model_label(row["model"])} | asked | {"facts": len(frame)} | changes


if __name__ == "__main__":
    sys.exit(main(__name__))
