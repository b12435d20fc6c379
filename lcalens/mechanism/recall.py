"""`recall`: what a head's value circuit recalls of a source token, beside all that looks like recall and is not."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.limits import context_limit
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.tables import lengthen
from lcalens.core.tokens import encode
from lcalens.engine.circuits import Readout, gaussian_circuit, readout, recalled, spectrum
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import trace
from lcalens.engine.reading import read_decoder
from lcalens.mechanism.arguments import Head, Heads, check_contrast, read_heads, read_layers
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.labels import tokenizer_of
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.recall_measures import UNITS, copying_score, measures
from lcalens.mechanism.recall_sources import Asked, asked_of_contrast, asked_of_objects
from lcalens.mechanism.recall_tables import known_mean, sources_table, spread, summary_table, tests_table
from lcalens.mechanism.summary import contrast_record
from lcalens.mechanism.words import embedded_tokens

Level = Literal["embedding", "residual"]
Objects = Sequence[str | int] | Mapping[Any, Any]
_NEUTRAL = ("It is", "This is", "There was a", "They went to the", "One of the", "He said that the", "We saw", "And so")
_REPEATED, _ROWS = 24, 4  # tokens of a sequence that is repeated (fewer in a short context), and how many sequences


@holds_steady
@torch.no_grad()
def recall(
    model: Any,
    sources: Contrast | Objects,
    heads: Heads,
    *,
    related: Mapping[Any, Any] | None = None,
    level: Level = "embedding",
    draws: int = 100,
    seed: int = 0,
    progress: bool | ProgressCallback = True,
) -> Result:
    """The source-to-answer table of heads' value circuits, and whether it is an association.

    An entry is what an answer's logit, before any soft cap, gets for every unit of attention that the head pays to the
    source: through W_V with its bias, W_O, the norm after attention where there is one, the final norm and W_U. The
    norms after the head are frozen as they are at the last position: of each clean run, or of neutral prompts on
    average where there are no runs. In the toy model an entry is W_E^T W_V W_E. A head that moves a word's own token,
    or whatever resembles it in the embedding, has large entries for related answers too, so each number stands beside
    what would show it without recall.

    Args:
        model: A TransformerBridge, of a toy or a real model, whose blocks add to the residual stream.
        sources: A contrast: the sources are the last tokens of the span `word` in the hijacked runs (of the span
            `redrawn`, in the toy), the answers all tokens that are a source, an answer or related to a source. Or
            objects: words, token ids, or a mapping from each to what is related to it; answers are then these and what
            is related to them.
        heads: Heads as (layer, head), or as `leading` gives them.
        related: From a source to its related words or token ids, one or several, besides those of a mapping. Of a
            contrast whose word is not the false object (the scheme `related-word`) the false answer is related to it,
            whatever is given here.
        level: Where the circuit reads the source: `embedding`, as it comes from the embedding (in the fifth place,
            where positions are learned), or `residual`, as it stands before the head's layer in the hijacked run.
        draws: Random circuits with the head's own singular values.
        seed: Of these circuits and of the sequences for the induction score.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes head, source (example, for a contrast) and answer, in logits: `recall`. Its tables:
        `summary`, for each head means over sources with 95% bootstrap intervals of `own_first`, `own_last`,
        `own_rank`, `own_gap`, `related_rank`, `related_auc`, `related_gap`, `left` (see
        `lcalens.mechanism.recall_measures.measures`) and `relative`, related_gap over own_gap; `nulls`, the same of the
        embeddings' similarity (whose gaps are cosines), of a logit lens at that layer, of the layer's other heads, of
        all heads that were not given and of random circuits of the same spectrum (of many the mean, with the middle 95%
        as its ends); `tests`, the share of random circuits, the head itself among them, whose `left` is as large, by
        itself and Holm-corrected over the heads; `scores`, for each head copying (Elhage et al. 2021), from -1 to 1,
        and induction, the attention paid to the token after the last occurrence in repeated random tokens (NaN in the
        toy, which has no order); `sources`, every quantity source by source. Words that are not one token are left out:
        `provenance["left_out"]`. `provenance["sources"]` and `["answers"]` are the tokens' ids.

    Raises:
        LcalensError: An argument that cannot be used, fewer than three sources, or a model whose logits are no sum over
            what its layers write.

    Example:
        >>> heads = leading(patch(model, contrast), 8, by="carrying")
        >>> found = recall(model, {"France": "French", "Italy": "Italian", "Spain": "Spanish"}, heads)
        >>> found.wide()[["head", "own_first", "related_auc", "left"]]
    """
    check_choice("level", level, get_args(Level))
    check_int("draws", draws, low=1)
    check_int("seed", seed, low=0)
    contrast = sources if isinstance(sources, Contrast) else None
    if contrast is None and level == "residual":
        raise LcalensError("level: bare objects stand in no run, so 'residual' needs a contrast; take 'embedding'.")
    decoder = _decoder(model, contrast)
    chosen = read_heads("heads", heads, len(decoder.layers), decoder.layers[0].heads)
    text = _text_of(model, decoder)
    asked = (
        asked_of_objects(model, text, sources, related)
        if contrast is None
        else asked_of_contrast(model, text, contrast, related)
    )
    if len(asked.tokens) < 3:
        raise LcalensError(f"sources: three or more are needed, got {len(asked.tokens)}{asked.said()}.")
    embedded = embedded_tokens(decoder, asked.tokens)
    streams = _streams(decoder, contrast, asked, embedded) if level == "residual" else [embedded] * len(decoder.layers)
    read, scale, scale_of = _readout(model, text, decoder, contrast, asked)
    similarity = _similarity(embedded, embedded_tokens(decoder, asked.answers))
    names = [f"L{layer}H{head}" for layer, head in chosen]
    generator = torch.Generator().manual_seed(seed)
    tables = np.zeros((len(chosen), len(asked.tokens), len(asked.answers)))
    by_head: dict[Head, dict[str, np.ndarray]] = {}
    nulls: list[dict[str, Any]] = []
    random: dict[Head, np.ndarray] = {}
    layers = range(len(decoder.layers))
    with progress_callback(progress, unit="layers") as report:
        for index in layers:
            layer = decoder.layers[index]
            normed = layer.norm(streams[index][:, None])[:, 0]
            every = recalled(layer, normed, read.directions[index]) * scale[:, index, None].to(layer.device)
            for head, table in enumerate(every.cpu().numpy()):
                by_head[index, head] = measures(table, asked.own, asked.related, similarity)
                if (index, head) in chosen:
                    tables[chosen.index((index, head))] = table
            for head in (head for at, head in chosen if at == index):
                values = spectrum(layer, head)
                drawn = [
                    measures(
                        (gaussian_circuit(normed, values, read.directions[index], generator)
                         * scale[:, index, None].to(layer.device)).cpu().numpy(),
                        asked.own, asked.related, similarity,
                    )
                    for _ in range(draws)
                ]  # fmt: skip
                random[index, head] = np.array([known_mean(one["left"]) for one in drawn])
                lens = _lens(decoder, streams[index], asked.answers)
                kinds = {
                    "embedding similarity": [measures(similarity, asked.own, asked.related, similarity)],
                    "logit lens": [measures(lens, asked.own, asked.related, similarity)],
                    "same spectrum": drawn,
                }
                nulls += [{"head": f"L{index}H{head}", "null": kind} | spread(found) for kind, found in kinds.items()]
            report(index + 1, len(layers), "recall")
    for layer, head in chosen:
        others = {
            "other heads of the layer": [found for (at, h), found in by_head.items() if at == layer and h != head],
            "all other heads": [found for at, found in by_head.items() if at not in chosen],
        }
        nulls += [{"head": f"L{layer}H{head}", "null": kind} | spread(found) for kind, found in others.items() if found]
    clusters = clusters_of(contrast.examples) if contrast is not None else None
    axis = EXAMPLE if contrast is not None else "source"
    labels = tuple(range(len(asked.tokens))) if contrast is not None else tuple(asked.names)
    settings = {
        "heads": [list(head) for head in chosen],
        "heads_rule": getattr(heads, "rule", "as given"),
        "level": level,
        "draws": draws,
        "seed": seed,
        "scale": [float(scale[:, layer].mean()) for layer, _ in chosen],
        "scale_of": scale_of,
        "sources": asked.tokens,
        "answers": asked.answers,
        "left_out": asked.left_out,
    }
    return Result(
        kind="recall",
        axes={"head": tuple(names), axis: labels, "answer": tuple(asked.answer_names)},
        values={"recall": tables},
        examples=contrast.examples.reset_index(drop=True) if contrast is not None else pd.DataFrame(),
        tables={
            "summary": summary_table(names, [by_head[head] for head in chosen], clusters),
            "nulls": lengthen(pd.DataFrame(nulls), UNITS),
            "tests": tests_table(names, [by_head[head] for head in chosen], [random[head] for head in chosen]),
            "scores": _scores(model, decoder, chosen, names, tables, asked, generator),
            "sources": sources_table(names, axis, labels, [by_head[head] for head in chosen]),
        },
        units={"recall": "logits"},
        provenance=provenance_of(
            model,
            path="layer by layer",
            settings=settings | ({} if contrast is None else contrast_record(contrast, "logit-difference")),
        ),
    )


def _decoder(model: Any, contrast: Contrast | None) -> Decoder:
    if contrast is not None:
        check_contrast(model, contrast, name="sources")
        return read_layers(model, "recall", contrast)
    decoder = read_decoder(model)
    if isinstance(decoder, str):
        raise LcalensError(
            f"model: recall needs a model that lcalens reads layer by layer, and cannot here: {decoder}."
        )
    return decoder


def _text_of(model: Any, decoder: Decoder) -> Any:
    """The tokenizer; None where tokens are no text: none is found, or it is the toy's."""
    return tokenizer_of(model) if decoder.causal else None


