"""Memory: how much is free, and the most that tensors take while something runs."""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


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


class LiveTensors(TorchDispatchMode):
    """While it is entered, the bytes of tensors that were made since and still live; `peak` is the most there were.

    Attributes:
        peak: Bytes of storages, each counted once however many views it has; on every device together.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch, and count what it made."""
        given = {_storage(value) for value in tree_iter((args, kwargs or {})) if isinstance(value, Tensor)}
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, Tensor) and _storage(value) not in given and _storage(value) not in self._sizes:
                storage = value.untyped_storage()
                self._sizes[_storage(value)] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._freed, _storage(value))
        return made

    def _freed(self, storage: int) -> None:
        self._now -= self._sizes.pop(storage, 0)


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata
