"""`lcalens doctor`: whether lcalens' numbers can be trusted on a model, identity by identity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcalens.commands.shared import Source


@dataclass(frozen=True, kw_only=True)
class Doctor(Source):
    """Whether lcalens' numbers can be trusted on a model, identity by identity.

    Exit status 0 if nothing is wrong, 1 if something is, 2 for what cannot be examined.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens doctor",
        "lcalens doctor --model gemma3-270m --dtype bfloat16",
        "lcalens doctor --json",
    )
    keeps_parts: ClassVar[bool] = False
    out: ClassVar[Path | None] = None

    def run(self, arguments: Sequence[str]) -> int:
        """Examine the model and print what was found.

        Args:
            arguments: The command line.

        Raises:
            LcalensError: The model cannot be loaded, or nothing can be measured on it.
        """
        model = self.load()

        from lcalens import doctor
        from lcalens.views.doctor import doctor_screen

        result = doctor(model)
        self.show(doctor_screen(result), doctor=result)
        return 1 if result.provenance["counts"]["wrong"] else 0
