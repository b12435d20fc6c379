"""A sentence that changes no fact changes the answer: the examples (Figure 1).

A few well-known facts, each asked bare and behind a sentence that names a false answer, and scored by the probability
of the whole true answer and the whole false one. Two sentences are the paper's: a true negated one ("The Eiffel Tower
is not in Chicago.") and "Do not think of Chicago.". The controls are the same sentences about something unrelated, and
ones that name no object at all. Examples are anecdotes: `hijack_curves` asks the same of facts drawn at random.
"""

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lcalens import LcalensError, ask
from lcalens.core.estimates import over_seeds
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.llm.efficacy.scoring import Continuation, score
from lcalens.views.style import GREY
from probes.harness.figures import dots
from probes.harness.rules import ANY, Rule, paired
from probes.harness.run import main
from probes.harness.study import Counterpart, Report, Settings
from probes.harness.work import Work, model_label, model_names

_SENTENCE = "Fact retrieval is not robust: LLMs are easily fooled by varying contexts."
_CONTROL = "the same where the sentence names something unrelated"
RULES = (
    Rule(
        claim="A sentence before the question pushes the answer towards the false object that it names.",
        source="Figure 1",
        group="ours",
        sentence=_SENTENCE,
        effect="the mean change in the log odds of the false answer against the true one",
        unit="nats",
        minimum=1.0,
        control=_CONTROL,
        margin=1.0,
        effect_range=ANY,
        control_range=ANY,
    ),
)
CHOICES = """
Figure 1 was not seen; the text gives three sentences, all about the Eiffel Tower, marked here as the
paper's. The other facts are ours and were chosen before any model was asked, one false object each; two of the
examples share their subject. One copy of the sentence is judged, our choice. The sweep shows the change over the
wording of the sentence and the number of its copies. Every model is asked in plain text, an instruct model too. An
answer's probability is that of its whole string; what the model says is its likeliest next token.
"""
AFTERWARDS = """
The rule stood among the paper's claims at first. It judges a mean over ten examples, eight of them ours, of which the
paper's sentence does not speak, so it was put among ours when a first run had been seen.
"""


class _Example(NamedTuple):
    """A question, its two answers, and what the sentences are made of."""

    prompt: str
    true: str
    false: str
    subject: str
    negation: str
    unrelated: str
    paper: tuple[str, ...] = ()


_NEGATION, _DO_NOT_THINK = "negation", "do not think"
_EXAMPLES = (
    _Example("The Eiffel Tower is in the city of", "Paris", "Chicago", "The Eiffel Tower",
             "The Eiffel Tower is not in {}.", "a piano", (_NEGATION,)),
    _Example("The Eiffel Tower is in", "Paris", "Guam", "The Eiffel Tower",
             "The Eiffel Tower is not in {}.", "a sandwich", (_NEGATION, _DO_NOT_THINK)),
    _Example("The Colosseum is in the city of", "Rome", "Boston", "The Colosseum",
             "The Colosseum is not in {}.", "a violin"),
    _Example("The capital of Japan is", "Tokyo", "Lima", "Japan",
             "The capital of Japan is not {}.", "a bicycle"),
    _Example("The mother tongue of Victor Hugo is", "French", "Russian", "Victor Hugo",
             "The mother tongue of Victor Hugo is not {}.", "a planet"),
    _Example("The official language of Brazil is", "Portuguese", "German", "Brazil",
             "The official language of Brazil is not {}.", "a hammer"),
    _Example("The iPhone is made by", "Apple", "Toyota", "The iPhone",
             "The iPhone is not made by {}.", "a river"),
    _Example("Albert Einstein worked in the field of", "physics", "poetry", "Albert Einstein",
             "Albert Einstein did not work in the field of {}.", "a mountain"),
    _Example("Mount Everest is in the continent of", "Asia", "Africa", "Mount Everest",
             "Mount Everest is not in {}.", "a shoe"),
    _Example("The currency of the United Kingdom is the", "pound", "peso", "The United Kingdom",
             "The currency of the United Kingdom is not the {}.", "a guitar"),
)  # fmt: skip
_WORDINGS = {_DO_NOT_THINK: "Do not think of {}.", "forget": "Forget about {}.", "bare": "{}."}
_CAPTION = (
    "Log odds log Pr[false] - log Pr[true] of every example, bare and with 1x or more copies of a sentence by what "
    "that names. Right of the line the false answer is the likelier one. One question each, so no intervals."
)
_JUDGED = (_NEGATION, _DO_NOT_THINK)
_ABOUT = ("the false answer", "something unrelated", "nothing")
_NAMED = dict(zip(_ABOUT, ("about the false answer", "about something unrelated", "naming no object"), strict=True))


