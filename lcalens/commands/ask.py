"""`lcalens ask`: the model's top answers before and after a sentence is put before the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from lcalens.commands.shared import Source, check_folder
from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.core.text import check_written


@dataclass(frozen=True, kw_only=True)
class Ask(Source):
    """The model's top answers before and after a sentence is put before the prompt (Figure 1).

    Attributes:
        prompt: The question, ready to be continued: "The Eiffel Tower is in".
        hijack: One or more sentences to put before it.
        answers: Whole answers to score beside.
        top: How many answers to show.
        chat: Ask through the chat template.
        out: A folder for the table and the figure.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        'lcalens ask "Disneyland is located in the state of" --hijack "Do not think of Texas."',
        'lcalens ask "The Eiffel Tower is in" --hijack "Do not think of Rome." --answers Paris Rome --json',
    )
    keeps_parts: ClassVar[bool] = False

    prompt: tyro.conf.Positional[str]
    hijack: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    top: int = 5
    chat: bool = False
    out: Path | None = None

    def run(self, arguments: Sequence[str]) -> None:
        """Ask, print the table, and write what `--out` asks for.

        Args:
            arguments: The command line.
        """
        answers = [("answers", answer) for answer in self.answers]
        for name, text in [("prompt", self.prompt), *answers, *(("hijack", text) for text in self.hijack)]:
            check_written(name, text)  # before anything is loaded
            if name != "hijack" and not text.strip():
                raise LcalensError(f"{name}: {text!r} is empty; give a text, such as 'The Eiffel Tower is in'.")
        check_int("top", self.top, low=1)
        check_folder(self.out)

        from lcalens import ask
        from lcalens.views.answers_text import answers_screen

        result = ask(
            self.load(),
            self.prompt,
            hijack=self.hijack or None,
            answers=self.answers,
            top=self.top,
            chat=self.chat,
        )
        self.show(answers_screen(result), answers=result)
        if self.out is not None:
            self.write(result, self.out)
