"""What a result of the toy world says of where it came from."""

import platform
from dataclasses import asdict
from typing import Any

from lcalens.core.provenance import versions
from lcalens.lca.world.concepts import LatentConcepts


def world_provenance(concepts: LatentConcepts) -> dict[str, Any]:
    """The world's parameters, the libraries' versions and the machine.

    Args:
        concepts: The world.
    """
    return {"concepts": asdict(concepts), "versions": versions(), "machine": platform.machine()}
