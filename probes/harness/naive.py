"""What the same training would take one run at a time, written by hand: a part is measured and the rest scaled.

The script is what one writes first: tokens looked up, the last position's attention over all others, autograd, AdamW,
contexts from `torch.multinomial`. (Attention of all positions to all, which the last position does not need, would take
several times as long.) Steps of every shape are timed, and each counted as often as the grid's runs need it.
"""

import math
import time
from collections.abc import Iterable
from typing import Any

import torch

_STEPS = 2  # timed of each shape, after one that is not


def shape_of(trained: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """The sizes that a step's time depends on: m, L, d, d_a and the batch.

    Args:
        trained: One of `Work.trained`.
    """
    config = trained["config"]
    return (trained["m"], *(config[name] for name in ("context_length", "d_model", "d_head", "batch_size")))


def runs_of(cells: Iterable[list[dict[str, Any]]]) -> dict[tuple[int, int, int, int, int], int]:
    """Steps in all by shape, every run once however many cells asked for it.

    Args:
        cells: For each cell its `Work.trained`.
    """
    steps: dict[tuple[int, int, int, int, int], int] = {}
    seen: set[str] = set()
    for one in (one for cell in cells for one in cell):
        for seed in one["seeds"]:
            key = str((sorted(one["world"].items()), sorted(one["config"].items()), seed))
            if key not in seen:
                seen.add(key)
                steps[shape_of(one)] = steps.get(shape_of(one), 0) + one["config"]["steps"]
    return steps


def seconds_a_step(shape: tuple[int, int, int, int, int], omega: float = 0.5, beta: float = 1.0) -> float:
    """The least time of a step of the plain script, over a few.

    Args:
        shape: m, L, d, d_a and the batch.
        omega: Of the world; time hardly depends on it.
        beta: Likewise.
    """
    m, length, d, d_head, batch = shape
    vocab = 1 << m
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(vocab)
    apart = torch.tensor([bin(token).count("1") for token in range(vocab)])
    pi = torch.where(apart > 0, torch.exp(-apart / beta), 0.0)
    pi = pi / pi.sum()
    p = omega * pi + (1 - omega) / vocab
    embedding = torch.nn.Parameter(torch.randn(vocab, d, generator=generator) / math.sqrt(d))
    value, key, query = (
        torch.nn.Parameter((torch.rand(rows, d, generator=generator) * 2 - 1) / math.sqrt(d))
        for rows in (d, d_head, d_head)
    )
    optimiser = torch.optim.AdamW([embedding, value, key, query], lr=1e-3, weight_decay=0.01)
    best = math.inf
    for _ in range(_STEPS + 1):
        start = time.perf_counter()
        y = torch.randint(vocab, (batch,), generator=generator)
        drawn = torch.multinomial(p.expand(batch, vocab), length - 1, replacement=True, generator=generator)
        last = torch.multinomial(pi.expand(batch, vocab), 1, generator=generator)
        x = tokens[torch.cat([drawn, last], 1)] ^ y[:, None]
        u = embedding[x]
        scores = torch.einsum("bld,bd->bl", u @ key.T, u[:, -1] @ query.T) / math.sqrt(d_head)
        h = torch.einsum("bl,bld->bd", scores.softmax(-1), u)
        loss = torch.nn.functional.cross_entropy(h @ value.T @ embedding.T, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        best = min(best, time.perf_counter() - start)
    return best
