"""How far a model carries rounding: the same run, every module's output moved by one step of its type."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint


@contextmanager
def rounded_elsewhere(model: Any, *, seed: int = 0) -> Iterator[None]:
    """Within it, each module's output is moved by one rounding step, up or down at random.

    Two programs for one function differ by less: by .2 to .5 of it on the families of tests/matrix, with 3 layers and
    with 24. How far a model carries rounding depends on its depth and its weights, so no fixed bound would do.

    Args:
        model: A Hugging Face model, or a TransformerBridge.
        seed: Of the signs.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(module: Any, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        sign = torch.randint(2, output.shape, generator=generator).to(output.device) * 2 - 1
        wide = output if output.dtype == torch.float64 else output.float()
        # Models in float64 take norms and softmax in float32 all the same.
        step = torch.finfo(torch.float32 if output.dtype == torch.float64 else output.dtype).eps
        return (wide * (1 + step * sign)).to(output.dtype)

    roots = (model, getattr(model, "original_model", model))
    modules = {id(module): module for root in roots for module in root.modules()}
    hooks = [module.register_forward_hook(moved) for module in modules.values() if _computes(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _computes(module: Any) -> bool:
    """Whether a module computes by itself; TransformerLens' places to hook do not."""
    children = [child for child in module.children() if not isinstance(child, HookPoint)]
    return not children and not isinstance(module, HookPoint)
