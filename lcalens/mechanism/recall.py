"""`recall`: what a head's value circuit recalls of a source token, beside all that looks like recall and is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.statistics import holm, ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.core.tokens import encode, follow, source_tokenizer
from lcalens.engine.circuits import Readout, gaussian_circuit, readout, recalled, spectrum
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import trace
from lcalens.engine.reading import read_decoder
from lcalens.mechanism.arguments import Head, Heads, check_contrast, is_index, read_heads, read_layers
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.labels import read_token, tokenizer_of
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.recall_measures import QUANTITIES, UNITS, copying_score, measures
from lcalens.mechanism.summary import contrast_record, interval

Level = Literal["embedding", "residual"]
Objects = Sequence[str | int] | Mapping[Any, Any]
_NEUTRAL = ("It is", "This is", "There was a", "They went to the", "One of the", "He said that the", "We saw", "And so")
_FRAME = "It is"  # a word's tokens are those that it has behind this
_FILLER = 4  # positions before a bare source, so that it does not stand first
_REPEATED, _ROWS = 24, 4  # tokens of a sequence that is repeated, and how many sequences


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

    An entry is what an answer's logit gets for every unit of attention that the head pays to the source: through W_V,
    W_O, the norm after attention where there is one, the final norm (frozen) and W_U. In the toy model it is
    W_E^T W_V W_E. A head that moves a word's own token, or whatever resembles it in the embedding, has large entries
    for related answers too, so each number stands beside what would show it without recall.

    Args:
        model: A TransformerBridge, of a toy or a real model, whose blocks add to the residual stream.
        sources: A contrast: the sources are the last tokens of the span `word` in the hijacked runs (of the span
            `redrawn`, in the toy), the answers all tokens that are a source or an answer. Or objects: words, token
            ids, or a mapping from each to what is related to it; sources and answers are then these.
        heads: Heads as (layer, head), or as `leading` gives them.
        related: From a source to its related words or token ids, one or several. Of a contrast whose word is not the
            false object (the scheme `related-word`) the false answer is related to it, whatever is given here.
        level: Where the circuit reads the source: `embedding`, as it comes from W_E, or `residual`, as it stands before
            the head's layer in the hijacked run.
        draws: Random circuits with the head's own singular values.
        seed: Of these circuits and of the sequences for the induction score.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes head, source (example, for a contrast) and answer, in logits: `recall`. Its tables:
        `summary`, for each head means over sources with 95% bootstrap intervals of `own_first`, `own_last`,
        `own_rank`, `own_gap`, `related_rank`, `related_auc`, `related_gap`, `left` (see
        `lcalens.mechanism.recall_measures.measures`) and `relative`, related_gap over own_gap; `nulls`, the same of the
        embeddings' similarity, of a logit lens at that layer, of the layer's other heads, of all other heads and of
        random circuits of the same spectrum (of many the mean, with the middle 95% as its ends); `tests`, the share of
        random circuits whose `left` is as large, by itself and Holm-corrected over the heads; `scores`, for each head
        copying (Elhage et al. 2021), from -1 to 1, and induction, the attention paid to the token after the last
        occurrence in repeated random tokens; `sources`, every quantity source by source. Words of several tokens are
        left out: `provenance["left_out"]`.

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
    asked = _of_contrast(model, contrast, related) if contrast is not None else _of_objects(model, sources, related)
    if len(asked.tokens) < 3:
        raise LcalensError(f"sources: three or more are needed, got {len(asked.tokens)}{asked.said()}.")
    embedded = _embedded(decoder, asked.tokens)
    streams = _streams(decoder, contrast, asked, embedded) if level == "residual" else [embedded] * len(decoder.layers)
    read, scale = _readout(model, decoder, contrast, asked)
    similarity = _similarity(embedded, _embedded(decoder, asked.answers))
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
                random[index, head] = np.array([np.nanmean(one["left"]) if asked.any_related else np.nan
                                                for one in drawn])  # fmt: skip
                lens = (streams[index].double() @ read.final.to(layer.device).T).cpu().numpy()
                kinds = {
                    "embedding similarity": [measures(similarity, asked.own, asked.related, similarity)],
                    "logit lens": [measures(lens, asked.own, asked.related, similarity)],
                    "same spectrum": drawn,
                }
                nulls += [{"head": f"L{index}H{head}", "null": kind} | _spread(found) for kind, found in kinds.items()]
            report(index + 1, len(layers), "recall")
    for layer, head in chosen:
        others = {
            "other heads of the layer": [found for (at, h), found in by_head.items() if at == layer and h != head],
            "all other heads": [found for at, found in by_head.items() if at not in chosen],
        }
        nulls += [
            {"head": f"L{layer}H{head}", "null": kind} | _spread(found) for kind, found in others.items() if found
        ]
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
        "scale_of": "each clean run" if contrast is not None else "the mean over neutral prompts",
        "left_out": asked.left_out,
    }
    return Result(
        kind="recall",
        axes={"head": tuple(names), axis: labels, "answer": tuple(asked.answer_names)},
        values={"recall": tables},
        examples=contrast.examples.reset_index(drop=True) if contrast is not None else pd.DataFrame(),
        tables={
            "summary": _summary(names, [by_head[head] for head in chosen], clusters),
            "nulls": lengthen(pd.DataFrame(nulls), UNITS),
            "tests": _tests(names, [by_head[head] for head in chosen], [random[head] for head in chosen]),
            "scores": _scores(decoder, chosen, names, tables, asked, generator),
            "sources": _by_source(names, axis, labels, [by_head[head] for head in chosen]),
        },
        units={"recall": "logits"},
        provenance=provenance_of(
            model,
            path="layer by layer",
            settings=settings | ({} if contrast is None else contrast_record(contrast, "logit-difference")),
        ),
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """Sources and answers as tokens.

    Attributes:
        tokens: Each source's.
        names: As they are shown.
        answers: The answers'.
        answer_names: As they are shown.
        own: Where each source's own token stands among the answers.
        related: Which answers are related to each source.
        at: For each example of a contrast the source's position in the hijacked run.
        left_out: Words that are several tokens.
    """

    tokens: list[int]
    names: list[str]
    answers: list[int]
    answer_names: list[str]
    own: Int[np.ndarray, " source"]
    related: Bool[np.ndarray, "source answer"]
    at: list[int]
    left_out: list[str]

    @property
    def any_related(self) -> bool:
        """Whether any source has a related answer."""
        return bool(self.related.any())

    def said(self) -> str:
        """What was left out, for an error."""
        return f"; left out as several tokens: {', '.join(self.left_out)[:80]}" if self.left_out else ""


def _decoder(model: Any, contrast: Contrast | None) -> Decoder:
    if contrast is not None:
        check_contrast(model, contrast)
        return read_layers(model, "recall", contrast)
    decoder = read_decoder(model)
    if isinstance(decoder, str):
        raise LcalensError(
            f"model: recall needs a model that lcalens reads layer by layer, and cannot here: {decoder}."
        )
    return decoder


def _gathered(
    tokens: list[int],
    names: list[str],
    relations: list[list[int]],
    answers: list[int],
    model: Any,
    *,
    at: list[int],
    left_out: list[str],
) -> _Asked:
    place = {token: index for index, token in enumerate(answers)}
    related = np.zeros((len(tokens), len(answers)), dtype=bool)
    for row, some in enumerate(relations):
        related[row, [place[token] for token in some if token in place and token != tokens[row]]] = True
    tokenizer = tokenizer_of(model)
    return _Asked(
        tokens, names, answers, [read_token(tokenizer, token) for token in answers],
        np.array([place.get(token, -1) for token in tokens]), related, at, left_out,
    )  # fmt: skip


def _of_contrast(model: Any, contrast: Contrast, related: Mapping[Any, Any] | None) -> _Asked:
    span = next((name for name in ("word", "redrawn", "sentence") if name in contrast.spans), None)
    if span is None:
        raise LcalensError("sources: the contrast has no span 'word'; give Contrast(..., spans={'word': ...}).")
    missing = [example for example, rows in enumerate(contrast.spans[span]) if not rows]
    if missing:
        raise LcalensError(f"sources: example {missing[0]} has no span {span!r}; choose others, contrast[[...]].")
    at = [max(last for _, last in rows) - 1 for rows in contrast.spans[span]]
    tokens = [contrast.hijacked[example][position] for example, position in enumerate(at)]
    given = {} if related is None else _tokens_of(model, related)[0]
    relations = [[*given.get(token, []), false[0]] for token, false in zip(tokens, contrast.false, strict=True)]
    first = (row[0] for row in (*contrast.true, *contrast.false))
    answers = sorted({*tokens, *first, *chain.from_iterable(given.values())})
    tokenizer = tokenizer_of(model)
    return _gathered(
        tokens, [read_token(tokenizer, token) for token in tokens], relations, answers, model, at=at, left_out=[]
    )


def _of_objects(model: Any, objects: Any, related: Mapping[Any, Any] | None) -> _Asked:
    if isinstance(objects, str) or not isinstance(objects, Sequence | Mapping):
        raise LcalensError(f"sources: expected a Contrast, words, token ids or a mapping, got {objects!r:.60}.")
    pairs = dict(objects) if isinstance(objects, Mapping) else {one: (related or {}).get(one, ()) for one in objects}
    relations, names, left_out = _tokens_of(model, pairs)
    tokens = list(relations)
    answers = list(dict.fromkeys([*tokens, *chain.from_iterable(relations.values())]))
    return _gathered(
        tokens, [names[token] for token in tokens], [relations[token] for token in tokens], answers, model,
        at=[], left_out=left_out,
    )  # fmt: skip


def _tokens_of(model: Any, pairs: Mapping[Any, Any]) -> tuple[dict[int, list[int]], dict[int, str], list[str]]:
    """Sources with what is related to them, as tokens; names; and words that are several tokens."""
    lists = {source: [one] if isinstance(one, str) or is_index(one) else list(one) for source, one in pairs.items()}
    words = list(
        dict.fromkeys(one for source, some in lists.items() for one in (source, *some) if isinstance(one, str))
    )
    token_of: dict[Any, int | None] = {}
    if words:
        followed = follow(source_tokenizer(model), [_FRAME] * len(words), words, argument="sources")
        token_of = {
            word: int(answer.ids[-1]) if not answer.problem and len(answer.ids) == answer.start + 1 else None
            for word, answer in zip(words, followed, strict=True)
        }
    vocabulary = int(model.cfg.d_vocab)
    for one in (one for source, some in lists.items() for one in (source, *some) if not isinstance(one, str)):
        if not is_index(one) or not 0 <= int(one) < vocabulary:
            raise LcalensError(f"sources: {one!r:.60} is no word, nor a token of the model's {vocabulary}.")
        token_of[one] = int(one)
    relations: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for source, some in lists.items():
        token = token_of[source]
        if token is not None:
            relations[token] = [found for one in some if (found := token_of[one]) is not None]
            names[token] = str(source)
    return relations, names, [word for word in words if token_of[word] is None]


def _embedded(decoder: Decoder, tokens: Sequence[int]) -> Float[Tensor, "token d"]:
    """Tokens as they come from the embedding, behind the same few others so that none stands first."""
    device = decoder.layers[0].device
    column = torch.tensor(tokens, device=device)[:, None]
    filler = torch.zeros(len(tokens), _FILLER if decoder.causal else 0, dtype=column.dtype, device=device)
    return decoder.embed(torch.cat([filler, column], 1))[:, -1]


def _streams(
    decoder: Decoder, contrast: Contrast | None, asked: _Asked, embedded: Tensor
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
    model: Any, decoder: Decoder, contrast: Contrast | None, asked: _Asked
) -> tuple[Readout, Float[Tensor, "source layer"]]:
    """The answers' directions, and each source's scale: its clean run's, or the mean over neutral prompts."""
    device, answers = decoder.layers[0].device, torch.tensor(asked.answers)
    if contrast is not None:
        scale = torch.zeros(len(asked.tokens), len(decoder.layers), dtype=torch.float64)
        found = None
        for bucket in contrast.buckets():
            found = readout(decoder, bucket.clean.to(device), answers)
            scale[bucket.indices] = found.scale.cpu()
        assert found is not None, "a contrast has an example"
        return found, scale
    tokenizer = tokenizer_of(model)
    if tokenizer is None:  # ids have no sentences
        prompts = [[token] for token in asked.tokens]
    else:
        prompts = [list(one.ids) for one in encode(tokenizer, _NEUTRAL)]
    runs = [readout(decoder, torch.tensor([ids], device=device), answers) for ids in prompts]
    mean = torch.stack([run.scale[0].cpu() for run in runs]).mean(0)
    return runs[0], mean.expand(len(asked.tokens), -1)


