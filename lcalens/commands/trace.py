"""`lcalens trace`: which heads carry a hijack, and whether by where they look or by what they recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcalens.commands.shared import Source, cannot_be_written, check_control, check_folder, check_processes, typed
from lcalens.core.checks import check_int
from lcalens.core.engines import workers_of
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.prompts.counts import MOST
from lcalens.llm.prompts.schemes import find_scheme


@dataclass(frozen=True, kw_only=True)
class Trace(Source):
    """Which heads carry a hijack, and whether by where they look or by what they recall.

    Attributes:
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, CSV, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random; heads are ranked on one half and reported on the other.
        scheme: What hijacks them: a scheme's name or a sentence of your own.
        n: How many sentences.
        control: The clean run: a `neutral` sentence of as many tokens, one that names an `other-object`, or a
            sentence of your own such as `Forget about {unrelated}.`
        seed: Of all that is drawn: the facts that --limit keeps, sentences.
        views: For how many facts the leading heads' attention is written as a page.
        jobs: How many processes compute, each with the model and one thread; 1: this one, -1: one per core.
        engine: A cluster that computes instead: `ray://HOST:PORT`, `ray` (the one this machine is in) or
            `dask://HOST:PORT`. All its workers, or as many as --jobs says.
        out: A folder for tables, figures, attention views and finished parts.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens trace --limit 32 --out out/trace",
        "lcalens trace --model gemma3-270m --scheme negation --control other-object --limit 60",
    )
    keeps_parts: ClassVar[bool] = True

    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int = 32
    scheme: str = "dont-think"
    n: int = 1
    control: str = "neutral"
    seed: int = 0
    views: int = 2
    jobs: int = 1
    engine: str | None = None
    out: Path | None = None

    def run(self, arguments: Sequence[str]) -> None:
        """Trace, print what was found, and write what `--out` asks for.

        Args:
            arguments: The command line, for the page.

        Raises:
            LcalensError: An argument that cannot be used, or a folder that cannot be written.
        """
        for name, low in (("limit", 4), ("seed", 0), ("views", 0)):
            check_int(name, getattr(self, name), low=low)  # before anything is loaded
        check_int("n", self.n, low=1, high=MOST)
        find_scheme(self.scheme)
        check_control(self.control)
        check_processes(self.jobs, self.engine)
        check_folder(self.out)
        facts = load_facts(self.facts, relations=self.relations or None, limit=self.limit, seed=self.seed)

        from lcalens import attention_view
        from lcalens.llm.trace import trace_facts
        from lcalens.views.text import trace_markdown, trace_screen

        model = self.load()
        options = {name: getattr(self, name) for name in ("scheme", "n", "control", "seed", "out")}
        with workers_of(self.engine, self.jobs) as jobs:
            traced = trace_facts(model, facts, **options, n_jobs=jobs, progress=True)
        results = {"heads": traced.patched, "ranking": traced.ranked, "split": traced.parts}
        self.show(trace_screen(traced), **results, twin=traced.twin)
        if self.out is None:
            return
        try:
            traced.twin.save(self.out / "twin")
            for name, result in results.items():
                result.save(self.out / name)
                result.plot().savefig(self.out / f"{name}.png", dpi=200)
            for example in range(min(self.views, len(traced.contrast))):
                view = attention_view(model, traced.contrast, traced.leading, example=example)
                view.save(self.out / f"attention-{example}.html")
            (self.out / "trace.md").write_text(trace_markdown(traced, typed(arguments)), encoding="utf-8")
        except OSError as error:
            raise cannot_be_written(self.out, error) from error
        pictures = ", ".join(f"{name}.png" for name in results)
        self.note(
            f"Written to {self.out}: trace.md, {pictures}, attention views, results (lcalens.Result.load reads them)"
        )