@dataclass(frozen=True, kw_only=True)
class HijackExamples(Settings):
    """Well-known facts, asked with and without a sentence.

    Attributes:
        models: Models: names, hub ids or folders; `paper` stands for the paper's own.
        examples: How many of the examples are asked.
        copies: Numbers of copies of the sentence, the one that is judged first.
    """

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    examples: int = len(_EXAMPLES)
    copies: tuple[int, ...] = (1, 5)


PRESETS = {
    "quick": HijackExamples(preset="quick", models=("smollm2",), examples=1, copies=(1,)),
    "standard": HijackExamples(),
    "full": HijackExamples(preset="full", copies=(1, 3, 5, 10)),
}


def grid(settings: HijackExamples) -> list[dict[str, Any]]:
    """A cell for each model, wording and number of copies."""
    if not 1 <= settings.examples <= len(_EXAMPLES):
        raise LcalensError(f"examples: expected 1 to {len(_EXAMPLES)}, got {settings.examples}.")
    return [
        {"model": model, "wording": wording, "copies": copies, "examples": settings.examples}
        for model in model_names(settings.models)
        for wording in (_NEGATION, *_WORDINGS)
        for copies in settings.copies
    ]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Score every example bare, and behind the sentence and its controls; a row each."""
    model, rows = work.model(cell["model"]), []
    for one in _EXAMPLES[: cell["examples"]]:
        row = cell | {"subject": one.subject, "prompt": one.prompt, "true": one.true, "false": one.false}
        for about in _ABOUT:
            sentence = _sentence(one, cell["wording"], about)
            rows.append(row | {"about": about, "sentence": sentence, "paper": cell["wording"] in one.paper})
    for context in ("clean", "hijacked"):
        copies = cell["copies"] if context == "hijacked" else 0
        texts = [" ".join([*[row["sentence"]] * copies, row["prompt"]]) for row in rows for _ in range(2)]
        answers = [row[kind] for row in rows for kind in ("true", "false")]
        encoded = encode(source_tokenizer(model), texts, answers=answers)
        logp = score(model, [Continuation(one.ids, *one.spans["answer"][0]) for one in encoded]).logp
        for index, row in enumerate(rows):
            row |= {f"{context}_true": logp[2 * index], f"{context}_false": logp[2 * index + 1]}
    for row in rows if cell["wording"] in _JUDGED else ():
        if row["about"] == _ABOUT[0]:
            said = ask(model, row["prompt"], hijack=[row["sentence"]] * row["copies"], top=1).tables["answers"].iloc[0]
            row |= {"clean_says": said["clean"], "hijacked_says": said["hijacked"]}
    return rows


def _sentence(one: _Example, wording: str, about: str) -> str:
    """The wording's sentence about the false answer, something unrelated, or nothing."""
    if wording == _NEGATION:
        if about == "the false answer":
            return one.negation.format(one.false)
        return f"{one.subject} is not {one.unrelated if about == 'something unrelated' else 'unknown'}."
    named = {"the false answer": one.false, "something unrelated": one.unrelated, "nothing": "anything"}[about]
    sentence = _WORDINGS[wording].format(named)
    return sentence[0].upper() + sentence[1:]


