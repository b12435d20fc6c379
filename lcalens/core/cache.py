"""Where lcalens keeps what it makes once: converted weights, the compiled sampler."""

import os
from pathlib import Path

import platformdirs

from lcalens.core.errors import LcalensError


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder lcalens keeps what it makes once in: the argument, else LCALENS_CACHE, else the platform's own."""
    if cache_dir is not None:
        if not isinstance(cache_dir, str | os.PathLike) or not os.fspath(cache_dir):
            raise LcalensError(
                f"cache_dir: expected a folder's path, got {cache_dir!r:.60}; leave it out for the usual one."
            )
        return Path(cache_dir).expanduser()
    if os.environ.get("LCALENS_CACHE"):
        return Path(os.environ["LCALENS_CACHE"]).expanduser()
    return Path(platformdirs.user_cache_dir("lcalens"))
