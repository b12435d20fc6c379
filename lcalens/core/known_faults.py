"""Libraries that are known to compute some models wrongly: the table known_faults.toml, and what of it is installed."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lcalens.core.versions import versions


@dataclass(frozen=True)
class KnownFault:
    """A fault of a library.

    Attributes:
        library: Which.
        first: The first version that has it.
        fixed: The first that has it no more.
        families: The models it is of, as Hugging Face calls their type.
        what: What is computed wrongly.
        source: Where it is described.
    """

    library: str
    first: str
    fixed: str
    families: tuple[str, ...]
    what: str
    source: str

    def __str__(self) -> str:
        """The fault in a sentence."""
        return f"{self.library} {self.first} to {self.fixed} compute {', '.join(self.families)} wrongly: {self.what}"


@cache
def known_faults() -> tuple[KnownFault, ...]:
    """The whole table."""
    table = tomllib.loads(files("lcalens.core").joinpath("known_faults.toml").read_text(encoding="utf-8"))
    return tuple(KnownFault(**(row | {"families": tuple(row["families"])})) for row in table["fault"])


def faults_of(family: str, installed: Mapping[str, str] | None = None) -> list[str]:
    """What the libraries are known to compute wrongly for a family of models, in sentences with their fix.

    Args:
        family: Its type, as Hugging Face calls it.
        installed: Versions of libraries; those that are installed by default.
    """
    from packaging.version import InvalidVersion, Version

    present = versions() if installed is None else installed
    found = []
    for fault in known_faults():
        try:
            version = Version(present.get(fault.library, ""))
        except InvalidVersion:
            continue
        if family in fault.families and Version(fault.first) <= version < Version(fault.fixed):
            found.append(
                f"{fault}. Version {present[fault.library]} is installed; take {fault.fixed} or later ({fault.source})."
            )
    return found
