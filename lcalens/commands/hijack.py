"""`lcalens hijack`: how often sentences before the prompt make the model prefer the false object."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lcalens.commands.shared import Source, check_folder, check_processes, typed
from lcalens.core.engines import workers_of
from lcalens.llm.efficacy.config import EfficacyConfig, check_config
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.prompts.named import with_names
from lcalens.llm.prompts.schemes import SCHEMES

_TEMPLATE = '`"Forget about {target_false}."`'
_SCHEMES_HELP = (
    f"Any of: {', '.join(SCHEMES)}; `all` of them; or a sentence of your own such as {_TEMPLATE}, under a name of its "
    'own if it is written as `"forget=Forget about {target_false}."`.'
)


@dataclass(frozen=True, kw_only=True)
class Hijack(EfficacyConfig, Source):
    """How often sentences before the prompt make the model prefer the false object (Figure 2).

    Attributes:
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, CSV, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random.
        seed: Of all that is drawn: the facts that --limit keeps, sentences, the bootstrap.
        strict: Stop at the first malformed record.
        jobs: How many processes compute, each with the model and one thread; 1: this one, -1: one per core.
        engine: A cluster that computes instead: `ray://HOST:PORT`, `ray` (the one this machine is in) or
            `dask://HOST:PORT`. All its workers, or as many as --jobs says.
        out: A folder for tables, figure and finished parts; the same command again computes only what is missing.
        measure: What the figure shows: `es`, or `retention` (1 - ES, which falls).
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens hijack --limit 60 --schemes dont-think unrelated neutral --counts 0 1 3 --out out/hijack",
        'lcalens hijack --facts own.csv --schemes "forget=Forget about {target_false}." unrelated neutral',
    )
    keeps_parts: ClassVar[bool] = True

    schemes: Annotated[tuple[str, ...], tyro.conf.arg(help=_SCHEMES_HELP)] = ("dont-think", "neutral", "unrelated")
    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    strict: bool = False
    jobs: int = 1
    engine: str | None = None
    out: Path | None = None
    measure: Literal["es", "retention"] = "es"

    def run(self, arguments: Sequence[str]) -> None:
        """Measure, print the table, and write what `--out` asks for.

        Args:
            arguments: The command line, for the page.
        """
        # All that can be seen to be wrong without a model is seen before the libraries of models are imported.
        config = {field.name: getattr(self, field.name) for field in fields(EfficacyConfig)}
        config["schemes"] = with_names(self.schemes)
        check_config(**config)
        check_processes(self.jobs, self.engine)
        check_folder(self.out)
        facts = load_facts(
            self.facts, relations=self.relations or None, limit=self.limit, seed=self.seed, strict=self.strict
        )

        from lcalens import efficacy
        from lcalens.views.text import efficacy_markdown, efficacy_screen

        model = self.load()
        with workers_of(self.engine, self.jobs) as jobs:
            result = efficacy(model, facts, **config, out=self.out, n_jobs=jobs)
        self.show(efficacy_screen(result), efficacy=result)
        if self.out is not None:
            page = efficacy_markdown(result, typed(arguments))
            self.write(result, self.out, page, measure=self.measure)
