"""Patching measured on whole answers: log Pr[false answer] - log Pr[true answer], however many tokens they have."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, trace, trace_both
from lcalens.engine.sites import roles
from lcalens.engine.variants import kept_for, variants_of
from lcalens.mechanism.contrast.contrast import Bucket, Contrast


def whole_answers(
    decoder: Decoder,
    contrast: Contrast,
    bucket: Bucket,
    groups: tuple[tuple[int, ...], ...],
    site: str,
    direction: str,
    budget: float,
    layers: range | None = None,
    made: Callable[[Trace, list[int], int], Trace] | None = None,
) -> tuple[Float[Tensor, "batch variant group"], Float[Tensor, "batch 2"]]:
    """The patched runs' metric, and the clean and hijacked run's.

    The base run goes on into the answer, and what is patched in the context acts on it too.

    Args:
        decoder: The model.
        contrast: Whose answers.
        bucket: Examples of the contrast of the same lengths.
        groups: Positions in the context, counted from its end.
        site: What is patched.
        direction: `restore` or `corrupt`.
        budget: Bytes that the growing batch may take.
        layers: Which layers are patched; all by default.
        made: From the base runs, which of the bucket's rows they are and their context's length to the source, where
            that is not the other run.
    """
    if not decoder.causal and any(len(ids) > 1 for rows in (contrast.true, contrast.false) for ids in rows):
        raise LcalensError(
            "metric: whole answers of several tokens need a model that does not look ahead, and this one does: an "
            "answer's later tokens would change what its earlier ones are given; use answers of one token."
        )
    device, keep = decoder.layers[0].device, kept_for(site)
    base_name, source_name = roles(direction)
    value, ends = None, torch.zeros(len(bucket.indices), 2, device=decoder.unembed.device, dtype=torch.float64)
    for sign, answers in ((1.0, contrast.false), (-1.0, contrast.true)):
        answer_ids = [answers[index] for index in bucket.indices.tolist()]
        for length in sorted({len(ids) for ids in answer_ids}):
            rows = [row for row, ids in enumerate(answer_ids) if len(ids) == length]
            ids = torch.tensor([answer_ids[row] for row in rows], device=device)
            contexts = [torch.cat([run[rows].to(device), ids[:, :-1]], 1) for run in (bucket.clean, bucket.hijacked)]
            clean, hijacked = trace_both(decoder, contexts[0], contexts[1], keep=keep)
            runs = {"clean": clean, "hijacked": hijacked}
            # Without the answer behind it: keys and values beyond the context are never put in.
            if made is None:
                source = trace(decoder, getattr(bucket, source_name)[rows].to(device), keep=keep)
            else:
                source = made(runs[base_name], rows, getattr(bucket, base_name).shape[1])
            for column, name in enumerate(("clean", "hijacked")):
                ends[rows, column] += sign * _log_probability(decoder, runs[name].final[:, None, -length:], ids)[:, 0]
            log_probabilities = [
                _log_probability(decoder, variants, ids)
                for variants in variants_of(
                    decoder, runs[base_name], source, site, groups, budget, beyond=length - 1, layers=layers
                )
            ]
            signed = sign * torch.stack(log_probabilities, -1)
            if value is None:
                value = signed.new_zeros(len(answer_ids), *signed.shape[1:])
            value[rows] += signed
    assert value is not None
    return value, ends


def _log_probability(
    decoder: Decoder, resid: Float[Tensor, "batch variant read d"], ids: Tensor
) -> Float[Tensor, "batch variant"]:
    """Of the answer's tokens together; variant by variant, for the logits are many."""
    by_variant = []
    for variant in resid.unbind(1):
        logits = decoder.logits(variant).log_softmax(-1)  # (batch, read, vocab)
        by_variant.append(logits.gather(2, ids.to(logits.device)[:, :, None]).double().sum((1, 2)))
    return torch.stack(by_variant, 1)
