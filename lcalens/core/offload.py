"""Weights that were left on disk or apart from the device that computes: what is offloaded, and what to do."""

from typing import Any

import torch

from lcalens.core.errors import LcalensError


def offloaded_modules(model: torch.nn.Module) -> list[str]:
    """The modules whose weights are not in memory ("meta"), outermost names first; none for an ordinary model."""
    absent = [name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.is_meta]
    if not absent:
        return []
    placed: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    # The names of the device map say it best: "model.layers.1", not each of its matrices.
    known = [name for name, place in placed.items() if str(place) in ("disk", "cpu", "meta")]
    modules = {next((outer for outer in known if f"{name}.".startswith(f"{outer}.")), name) for name in absent}
    return sorted(modules)


def offload_problem(modules: list[str]) -> str:
    """What is wrong with a model some of whose modules are offloaded, and what to do."""
    shown = ", ".join(modules[:3]) + (", ..." if len(modules) > 3 else "")
    return (
        f"some weights are offloaded, not in memory: those of {shown} ({len(modules)} in all); lcalens measures only "
        "what is in memory. Load the model with dtype='bfloat16', with a device_map= that names devices alone, or use "
        "a smaller model."
    )


def check_in_memory(model: torch.nn.Module) -> None:
    """Refuse a model whose weights are partly offloaded.

    Raises:
        LcalensError: Some are; their modules are named.
    """
    modules = offloaded_modules(model)
    if modules:
        raise LcalensError(f"model: {offload_problem(modules)}")
