"""Whether a model fits: its parameters counted from the configuration, against the memory that is free."""

from pathlib import Path
from typing import Any

import psutil
import torch

from lcalens.core.errors import LcalensError

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def count_parameters(config: Any) -> int:
    """How many parameters a configuration's causal language model has; shared ones count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken: of the accelerator, or of this machine and of the container it may be.

    Swap counts, and what a container has in its file cache does not count as taken twice: the estimate errs on the
    side of trying.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    for limit, usage in _CGROUPS:
        try:
            allowed, used = (int(Path(path).read_text()) for path in (limit, usage))
        except (OSError, ValueError):  # no such container, or no limit ("max")
            continue
        process_bytes = psutil.Process().memory_info().rss  # the rest of the usage is mostly files, which make way
        free = min(free, allowed - min(used, process_bytes))
    return free


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
