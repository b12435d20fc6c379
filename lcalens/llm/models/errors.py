"""What can go wrong while a model is loaded, and what a person can do about it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcalens.core.errors import LcalensError
from lcalens.core.folders import MODEL, lacking, near_path
from lcalens.core.near import did_you_mean


@dataclass(frozen=True)
class _Fault:
    """One kind of trouble: known by the exceptions' class names or by what they say (in lower case)."""

    kinds: frozenset[str]
    phrases: tuple[str, ...]
    problem: str
    fix: str
    unfound: bool = False  # there may be none of that name


def _fault(kinds: str, phrases: tuple[str, ...], problem: str, fix: str, *, unfound: bool = False) -> _Fault:
    return _Fault(frozenset(kinds.split()), phrases, problem, fix, unfound)


EMBEDDED = ("smollm2", "gemma3-270m")
_ADAPTER = "adapter_config.json"
_EMBEDDED = "'smollm2' or 'gemma3-270m', which need no network"
_FAULTS = (
    _fault(
        "MemoryError OutOfMemoryError",
        ("allocate memory", "not enough memory"),
        "does not fit into memory",
        "use dtype='bfloat16', device_map='auto', or a smaller model",
    ),
    _fault(
        "GatedRepoError",
        ("gated repo",),
        "is gated",
        "accept its licence on its hub page, then log in (`hf auth login`) or give token=",
    ),
    _fault(
        "RepositoryNotFoundError RevisionNotFoundError HFValidationError",
        (),
        "was not found on the hub",
        f"check the spelling and revision, give a local folder, or use {_EMBEDDED}",
        unfound=True,
    ),
    _fault(
        "",
        ("does not recognize this architecture", "unrecognized model", "unsupported arch", "unrecognized config"),
        "has an architecture that transformers does not know",
        "check the model_type in its config.json, or use a causal language model that it supports; upgrading "
        "transformers may help",
    ),
    _fault(
        "",
        ("trust_remote_code", "custom code"),
        "needs code from its repository, which lcalens never runs",
        "use a model without custom code",
    ),
    _fault(
        "SafetensorError JSONDecodeError UnpicklingError EOFError",
        ("headertoo",),
        "has a damaged file",
        "download or copy it again",
    ),
    _fault(
        "ConnectionError ConnectError TimeoutException Timeout OfflineModeIsEnabled LocalEntryNotFoundError",
        ("couldn't connect", "offline"),
        "is not on this machine, and the hub cannot be reached",
        f"connect, give a local folder, or use {_EMBEDDED}",
        unfound=True,
    ),
    _fault(
        "",
        ("no file named", "does not appear to have a file"),
        "has no weights that can be read",
        "it needs model.safetensors: download or copy it again",
    ),
    _fault(
        "",
        ("mismatch", "size mismatch"),
        "has weights that do not fit its config.json",
        "download or copy both again",
    ),
    _fault(
        "FileNotFoundError",
        ("no such file or directory",),
        "lacks a file that it should have",
        "download or copy it again, with every shard of its weights",
    ),
    _fault("", ("tokenizer",), "has no tokenizer that can be read", "give one with tokenizer="),
    _fault(
        "",
        ("file name too long", "home directory", "null byte"),
        "is no path or name that can exist here",
        f"check the spelling, or use {_EMBEDDED}",
    ),
)
_OTHER = "if its files are whole, load it with transformers and give the model and tokenizer="


