"""The versions of the libraries that decide a result's numbers."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import lcalens

_REPORTED = ("torch", "transformers", "transformer-lens", "tokenizers")


def versions() -> dict[str, str]:
    """The versions of Python, lcalens and the libraries whose numerics or tokenisation a result depends on."""
    return {"python": platform.python_version(), "lcalens": lcalens.__version__} | _libraries()


@cache
def _libraries() -> dict[str, str]:
    installed = {}
    for name in _REPORTED:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed
