"""Contrasts of the toy world: a context hijacked by another concept against the same context redrawn as a control."""

import warnings
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.tensors import read_generator
from lcalens.core.tokens import Span
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.mechanism.contrast.contrast import Contrast

_CONTROLS = {"neutral": "same", "same": "same", "other": "other", "other-object": "other"}


def contrast_concepts(
    concepts: LatentConcepts,
    *,
    limit: int | None = None,
    length: int,
    share: float = 0.5,
    distance: int | None = None,
    control: Literal["neutral", "other", "same", "other-object"] = "neutral",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    size: int | None = None,
) -> Contrast:
    """Contexts of a concept y with positions redrawn for another, y~, against the same positions redrawn otherwise.

    The redrawn positions are the same in both runs, the others and the last token are shared. What the control puts
    there is an independent draw: clean and hijacked tokens have nothing in common there but the place. An example in
    which no position is redrawn is left out and counted.

    Args:
        concepts: The world.
        limit: How many examples to draw.
        length: L, tokens in each, at least 2.
        share: Probability with which each of positions 1 to L - 1 is redrawn, independently; above 0.
        distance: D_H(y, y~); y~ is uniform among the tokens at this distance. By default among all but y, and with
            `control="other"` but the one at distance m, which has no companion.
        control: Where the clean run's redrawn tokens come from, by the names that `contrast_facts` has too: `neutral`
            (or `same`), p(. | y), or `other`, p(. | y'), where y' is uniform among the tokens but y~ whose distance
            from y is D_H(y, y~).
        seed: Of everything drawn; 0 where there is no generator.
        generator: Where the randomness comes from, in place of a seed. At a given distance one state of it gives the
            same hijacked contexts for both controls.
        size: The name of `limit` until lcalens 0.2; it goes in 0.3.

    Returns:
        A contrast with `true` y and `false` y~, the spans `redrawn` (one for each run of positions) and `last`. Its
        examples have `y`, `other` (y~), `control` (y' or y), `distance` and `share`.

    Raises:
        LcalensError: An argument that cannot be used; `control="other"` at distance m, where y~ is alone.

    Example:
        >>> from lcalens import LatentConcepts
        >>> contrast_concepts(LatentConcepts(5), limit=8, length=32, share=0.5, seed=0)
    """
    if not isinstance(concepts, LatentConcepts):
        raise LcalensError(
            f"concepts: expected LatentConcepts, got {type(concepts).__name__}; LatentConcepts(6) is one."
        )
    size = _limit(limit, size)
    length = check_int("length", length, low=2, why="the last token is never redrawn")
    share = check_real("share", share, low=0, high=1, why="it is the probability that a position is redrawn")
    if share == 0:
        raise LcalensError("share: expected a number above 0, got 0; nothing would be redrawn.")
    m = concepts.m
    kind = _CONTROLS[check_choice("control", control, _CONTROLS)]
    if distance is not None:
        distance = check_int("distance", distance, low=1, high=m, why="it is D_H(y, y~)")
    if kind == "other" and distance == m:
        raise LcalensError(f"distance: at {m} = m there is one token alone, so control='other' has none; give less.")
    generator = read_generator(seed, generator)

    tokens, y = concepts.sample(size, length, generator)
    distances = concepts.offset_distance.to(tokens.device)
    offset = _offsets(distances, distance, m, kind, size, generator)
    redrawn = torch.rand(size, length, generator=generator, device=tokens.device, dtype=torch.float64) < share
    redrawn[:, -1] = False
    if not bool(redrawn.any()):
        raise LcalensError(f"share: {share} redraws nothing in any of {size} contexts of {length} tokens; give more.")
    hijacked = concepts.hijack(tokens, y, y ^ offset, positions=redrawn, generator=generator)
    from_whom = y if kind == "same" else y ^ _another(offset, distances, generator)
    clean = concepts.hijack(tokens, y, from_whom, positions=redrawn, generator=generator)
    examples = pd.DataFrame(
        {
            "y": y.cpu().numpy(),
            "other": (y ^ offset).cpu().numpy(),
            "control": from_whom.cpu().numpy(),
            "distance": distances[offset].cpu().numpy(),
            "share": share,
        }
    )
    return _contrast(clean.cpu(), hijacked.cpu(), redrawn.cpu(), examples)


def _contrast(
    clean: Int[Tensor, "batch length"],
    hijacked: Int[Tensor, "batch length"],
    redrawn: Bool[Tensor, "batch length"],
    examples: pd.DataFrame,
) -> Contrast:
    """The examples in which something was redrawn, and a table of the others."""
    touched = redrawn.any(1)
    keep, untouched = (torch.nonzero(rows).squeeze(1).tolist() for rows in (touched, ~touched))
    excluded = examples.iloc[untouched].reset_index(drop=True)
    excluded.insert(0, "index", untouched)
    excluded.insert(1, "reason", "no position was redrawn")
    places, kept = _runs(redrawn), examples.iloc[keep].reset_index(drop=True)
    return Contrast(
        clean[keep],
        hijacked[keep],
        true=torch.from_numpy(kept["y"].to_numpy(copy=True)),
        false=torch.from_numpy(kept["other"].to_numpy(copy=True)),
        spans={"redrawn": [places[i] for i in keep]},
        examples=kept,
        excluded=excluded,
    )


def _limit(limit: Any, size: Any) -> int:
    """How many examples, by either name."""
    if size is None:
        return check_int("limit", limit, low=1)
    if limit is not None:
        raise LcalensError("size: it is limit by its name until lcalens 0.2; give limit alone.")
    message = "contrast_concepts: size is limit since lcalens 0.2; the old name goes in 0.3. Write limit=."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return check_int("size", size, low=1)


def _offsets(
    distances: Int[Tensor, " vocab"], distance: int | None, m: int, kind: str, size: int, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """y~ XOR y of each example, uniform among those that its distance and its control allow."""
    # With the control `other`, y~ needs a companion at its distance: only the complement of y has none.
    possible = (distances > 0) & (distances < m if kind == "other" else True)
    if distance is not None:
        possible = distances == distance
    offsets = torch.nonzero(possible).squeeze(1)
    return offsets[torch.randint(len(offsets), (size,), generator=generator, device=distances.device)]


def _another(offset: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """For each offset another of the same weight, uniformly."""
    order = torch.sort(weights, stable=True).indices  # offsets by weight
    counts = torch.bincount(weights)
    first = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    weight = weights[offset]
    among = counts[weight]
    # A step of 1 to n - 1 around the circle of the n offsets of this weight never comes back to its start.
    draws = torch.rand(len(offset), generator=generator, device=offset.device, dtype=torch.float64)
    step = 1 + (draws * (among - 1)).long()
    return order[first[weight] + (rank[offset] - first[weight] + step) % among]


def _runs(positions: Bool[Tensor, "batch length"]) -> list[tuple[Span, ...]]:
    """Each row's runs of True, as spans."""
    edges = torch.nn.functional.pad(positions.cpu().to(torch.int8), (1, 1)).diff(dim=1)
    starts, stops = torch.nonzero(edges == 1).tolist(), torch.nonzero(edges == -1).tolist()
    runs: list[list[Span]] = [[] for _ in range(len(positions))]
    for (row, start), (_, stop) in zip(starts, stops, strict=True):
        runs[row].append((start, stop))
    return [tuple(row) for row in runs]