def explain(source: str, error: BaseException) -> LcalensError:
    """The error that names a source, what is wrong with it, and the fix.

    Args:
        source: What the user asked for.
        error: What a library raised; its causes are looked at too.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {kind.__name__ for item in chain for kind in type(item).__mro__}
    messages = " ".join(str(item) for item in chain).lower()
    for fault in _FAULTS:
        if fault.kinds & kinds or any(phrase in messages for phrase in fault.phrases):
            hint = did_you_mean(source, EMBEDDED) if fault.unfound else ""
            return LcalensError(f"source: {source!r:.200} {fault.problem}: {fault.fix}.{hint}")
    cause = f"{type(error).__name__}: {error!s:.200}"
    return LcalensError(f"source: {source!r:.200} could not be loaded ({cause}): {_OTHER}.")


def check_folder(name: str, folder: Path) -> None:
    """Refuse a folder that holds no whole model: none at all, or an adapter that lacks the model it was trained on.

    Args:
        name: What the user asked for.
        folder: The folder.

    Raises:
        LcalensError: It holds none, or as `check_index`.
    """
    weights = [file for pattern in ("*.safetensors", "pytorch_model*") for file in folder.glob(pattern)]
    if (folder / _ADAPTER).is_file() and all(file.name.startswith("adapter") for file in weights):
        raise LcalensError(
            f"source: {name!r:.200} holds an adapter (PEFT, LoRA), not a whole model: merge it into the model that it "
            "was trained on with merged = peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload(), "
            "then merged.save_pretrained(new) and tokenizer.save_pretrained(new), and load new."
        )
    problem = lacking(folder, MODEL)
    if problem:
        raise LcalensError(f"source: {problem}")
    check_index(folder)


def no_such_path(name: str, path: Path) -> LcalensError:
    """The error for a path that is not there.

    Args:
        name: What the user asked for.
        path: The same as a path.
    """
    beside = near_path(path)
    hint = f" Did you mean {beside!r:.120}?" if beside else did_you_mean(name, EMBEDDED)
    return LcalensError(f"source: there is no file or folder {name!r}.{hint}")


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no Hugging Face tokenizer.

    Raises:
        LcalensError: It cannot be called, or cannot decode.
    """
    if not (callable(tokenizer) and hasattr(tokenizer, "decode")):
        raise LcalensError(
            f"tokenizer: expected a Hugging Face tokenizer, got {type(tokenizer).__name__} ({tokenizer!r:.60}); "
            "load it with transformers.AutoTokenizer.from_pretrained."
        )


def explain_running(source: str, kind: str, error: BaseException) -> LcalensError:
    """The error for a model that transformers has built and cannot run.

    Args:
        source: What the user asked for.
        kind: The model's class.
        error: What its forward pass raised.
    """
    if _is_memory(error):
        return explain(source, error)
    return LcalensError(
        f"source: {source!r:.200} is loaded, but transformers' {kind} itself fails on a few tokens "
        f"({type(error).__name__}: {error!s:.300}): a setting of its configuration contradicts another. Mend it, or "
        "use another model."
    )


def explain_bridging(source: str, kind: str, error: BaseException) -> LcalensError:
    """The error for a model that transformers has built and TransformerLens' adapter cannot wrap.

    Args:
        source: What the user asked for.
        kind: The model's class.
        error: What TransformerLens raised.
    """
    if _is_memory(error):
        return explain(source, error)
    return LcalensError(
        f"source: {source!r:.200} is loaded, but TransformerLens' adapter for {kind} fails on it "
        f"({type(error).__name__}: {error!s:.300}). Its files are whole: this is between TransformerLens and this "
        "configuration. Try another version of TransformerLens, or another model."
    )


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error).lower()


# What a checkpoint may hold besides the language model: masks and frequencies that are computed, towers for other
# senses, and layers that guess several tokens ahead.
_SPARE = re.compile(
    r"\.(attn|attention|self_attn|self_attention)\.(masked_)?bias$|\brotary_emb\.|\binv_freq$|\bposition_ids$"
    r"|(^|\.)(vision_tower|vision_model|visual|image_newline|multi_modal_projector|mm_projector|audio_tower|mtp)\b"
)


def check_complete(source: str, notes: Any) -> None:
    """Refuse a checkpoint that leaves parameters at random or holds more than its configuration uses.

    Hugging Face only warns of both, and a model cut short or without its biases computes other numbers.

    Args:
        source: What the user asked for.
        notes: Hugging Face's loading information.

    Raises:
        LcalensError: Parameters are missing, of another shape, or not used.
    """
    absent = sorted(map(str, [*notes.get("missing_keys", ()), *notes.get("mismatched_keys", ())]))
    if absent:
        raise LcalensError(
            f"source: {source!r:.200} lacks {len(absent)} parameters ({_listed(absent)}), which would "
            "be random: its config.json does not fit its weights, or a file is missing. Download or copy it again."
        )
    spare = sorted(str(name) for name in notes.get("unexpected_keys", ()) if not _SPARE.search(str(name)))
    if spare:
        raise LcalensError(
            f"source: {source!r:.200} holds {len(spare)} parameters that its config.json has no place for "
            f"({_listed(spare)}), and without them it is another model. Download or copy both again."
        )


def check_index(folder: Path) -> None:
    """Refuse a folder whose index of weights names files that are not in it.

    Args:
        folder: A model's.

    Raises:
        LcalensError: A name that leads out of the folder, or an index that cannot be read.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            out = sorted(name for name in names if Path(name).name != name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LcalensError(
                f"source: {index.name} in {folder.name!r:.200} cannot be read ({type(error).__name__}); download or "
                "copy it again."
            ) from error
        if out:
            raise LcalensError(
                f"source: {index.name} in {folder.name!r:.200} names weights outside its folder ({out[0]!r:.200}); a "
                "model's files stand beside its index."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