def _streams(
    decoder: Decoder, contrast: Contrast | None, asked: Asked, embedded: Tensor
) -> list[Float[Tensor, "source d"]]:
    """Before each layer, each source as it stands in its hijacked run."""
    assert contrast is not None, "only a contrast's sources stand in runs"
    streams = [torch.zeros_like(embedded, device=layer.device) for layer in decoder.layers]
    for bucket in contrast.buckets():
        rows = bucket.indices.tolist()
        run = trace(decoder, bucket.hijacked.to(decoder.layers[0].device), keep=())
        for stream, resid in zip(streams, run.resid, strict=False):
            for place, row in enumerate(rows):
                stream[row] = resid[place, asked.at[row]].to(stream)
    return streams


def _readout(
    model: Any, text: Any, decoder: Decoder, contrast: Contrast | None, asked: Asked
) -> tuple[Readout, Float[Tensor, "source layer"], str]:
    """The answers' directions, each source's scale, and what runs it is of."""
    device, answers = decoder.layers[0].device, torch.tensor(asked.answers)
    if contrast is not None:
        scale = torch.zeros(len(asked.tokens), len(decoder.layers), dtype=torch.float64)
        found = None
        for bucket in contrast.buckets():
            found = readout(decoder, bucket.clean.to(device), answers)
            scale[bucket.indices] = found.scale.cpu()
        assert found is not None, "a contrast has an example"
        return found, scale, "each clean run"
    limit, vocabulary = context_limit(model), int(model.cfg.d_vocab)
    prompts = [] if text is None else [list(one.ids) for one in encode(text, _NEUTRAL)]
    prompts = [ids for ids in prompts if max(ids) < vocabulary and (limit is None or len(ids) <= limit)]
    scale_of = "the mean over neutral prompts"
    if not prompts:  # ids have no sentences
        prompts, scale_of = [[token] for token in asked.tokens[: len(_NEUTRAL)]], "the mean over sources by themselves"
    runs = [readout(decoder, torch.tensor([ids], device=device), answers) for ids in prompts]
    mean = torch.stack([run.scale[0].cpu() for run in runs]).mean(0)
    return runs[0], mean.expand(len(asked.tokens), -1), scale_of


