"""`Defence`: which heads are cut, and when; it is applied to a model, saved and loaded."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcalens.core.errors import LcalensError
from lcalens.core.folders import DEFENCE, lacking
from lcalens.core.provenance import fingerprint
from lcalens.core.sealed import folder_path, read_sealed, sealed_folder
from lcalens.mechanism.defence.cut import Cut
from lcalens.mechanism.defence.plan import Detector, Plan

_FORMAT = 1
_HEAD, _VALUES = "defence.json", "defence.safetensors"
_DETECTOR = ("layer", "bias", "threshold", "reads")


@dataclass(frozen=True, eq=False)
class Defence(Plan):
    """What is taken from some heads, and when: as a rule, that they look before the last sentence end.

    Made by `defend`. Applied, it acts on every forward pass of the bridge: single, in left-padded batches with their
    attention mask, under `run_with_hooks` and `run_with_cache`, and in `generate`. What was the last sentence end of a
    prompt stays so while a cached generation goes on; without a cache every step is a prompt of its own.

    Attributes:
        method: See `defend`.
        heads: The heads that are cut.
        where: `last`, at the position that is read; or `all`, at every position.
        ends: Tokens that end a sentence.
        detector: What switches the cut on; None for always.
        model: The fingerprint of the weights it was made for.
        record: How it was made.
        values: The numbers that the method works with, by name.

    Example:
        >>> defence = defend(model, contrast, heads=[(23, 4), (29, 2)])
        >>> with defence.applied(model):
        ...     logits = model("Do not think of Rome. The Eiffel Tower is in")
        >>> Defence.load(defence.save("out/defence")).heads
        ((23, 4), (29, 2))
    """

    def __repr__(self) -> str:
        heads = ", ".join(f"L{layer}H{head}" for layer, head in self.heads) or "no heads"
        return f"Defence({self.method}: {heads}; {'the last position' if self.where == 'last' else 'every position'})"

    @contextmanager
    def applied(self, model: Any, begins: Sequence[int] | None = None) -> Iterator[Any]:
        """The model with the defence on, until the block is left, however it is left.

        Args:
            model: The TransformerBridge it was made for.
            begins: For `span`: in every row of each forward pass the token, padding not counted, at which the text
                itself begins, behind what is not to be looked at; 0 for nothing.

        Yields:
            The model.

        Raises:
            LcalensError: Other weights than those it was made for; `span` without `begins`.
        """
        self.check(model)
        if (self.method == "span") != (begins is not None):
            raise LcalensError(
                "begins: method='span' is told where each text begins, and no other method; "
                f"got {begins!r:.40} for {self.method!r}."
            )
        with ExitStack() as stack:
            if self.method != "none":
                for handle in Cut(self, model, begins=begins).attach():
                    stack.callback(handle.remove)
            yield model

    def check(self, model: Any) -> None:
        """Refuse other weights than those it was made for.

        Args:
            model: A TransformerBridge.

        Raises:
            LcalensError: They are others.
        """
        if fingerprint(model) != self.model:
            raise LcalensError(
                "model: its weights are not those that this defence was made for; make one for it with defend()."
            )

    def save(self, folder: Any) -> Path:
        """Write it into a folder, whole or not at all, and sealed: JSON and safetensors.

        Args:
            folder: Made where it is missing; a defence that is there is replaced. `~` is the home folder.

        Raises:
            LcalensError: The folder holds something else, or cannot be written.
        """
        from safetensors.torch import save_file

        target = folder_path(folder)
        tensors = {"ends": torch.tensor(self.ends, dtype=torch.int64)}
        tensors |= {f"values.{name}": value.detach().cpu().contiguous() for name, value in self.values.items()}
        head: dict[str, Any] = {
            "format": _FORMAT,
            "method": self.method,
            "heads": [list(one) for one in self.heads],
            "where": self.where,
            "model": self.model,
            "record": dict(self.record),
            "detector": None,
        }
        if self.detector is not None:
            tensors["weights"] = self.detector.weights.contiguous()
            head["detector"] = {name: getattr(self.detector, name) for name in _DETECTOR}
        with sealed_folder(target, "a defence") as new:
            save_file(tensors, new / _VALUES)
            (new / _HEAD).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: Any) -> "Defence":
        """A saved defence.

        Args:
            folder: As given to `save`.

        Raises:
            LcalensError: There is none, or its files are not those that `save` wrote together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        source = folder_path(folder)
        try:
            problem = lacking(source, DEFENCE)
            if problem:
                raise LcalensError(f"folder: {problem}")
            files = read_sealed(source)
            head, tensors = json.loads(files[_HEAD]), load(files[_VALUES])
            detector = head["detector"] and Detector(weights=tensors["weights"], **head["detector"])
            if head["format"] != _FORMAT:
                raise LcalensError(f"folder: a defence of format {head['format']}, this is {_FORMAT}; make it anew.")
            return cls(
                method=head["method"],
                heads=tuple((int(layer), int(one)) for layer, one in head["heads"]),
                where=head["where"],
                ends=tuple(tensors["ends"].tolist()),
                detector=detector,
                model=head["model"],
                record=head["record"],
                values={name.removeprefix("values."): value for name, value in tensors.items() if "." in name},
            )
        except LcalensError:
            raise
        except FileNotFoundError as error:
            name = Path(error.filename or source).name
            raise LcalensError(
                f"folder: {str(folder)!r} holds no whole defence ({name} is missing); copy it again, or make it anew "
                "with defend()."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LcalensError(
                f"folder: the defence in {str(folder)!r} is damaged ({error!s:.120}); copy it again, or make it anew "
                "with defend()."
            ) from error
