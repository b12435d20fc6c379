"""What can go wrong while a model is loaded, and what a person can do about it."""

from dataclasses import dataclass
from typing import Any

from lcalens.core.errors import LcalensError


@dataclass(frozen=True)
class _Fault:
    """One kind of trouble: known by the exceptions' class names or by what they say (in lower case)."""

    kinds: frozenset[str]
    phrases: tuple[str, ...]
    problem: str
    fix: str


def _fault(kinds: str, phrases: tuple[str, ...], problem: str, fix: str) -> _Fault:
    return _Fault(frozenset(kinds.split()), phrases, problem, fix)


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
    ),
    _fault(
        "",
        ("does not recognize this architecture", "unrecognized model", "unsupported arch", "unrecognized config"),
        "has an architecture that transformers or TransformerLens does not know as a causal language model",
        "use a causal language model that both support; upgrading them may help",
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
    _fault("", ("tokenizer",), "has no tokenizer that can be read", "give one with tokenizer="),
    _fault(
        "",
        ("file name too long", "home directory", "null byte"),
        "is no path or name that can exist here",
        f"check the spelling, or use {_EMBEDDED}",
    ),
)
_OTHER = "check its config.json and files, or load it with transformers and give the model and tokenizer="


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
    said = " ".join(str(item) for item in chain).lower()
    for fault in _FAULTS:
        if fault.kinds & kinds or any(phrase in said for phrase in fault.phrases):
            return LcalensError(f"source: {source!r:.200} {fault.problem}: {fault.fix}.")
    what = f"{type(error).__name__}: {error!s:.200}"
    return LcalensError(f"source: {source!r:.200} could not be loaded ({what}): {_OTHER}.")


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


def check_complete(source: str, notes: Any) -> None:
    """Refuse a checkpoint that leaves parameters at random, of which Hugging Face only warns.

    Args:
        source: What the user asked for.
        notes: Hugging Face's loading information.

    Raises:
        LcalensError: Parameters are missing, or of another shape.
    """
    absent = sorted(map(str, [*notes.get("missing_keys", ()), *notes.get("mismatched_keys", ())]))
    if absent:
        raise LcalensError(
            f"source: {source!r:.200} lacks {len(absent)} parameters ({', '.join(absent[:3])}, ...), which would "
            "be random: its config.json does not fit its weights, or a file is missing. Download or copy it again."
        )
