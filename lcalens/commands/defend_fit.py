"""`lcalens defend fit`: a defence of the heads that carry a hijack, and the facts it was made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from lcalens.commands.heads import HEADS_HELP, lead, named_heads
from lcalens.commands.shared import Source, cannot_be_written, check_control, check_folder
from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.llm.facts.facts import Facts, load_facts
from lcalens.llm.plain import HONEST, honest_contexts, plain_texts
from lcalens.llm.prompts.schemes import find_scheme

FOLDER = "defence"
"""Where `fit` writes the defence, inside its own folder."""
SEEN = "facts"
"""The facts that a fit has seen, in the defence's record."""
HONEST_HELP = f"Any of: {', '.join(HONEST)}."
_FEWEST = 5


@dataclass(frozen=True, kw_only=True)
class Fit(Source):
    """Make a defence: the leading heads no longer look before the last sentence end.

    Attributes:
        out: A folder for the defence, the heads' ranking and finished parts.
        facts: What ranks the heads and fits the detector: `sample`, `counterfact`, a file or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random; `evaluate` leaves them out.
        scheme: What hijacks them: a scheme's name or a sentence of your own.
        control: The clean run where heads are ranked: a `neutral` sentence of as many tokens, one that names an
            `other-object`, or a sentence of your own such as `Forget about {unrelated}.`
        method: The cut always (`boundary`), where a `detector` sees a hijack, where the last sentence shares no `names`
            with what is before it, head by head by its `attention`, or of `random` heads of the same layers.
        heads: Which heads.
        where: The cut at the `last` position, or at `all`.
        honest: Honest contexts among the negatives of `detector` and `attention`, besides plain text.
        false_alarms: The share of each kind of negatives on which these two may fire.
        layer: Before which layer the detector reads; by default the first of the heads' layers.
        reads: What the detector reads.
        seed: Of all that is drawn.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens defend fit --heads 10 --limit 160 --out out/boundary",
        "lcalens defend fit --method detector --heads 20 --layer 22 --limit 160 --out out/detector",
    )
    keeps_parts: ClassVar[bool] = True

    out: Path
    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int = 100
    scheme: str = "dont-think"
    control: str = "neutral"
    method: Literal["boundary", "detector", "names", "attention", "random"] = "boundary"
    heads: Annotated[tuple[str, ...], tyro.conf.arg(help=HEADS_HELP)] = ("10",)
    where: Literal["last", "all"] = "last"
    honest: Annotated[tuple[str, ...], tyro.conf.arg(help=HONEST_HELP)] = ("fiction", "correction")
    false_alarms: float = 0.05
    layer: int | None = None
    reads: Literal["residual", "attention", "both"] = "residual"
    seed: int = 0

    def run(self, arguments: Sequence[str]) -> None:
        """Rank heads where they are not named, make the defence, save it and say what it is.

        Args:
            arguments: The command line.

        Raises:
            LcalensError: An argument that cannot be used, or a folder that cannot be written.
        """
        heads = named_heads(self.heads)
        check_int("limit", self.limit, low=_FEWEST)  # before anything is loaded
        check_int("seed", self.seed, low=0)
        check_real("false_alarms", self.false_alarms, low=0, high=0.5)
        for name, given in (("layer", self.layer is not None), ("reads", self.reads != "residual")):
            if given and self.method != "detector":
                raise LcalensError(f"{name}: a detector reads, and {self.method} has none; leave it out.")
        if self.layer is not None:
            check_int("layer", self.layer, low=0)
        for kind in self.honest:
            check_choice("honest", kind, HONEST)
        find_scheme(self.scheme)
        check_control(self.control)
        check_folder(self.out)
        facts = load_facts(self.facts, relations=self.relations or None, limit=self.limit, seed=self.seed)

        from lcalens import contrast_facts, defend
        from lcalens.views.link_text import fitted_screen

        model, given = self.load(), {"scheme": self.scheme, "seed": self.seed}
        chosen, patched = heads, None
        if isinstance(heads, int):
            contrast = contrast_facts(model, facts, control=self.control, **given)
            chosen, patched = lead(model, contrast, heads, self.out)
        options: dict[str, Any] = {"method": self.method, "heads": chosen, "where": self.where, "seed": self.seed}
        if self.method in ("detector", "attention"):
            options |= {"negatives": self._negatives(facts), "false_alarms": self.false_alarms}
        if self.method == "detector":
            options |= {"layer": self.layer, "reads": self.reads}
        bare = contrast_facts(model, facts, control="none", **given)
        made = defend(model, bare, **options)
        seen = {
            "source": facts.source,
            "case_ids": [fact.case_id for fact in facts],
            "prompts": [fact.text for fact in facts],
            "relations": list(facts.relations),
        }
        made = replace(made, record={**made.record, "scheme": self.scheme, SEEN: seen})
        try:
            made.save(self.out / FOLDER)
            if patched is not None:
                patched.save(self.out / "heads")
                patched.plot().savefig(self.out / "heads.png", dpi=200)
        except OSError as error:
            raise cannot_be_written(self.out, error) from error
        if self.json:
            print(json.dumps({"method": made.method, "heads": made.heads, "record": made.record}, default=str))
        else:
            print(fitted_screen(made, self.model))
        self.note(
            f"Written to {self.out}: {FOLDER}/ (lcalens.Defence.load reads it; `lcalens defend evaluate` judges it)"
        )

    def _negatives(self, facts: Facts) -> dict[str, list[str]]:
        """Texts that are no hijacks, by kind."""
        negatives = {"plain text": plain_texts("train", seed=self.seed)}
        for kind in self.honest:
            negatives[kind] = [text for text in honest_contexts(facts, kind, seed=self.seed) if text]
        return negatives
