"""Which commit the rules of a probe were last changed in."""

import subprocess
from pathlib import Path
from types import ModuleType

UNCOMMITTED = "(uncommitted)"


def rules_commit(probe: ModuleType) -> str:
    """Git's short hash of the last commit that touched the probe or the harness's rules.

    Args:
        probe: The module.

    Returns:
        The hash, or `(uncommitted)` where the files have changes, or are not in a repository.
    """
    files = [Path(str(probe.__file__)).resolve(), Path(__file__).resolve().with_name("rules.py")]
    folder = files[0].parent
    if _git(folder, "status", "--porcelain", "--", *map(str, files)) != "":
        return UNCOMMITTED
    return _git(folder, "log", "-1", "--format=%h", "--", *map(str, files)) or UNCOMMITTED


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it cannot."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
