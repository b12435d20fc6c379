"""Tensors, generators and devices seen to be what they should be, with an error that names argument and fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_tokens(
    name: str, values: Any, vocab: int, *, shape: tuple[int | None, ...] | None = None
) -> Int[Tensor, "..."]:
    """The values as int64, seen to be tokens of a vocabulary.

    Args:
        name: The argument.
        values: What was given for it.
        vocab: How many tokens there are.
        shape: What the tensor's shape must be; None is any size above 0, and no shape at all is any.

    Raises:
        LcalensError: It is no integer tensor, of another shape, or a value lies outside [0, vocab).
    """
    if not isinstance(values, Tensor) or values.dtype not in _INTEGERS:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise LcalensError(f"{name}: expected a tensor of integers, got {kind}.")
    if shape is not None:
        fits = values.ndim == len(shape) and all(
            size == expected or (expected is None and size) for size, expected in zip(values.shape, shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise LcalensError(f"{name}: expected the shape ({expected}), got {tuple(values.shape)}.")
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < vocab):
        raise LcalensError(f"{name}: {int(values.min())} to {int(values.max())} leave the range 0 to {vocab - 1}.")
    return values.long()


def check_generator(generator: Any) -> torch.Generator:
    """The generator itself.

    Raises:
        LcalensError: It is none.
    """
    if not isinstance(generator, torch.Generator):
        raise LcalensError(
            f"generator: expected a torch.Generator, got {generator!r:.60}; `torch.Generator().manual_seed(0)` is one."
        )
    return generator


def read_generator(seed: Any, generator: Any, *, device: Any = "cpu") -> torch.Generator:
    """The generator that a seed or a generator means; seed 0 where neither is given.

    Args:
        seed: An integer, or None.
        generator: A torch.Generator, or None.
        device: Where a seed's generator draws.

    Raises:
        LcalensError: Both are given, or one that is none.
    """
    if generator is None:
        return torch.Generator(device=device).manual_seed(check_int("seed", 0 if seed is None else seed, low=0))
    if seed is not None:
        raise LcalensError("seed: give a seed or a generator, not both; a generator has its own state.")
    return check_generator(generator)


def check_device(device: Any) -> torch.device:
    """The device, seen to be here.

    Raises:
        LcalensError: Nothing can be put there.
    """
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError(f"it is a {type(device).__name__}")
        torch.empty(0, device=device)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LcalensError(f"device: {device!r:.60} cannot be used here ({reason:.120}); try 'cpu'.") from error
    return torch.device(device)


def check_finite(values: Tensor, what: str = "logits") -> None:
    """Refuse what a model with NaN or infinite weights computes.

    Args:
        values: What was computed.
        what: Its name.

    Raises:
        LcalensError: A value is not finite.
    """
    if not bool(values.isfinite().all()):
        raise LcalensError(
            f"model: its {what} are not finite (NaN or infinite weights, or an overflowing dtype); load it again, or "
            "with dtype='float32'."
        )


@contextmanager
def one_dtype(name: str) -> Iterator[None]:
    """Say what it means that a forward pass in reduced precision mixes dtypes, as some of TransformerLens' do.

    Args:
        name: The argument that gave the model.

    Raises:
        LcalensError: It does.
    """
    try:
        yield
    except RuntimeError as error:
        if "same dtype" not in str(error):
            raise
        raise LcalensError(
            f"{name}: TransformerLens' forward pass of this model mixes dtypes in reduced precision ({error!s:.100}); "
            "load it with dtype='float32'."
        ) from error
