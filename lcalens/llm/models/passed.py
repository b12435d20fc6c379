"""A trial that was passed is not run again: the same files, run by the same code on the same kind of machine.

A converted GGUF's files are checked against their digests on every load, so its weights are known to be those that were
tried. What else a trial depends on is in its key: lcalens's own code, the libraries' versions, the files of the model's
class, of what transformers' models share and of TransformerLens as they lie on the disk, the dtype and the device.
"""

import contextlib
import hashlib
import inspect
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from lcalens.core.cells import cell_key
from lcalens.core.versions import versions
from lcalens.llm.models.bridging import mend_attention_scale, mend_norm_epsilon
from lcalens.llm.models.gguf import MANIFEST
from lcalens.llm.models.second_attention import check_attentions
from lcalens.llm.models.trial import check_bridge, check_causal, check_finite, check_weights, run_trial


@dataclass(frozen=True)
class Passed:
    """Whether a model's trial was passed before.

    Attributes:
        note: The file that says so; None where nothing is remembered.
        key: Of all that the trial depends on; the note holds it.
    """

    note: Path | None = None
    key: str = ""

    @property
    def before(self) -> bool:
        """Whether it was; a note that is damaged, or another's, says nothing."""
        if self.note is None:
            return False
        try:
            return self.note.read_text(encoding="ascii") == self.key
        except (OSError, ValueError):
            return False

    def keep(self) -> None:
        """Remember that it was passed; where nothing can be written, the next load tries again."""
        if self.note is None:
            return
        unfinished = self.note.with_name(f"{self.note.name}.{uuid4().hex}.part")
        with contextlib.suppress(OSError):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(self.key, encoding="ascii")
            unfinished.replace(self.note)


UNTRIED = Passed()
"""Of a model that nothing is remembered of."""


def passed(cache: Path, folder: Path, model: Any) -> Passed:
    """What is remembered of a converted model's trial.

    Args:
        cache: lcalens's cache folder.
        folder: The converted model's, its files already checked against the manifest.
        model: As Hugging Face loaded it.
    """
    import transformer_lens
    import transformers

    shared = Path(transformers.__file__).parent
    libraries = (
        Path(__file__).parent.glob("*.py"),  # how lcalens bridges
        Path(inspect.getfile(type(model))).parent.glob("*.py"),
        shared.glob("*.py"),  # masks, rotary frequencies, caches
        (shared / "integrations").glob("*.py"),  # the attentions
        Path(transformer_lens.__file__).parent.rglob("*.py"),
    )
    first = next(model.parameters())
    key = cell_key(
        (run_trial, check_weights, check_finite, check_causal, check_attentions, check_bridge, mend_attention_scale,
         mend_norm_epsilon),
        [
            hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
            versions(),
            [_lie(files) for files in libraries],
            str(first.dtype),
            _machine(first.device),
        ],
    )  # fmt: skip
    return Passed(cache / "trials" / key, key)


def _lie(files: Iterable[Path]) -> str:
    """How files lie on the disk: names, sizes and times. A library that somebody edits is another library."""
    found = sorted((str(path), os.stat(path)) for path in files)
    told = "\n".join(f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in found)
    return hashlib.sha256(told.encode()).hexdigest()


def _machine(device: torch.device) -> list[Any]:
    """What multiplies matrices, and how exactly."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [platform.machine(), str(device), name, torch.get_float32_matmul_precision(), torch.__config__.show()]
