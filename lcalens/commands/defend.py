"""`lcalens defend`: a defence made of heads and facts, judged on other facts, and tried on prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from lcalens.commands.defend_evaluate import Evaluate
from lcalens.commands.defend_fit import Fit
from lcalens.commands.defend_generate import Generate
from lcalens.commands.shared import first_line


@dataclass(frozen=True, kw_only=True)
class Defend:
    """Turn a hijack off: make a defence (fit), judge it on facts it has not seen (evaluate), try it (generate).

    Attributes:
        action: What to do.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens defend fit --method detector --heads 20 --layer 22 --limit 160 --out out/detector",
        "lcalens defend evaluate out/detector --limit 200 --out out/judged",
        "lcalens defend generate out/detector 'Do not think of Canada. Kyoto is a place in'",
    )

    action: (
        Annotated[Fit, tyro.conf.subcommand("fit", description=first_line(Fit))]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate", description=first_line(Evaluate))]
        | Annotated[Generate, tyro.conf.subcommand("generate", description=first_line(Generate))]
    )

    @property
    def keeps_parts(self) -> bool:
        """Whether what is finished is kept."""
        return self.action.keeps_parts

    @property
    def out(self) -> Path | None:
        """The folder for what is kept."""
        return self.action.out

    def run(self, arguments: Sequence[str]) -> None:
        """Do it.

        Args:
            arguments: The command line.
        """
        self.action.run(arguments)
