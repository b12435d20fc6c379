"""`lcalens recall`: what heads' value circuits recall of a word, beside all that looks like recall and is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from lcalens.commands.heads import HEADS_HELP, lead, named_heads
from lcalens.commands.shared import Source, check_control, check_folder, typed
from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.core.text import check_written
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.prompts.schemes import find_scheme

_FEWEST = 6  # facts: heads are ranked on one half, and a table has three sources at least


@dataclass(frozen=True, kw_only=True)
class Recall(Source):
    """What heads' value circuits recall of a word, beside all that looks like recall and is not.

    Attributes:
        heads: Which heads.
        pairs: Words with what is related to them, such as `France=French Italy=Italian`; without them, the words that
            hijack the facts with the facts' false objects.
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, CSV, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random; where heads are ranked, on every second of them, and the others'
            words are recalled.
        scheme: What hijacks the facts: a scheme's name or a sentence of your own.
        control: The clean run where heads are ranked: a `neutral` sentence of as many tokens, one that names an
            `other-object`, or a sentence of your own such as `Forget about {unrelated}.`
        level: Where the circuit reads a word: as it comes from the `embedding`, or, of facts, from the `residual`
            stream of the hijacked run.
        draws: Random circuits with each head's own singular values.
        seed: Of all that is drawn.
        out: A folder for tables, figure and finished parts.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens recall --heads 23.4 29.2 --pairs France=French Italy=Italian Spain=Spanish Germany=German",
        "lcalens recall --heads 8 --limit 60 --out out/recall",
    )

    heads: Annotated[tuple[str, ...], tyro.conf.arg(help=HEADS_HELP)] = ("8",)
    pairs: tuple[str, ...] = ()
    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int = 64
    scheme: str = "related-word"
    control: str = "neutral"
    level: Literal["embedding", "residual"] = "embedding"
    draws: int = 100
    seed: int = 0
    out: Path | None = None

    @property
    def keeps_parts(self) -> bool:
        """Whether what is finished is kept: patching is, where heads are ranked."""
        return isinstance(named_heads(self.heads), int)

    def run(self, arguments: Sequence[str]) -> None:
        """Rank heads where they are not named, recall, print the tables, and write what `--out` asks for.

        Args:
            arguments: The command line, for the page.
        """
        heads = named_heads(self.heads)
        pairs = _pairs(self.pairs)
        for name, low in (("limit", _FEWEST), ("draws", 1), ("seed", 0)):
            check_int(name, getattr(self, name), low=low)  # before anything is loaded
        find_scheme(self.scheme)
        check_control(self.control)
        if pairs and self.level == "residual":
            raise LcalensError("level: words by themselves stand in no run; leave --pairs out, or take 'embedding'.")
        check_folder(self.out)
        facts = load_facts(self.facts, relations=self.relations or None, limit=self.limit, seed=self.seed)

        from lcalens import contrast_facts, recall
        from lcalens.views.link_text import recall_markdown, recall_screen

        model = self.load()
        contrast = None
        if not pairs or isinstance(heads, int):
            contrast = contrast_facts(model, facts, scheme=self.scheme, control=self.control, seed=self.seed)
        chosen: Any = heads
        if isinstance(heads, int):
            assert contrast is not None, "facts rank the heads"
            chosen, _ = lead(model, contrast if pairs else contrast[::2], heads, self.out)
            contrast = None if pairs else contrast[1::2]
        options = {name: getattr(self, name) for name in ("level", "draws", "seed")}
        sources: Any = pairs or contrast
        result = recall(model, sources, chosen, **options)
        self.show(recall_screen(result), recall=result)
        if self.out is not None:
            self.write(result, self.out, recall_markdown(result, typed(arguments)))


def _pairs(words: Sequence[str]) -> dict[str, list[str]]:
    """Each word with what is related to it.

    Raises:
        LcalensError: One is no pair, or they are fewer than three words.
    """
    pairs: dict[str, list[str]] = {}
    for word in words:
        source, sign, related = word.partition("=")
        if not sign or not source.strip() or not related.strip():
            raise LcalensError(f"pairs: {word!r:.60} is no pair; give a word and its relative, such as France=French.")
        for part in (source, related):
            check_written("pairs", part)
        pairs.setdefault(source, []).append(related)
    if words and len(pairs) < 3:
        raise LcalensError(f"pairs: three words or more are needed, got {len(pairs)}.")
    return pairs
