"""Whether a model fits: its parameters counted from the configuration, against the memory that is free."""

from typing import Any

import torch

from lcalens.core.errors import LcalensError
from lcalens.core.memory import free_memory


def count_parameters(config: Any) -> int:
    """How many parameters a configuration's causal language model has; shared ones count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def check_memory(source: str, parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model that cannot fit before its weights are read, with the numbers.

    Args:
        source: What the user asked for.
        parameters: How many numbers it holds.
        dtype: What they are loaded as.
        device: Where to.

    Raises:
        LcalensError: They need more bytes than are free.
    """
    if device.type not in ("cpu", "cuda"):
        return  # not known
    needed, free = parameters * dtype.itemsize, free_memory(device)
    if needed > free:
        name = str(dtype).removeprefix("torch.")
        half = f"dtype='bfloat16' ({_gigabytes(parameters * 2)}), " if dtype.itemsize > 2 else ""
        raise LcalensError(
            f"source: {source!r:.200} does not fit into memory: its {parameters / 1e9:.3g} billion parameters need "
            f"{_gigabytes(needed)} in {name}, and {_gigabytes(free)} are free on {device}. Use {half}a smaller model, "
            "or device_map= over several devices."
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
