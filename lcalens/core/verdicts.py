"""What `doctor` found wrong on a model, kept beside the weights that lcalens converts: verbs refuse such a model.

A sealed folder for each state of a model, named by its stamp. It holds the digest of lcalens' files, for
verdicts on another lcalens say nothing about this one. Where nothing is kept, looking costs one look at the disk.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import lcalens
from lcalens.core.cache import cache_root
from lcalens.core.errors import LcalensError
from lcalens.core.sealed import Unsealed, read_sealed, sealed_folder

EVERY = "*"
"""In place of a verb's name: whatever is measured on the model."""
_FILE = "verdicts.json"
_forced: ContextVar[bool] = ContextVar("forced", default=False)


@contextmanager
def forced(on: bool = True) -> Iterator[None]:
    """Within it, verbs run on models on which `doctor` found them wrong; their results say so in `provenance`.

    Args:
        on: False changes nothing.

    Example:
        >>> with forced():
        ...     result = patch(model, contrast)
    """
    token = _forced.set(on or _forced.get())
    try:
        yield
    finally:
        _forced.reset(token)


def keep_verdicts(stamp: str, wrong: Mapping[str, Any]) -> Path:
    """Keep what is wrong on a model, in place of what was kept of it before; nothing is kept where nothing is.

    Args:
        stamp: Of the model.
        wrong: By identity its `verbs`, and the `reason`.

    Returns:
        The folder.

    Raises:
        LcalensError: It cannot be written.
    """
    folder = _folder(stamp)
    if wrong or folder.exists():
        with sealed_folder(folder, "verdicts of doctor") as new:
            content = {"stamp": stamp, "lcalens": _files_digest(), "wrong": dict(wrong)}
            (new / _FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def wrong_on(stamp: str, verb: str | None = None) -> dict[str, str]:
    """Which identities this lcalens was found to break on a model, with the reasons.

    Args:
        stamp: Of the model.
        verb: Those that make this verb's numbers wrong; None for all.
    """
    try:
        folder = _folder(stamp)
        if not folder.is_dir():
            return {}
    except (OSError, RuntimeError, ValueError):
        return {}  # a cache folder that cannot even be looked into holds nothing of ours
    try:
        content = json.loads(read_sealed(folder)[_FILE])
        if content["stamp"] != stamp:
            raise Unsealed("it is of another model")
        if content["lcalens"] != _files_digest():
            return {}
        listed = {str(name): (tuple(one["verbs"]), str(one["reason"])) for name, one in content["wrong"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"What doctor kept of this model in {folder.name} is damaged ({error!s:.80}) and not used; run it again.",
            stacklevel=2,
        )
        return {}
    return {name: reason for name, (verbs, reason) in listed.items() if verb is None or {verb, EVERY} & set(verbs)}


def check_verdicts(stamp: str, verb: str) -> None:
    """Refuse a verb on a model on which it was found wrong, unless it is forced.

    Args:
        stamp: Of the model.
        verb: Its name.

    Raises:
        LcalensError: It was; the message names the identity.
    """
    if _forced.get():
        return
    wrong = wrong_on(stamp, verb)
    if wrong:
        name, reason = next(iter(wrong.items()))
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise LcalensError(
            f"model: doctor found that {verb} gives wrong numbers on it: {name!r}{others}, {reason}. Use another model "
            "or other versions of the libraries; to have the numbers all the same, `with lcalens.forced():`, or "
            "--force in a terminal."
        )


def verdicts_record(stamp: str) -> dict[str, Any]:
    """What a result says of what is wrong on its model, and whether it was forced; nothing where nothing is.

    Args:
        stamp: Of the model.
    """
    wrong = wrong_on(stamp)
    return {"doctor": {"wrong": wrong, "forced": _forced.get()}} if wrong else {}


def _folder(stamp: str) -> Path:
    return cache_root() / "doctor" / stamp


@cache
def _files_digest() -> str:
    """Of every file of this lcalens, as it was when it was first asked for."""
    digest, root = hashlib.sha256(lcalens.__version__.encode()), Path(lcalens.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".c", ".toml", ".json"):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:32]
