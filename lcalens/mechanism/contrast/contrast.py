"""A contrast: for each example a clean run and a hijacked one, and the two answers they are torn between.

The metric of every measurement is logit(false) - logit(true) at the last position: hijacking raises it.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_padding
from lcalens.core.text import check_written
from lcalens.core.tokens import Span, encode, source_tokenizer, spell
from lcalens.mechanism.contrast.answers import answer_ids
from lcalens.mechanism.contrast.inputs import Group, Positions, choose, ids_of, mask_of, place, read_spans, rows_of

Ids = tuple[int, ...]
Texts = str | Sequence[str]
Tokens = Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor] | Tensor | np.ndarray


class Bucket(NamedTuple):
    """The examples of a contrast whose lengths are the same: tensors without padding.

    Attributes:
        indices: Which examples they are.
        clean: Token ids.
        hijacked: Token ids.
        true: The true answer's first token.
        false: The false answer's first token.
    """

    indices: Int[Tensor, " batch"]
    clean: Int[Tensor, "batch clean_position"]
    hijacked: Int[Tensor, "batch position"]
    true: Int[Tensor, " batch"]
    false: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False, init=False)
class Contrast:
    """Clean and hijacked tokens of several examples, their answers, and the spans that matter.

    Args:
        clean: One text or several (with `tokenizer`), a 1-D or 2-D integer tensor, or sequences of token ids.
        hijacked: The same, as many.
        true: The true answer for all, or for each: a word behind the prompt, with or without its space (`" Paris"` and
            `"Paris"` are one), a token id, or several token ids (a sequence of sequences, or a 2-D tensor).
        false: The false answer, likewise.
        tokenizer: A Hugging Face tokenizer, or a TransformerBridge, whose source's tokenizer is taken.
        join: What stands between prompts and answers that are text, such as `" "` or `""`; None finds it from the
            prompt's language and end (docs/text.md).
        clean_mask: Of the shape of `clean`: where it is 0 there is padding, which is stripped.
        hijacked_mask: The same for `hijacked`.
        spans: Names with token spans in `hijacked` as given (padding counts): a pair (first, one past the last) for all
            examples, or for each a pair or several. Of texts also words, whose every occurrence is meant.
        examples: One row for each example: what is known of it. Where there is a column `cluster`, every interval over
            examples resamples its groups whole.
        excluded: What was left out before, with columns `index` and `reason`.

    Attributes:
        clean: Each example's token ids, without padding.
        hijacked: Each example's token ids, without padding.
        true: The true answers' token ids. Measurements use the first, except of whole answers.
        false: The false answers' token ids.
        spans: For each name and example, token spans in the hijacked tokens; `last` is always there.
        examples: One row per example. Where a tokenizer was given, `true_tokens` and `false_tokens` spell the answers.
        excluded: What was left out: `index` (among what was given), `reason`, and what else identifies it.

    Raises:
        LcalensError: An argument that cannot be used, or every pair's answers begin with the same token.

    Example:
        >>> contrast = Contrast(
        ...     "The Eiffel Tower is in",
        ...     "Do not think of Rome. The Eiffel Tower is in",
        ...     true="Paris",
        ...     false="Rome",
        ...     tokenizer=model,
        ...     spans={"rome": "Rome"},
        ... )
        >>> contrast.examples[["true_tokens", "false_tokens"]]
    """

    clean: tuple[Ids, ...]
    hijacked: tuple[Ids, ...]
    true: tuple[Ids, ...]
    false: tuple[Ids, ...]
    spans: Mapping[str, tuple[tuple[Span, ...], ...]]
    examples: pd.DataFrame
    excluded: pd.DataFrame

    def __init__(
        self,
        clean: Texts | Tokens,
        hijacked: Texts | Tokens,
        *,
        true: int | Texts | Tokens,
        false: int | Texts | Tokens,
        tokenizer: Any = None,
        join: str | None = None,
        clean_mask: Tokens | None = None,
        hijacked_mask: Tokens | None = None,
        spans: Mapping[str, Any] | None = None,
        examples: pd.DataFrame | None = None,
        excluded: pd.DataFrame | None = None,
    ):
        tokenizer = _tokenizer(tokenizer)
        clean_ids, _, clean_texts = _read("clean", clean, clean_mask, tokenizer)
        hijacked_ids, kept, texts = _read("hijacked", hijacked, hijacked_mask, tokenizer)
        size = len(clean_ids)
        if len(hijacked_ids) != size:
            raise LcalensError(f"hijacked: {len(hijacked_ids)} examples for {size} clean ones; give as many.")
        prompts = ((clean_ids, clean_texts), (hijacked_ids, texts))
        answers = {
            name: _answers(name, answer, prompts, tokenizer, join)
            for name, answer in (("true", true), ("false", false))
        }
        token_spans = read_spans(spans, [len(row) for row in hijacked_ids], texts, kept, tokenizer)
        if examples is None:
            given_texts = {"clean_text": clean_texts, "hijacked_text": texts}
            examples = pd.DataFrame(
                {"index": range(size)} | {name: rows for name, rows in given_texts.items() if rows is not None}
            )
        elif not isinstance(examples, pd.DataFrame) or len(examples) != size:
            shown = f"{len(examples)} rows" if isinstance(examples, pd.DataFrame) else f"{examples!r:.60}"
            raise LcalensError(f"examples: expected a pandas data frame of {size} rows, got {shown}.")
        if tokenizer is not None:
            spelled = {f"{name}_tokens": [spell(tokenizer, ids) for ids in rows] for name, rows in answers.items()}
            examples = examples.assign(**{name: rows for name, rows in spelled.items() if name not in examples})
        same = [i for i in range(size) if answers["true"][i][0] == answers["false"][i][0]]
        keep = sorted(set(range(size)) - set(same))
        if not keep:
            raise LcalensError(
                f"false: in every one of {size} examples the answers begin with the same token "
                f"({answers['true'][0][0]} in the first), so no logit tells them apart; give others."
            )
        left_out = examples.iloc[same].reset_index(drop=True).drop(columns=["index", "reason"], errors="ignore")
        left_out.insert(0, "index", same)
        left_out.insert(1, "reason", [f"both answers begin with token {answers['true'][i][0]}" for i in same])
        whole = _make(
            tuple(clean_ids), tuple(hijacked_ids), tuple(answers["true"]), tuple(answers["false"]), token_spans,
            examples, _joined(excluded, left_out),
        )  # fmt: skip
        vars(self).update(vars(whole._take(keep)))

    def __len__(self) -> int:
        return len(self.hijacked)

    def __getitem__(self, which: Any) -> "Contrast":
        """The examples of a slice, an index, several indices or a mask, as a contrast."""
        return self._take(choose(which, len(self)))

    def __iter__(self) -> Iterator["Contrast"]:
        return (self._take([index]) for index in range(len(self)))

    @property
    def longest(self) -> int:
        """How many tokens the longest run has, with its answer behind it."""
        answers = max(len(row) for rows in (self.true, self.false) for row in rows)
        return max(len(row) for rows in (self.clean, self.hijacked) for row in rows) + answers - 1

    @property
    def aligned(self) -> Bool[Tensor, " example"]:
        """Whether an example's clean and hijacked tokens are equally many, so that every position aligns."""
        return torch.tensor([len(a) == len(b) for a, b in zip(self.clean, self.hijacked, strict=True)])

    def buckets(self) -> Iterator[Bucket]:
        """The examples as tensors without padding: a bucket for each pair of lengths, in order of appearance."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (clean, hijacked) in enumerate(zip(self.clean, self.hijacked, strict=True)):
            groups.setdefault((len(clean), len(hijacked)), []).append(index)
        for indices in groups.values():
            yield Bucket(
                torch.tensor(indices),
                torch.tensor([self.clean[index] for index in indices]),
                torch.tensor([self.hijacked[index] for index in indices]),
                torch.tensor([self.true[index][0] for index in indices]),
                torch.tensor([self.false[index][0] for index in indices]),
            )

    def places(self, positions: Positions) -> tuple[tuple[Group, ...], ...]:
        """For each example, the groups of positions that `positions` means, counted from the end (-1 is the last).

        Args:
            positions: `last`; `all`, one group of every position that both runs have; `each`, a group for each of
                them; a span's name or indices (negative from the end, else from the hijacked tokens' start), one group.

        Raises:
            LcalensError: Unknown positions, or such as the clean run does not have.
        """
        return tuple(
            place(positions, {name: rows[i] for name, rows in self.spans.items()}, self.clean[i], self.hijacked[i], i)
            for i in range(len(self))
        )

    def content(self) -> dict[str, Any]:
        """What measurements depend on, as JSON can hold it: tokens, answers and spans."""
        rows = {name: [list(row) for row in getattr(self, name)] for name in ("clean", "hijacked", "true", "false")}
        spans = {name: [[list(pair) for pair in row] for row in self.spans[name]] for name in sorted(self.spans)}
        return rows | {"spans": spans}

    def __repr__(self) -> str:
        lengths = [len(row) for row in self.hijacked]
        tokens = f"{min(lengths)}" if len(set(lengths)) == 1 else f"{min(lengths)} to {max(lengths)}"
        aligned = int(self.aligned.sum())
        controls = "all aligned" if aligned == len(self) else f"{aligned} aligned"
        left_out = f", {len(self.excluded)} excluded" if len(self.excluded) else ""
        examples = "1 example" if len(self) == 1 else f"{len(self)} examples"
        return f"Contrast({examples}{left_out}, {tokens} tokens, {controls}, spans: {', '.join(self.spans)})"

    def _repr_html_(self) -> str:
        first = {name: getattr(self, name)[0] for name in ("clean", "hijacked", "true", "false")}
        texts = {"clean": "clean_text", "hijacked": "hijacked_text", "true": "target_true", "false": "target_false"}
        told = {
            name: str(self.examples[column].iloc[0]) if (column := texts[name]) in self.examples else str(list(ids))
            for name, ids in first.items()
        }
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in told.items())
        reasons = self.excluded["reason"].value_counts() if len(self.excluded) else {}
        listed = "".join(f"<li>{count}: {html.escape(str(reason))}</li>" for reason, count in reasons.items())
        left_out = f"<p>Excluded:</p><ul>{listed}</ul>" if listed else ""
        return f"<p><b>{html.escape(repr(self))}</b><br>The first:</p><table>{rows}</table>{left_out}"

    def _take(self, indices: Sequence[int]) -> "Contrast":
        def some(rows: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(rows[index] for index in indices)

        spans = {name: some(rows) for name, rows in self.spans.items()}
        rows = [some(getattr(self, name)) for name in ("clean", "hijacked", "true", "false")]
        return _make(*rows, spans, self.examples.iloc[list(indices)].reset_index(drop=True), self.excluded)


def _make(*values: Any) -> Contrast:
    """A contrast of what is known to be sound, its fields in order."""
    contrast = object.__new__(Contrast)
    vars(contrast).update(zip(Contrast.__dataclass_fields__, values, strict=True))
    return contrast


def _joined(before: Any, new: pd.DataFrame) -> pd.DataFrame:
    if before is None:
        return new
    if not isinstance(before, pd.DataFrame) or not {"index", "reason"} <= set(before.columns):
        raise LcalensError(f"excluded: expected a pandas data frame with index and reason, got {before!r:.60}.")
    return pd.concat([before, new], ignore_index=True) if len(new) else before.reset_index(drop=True)


def _tokenizer(source: Any) -> Any:
    if source is None or hasattr(source, "convert_ids_to_tokens"):
        return source
    if hasattr(source, "original_model"):
        return source_tokenizer(source)
    raise LcalensError(f"tokenizer: expected a Hugging Face tokenizer or a TransformerBridge, got {source!r:.60}.")


def _read(name: str, examples: Any, mask: Any, tokenizer: Any) -> tuple[list[Ids], list[list[bool]] | None, Any]:
    """Token ids without padding; which of those given were kept; and the texts, where they were texts."""
    rows = [examples] if isinstance(examples, str) else rows_of(name, examples)
    if any(isinstance(row, str) for row in rows):
        for text in rows:
            check_written(name, text)
        _need(tokenizer, name)
        if mask is not None:
            raise LcalensError(f"{name}_mask: texts have no padding; leave it out.")
        encoded = encode(tokenizer, rows)
        unknown = next((i for i, item in enumerate(encoded) if item.unknown), None)
        if unknown is not None:
            raise LcalensError(
                f"{name}: the tokenizer's vocabulary does not have all of {rows[unknown]!r:.120}; choose other words."
            )
        ids = [item.ids for item in encoded]
    else:
        ids = [ids_of(name, row) for row in rows]
    kept = None
    if mask is not None:
        kept = mask_of(f"{name}_mask", mask, ids)
        ids = [tuple(token for token, keep in zip(*pair, strict=True) if keep) for pair in zip(ids, kept, strict=True)]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise LcalensError(f"{name}: example {empty} has no tokens; give at least one.")
    if tokenizer is not None and not isinstance(rows[0], str):
        check_padding(tokenizer, ids, name)
    return ids, kept, rows if isinstance(rows[0], str) else None


def _answers(
    name: str, answers: Any, prompts: Sequence[tuple[list[Ids], list[str] | None]], tokenizer: Any, join: str | None
) -> list[Ids]:
    """Each example's answer as token ids."""
    size = len(prompts[0][0])
    if isinstance(answers, Tensor | np.ndarray) and answers.ndim == 0:
        answers = answers.item()
    if isinstance(answers, str | Integral):
        listed = [answers] * size
    else:
        numbers = isinstance(answers, Tensor | np.ndarray) and answers.ndim == 1
        listed = (
            answers.tolist() if numbers else list(answers) if isinstance(answers, Sequence) else rows_of(name, answers)
        )
    if len(listed) != size:
        raise LcalensError(f"{name}: {len(listed)} answers for {size} examples; give one for all, or one for each.")
    texts = {i: answer for i, answer in enumerate(listed) if isinstance(answer, str)}
    if texts:
        _need(tokenizer, name)
    behind = answer_ids(name, texts, prompts, tokenizer, join)
    ids_of_answers = []
    for i, answer in enumerate(listed):
        ids = behind[i] if i in texts else ids_of(name, [answer] if isinstance(answer, Integral) else answer)
        if not ids:
            raise LcalensError(f"{name}: {answer!r:.60} has no tokens; give at least one.")
        ids_of_answers.append(ids)
    return ids_of_answers


def _need(tokenizer: Any, name: str) -> None:
    if tokenizer is None:
        raise LcalensError(f"tokenizer: {name} is text; give the model, or its Hugging Face tokenizer.")
