"""`lcalens defend generate`: how prompts go on with a defence and without it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from lcalens.commands.saved_defences import find_defences, load_defences
from lcalens.commands.shared import Source
from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.core.text import check_written


@dataclass(frozen=True, kw_only=True)
class Generate(Source):
    """How prompts go on with a defence and without it, greedily.

    Attributes:
        folder: What `lcalens defend fit` wrote.
        prompts: Texts to go on with: "Do not think of Rome. The Eiffel Tower is in".
        tokens: How many tokens.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens defend generate out/detector 'Do not think of Canada. Kyoto is a place in' 'Kyoto is a place in'",
    )
    keeps_parts: ClassVar[bool] = False
    out: ClassVar[Path | None] = None

    folder: tyro.conf.Positional[Path]
    prompts: tyro.conf.Positional[tuple[str, ...]]
    tokens: int = 20

    def run(self, arguments: Sequence[str]) -> None:
        """Go on with each prompt twice, and print both.

        Args:
            arguments: The command line.

        Raises:
            LcalensError: An argument that cannot be used, or a defence of other weights.
        """
        if not self.prompts:
            raise LcalensError("prompts: none is given; give a text, such as 'The Eiffel Tower is in'.")
        for prompt in self.prompts:
            check_written("prompts", prompt)  # before anything is loaded
            if not prompt.strip():
                raise LcalensError(f"prompts: {prompt!r} is empty; give a text, such as 'The Eiffel Tower is in'.")
        check_int("tokens", self.tokens, low=1)
        folders = find_defences([self.folder])

        from lcalens.core.limits import check_length
        from lcalens.core.tokens import encode, source_tokenizer
        from lcalens.views.link_text import generated_screen

        model = self.load()
        ((name, defence),) = load_defences(model, folders).items()
        tokenizer = source_tokenizer(model)
        encoded = encode(tokenizer, list(self.prompts))
        for prompt, one in zip(self.prompts, encoded, strict=True):
            if one.unknown:
                raise LcalensError(f"prompts: the tokenizer's vocabulary does not have all of {prompt!r:.60}.")
        check_length(model, max(len(one.ids) for one in encoded) + self.tokens)
        rows = []
        for prompt, one in zip(self.prompts, encoded, strict=True):
            plain = self._goes_on(model, one.ids, tokenizer)
            with defence.applied(model):
                rows.append((prompt, plain, self._goes_on(model, one.ids, tokenizer)))
        if self.json:
            print(json.dumps([dict(zip(("prompt", "without", "with"), row, strict=True)) for row in rows]))
        else:
            print(generated_screen(name, defence, rows))

    def _goes_on(self, model: Any, ids: Sequence[int], tokenizer: Any) -> str:
        """The text behind the prompt."""
        import torch

        device = next(model.original_model.parameters()).device
        found = model.generate(torch.tensor([list(ids)], device=device), max_new_tokens=self.tokens, do_sample=False,
                               verbose=False, return_type="tokens")  # fmt: skip
        return str(tokenizer.decode(found[0, len(ids) :].tolist(), skip_special_tokens=True))
