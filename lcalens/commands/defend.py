"""`lcalens defend`: a defence made of heads and facts, judged on other facts, and tried on prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lcalens.commands.defend_evaluate import Evaluate
from lcalens.commands.defend_fit import Fit
from lcalens.commands.defend_generate import Generate


@dataclass(frozen=True, kw_only=True)
class Defend:
    """Turn a hijack off: make a defence (fit), judge it on facts it has not seen (evaluate), try it (generate).

    Attributes:
        action: What to do.
    """

    action: (
        Annotated[Fit, tyro.conf.subcommand("fit", description=(Fit.__doc__ or "").splitlines()[0])]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate", description=(Evaluate.__doc__ or "").splitlines()[0])]
        | Annotated[Generate, tyro.conf.subcommand("generate", description=(Generate.__doc__ or "").splitlines()[0])]
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
