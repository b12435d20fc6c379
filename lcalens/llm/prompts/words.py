"""What a source of related words has to offer; the sources themselves are in `lcalens.llm.prompts.related`.

Apart from them, because schemes are named and checked on the command line, where no model library is loaded yet.
"""

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class Impossible(Exception):
    """No such sentence exists for this fact; the message says why."""


@runtime_checkable
class RelatedWords(Protocol):
    """Where related words and their matched unrelated words come from."""

    name: str

    def related(self, target: str, stratum: str) -> str:
        """A word related to `target`, or `Impossible`."""
        ...

    def unrelated(self, target: str, avoid: Sequence[str], stratum: str, generator: random.Random) -> str:
        """A word of the related word's kind that has nothing to do with `target` or `avoid`, or `Impossible`."""
        ...
