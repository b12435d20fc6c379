"""A tokenizer as one digest, and the model's own tokenizer in every process that reads texts for it."""

from contextlib import suppress
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from lcalens.core.errors import LcalensError
from lcalens.core.sources import sources
from lcalens.core.state import digest_of
from lcalens.core.tokens import source_tokenizer

# Where a tokenizer came from, what it was called with, which warnings it has given, what it remembers of words, and how
# it pads and cuts, which it does not do to texts here: no token depends on them.
_ELSEWHERE = frozenset(
    "name_or_path vocab_file tokenizer_file merges_file spm_file init_kwargs init_inputs deprecation_warnings verbose "  # noqa: SIM905
    "files_loaded _commit_hash local_files_only is_local _auto_class cache pad_token _pad_token _pad_token_type_id "
    "padding_side truncation_side model_max_length".split()
)
_MADE_OF = frozenset({"_vocab", "_merges", "_scores", "_tokenizer"})  # a fast tokenizer's backend is read by itself
_LIBRARIES = ("abc", "builtins", "collections", "huggingface_hub", "tokenizers", "transformers", "typing")
_OF_CLASSES = ("__dict__", "__weakref__", "__doc__")
_stamps: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def tokenizer_stamp(tokenizer: Any) -> str:
    """A digest that changes with what decides the tokenizer's tokens: vocabulary, rules, special tokens, template.

    Equal tokenizers have equal ones in any process, wherever they were loaded from. What a chat template asks of its
    surroundings, such as the date, is not part of it.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Raises:
        LcalensError: It has parts that cannot be written down, such as functions in Python within a fast one.

    Example:
        ```
        before = tokenizer_stamp(tokenizer)
        tokenizer.add_tokens(["Kyoto"])
        assert tokenizer_stamp(tokenizer) != before
        ```
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    skip, parts = _ELSEWHERE, [_own_code(type(tokenizer))]
    pieces = getattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto", None)
    try:
        if fast is not None:
            fast.no_padding()  # it keeps how it padded and cut last; texts here are read with neither
            fast.no_truncation()
            skip |= _MADE_OF
            parts.append(fast.to_str())
        return digest_of([tokenizer, *parts, pieces and pieces()], skip=skip)
    except Exception as error:  # what the library raises has no class of its own
        raise LcalensError(
            f"out: this tokenizer has parts that cannot be written down ({error!s:.90}), so that finished cells and "
            "other processes could be of another; leave out= out and take n_jobs=1."
        ) from error


def _own_code(kind: type) -> list[Any]:
    """What the classes define that no library brings, patched methods too; libraries are told by their versions."""
    found: list[Any] = []
    for base in kind.__mro__:
        own = not _of_library(base)
        defined = [(name, value) for name, value in sorted(vars(base).items()) if name not in _OF_CLASSES]
        found += [_unbound(value) for _, value in defined if own or (callable(value) and not _of_library(value))]
        if own:
            with suppress(KeyError, OSError, TypeError, AttributeError, SyntaxError):  # of a notebook's class, no file
                found.append(sources(base))
    return found


def _of_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "builtins")).partition(".")[0] in _LIBRARIES


def _unbound(value: Any) -> Any:
    return value.fget if isinstance(value, property) else value


class ModelTokenizer:
    """The tokenizer of a model: here the model's own; in another process, where it was sent, that of the model there.

    Workers see that theirs is the same, where their task names its stamp.

    Args:
        model: A TransformerBridge.

    Raises:
        LcalensError: The model has no tokenizer.
    """

    def __init__(self, model: Any):
        self._here = source_tokenizer(model)

    @cached_property
    def stamp(self) -> str:
        """The tokenizer's; read where parts are kept or sent.

        Raises:
            LcalensError: It cannot be read whole.
        """
        return tokenizer_stamp(self._here)

    def __getstate__(self) -> dict[str, Any]:
        return {"_here": None, "stamp": self.stamp}

    def of(self, model: Any) -> Any:
        """The tokenizer.

        Args:
            model: The same model, or the one that a worker loaded.
        """
        return source_tokenizer(model) if self._here is None else self._here


def loaded_tokenizer(model: Any) -> str:
    """The stamp of a model's tokenizer, read once: for a worker, which changes neither.

    Args:
        model: A TransformerBridge.
    """
    if model not in _stamps:
        _stamps[model] = tokenizer_stamp(source_tokenizer(model))
    return _stamps[model]
