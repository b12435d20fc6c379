"""A GGUF file as it is on disk: its metadata, of which every key must be used, and its tensors, over all its parts."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lcalens.core.errors import LcalensError

_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_MERGE = "merge them with llama.cpp's `llama-gguf-split --merge FIRST_PART OUTPUT.gguf`"


@dataclass
class Metadata:
    """The keys of a GGUF under its architecture's name; each is taken once, and what is left over was not understood.

    Attributes:
        architecture: What llama.cpp calls the model's architecture.
        values: Each key with its value.
        taken: The keys that have been asked for.
    """

    architecture: str
    values: Mapping[str, Any]
    taken: set[str] = field(default_factory=set)

    def take(self, key: str, default: Any = None, *, needed: bool = False) -> Any:
        """The value of `<architecture>.<key>`, counted as understood.

        Args:
            key: The key without the architecture.
            default: What its absence means.
            needed: Whether it must be there.

        Raises:
            LcalensError: It must and is not.
        """
        name = f"{self.architecture}.{key}"
        self.taken.add(name)
        if name not in self.values:
            if needed:
                raise LcalensError(f"source: the GGUF file has no {name}, without which its model cannot be built.")
            return default
        return self.values[name]

    def left_over(self) -> Iterator[str]:
        """The architecture's keys that nobody has asked for."""
        return (name for name in self.values if name.startswith(f"{self.architecture}.") and name not in self.taken)


@dataclass(frozen=True)
class GGUF:
    """An open GGUF, whole.

    Attributes:
        paths: Its files, the first part first.
        metadata: The first part's keys.
        tensors: Every tensor by its name, as gguf's reader gives it.
    """

    paths: tuple[Path, ...]
    metadata: Metadata
    tensors: Mapping[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in torch's order, slowest axis first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        from gguf import dequantize

        tensor = self.tensors[name]
        return dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name)).astype(np.float32, copy=False)


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of a split GGUF, by the names that llama.cpp gives them; the one file of any other.

    Raises:
        LcalensError: Some of them are not beside the given one.
    """
    match = _PART.match(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    parts = [path.with_name(f"{match['stem']}-{number + 1:05d}-of-{count:05d}.gguf") for number in range(count)]
    absent = [file.name for file in parts if not file.is_file()]
    if absent:
        raise LcalensError(
            f"source: {path.name} is one of {count} parts of a model, and {', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''} {'is' if len(absent) == 1 else 'are'} not beside it. Put all parts "
            f"into one folder, or {_MERGE}."
        )
    return tuple(parts)


def open_gguf(path: Path) -> GGUF:
    """Open a GGUF and see that all its parts are there.

    Raises:
        LcalensError: Parts are missing, out of order, or hold fewer tensors than they promise.
    """
    from gguf import GGUFReader

    parts = parts_of(path)
    readers = [GGUFReader(part) for part in parts]
    values = [{name: entry.contents() for name, entry in _small(reader)} for reader in readers]
    first = values[0]
    count = int(first.get("split.count", 0) or 0)
    if count > 1 and count != len(parts):
        raise LcalensError(
            f"source: {path.name} is part {int(first.get('split.no', 0)) + 1} of {count} of a model, and its name does "
            f"not say where the others are. Name them NAME-00001-of-{count:05d}.gguf and so on, or {_MERGE}."
        )
    for number, part in enumerate(values):
        if len(parts) > 1 and (int(part.get("split.no", -1)), int(part.get("split.count", 0))) != (number, len(parts)):
            raise LcalensError(f"source: {parts[number].name} is not part {number + 1} of {len(parts)}; is it renamed?")
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    promised = int(first.get("split.tensors.count", 0) or len(tensors))
    if promised != len(tensors):
        raise LcalensError(
            f"source: {path.name} promises {promised} tensors, and its {len(parts)} parts hold {len(tensors)}; "
            "download them again."
        )
    architecture = str(first.get("general.architecture", ""))
    kind = str(first.get("general.type", "model"))
    if kind != "model":
        raise LcalensError(f"source: {path.name} holds no model but: {kind}; give the model's own GGUF.")
    return GGUF(parts, Metadata(architecture, first), tensors)


def _small(reader: Any) -> Iterator[tuple[str, Any]]:
    """The keys that can decide numbers; the vocabulary's long lists are left to the tokenizer's reader."""
    long = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
    return ((name, entry) for name, entry in reader.fields.items() if name not in long)