def _similarity(sources: Tensor, answers: Tensor) -> Float[np.ndarray, "source answer"]:
    left, right = (torch.nn.functional.normalize(rows.double(), dim=-1) for rows in (sources, answers))
    return (left @ right.T).cpu().numpy()


def _spread(found: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """Of one table its means; of several the mean of their means, and the middle 95% of them."""
    row: dict[str, float] = {}
    for name in QUANTITIES:
        values = np.array([one[name][~np.isnan(one[name])].mean() if (~np.isnan(one[name])).any() else np.nan
                           for one in found])  # fmt: skip
        values = values[~np.isnan(values)]
        row[name] = float(values.mean()) if len(values) else np.nan
        if len(values) > 1:
            row[f"{name}_low"], row[f"{name}_high"] = (float(end) for end in np.quantile(values, [0.025, 0.975]))
        else:
            row[f"{name}_low"] = row[f"{name}_high"] = np.nan
    return row


def _summary(names: list[str], found: list[dict[str, np.ndarray]], clusters: np.ndarray | None) -> pd.DataFrame:
    columns: dict[str, Any] = {"head": names}
    for name in QUANTITIES:
        stacked = np.stack([one[name] for one in found], 1)
        columns |= interval(name, ratio_of_means(stacked, np.ones(len(stacked)), clusters))
    both = [np.where(np.isnan(one["own_gap"]), np.nan, one["related_gap"]) for one in found]
    ratios = [ratio_of_means(part[:, None], np.nan_to_num(one["own_gap"]), clusters)
              for part, one in zip(both, found, strict=True)]  # fmt: skip
    columns |= interval("relative", tuple(np.concatenate([one[end] for one in ratios]) for end in range(3)))  # pyright: ignore[reportArgumentType]
    return lengthen(pd.DataFrame(columns), UNITS | {"relative": "share"})


def _tests(names: list[str], found: list[dict[str, np.ndarray]], drawn: list[np.ndarray]) -> pd.DataFrame:
    """Of each head the share of random circuits of its spectrum with as much association left; Holm over the heads."""
    shares = []
    for one, random in zip(found, drawn, strict=True):
        left = one["left"][~np.isnan(one["left"])]
        known = random[~np.isnan(random)]
        shares.append(
            float((1 + (known >= left.mean()).sum()) / (1 + len(known))) if len(left) and len(known) else np.nan
        )
    wide = pd.DataFrame({"head": names, "p": shares, "p_holm": holm(shares)})
    return lengthen(wide, {"p": "probability", "p_holm": "probability"})


def _scores(
    decoder: Decoder,
    chosen: Sequence[Head],
    names: list[str],
    tables: np.ndarray,
    asked: _Asked,
    generator: torch.Generator,
) -> pd.DataFrame:
    copying = []
    first = {token: row for row, token in reversed(list(enumerate(asked.tokens))) if asked.own[row] >= 0}
    rows = sorted(first.values())
    for table in tables:
        copying.append(copying_score(table[np.ix_(rows, asked.own[rows])]) if rows else np.nan)
    induction = [np.nan] * len(chosen)
    if decoder.causal:
        tokens = torch.randint(len(decoder.unembed), (_ROWS, _REPEATED), generator=generator)
        run = trace(decoder, torch.cat([tokens, tokens], 1).to(decoder.layers[0].device), keep=("pattern",))
        induction = [
            float(run.kept["pattern"][layer][:, head].diagonal(1 - _REPEATED, 1, 2)[:, 1:].double().mean())
            for layer, head in chosen
        ]
    wide = pd.DataFrame({"head": names, "copying": copying, "induction": induction})
    return lengthen(wide, {"copying": "share", "induction": "attention"})


def _by_source(
    names: list[str], axis: str, labels: tuple[Any, ...], found: list[dict[str, np.ndarray]]
) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "head": np.repeat(names, len(labels)),
        axis: list(labels) * len(names),
    }
    columns |= {name: np.concatenate([one[name] for one in found]) for name in QUANTITIES}
    return lengthen(pd.DataFrame(columns), UNITS)