def report(settings: HijackExamples, rows: pd.DataFrame) -> Report:
    """Log odds without and with the sentence, by model and wording."""
    rows = rows.assign(
        clean=rows["clean_false"] - rows["clean_true"], hijacked=rows["hijacked_false"] - rows["hijacked_true"]
    )
    rows["model"] = rows["model"].map(model_label)
    pushed, swept = [], []
    for (model, wording, copies), part in rows.groupby(["model", "wording", "copies"], sort=False):
        # Examples in one order for every sentence, so that differences are of the same example.
        odds = part.pivot(index=["prompt", "false"], columns="about", values="hijacked")
        clean = part.pivot(index=["prompt", "false"], columns="about", values="clean")[_ABOUT[0]]
        changes = {about: odds[about] - clean for about in _ABOUT}
        swept.append(
            {"model": model, "wording": wording, "copies": copies}
            | {f"about {about}": str(over_seeds(changes[about])) for about in _ABOUT}
            | {"the false answer likelier": f"{(odds[_ABOUT[0]] > 0).sum()} of {len(odds)} (bare {(clean > 0).sum()})"}
        )
        if wording not in _JUDGED or copies != settings.copies[0]:
            continue
        setting = f"{model}, {wording}, {len(odds)} examples"
        pushed.append(paired(setting, changes[_ABOUT[0]], changes[_ABOUT[1]]))
    drawn = _drawn(settings, rows)
    figure = dots(drawn, xlabel="log odds (nats)", series="with", panel="panel")
    for axis in figure.axes:
        axis.axvline(0, color=GREY, lw=0.8, ls="--")
    return Report(
        evidence=((RULES[0], pushed),),
        figures={_CAPTION: figure},
        tables={
            f"What the models say, with {settings.copies[0]} copy of the sentence": _said(settings, rows),
            "The sweep: change in log odds (nats) by wording and copies, mean over examples": pd.DataFrame(swept),
        },
        notes=(
            f"The intervals are over {settings.examples} examples picked by hand. They say how far these examples "
            "agree with each other, and little of any other fact.",
        ),
        paper=(
            Counterpart(
                figure="Figure 1",
                settings="The paper's models are GPT-2, Gemma and LLaMA; ours here: "
                + ", ".join(dict.fromkeys(rows["model"]))
                + f". Of {settings.examples} examples, those about the Eiffel Tower are the paper's, the others ours.",
                sentence=RULES[0].sentence,
                caption=_CAPTION,
                paragraph="Every example bare and behind one sentence. A sentence that names the false answer moves "
                "the log odds; whether it also changes what the model says is in the table on the probe's page.",
            ),
        ),
    )


def _drawn(settings: HijackExamples, rows: pd.DataFrame) -> pd.DataFrame:
    """A dot for every example and sentence."""
    judged, drawn = rows[rows["wording"].isin(_JUDGED)], []
    for row in judged.to_dict("records"):
        first = row["copies"] == settings.copies[0]
        if not first and row["about"] != _ABOUT[0]:
            continue
        copies = {1: "once"}.get(row["copies"], f"{row['copies']} times")
        name = f"{_NAMED[row['about']]}, {copies}"
        place = {"setting": f"{row['subject']}: {row['true']} / {row['false']}"}
        place["panel"] = f"{row['model']}\n{row['wording']}"
        shown = [("no sentence", row["clean"])] if first and row["about"] == _ABOUT[0] else []
        for series, odds in [*shown, (name, row["hijacked"])]:
            drawn.append(place | {"with": series, "mean": odds, "low": odds, "high": odds})
    return pd.DataFrame(drawn)


def _said(settings: HijackExamples, rows: pd.DataFrame) -> pd.DataFrame:
    """Each judged question behind its sentence: probabilities of both answers, and the likeliest next token."""
    judged = rows[rows["wording"].isin(_JUDGED) & (rows["about"] == _ABOUT[0])]
    judged = judged[judged["copies"] == settings.copies[0]].sort_values("paper", ascending=False, kind="stable")
    table = {"model": judged["model"], "whose": judged["paper"].map({True: "the paper's", False: "ours"})}
    table |= {"sentence": judged["sentence"], "question": judged["prompt"]}
    for context, head in (("clean", "bare"), ("hijacked", "with it")):
        true, false = (
            judged[f"{context}_{kind}"].map(lambda logp: f"{np.exp(logp):.2g}") for kind in ("true", "false")
        )
        table[f"{head}: Pr[true], Pr[false]"] = judged["true"] + " " + true + ", " + judged["false"] + " " + false
        table[f"{head}: says"] = judged[f"{context}_says"].str.strip()
    return pd.DataFrame(table)


if __name__ == "__main__":
    sys.exit(main(__name__))
