"""`doctor`: every identity that must hold, on a user's own model, and what is wrong kept so that verbs refuse it."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.memory import free_memory
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.verdicts import forced, keep_verdicts
from lcalens.selfcheck import of_heads, of_model, of_patches, of_sums, of_texts
from lcalens.selfcheck.identity import Identity, Verdict, judge
from lcalens.selfcheck.subject import Subject

IDENTITIES: tuple[Identity, ...] = (
    *of_model.IDENTITIES,
    *of_patches.IDENTITIES,
    *of_heads.IDENTITIES,
    *of_sums.IDENTITIES,
    *of_texts.IDENTITIES,
)
"""All of them, in the order in which they are measured."""
_NUMBERS = ("error", "tolerance", "effect", "seconds")


@holds_steady
def doctor(model: Any, *, only: Sequence[str] | None = None, progress: bool | ProgressCallback = True) -> Result:
    """Whether lcalens' numbers can be trusted on this model: every identity that must hold, measured on it.

    A hijack is put together of sentences, or of random tokens where the tokenizer makes none of use, with the answers
    that it moves most. On it the verbs are compared with hooks written by hand, the bridge with Hugging Face's own
    model made anew from the same weights, and sums with their wholes. What rounding allows is measured too: what the
    model's numbers do when every module's output moves by one step of its type. An identity is

    - *exact* if its two sides differ by no more than that, on an effect of at least five times as much;
    - *refused* if lcalens refuses it on this model, or if nothing can vouch for it, with the reason;
    - *wrong* else. Verbs that an identity vouches for then refuse this model until they are forced (`forced`), for as
      long as the model and lcalens are the same. What is kept of it lies in the cache folder.

    Args:
        model: A TransformerBridge, of a toy or a real model, without hooks of your own.
        only: Names of identities; nothing is kept then. By default all.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axis identity: `error`, `tolerance` and `effect`, in the unit of what is compared, and
        `seconds`; NaN where nothing was measured. Its table `verdicts` has besides the `verdict`, its `reason`, what
        the identity `says` and the `verbs` that it vouches for. `provenance["machine"]` has device, sizes, free memory
        and whether the tokenizer can be used; `provenance["counts"]` how many are exact, refused and wrong.

    Raises:
        LcalensError: It is no TransformerBridge, hooks of yours are attached, its logits are not finite, or there is no
            such identity.

    Example:
        >>> found = doctor(model, only=["batch and single", "clean into clean"], progress=False)
        >>> found.wide()[["identity", "verdict", "error", "effect"]]
        >>> found.provenance["counts"]
    """
    chosen = _chosen(only)
    hooked = active_hooks(model)
    if hooked:
        raise LcalensError(
            f"model: hooks are attached ({', '.join(hooked[:3])}), and it would be examined with them; remove them "
            "first (model.reset_hooks())."
        )
    verdicts: list[Verdict] = []
    with forced(), warnings.catch_warnings(), progress_callback(progress, unit="identities") as report:
        warnings.simplefilter("ignore")  # of a tiny contrast, which is measured for its sums and not for its science
        subject = Subject(model)
        for number, identity in enumerate(chosen):
            report(number, len(chosen), identity.name)
            verdicts.append(judge(identity, subject))
        report(len(chosen), len(chosen), "done")
        provenance = provenance_of(model, path="identities", settings=_settings(subject, verdicts))
    provenance.pop("doctor", None)  # what was found before is what is now found anew
    kept = "" if only is not None else _keep(model, verdicts)
    return _result(verdicts, provenance | {"kept": kept})


def _chosen(only: Sequence[str] | None) -> tuple[Identity, ...]:
    if only is None:
        return IDENTITIES
    if isinstance(only, str) or not isinstance(only, Sequence) or not only:
        raise LcalensError(f"only: expected names of identities, got {only!r:.60}; leave it out for all.")
    known = [identity.name for identity in IDENTITIES]
    names = {check_choice("only", name, known) for name in only}
    return tuple(identity for identity in IDENTITIES if identity.name in names)


def _keep(model: Any, verdicts: Sequence[Verdict]) -> str:
    """What is wrong, kept; in words whether it could be."""
    wrong = {
        one.identity.name: {"verbs": list(one.identity.verbs), "reason": one.reason}
        for one in verdicts
        if one.word == "wrong"
    }
    try:
        keep_verdicts(stamp(model), wrong)
    except (LcalensError, OSError, RuntimeError, ValueError) as error:  # no home folder, a cache that is a file, ...
        return f"not kept: {error}"
    return "verbs refuse this model where they were found wrong" if wrong else "nothing is wrong"


def _settings(subject: Subject, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    parameters = list(subject.model.original_model.parameters())
    return {
        "runs": {"of": subject.said, "tokens": subject.contrast.longest, "grain": subject.grain},
        "counts": {word: Counter(one.word for one in verdicts)[word] for word in ("exact", "refused", "wrong")},
        "machine": {
            "device": str(subject.device),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "gigabytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e9,
            "free_gigabytes": free_memory(subject.device) / 1e9 if subject.device.type in ("cpu", "cuda") else None,
            "threads": torch.get_num_threads(),
            "tokenizer": subject.no_tokenizer or "usable",
        },
    }


def _result(verdicts: Sequence[Verdict], provenance: dict[str, Any]) -> Result:
    columns = {name: np.array([getattr(one, name) for one in verdicts], dtype=float) for name in _NUMBERS}
    table = pd.DataFrame(
        {
            "identity": [one.identity.name for one in verdicts],
            "verdict": [one.word for one in verdicts],
            **columns,
            "reason": [one.reason for one in verdicts],
            "says": [one.identity.says for one in verdicts],
            "verbs": [", ".join(one.identity.verbs) for one in verdicts],
        }
    )
    return Result(
        kind="doctor",
        axes={"identity": tuple(one.identity.name for one in verdicts)},
        values=columns,
        tables={"verdicts": table},
        units=dict.fromkeys(("error", "tolerance", "effect"), "as compared") | {"seconds": "seconds"},
        provenance=provenance,
    )
