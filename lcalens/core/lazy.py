"""Public names that are loaded on first use, so that importing a package costs nothing."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lcalens.core.quiet import quiet_notebook


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: Its name.
        homes: The module in which each public name is defined.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        quiet_notebook()
        return getattr(import_module(homes[name]), name)

    return get, lambda: [*sorted(homes), "__version__"] if "." not in package else sorted(homes)