def _lens(
    decoder: Decoder, stream: Float[Tensor, "source d"], answers: Sequence[int]
) -> Float[np.ndarray, "source answer"]:
    """The answers' logits as if the stream were the last layer's, before any soft cap."""
    rows = decoder.unembed[torch.tensor(answers, device=decoder.unembed.device)].double()
    return (decoder.normed(stream).double() @ rows.T * decoder.logit_scale).cpu().numpy()


def _similarity(sources: Tensor, answers: Tensor) -> Float[np.ndarray, "source answer"]:
    left, right = (torch.nn.functional.normalize(rows.double(), dim=-1) for rows in (sources, answers))
    return (left @ right.T).cpu().numpy()


def _scores(
    model: Any,
    decoder: Decoder,
    chosen: Sequence[Head],
    names: list[str],
    tables: np.ndarray,
    asked: Asked,
    generator: torch.Generator,
) -> pd.DataFrame:
    copying = []
    first = {token: row for row, token in reversed(list(enumerate(asked.tokens))) if asked.own[row] >= 0}
    rows = sorted(first.values())
    for table in tables:
        copying.append(copying_score(table[rows][:, asked.own[rows]]) if rows else np.nan)
    induction = [np.nan] * len(chosen)
    repeated = min(_REPEATED, (context_limit(model) or 2 * _REPEATED) // 2)
    if decoder.causal and repeated > 1:
        tokens = torch.randint(len(decoder.unembed), (_ROWS, repeated), generator=generator)
        run = trace(decoder, torch.cat([tokens, tokens], 1).to(decoder.layers[0].device), keep=("pattern",))
        induction = [
            float(run.kept["pattern"][layer][:, head].diagonal(1 - repeated, 1, 2)[:, 1:].double().mean())
            for layer, head in chosen
        ]
    wide = pd.DataFrame({"head": names, "copying": copying, "induction": induction})
    return lengthen(wide, {"copying": "share", "induction": "attention"})
