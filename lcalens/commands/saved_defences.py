"""Defences in folders, as `lcalens defend fit` writes them, and the facts that they were made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcalens.commands.defend_fit import FOLDER, SEEN
from lcalens.core.errors import LcalensError
from lcalens.core.folders import DEFENCE, lacking
from lcalens.llm.facts.facts import Facts

if TYPE_CHECKING:
    from lcalens.mechanism.defence.defence import Defence


def find_defences(folders: Sequence[Path]) -> dict[str, Path]:
    """Each defence's folder by a name: the folder's own, or its path where two are alike.

    Args:
        folders: What `fit` was given as `--out`, or the defence's folder inside.

    Raises:
        LcalensError: One holds no defence, or is given twice.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        inside = folder / FOLDER if (folder / FOLDER / DEFENCE.head).is_file() else folder
        problem = lacking(inside, DEFENCE)
        if problem:
            raise LcalensError(f"folders: {problem}")
        if inside.resolve() in [path.resolve() for path in found.values()]:
            raise LcalensError(f"folders: {str(folder)!r} is given twice; give each once.")
        own = folder.resolve().name
        alike = [other for other in folders if other.resolve().name == own]
        found[own if len(alike) == 1 and own != "none" else str(folder)] = inside
    return found


def load_defences(model: Any, folders: dict[str, Path]) -> "dict[str, Defence]":
    """The defences, seen to be of this model.

    Args:
        model: A TransformerBridge.
        folders: As `find_defences` gives them.

    Raises:
        LcalensError: One is damaged, or made for other weights.
    """
    from lcalens.core.provenance import fingerprint
    from lcalens.mechanism.defence.defence import Defence

    made = {name: Defence.load(folder) for name, folder in folders.items()}
    for name, defence in made.items():
        if defence.model != fingerprint(model):
            raise LcalensError(f"model: {name!r:.60} was made for other weights than these; give the model (and the "
                               "--dtype) that it was made for.")  # fmt: skip
    return made


def unseen(facts: Facts, defences: "dict[str, Defence]", *, new_relations: bool) -> Facts:
    """The facts that no fit has seen: of another `case_id` of its source, and of another prompt.

    Args:
        facts: All facts.
        defences: Which say what they were made of, if `lcalens defend fit` made them.
        new_relations: Leave out all facts of relations that a fit has seen.

    Raises:
        LcalensError: A defence does not say what it was made of, or nothing is left.
    """
    ids: set[str] = set()
    prompts: set[str] = set()
    relations: set[str] = set()
    for name, defence in defences.items():
        seen = defence.record.get(SEEN)
        if not isinstance(seen, dict) or not {"source", "case_ids", "prompts", "relations"} <= set(seen):
            raise LcalensError(
                f"folders: {name!r:.60} does not say which facts it was made of, so none can be seen to be new to it; "
                "make it with `lcalens defend fit`, or use evaluate_defence() on facts that you know to be new."
            )
        ids |= {str(one) for one in seen["case_ids"]} if seen["source"] == facts.source else set()
        prompts |= set(seen["prompts"])
        relations |= set(seen["relations"])
    left = [
        fact
        for fact in facts
        if str(fact.case_id) not in ids
        and fact.text not in prompts
        and not (new_relations and fact.relation_id in relations)
    ]
    if not left:
        of = "relations" if new_relations else "facts"
        raise LcalensError(f"facts: the defences were made of all these {of}; give others, or fit on fewer (--limit).")
    return Facts(left, pool=facts.pool, skipped=facts.skipped, source=facts.source)
