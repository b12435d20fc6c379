"""`lcalens report`: a hijack study of one model as one self-contained page."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lcalens.commands.shared import Source, check_control, typed
from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.core.folders import RESULT, lacking
from lcalens.llm.efficacy.config import check_config
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.prompts.schemes import find_scheme

if TYPE_CHECKING:
    from lcalens.core.results import Result

Part = Literal["prompt", "curve", "heads", "split", "together", "recall", "attention"]
_PARTS: tuple[Part, ...] = ("prompt", "curve", "heads", "split", "together", "recall", "attention")
_KINDS = {"prompt": "answers", "curve": "efficacy", "heads": "ranking", "split": "split", "together": "shapley",
          "recall": "recall"}  # fmt: skip
_DEPTH = 2  # a result stands in the folder given, in a command's `--out`, or one folder further down
_SAID, _WIDTH = 3, 110  # sentences of a section on the terminal, and its columns
_FEWEST = 4
_RELATED = "related-word"
_PAIRS = 12  # examples of the parts that take every set of heads


@dataclass(frozen=True, kw_only=True)
class Report(Source):
    """A hijack study as one self-contained page: the curve with its controls, heads, recall, attention to look at.

    Attributes:
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, CSV, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random; heads are ranked on one half and measured on the other.
        schemes: Of the curve: schemes' names, or sentences of your own.
        counts: How many sentences.
        scheme: What hijacks the runs whose heads are looked at.
        control: Their clean run: a `neutral` sentence of as many tokens, one that names an `other-object`, or a
            sentence of your own such as `Forget about {unrelated}.`
        heads: How many heads are looked at together (12 at most), and shown with their attention.
        views: For how many facts attention is shown.
        parts: What is measured.
        results: Folders of results that are shown too, and not measured again: what `--out` of `hijack`, `trace`,
            `recall` or `defend evaluate` wrote.
        title: Of the page.
        seed: Of all that is drawn.
        out: The page. Finished parts are kept in a folder beside it, and found again by the same command.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens report --limit 60 --out out/report.html",
        "lcalens report --results out/hijack out/trace --parts attention together --out out/report.html",
    )
    keeps_parts: ClassVar[bool] = True

    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int = 60
    schemes: tuple[str, ...] = ("dont-think", "negation", "unrelated", "neutral")
    counts: tuple[int, ...] = (0, 1, 3)
    scheme: str = "dont-think"
    control: str = "neutral"
    heads: int = 10
    views: int = 3
    parts: tuple[Part, ...] = _PARTS
    results: tuple[Path, ...] = ()
    title: str | None = None
    seed: int = 0
    out: Path = Path("report.html")

    def run(self, arguments: Sequence[str]) -> None:
        """Measure what is missing, and write the page.

        Args:
            arguments: The command line, for the page.

        Raises:
            LcalensError: An argument that cannot be used, or a page that cannot be written.
        """
        for name, low, high in (("limit", _FEWEST, None), ("heads", 1, 12), ("views", 0, 50), ("seed", 0, None)):
            check_int(name, getattr(self, name), low=low, high=high)  # before anything is loaded
        find_scheme(self.scheme)
        check_control(self.control)
        config: dict[str, Any] = {"schemes": self.schemes, "counts": self.counts, "seed": self.seed}
        check_config(**config, scoring="whole", chat=False, related="table")
        _check_page(self.out)
        given = [result for folder in self.results for result in saved_results(folder)]
        facts = load_facts(self.facts, relations=self.relations or None, limit=self.limit, seed=self.seed)

        from lcalens.core.results import Result
        from lcalens.views.report import report

        missing = [part for part in self.parts if _KINDS.get(part) not in {result.kind for result in given}]
        measured, unmeasured = self._measure(facts, missing, config) if missing else ([], {})
        page = report([*given, *measured], title=self.title, command=typed(arguments), unmeasured=unmeasured)
        page.save(self.out)
        said = [f"{section.title}. {' '.join(section.says[:_SAID])}" for section in page.sections]
        said += [f"Not measured: {part}. {why}" for part, why in page.unmeasured.items()]
        found = {result.kind: result for result in [*given, *measured] if isinstance(result, Result)}
        self.show("\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in said), **found)
        size = self.out.stat().st_size / 1e6
        self.note(f"Written: {self.out} ({size:.1f} MB; it needs no network). Finished parts are in {self._kept()}.")

    def _kept(self) -> Path:
        return self.out.with_name(f"{self.out.stem}-parts")

    def _measure(self, facts: Any, parts: Sequence[str], config: dict[str, Any]) -> tuple[list[Any], dict[str, str]]:
        """The results of the parts with the attention views, and why others could not be measured on this model."""
        from lcalens import attention_view, contrast_facts, efficacy, leading, patch, ranking, recall, shapley, split

        model, kept = self.load(), self._kept()
        contrast = contrast_facts(model, facts, scheme=self.scheme, control=self.control, seed=self.seed)
        if len(contrast) < _FEWEST:
            raise LcalensError(
                f"limit: {len(contrast)} facts have this scheme and control; to rank on one half and measure on the "
                f"other takes {_FEWEST} at least. Take more."
            )
        first, second = contrast[::2], contrast[1::2]
        found: list[Any] = []
        unmeasured: dict[str, str] = {}
        if "prompt" in parts:
            found.append(_one_prompt(model, facts, self.scheme, self.seed))
        if "curve" in parts:
            found.append(efficacy(model, facts, **config, out=kept / "curve"))
        steps: dict[str, Callable[[], Any]] = {"split": lambda: split(model, contrast)}
        if {"heads", "together", "recall", "attention"} & set(parts):
            before = patch(model, first, out=kept / "patching")
            heads = leading(before, self.heads, by="carrying")
            if "heads" in parts:
                after = patch(model, second, out=kept / "patching")
                found += [after, ranking(before, held_out=after)]
            steps["together"] = lambda: shapley(model, second[:_PAIRS], heads)
            ranked = set(first.examples["case_id"])
            others = [fact for fact in facts if fact.case_id not in ranked]

            def recalled() -> Any:  # of words related to the false object, as `lcalens recall` does
                near = contrast_facts(model, others, scheme=_RELATED, control=self.control, seed=self.seed)
                return recall(model, near, heads, seed=self.seed)

            steps["recall"] = recalled
            if "attention" in parts:
                found += [attention_view(model, second, heads, example=i) for i in range(min(self.views, len(second)))]
        for part, measure in steps.items():
            if part in parts:
                try:
                    found.append(measure())
                except LcalensError as error:  # a model that this verb refuses still has the rest of the page
                    unmeasured[part] = str(error)
        return found, unmeasured


def _one_prompt(model: Any, facts: Any, scheme: str, seed: int) -> "Result":
    """The first fact that the scheme has a sentence for: not a chosen one."""
    from lcalens import ask
    from lcalens.llm.prompts.hijack import hijack_prompts

    prompt = hijack_prompts(facts, scheme, counts=(1,), seed=seed).prompts[0]
    start, end = prompt.spans["prompt"][0]
    fact = prompt.fact
    return ask(
        model,
        prompt.text[start:end],
        hijack=prompt.text[:start].rstrip(),
        answers=[fact.target_true, fact.target_false],
    )


def saved_results(folder: Path) -> list["Result"]:
    """All results that were saved in a folder, or up to two folders down.

    Args:
        folder: What `--out` of another command, or `Result.save`, wrote.

    Raises:
        LcalensError: There is none.
    """
    from lcalens.core.results import Result

    levels = ["/".join(["*"] * depth + ["result.json"]) for depth in range(_DEPTH + 1)]
    places = [file.parent for level in levels for file in sorted(folder.glob(level))]
    if not places:
        raise LcalensError(f"results: {lacking(folder, RESULT)}")
    return [Result.load(place) for place in places]


def _check_page(out: Path) -> None:
    """See before anything is computed that the page can be written.

    Raises:
        LcalensError: It is a folder, no name of a page, or its folder cannot be made.
    """
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise LcalensError(f"out: {str(out)!r} is not the name of a page; give one that ends with .html.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LcalensError(f"out: {str(out.parent)!r} cannot be made ({error.strerror or error}).") from error
