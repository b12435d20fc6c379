"""The recipe of a training run."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.lca.model.model import AttentionInit, EmbeddingInit, LCAConfig, ValueInit, check_start


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: AdamW, a learning rate that falls linearly to 0, fresh contexts at every step.

    Attributes:
        context_length: L, tokens in a context.
        d_model: d, the size of an embedding.
        d_head: d_a, the size of queries and keys.
        batch_size: Contexts in a step.
        steps: Steps; 1000 give 98% of what 3000 do.
        lr: The learning rate at the start.
        weight_decay: AdamW's, on all that is trained.
        embedding: W_E at the start, see `LCAConfig`, as for the next five.
        value: W_V at the start.
        attention: W_K and W_Q at the start.
        train_embedding: Whether W_E is trained.
        train_value: Whether W_V is.
        train_attention: Whether W_K and W_Q are.

    Raises:
        LcalensError: An argument outside its range.

    Example:
        >>> TrainConfig(context_length=64, d_model=32, d_head=16, lr=0.01, steps=500)
    """

    context_length: int
    d_model: int
    d_head: int
    batch_size: int = 512
    steps: int = 1000
    lr: float = 0.03
    weight_decay: float = 0.01
    embedding: EmbeddingInit = "gaussian"
    value: ValueInit = "uniform"
    attention: AttentionInit = "uniform"
    train_embedding: bool = True
    train_value: bool = True
    train_attention: bool = True

    def __post_init__(self):
        for name in ("context_length", "batch_size", "steps"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), low=1))
        for name in ("lr", "weight_decay"):
            object.__setattr__(self, name, check_real(name, getattr(self, name), low=0))
        check_start(self)

    def model_config(self, m: int, **changes: Any) -> LCAConfig:
        """The model of this recipe for m latent bits.

        Raises:
            LcalensError: The model cannot be built, for want of dimensions, say.
        """
        shared = {name.name for name in fields(self)} & set(LCAConfig.__annotations__)
        return LCAConfig(m=m, **{name: getattr(self, name) for name in shared} | changes)

    def grid(self, **values: Iterable[Any]) -> "list[TrainConfig]":
        """Every combination of the given fields' values: `config.grid(lr=(0.02, 0.05), d_model=(16, 32))`.

        Raises:
            LcalensError: A name that is no field, or a value outside its range.
        """
        known = {item.name for item in fields(self)}
        for name in values:
            check_choice("grid", name, sorted(known))
            if isinstance(values[name], str) or not isinstance(values[name], Iterable):
                raise LcalensError(
                    f"grid: {name} expects several values, got {values[name]!r:.60}; write ({name}=[...])."
                )
        return [
            replace(self, **dict(zip(values, chosen, strict=True))) for chosen in itertools.product(*values.values())
        ]
