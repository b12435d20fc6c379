"""The compiled sampler: built once with the machine's own C compiler, and never needed.

`LCALENS_COMPILE=0` leaves it out. Where there is no compiler, or it fails, or what it built does not load, the torch
code runs instead and gives the same bits.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lcalens.core.cache import cache_root

_SOURCE = Path(__file__).with_name("sampling.c")
_OPTIONS = ("-O3", "-march=native", "-shared", "-fPIC")
_BUILD_SECONDS = 60


@functools.cache
def kernel() -> Callable[..., None] | None:
    """The compiled `lcalens_counts` as a function of tensors, or None where it cannot be had."""
    if os.environ.get("LCALENS_COMPILE", "1") == "0":
        return None
    try:
        function = ctypes.CDLL(str(_built())).lcalens_counts
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    function.restype = None

    def run(
        seeds: Tensor,
        batch: int,
        length: int,
        m: int,
        table: Any,
        last_table: Any,
        weight: Tensor | None,
        counts: Tensor,
        last: Tensor,
        target: Tensor,
    ) -> None:
        def at(tensor: Tensor) -> ctypes.c_void_p:
            return ctypes.c_void_p(tensor.data_ptr())

        def array(values: Any) -> ctypes.c_void_p:
            return ctypes.c_void_p(values.ctypes.data)

        function(
            at(seeds),
            ctypes.c_int64(len(seeds)),
            ctypes.c_int64(batch),
            ctypes.c_int64(length),
            ctypes.c_int(m),
            array(table.limit),
            array(table.alias),
            array(last_table.limit),
            array(last_table.alias),
            None if weight is None else at(weight),
            at(counts),
            at(last),
            at(target),
        )

    return run


def _built() -> Path:
    """The shared library for this source, compiler and processor, built where it is missing.

    Raises:
        OSError: There is no compiler, or the cache cannot be written.
        subprocess.SubprocessError: The compiler failed or took too long.
    """
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise OSError("no C compiler")
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=_BUILD_SECONDS, stdin=subprocess.DEVNULL
    ).stdout
    digest = hashlib.sha256()
    for content in (_SOURCE.read_bytes(), " ".join(_OPTIONS).encode(), version, _processor().encode()):
        digest.update(hashlib.sha256(content).digest())
    target = cache_root() / "native" / f"sampling-{digest.hexdigest()[:32]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            library = Path(folder) / target.name
            command = [compiler, *_OPTIONS, "-o", str(library), str(_SOURCE)]
            subprocess.run(command, capture_output=True, check=True, timeout=_BUILD_SECONDS, stdin=subprocess.DEVNULL)
            library.replace(target)
    return target


def _processor() -> str:
    """What `-march=native` depends on: the cache may be shared by machines whose processors differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
