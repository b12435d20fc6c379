"""The closing table: what the paper predicts, in the toy and in real models, with the control and the verdict.

`python -m probes.closing standard` gathers it from the probes of the link; what they have finished is not done again.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from probes.harness.page import table
from probes.harness.rules import Evidence, Verdict, shown
from probes.harness.run import told_plainly
from probes.harness.study import Outcome, Preset, run_probe, unfinished
from probes.harness.work import SIZES

PREDICTIONS = (
    ("real.link", 0, "Attention picks the cues: a few heads carry the fact's recall, and the hijack with it."),
    ("real.link", 1, "The value matrix turns cues into the answer: what heads recall carries the hijack."),
    ("real.link", 2, "Against a sentence that names nothing, where heads look carries a part."),
    ("real.related_words", 0, "Recall is association: a word related to the false object brings a part of it."),
    ("real.recall", 0, "And it is in the heads: their value circuits recall related words."),
    ("real.recall", 1, "A memory of cues and answers can stand in a head's place."),
    ("real.recall", 2, "It recalls cues that it was not made of."),
    ("real.defence", 0, "Take the cue from these heads, and the fact is back."),
    ("real.defence", 2, "A detector can do so without being told where the cue is, in words it never saw."),
    ("real.defence", 1, "And honest context stays, of kinds that it never saw."),
)
"""The probe, which of its rules, and what the paper's picture of an associative memory says of it."""
_TOY = "toy"


@dataclass(frozen=True, kw_only=True)
class Closing:
    """Gather the closing table of the link: a row a prediction; what is not finished is measured.

    Attributes:
        preset: `quick`, `standard` or `full`.
        out: Where the probes' finished cells are, and where the page goes.
        device: Where models run.
        finished: Measure nothing of real models: one that a probe has not finished is left open in its rows.
    """

    preset: tyro.conf.Positional[Preset] = "standard"
    out: Path = Path("out/paper")
    device: str = "cpu"
    finished: bool = False


def gathered(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row a prediction: the toy, each real model, the control, and the verdict.

    Args:
        outcomes: Of probes that `PREDICTIONS` names; a rule without a verdict, or without a run, leaves its row open.
    """
    by_name = {outcome.name: outcome for outcome in outcomes}
    rows = []
    for name, number, prediction in PREDICTIONS:
        outcome = by_name.get(name.split(".")[1])
        rule = importlib.import_module(f"probes.{name}").RULES[number]
        evidence = outcome.report.evidence[number][1] if outcome else []
        verdicts = {verdict.rule: verdict for verdict in outcome.verdicts} if outcome else {}
        row = {"the picture's prediction": prediction, "measured": f"{rule.effect} ({rule.unit})"}
        row[_TOY] = _of(evidence, _TOY)
        row |= {SIZES[model]: _of(evidence, SIZES[model]) for model in ("smollm2", "gemma3-270m")}
        row |= {"control": rule.control, "verdict": _verdict(verdicts.get(rule))}
        rows.append(row)
    return pd.DataFrame(rows)


def _of(evidence: Sequence[Evidence], world: str) -> str:
    """The effect beside its control, in every setting of a model or of the toy."""
    own = [one for one in evidence if one.setting.startswith(world)]
    told = [f"{shown(one.effect)} beside {shown(one.control)}{'' if one.counted else ' (not counted)'}" for one in own]
    return "; ".join(dict.fromkeys(told)) or "not measured"


def _verdict(verdict: Verdict | None) -> str:
    return "no verdict" if verdict is None else verdict.told()


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: The command line; the process's own by default.
    """
    wanted = tyro.cli(Closing, args=arguments, prog="python -m probes.closing")

    def run() -> None:
        outcomes = []
        for name in dict.fromkeys(name for name, _, _ in PREDICTIONS):
            probe = importlib.import_module(f"probes.{name}")
            settings = replace(probe.PRESETS[wanted.preset], out=wanted.out, device=wanted.device)
            if hasattr(settings, "parts"):
                settings = replace(settings, parts=("splits",))
            if wanted.finished:
                missing = {cell.get("model") for cell in unfinished(probe, settings)}
                settings = replace(settings, models=tuple(name for name in settings.models if name not in missing))
            if settings.models:
                outcomes.append(run_probe(probe, settings))
        text = "\n".join(["# The paper's picture, in the toy and in real models", "", *table(gathered(outcomes))])
        folder = wanted.out / wanted.preset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "closing.md").write_text(text + "\n", encoding="utf-8")
        print(text)

    return told_plainly(run)


if __name__ == "__main__":
    sys.exit(main())
