"""A tokenizer as one digest, and the model's own tokenizer in every process that reads texts for it."""

from typing import Any
from weakref import WeakKeyDictionary

from lcalens.core.reading import read
from lcalens.core.state import digest_of
from lcalens.core.tokens import source_tokenizer

# Where a tokenizer came from, what it was called with, and which warnings it has given; no token depends on them.
_ELSEWHERE = frozenset(
    "name_or_path vocab_file tokenizer_file merges_file spm_file init_kwargs init_inputs deprecation_warnings verbose "  # noqa: SIM905
    "files_loaded _commit_hash local_files_only is_local _auto_class".split()
)
_MADE_OF = frozenset({"_vocab", "_merges", "_scores"})  # what the backend of a fast tokenizer was made of
_LIBRARIES = ("builtins", "collections", "transformers", "tokenizers")
_OF_CLASSES = ("__dict__", "__weakref__", "__doc__")
_stamps: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def tokenizer_stamp(tokenizer: Any) -> str:
    """A digest that changes with what decides the tokenizer's tokens: vocabulary, rules, special tokens, template.

    Equal tokenizers have equal ones in any process, wherever they were loaded from. What a chat template asks of its
    surroundings, such as the date, is not part of it.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Example:
        ```
        before = tokenizer_stamp(tokenizer)
        tokenizer.add_tokens(["Kyoto"])
        assert tokenizer_stamp(tokenizer) != before
        ```
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    skip, parts = _ELSEWHERE, [_own_code(type(tokenizer))]
    if fast is not None:
        read(tokenizer, ["a"], False)  # it keeps how it padded and cut last; texts here are read with neither
        skip |= _MADE_OF
        parts.append(fast.to_str())
    pieces = getattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto", None)
    return digest_of([tokenizer, *parts, pieces and pieces()], skip=skip)


def _own_code(kind: type) -> list[Any]:
    """What the classes define that no library brings; libraries are told by their versions."""
    own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _LIBRARIES]
    defined = [value for base in own for name, value in sorted(vars(base).items()) if name not in _OF_CLASSES]
    return [value.fget if isinstance(value, property) else value for value in defined]


class ModelTokenizer:
    """The tokenizer of a model: here the model's own; in another process, where it was sent, that of the model there.

    Workers see that theirs is the same, where their task names its stamp.

    Args:
        model: A TransformerBridge.

    Attributes:
        stamp: The tokenizer's.

    Raises:
        LcalensError: The model has no tokenizer.
    """

    def __init__(self, model: Any):
        self._here = source_tokenizer(model)
        self.stamp = tokenizer_stamp(self._here)

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
