"""The closing table: what the paper predicts, in the toy and in real models, with the control and the verdict.

`python -m probes.closing standard` gathers it from the probes of the link; what they have finished is not done again.
With `--publish` its page, and those of the probes that `make paper` leaves out, are copied to docs/link.
"""

import importlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from lcalens.core.errors import LcalensError
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
PAGES = ("closing", "recall", "defence", "frontier", "attention_recall")
"""The pages that `make paper` does not write."""
_TOY = "toy"


@dataclass(frozen=True, kw_only=True)
class Closing:
    """Gather the closing table of the link: a row a prediction; what is not finished is measured.

    Attributes:
        preset: `quick`, `standard` or `full`.
        out: Where the probes' finished cells are, and where the page goes.
        device: Where models run.
        publish: Measure nothing: copy the finished pages of the standard preset to docs/link.
        finished: Measure nothing of real models: one that a probe has not finished is left open in its rows.
    """

    preset: tyro.conf.Positional[Preset] = "standard"
    out: Path = Path("out/paper")
    device: str = "cpu"
    publish: bool = False
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
    told = [f"{_which(one.setting, world) if len(own) > 1 else ''}{shown(one.effect)} beside {shown(one.control)}"
            f"{'' if one.counted else ' (not counted)'}" for one in own]  # fmt: skip
    return "; ".join(dict.fromkeys(told)) or "not measured"


def _which(setting: str, world: str) -> str:
    """What tells a world's settings apart: the first words behind its name."""
    return f"{setting.removeprefix(world).strip(' ,').split(', ')[0].split(' (')[0]}: "


def _verdict(verdict: Verdict | None) -> str:
    return "no verdict" if verdict is None else verdict.told()


_INTRODUCTION = (
    "# The paper's picture, in the toy and in real models",
    "",
    "If a transformer recalls facts as an associative memory does, with attention to pick the cues and value matrices "
    "to turn them into the answer, then the following should be seen. Every number stands beside its control, with 95% "
    "intervals, on facts that neither ranked heads nor fitted anything; a verdict is by a minimum and a margin that "
    "were fixed before, and the toy is not counted. The rules, tables and figures: [heads and what they carry]"
    "(../claims/link.md), [related words](../claims/related_words.md), [recall](recall.md), [defences](defence.md), "
    "[every method](frontier.md).",
    "",
)


def _left_open(names: Sequence[str]) -> list[str]:
    left = ["", f"Not finished, and so left open: {', '.join(names)}."] if names else []
    return [*left, "", "Made by `python -m probes.closing standard`."]


def publish(source: Path, docs: Path) -> None:
    """Copy the pages, and their figures, that are there.

    Args:
        source: Where the probes wrote them.
        docs: The folder of the documentation; a page that is not in the source stays as it is.

    Raises:
        LcalensError: There is none.
    """
    pages = [source / f"{name}.md" for name in PAGES if (source / f"{name}.md").exists()]
    if not pages:
        raise LcalensError(f"out: no finished pages in {str(source)!r}; run `python -m probes.closing standard`.")
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for page in pages:
        shutil.copyfile(page, docs / page.name)
        for old in (docs / "figures").glob(f"{page.stem}-*.png"):
            old.unlink()
        for figure in sorted((source / "figures").glob(f"{page.stem}-*.png")):
            shutil.copyfile(figure, docs / "figures" / figure.name)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: The command line; the process's own by default.
    """
    wanted = tyro.cli(Closing, args=arguments, prog="python -m probes.closing")

    def run() -> None:
        if wanted.publish:
            publish(wanted.out / "standard", Path("docs/link"))
            return
        outcomes, open_ones = [], []
        for name in dict.fromkeys(name for name, _, _ in PREDICTIONS):
            probe = importlib.import_module(f"probes.{name}")
            settings = replace(probe.PRESETS[wanted.preset], out=wanted.out, device=wanted.device)
            if hasattr(settings, "parts"):
                settings = replace(settings, parts=("splits",))
            if wanted.finished:
                missing = {str(cell.get("model")) for cell in unfinished(probe, settings)}
                open_ones += [f"{name} of {SIZES[model]}" for model in settings.models if model in missing]
                finished = tuple(model for model in settings.models if model not in missing)
                if not finished:
                    continue
                settings = replace(settings, models=finished)
            outcomes.append(run_probe(probe, settings))
        text = "\n".join([*_INTRODUCTION, *table(gathered(outcomes)), *_left_open(open_ones)])
        folder = wanted.out / wanted.preset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "closing.md").write_text(text + "\n", encoding="utf-8")
        print(text)

    return told_plainly(run)


if __name__ == "__main__":
    sys.exit(main())
