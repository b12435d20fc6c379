"""The paper's figures, theorems and lemmas in its order, and the page that shows ours in it."""

from collections.abc import Mapping, Sequence

from lcalens.core.errors import LcalensError
from probes.harness.page import COPY, escaped
from probes.harness.paper_figures import FIGURES
from probes.harness.study import Counterpart, Outcome

ORDER = (
    *("Figure 1", "Figure 2a", "Figure 2b", "Figure 3a", "Figure 3b", "Figure 3c"),
    *(f"Figure B.{number}" for number in range(1, 5)),
    *(f"Figure C.{number}" for number in range(1, 15)),
    *("Theorem 1", "Lemma 2", "Theorem 3", "Theorem 4", "Lemma 5", "Lemma 6", "Section 5.5"),
)
"""Every figure, theorem and lemma of the paper, as `Counterpart.figure` names them."""

WITHOUT: Mapping[str, str] = {}
"""Why a figure has no counterpart, for those that will have none."""
HALVES = ("Figure B.4's half with words related to the true object: no scheme of lcalens names such a word yet.",)
"""Parts of figures that have no counterpart, and why."""


def figure_page(outcomes: Sequence[Outcome], modules: Mapping[str, str]) -> str:
    """Our figures in the paper's order: settings, sentence, figure, a paragraph and the command for each.

    Args:
        outcomes: The probes that have run.
        modules: For every probe's name the module that Python runs.

    Raises:
        LcalensError: A counterpart names no figure of the paper, or no figure of its own report.
    """
    found: dict[str, list[tuple[Outcome, Counterpart]]] = {name: [] for name in ORDER}
    for outcome in outcomes:
        for one in outcome.report.paper:
            if one.figure not in found:
                raise LcalensError(f"figure: {outcome.name} names {one.figure!r}; expected one of {', '.join(ORDER)}.")
            if one.caption and one.caption not in outcome.captions:
                raise LcalensError(f"caption: {outcome.name} has no figure {one.caption!r} for {one.figure}.")
            found[one.figure].append((outcome, one))
    lines = ["# The paper's figures, and ours beside them", "", COPY + " Where our settings are the paper's is said",
             "in every section; what it leaves open is ours, and named.", ""]  # fmt: skip
    for figure, ours in ((name, ours) for name, ours in found.items() if ours):
        lines += [f"## {figure}: {FIGURES[figure].title}", ""]
        for outcome, one in ours:
            lines += _section(outcome, one, modules[outcome.name])
    missing = [name for name, ours in found.items() if not ours]
    lines += ["## Without a counterpart", ""]
    lines += [f"- {name}: {WITHOUT.get(name, 'not measured by the probes of this run')}." for name in missing]
    lines += [f"- {half}" for half in HALVES]
    return "\n".join(lines).rstrip() + "\n"


def _section(outcome: Outcome, one: Counterpart, module: str) -> list[str]:
    lines = [f"Settings: {one.settings}", ""]
    if one.sentence:
        lines += [f"> {one.sentence}", ""]
    if one.caption:
        file = f"figures/{outcome.name}-{outcome.captions.index(one.caption) + 1}.png"
        lines += [f"![{one.caption}]({file})", ""]
    return [
        *lines,
        one.paragraph,
        "",
        f"More on [{escaped(outcome.name)}]({outcome.name}.md); made by",
        "",
        f"    python -m {module} {outcome.settings.preset}",
        "",
    ]
