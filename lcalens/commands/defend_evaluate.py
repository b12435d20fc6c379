"""`lcalens defend evaluate`: what defences give back of a hijack and what they take, on facts that no fit has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from lcalens.commands.defend_fit import HONEST_HELP
from lcalens.commands.saved_defences import find_defences, load_defences, unseen
from lcalens.commands.shared import Source, check_folder, check_processes, typed
from lcalens.core.checks import check_choice, check_int
from lcalens.core.engines import workers_of
from lcalens.core.errors import LcalensError
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.plain import HONEST
from lcalens.llm.prompts.counts import MOST
from lcalens.llm.prompts.schemes import find_scheme


@dataclass(frozen=True, kw_only=True)
class Evaluate(Source):
    """What defences give back of a hijack and what they take of all else, on facts that no fit has seen.

    Attributes:
        folders: What `lcalens defend fit` wrote, one or several.
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, CSV, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        new_relations: Keep only facts of relations that no fit has seen.
        limit: At most so many facts, drawn at random from those that no fit has seen.
        schemes: What hijacks them: schemes' names, or sentences of your own.
        n: How many sentences.
        honest: Kinds of honest context that should be followed.
        seed: Of all that is drawn.
        jobs: How many processes compute, each with the model and one thread; 1: this one, -1: one per core.
        engine: A cluster that computes instead: `ray://HOST:PORT`, `ray` (the one this machine is in) or
            `dask://HOST:PORT`. All its workers, or as many as --jobs says.
        out: A folder for tables, figure and finished parts.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens defend evaluate out/detector out/boundary --limit 200 --schemes dont-think negation --out out/judged",
    )
    keeps_parts: ClassVar[bool] = True

    folders: tyro.conf.Positional[tuple[Path, ...]]
    facts: str = "sample"
    relations: tuple[str, ...] = ()
    new_relations: bool = False
    limit: int = 100
    schemes: tuple[str, ...] = ("dont-think", "negation", "factual")
    n: int = 1
    honest: Annotated[tuple[str, ...], tyro.conf.arg(help=HONEST_HELP)] = HONEST
    seed: int = 0
    jobs: int = 1
    engine: str | None = None
    out: Path | None = None

    def run(self, arguments: Sequence[str]) -> None:
        """Measure, print the tables, and write what `--out` asks for.

        Args:
            arguments: The command line, for the page.

        Raises:
            LcalensError: An argument that cannot be used, or a defence that has seen all facts.
        """
        if not self.folders:
            raise LcalensError("folders: none is given; name what `lcalens defend fit` wrote.")
        folders = find_defences(self.folders)
        check_int("limit", self.limit, low=1)  # before anything is loaded
        check_int("seed", self.seed, low=0)
        check_int("n", self.n, low=1, high=MOST)
        if not self.schemes:
            raise LcalensError("schemes: none is given; name one, such as dont-think.")
        for scheme in self.schemes:
            find_scheme(scheme)
        for kind in self.honest:
            check_choice("honest", kind, HONEST)
        for name in ("schemes", "honest"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise LcalensError(f"{name}: one is given twice; give each once.")
        check_processes(self.jobs, self.engine)
        check_folder(self.out)
        facts = load_facts(self.facts, relations=self.relations or None)

        from lcalens import evaluate_defence
        from lcalens.views.link_text import defence_markdown, defence_screen

        model = self.load()
        defences = load_defences(model, folders)
        judged = unseen(facts, defences, new_relations=self.new_relations).sample(self.limit, self.seed)
        options = {name: getattr(self, name) for name in ("schemes", "n", "honest", "seed", "out")}
        with workers_of(self.engine, self.jobs) as jobs:
            result = evaluate_defence(model, defences, judged, **options, n_jobs=jobs)
        self.show(defence_screen(result), defence=result)
        if self.out is not None:
            self.write(result, self.out, defence_markdown(result, typed(arguments)))
