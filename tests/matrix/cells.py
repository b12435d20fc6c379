"""The cells of the matrix: a family, a verb and how it is called; and the verdict on each.

`exact`: as the oracle says, in float32 within 1e-4 of the largest effect, which is above 1, and in bfloat16 with at
most twice the error of Hugging Face's own bfloat16 run (both root mean squares; of Hugging Face's the largest of four
examples, for a single one's rounding may happen to be small). `refused`: an LcalensError, its reason among the
expected ones. `wrong`: anything else.
"""

import dataclasses
import fnmatch
import functools
import itertools
import math
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.matrix import oracle
from tests.matrix.families import FAMILIES, boot
from tests.matrix.oracle import SITES, Answers
from tests.matrix.plain import Plain

SHARE = 1e-4  # of the effect, in float32
TIMES = 2.0  # Hugging Face's own error, in bfloat16
REDRAWN = 12  # sets of tokens over which a bfloat16 cell above its allowance is judged
FAR = 8.0  # times its allowance: an error above is wrong at once
DIVERGENCE = 16 * float(np.finfo(np.float32).eps)  # nats of rounding, in float32
CONTROLS = ("aligned", "unequal")
DTYPES = ("float32", "bfloat16")
BATCHES = ("batch", "single")
STEPS = 4
_EXPECTED = Path(__file__).parent / "expected_refusals.toml"
_SENTENCE = (5, 5, 3, 3)  # tokens of each example's sentence
_PROMPT = 6


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        family: One of `FAMILIES`.
        verb: One of `VERBS`.
        site: Of the verbs that have sites; else empty.
        control: Whether clean and hijacked runs are of equal length.
        dtype: Of the weights.
        batch: Four examples of two lengths, or one.
        options: What else the verb is called with.
    """

    family: str
    verb: str
    site: str
    control: str
    dtype: str
    batch: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Readable and unique."""
        told = [f"{key}={value}" for key, value in self.options]
        return " ".join(part for part in (self.family, self.verb, self.site, self.control, self.dtype, self.batch,
                                          *told) if part)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of a cell.

    Attributes:
        cell: Which.
        word: `exact`, `refused` or `wrong`.
        reason: Of a refusal or a wrong number.
        error: The largest, in float32; the root mean square, in bfloat16.
        allowed: What it may be.
        effect: The largest.
        seconds: That lcalens and the oracle took.
        expected: Of a refusal, whether it is a listed one, and which.
        path: What the result's provenance says ran.
    """

    cell: Cell
    word: str
    reason: str = ""
    error: float = 0.0
    allowed: float = 0.0
    effect: float = 0.0
    seconds: float = 0.0
    expected: int | None = None
    path: str = ""

    @property
    def good(self) -> bool:
        """Exact, or refused as expected."""
        return self.word == "exact" or (self.word == "refused" and self.expected is not None)

    def __str__(self) -> str:
        if self.word == "refused":
            return f"{self.cell.name}: refused{'' if self.good else ', and not expected'}: {self.reason}"
        numbers = f"error {self.error:.3g}, allowed {self.allowed:.3g}, effect {self.effect:.3g}"
        return f"{self.cell.name}: {self.word} ({numbers}) {self.reason}"


@dataclass(frozen=True)
class Expected:
    """A refusal that is known.

    Attributes:
        reason: What the error says.
        why: In words for the page.
        families: Patterns of names; likewise the rest.
    """

    reason: str
    why: str
    families: tuple[str, ...] = ("*",)
    verbs: tuple[str, ...] = ("*",)
    sites: tuple[str, ...] = ("*",)
    controls: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = ("*",)

    def fits(self, cell: Cell, reason: str) -> bool:
        """Whether this refusal of this cell is the known one."""
        pairs = (
            (self.families, cell.family),
            (self.verbs, cell.verb),
            (self.sites, cell.site),
            (self.controls, cell.control),
            (self.dtypes, cell.dtype),
        )
        return self.reason in reason and all(
            any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns) for patterns, value in pairs
        )


@functools.cache
def expected_refusals() -> tuple[Expected, ...]:
    """The committed list."""
    listed = tomllib.loads(_EXPECTED.read_text(encoding="utf-8"))["refusal"]
    return tuple(
        Expected(**{key: tuple(value) if isinstance(value, list) else value for key, value in one.items()})
        for one in listed
    )


@dataclass
class Material:
    """What the cells of a family share: models, tokens and answers.

    Attributes:
        family: Whose.
        draw: Which tokens were drawn.
    """

    family: str
    draw: int = 0
    _kept: dict[Any, Any] = field(default_factory=dict)
    _answers: dict[str, Any] = field(default_factory=dict, init=False)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            try:
                self._kept[key] = make()
            except Exception as error:
                self._kept[key] = error
        if isinstance(self._kept[key], Exception):
            raise self._kept[key]
        return self._kept[key]

    def bridge(self, dtype: str) -> Any:
        """lcalens' model. Its weights are numbers of bfloat16 whatever its dtype is, so one oracle serves both."""
        return self._once(("bridge", dtype), lambda: boot(self.family, dtype=getattr(torch, dtype), rounded=True))

    def plain(self, dtype: str) -> Plain:
        """Hugging Face's model."""
        make = functools.partial(Plain, self.family, dtype=getattr(torch, dtype), rounded=True)
        return self._once(("plain", dtype), make)

    def redrawn(self, draw: int) -> "Material":
        """The same models with other tokens.

        Args:
            draw: Which.
        """
        return self._once(("draw", draw), lambda: dataclasses.replace(self, draw=draw, _kept=self._models()))

    def _models(self) -> dict[Any, Any]:
        return {key: kept for key, kept in self._kept.items() if key[0] in ("bridge", "plain")}

    def examples(self, control: str) -> "Examples":
        """Four examples."""
        return self._once(("examples", control), lambda: _examples(self.plain("float32"), control, self.draw))

    def answer(self, cell: Cell, dtype: str) -> "Values":
        """What Hugging Face's model of a dtype gives for all four examples; the last call's is remembered."""
        key = dataclasses.replace(cell, batch="batch", dtype=dtype)
        if self._answers.get(dtype, (None,))[0] != key:
            found = VERBS[cell.verb].oracle(self.plain(dtype), key, self.examples(cell.control))
            self._answers[dtype] = key, found
        return self._answers[dtype][1]


@dataclass(frozen=True)
class Examples:
    """Tokens and answers of the examples of a control.

    Attributes:
        clean: A row each.
        hijacked: A row each: a first token, the sentence, the prompt.
        true: The answers, each of several tokens.
        false: The answers, each of several tokens.
        sentences: Where the sentence lies in the hijacked tokens.
    """

    clean: tuple[tuple[int, ...], ...]
    hijacked: tuple[tuple[int, ...], ...]
    true: tuple[tuple[int, ...], ...]
    false: tuple[tuple[int, ...], ...]
    sentences: tuple[tuple[int, int], ...]

    def chosen(self, batch: str) -> list[int]:
        """Which of them."""
        return list(range(len(self.clean))) if batch == "batch" else [0]

    def buckets(self, batch: str) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, Answers]]:
        """Examples of the same lengths: which, their clean and hijacked tokens, and their answers' first tokens."""
        lengths: dict[tuple[int, int], list[int]] = {}
        for index in self.chosen(batch):
            lengths.setdefault((len(self.clean[index]), len(self.hijacked[index])), []).append(index)
        for rows in lengths.values():
            clean, hijacked = (torch.tensor([side[row] for row in rows]) for side in (self.clean, self.hijacked))
            true, false = (torch.tensor([side[row][0] for row in rows]) for side in (self.true, self.false))
            yield rows, clean, hijacked, Answers(true, false)

    def contrast(self, batch: str) -> Any:
        """For lcalens."""
        import lcalens

        rows = self.chosen(batch)
        return lcalens.Contrast(
            [self.clean[row] for row in rows],
            [self.hijacked[row] for row in rows],
            true=[self.true[row] for row in rows],
            false=[self.false[row] for row in rows],
            spans={"sentence": [[self.sentences[row]] for row in rows]},
        )


def _examples(plain: Plain, control: str, draw: int) -> Examples:
    """Random tokens, no two of an example alike; the answers are those that the sentence moves most."""
    size = plain.config.get_text_config().vocab_size
    first = 0 if plain.kind == "lca" else 3  # after the special tokens
    generator = torch.Generator().manual_seed(7 + draw)
    columns: list[list[Any]] = [[], [], [], [], []]
    for length in _SENTENCE:
        drawn = (torch.randperm(size - first, generator=generator) + first).tolist()
        start, sentence, neutral = drawn[0], drawn[1 : 1 + length], drawn[1 + length : 1 + 2 * length]
        prompt, rest = drawn[20 : 20 + _PROMPT], drawn[26:]
        hijacked = (start, *sentence, *prompt)
        clean = (start, *neutral, *prompt) if control == "aligned" else (start, *prompt)
        if plain.kind == "t5":  # which nothing can be asked of
            moved = torch.arange(size)
        else:
            with torch.no_grad():
                change = [plain.run(torch.tensor([row])).uncapped[0, -1].double() for row in (clean, hijacked)]
            moved = change[1] - change[0]
        columns[0].append(clean)
        columns[1].append(hijacked)
        columns[2].append((int(moved.argmin()), rest[0]))
        columns[3].append((int(moved.argmax()), rest[1], rest[2]))
        columns[4].append((1, 1 + length))
    return Examples(*(tuple(column) for column in columns))


def groups_of(positions: str, clean: int, hijacked: int) -> list[list[int]]:
    """Groups of positions from the end; a first token that both runs share is no partner where lengths differ."""
    both = clean if clean == hijacked else min(clean, hijacked) - 1
    if positions == "last":
        return [[-1]]
    return [list(range(-both, 0))] if positions == "all" else [[at] for at in range(-both, 0)]


Values = tuple[list[np.ndarray], list[np.ndarray]]  # of each bucket: values, and what no effect would be
Measured = tuple[list[np.ndarray], str]


def _ends(direction: str, clean: Any, hijacked: Any) -> tuple[Any, Any]:
    """Base and source."""
    return (hijacked, clean) if direction == "restore" else (clean, hijacked)


def _placed(values: np.ndarray, rows: Sequence[int], examples: Examples, batch: str) -> np.ndarray:
    """The rows of a result that are a bucket's."""
    order = examples.chosen(batch)
    return values[[order.index(row) for row in rows]]


def _by_bucket(values: np.ndarray, axes: Sequence[str], cell: Cell, examples: Examples) -> list[np.ndarray]:
    """A result's values by bucket as the oracle has them, (batch, layer, head, group); NaN positions left out."""
    if "head" not in axes:
        values = values[:, :, None]
    if "position" not in axes:
        values = values[..., None]
    found = []
    for rows, clean, hijacked, _ in examples.buckets(cell.batch):
        own = _placed(values, rows, examples, cell.batch)
        if "position" in axes:
            own = own[..., -len(groups_of("each", clean.shape[1], hijacked.shape[1])) :]
        found.append(own)
    return found


# Each verb: what lcalens gives, and what the oracle gives.


def _patch(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    options = dict(cell.options)
    result = lcalens.patch(model, examples.contrast(cell.batch), site=_site(cell.site), progress=False, **options)
    values = _by_bucket(result.values["value"], list(result.axes), cell, examples)
    ends = result.examples[["clean", "hijacked"]].to_numpy(float)
    return [*values, ends], str(result.provenance.get("path", ""))


def _patch_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    options = dict(cell.options)
    metric, values, bases = options["metric"], [], []
    ends = np.zeros((len(examples.chosen(cell.batch)), 2))
    order = examples.chosen(cell.batch)
    for rows, clean, hijacked, answers in examples.buckets(cell.batch):
        base, source = _ends(options["direction"], clean, hijacked)
        groups = groups_of(options["positions"], clean.shape[1], hijacked.shape[1])
        with torch.no_grad():
            runs = [plain.run(tokens) for tokens in (clean, hijacked)]
        reference = runs[0].logits[:, -1]
        measured = [oracle.read(run, answers, metric, reference).numpy() for run in runs]
        values.append(
            oracle.patched(
                plain,
                base,
                source,
                answers,
                cell.site,
                groups,
                metric=metric,
                clean=reference,
                ablate=options.get("source") == "zero",
            )
        )
        own = measured[1 if options["direction"] == "restore" else 0]
        bases.append(np.broadcast_to(own[:, None, None, None], values[-1].shape))
        ends[[order.index(row) for row in rows]] = np.stack(measured, 1)
    return [*values, ends], [*bases, ends[:, ::-1]]


def _whole_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    options = dict(cell.options)
    values, bases = [], []
    order = examples.chosen(cell.batch)
    ends = np.zeros((len(order), 2))
    for rows, clean, hijacked, _ in examples.buckets(cell.batch):
        base, source = _ends(options["direction"], clean, hijacked)
        groups = groups_of(options["positions"], clean.shape[1], hijacked.shape[1])
        bucket, starts = [], []
        for at, row in enumerate(rows):
            true, false = examples.true[row], examples.false[row]
            bucket.append(oracle.whole_answer(plain, base[[at]], source[[at]], true, false, cell.site, groups))
            for column, side in enumerate((clean, hijacked)):
                context = side[at].tolist()
                scores = [oracle.log_probability(plain, [*context, *ids], len(context)) for ids in (false, true)]
                ends[order.index(row), column] = scores[0] - scores[1]
            starts.append(ends[order.index(row), 1 if options["direction"] == "restore" else 0])
        values.append(np.concatenate(bucket))
        bases.append(np.broadcast_to(np.array(starts)[:, None, None, None], values[-1].shape))
    return [*values, ends], [*bases, ends[:, ::-1]]


def _attribute(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    method = {"attribution": "patching", "integrated": "integrated-gradients", "direct": "direct"}[cell.verb]
    options = dict(cell.options) | ({"steps": STEPS} if cell.verb == "integrated" else {})
    result = lcalens.attribute(
        model, examples.contrast(cell.batch), method=method, site=_site(cell.site), progress=False, **options
    )
    return _by_bucket(result.values["effect"], list(result.axes), cell, examples), str(
        result.provenance.get("path", "")
    )


def _attribution_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    options, values = dict(cell.options), []
    for _, clean, hijacked, answers in examples.buckets(cell.batch):
        base, source = _ends(options["direction"], clean, hijacked)
        groups = groups_of(options["positions"], clean.shape[1], hijacked.shape[1])
        if cell.verb == "integrated":
            values.append(oracle.integrated(plain, base, source, answers, cell.site, groups, STEPS))
        else:
            values.append(oracle.attributed(plain, base, source, answers, cell.site, groups))
    return values, [np.zeros_like(value) for value in values]


def _direct_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    options, values = dict(cell.options), []
    for _, clean, hijacked, answers in examples.buckets(cell.batch):
        base, source = _ends(options["direction"], clean, hijacked)
        runs = [oracle.direct(plain, tokens, answers) for tokens in (base, source)]
        if options["positions"] == "each":
            change = runs[1].by_source - runs[0].by_source
        elif cell.site == "z":
            change = (runs[1].heads - runs[0].heads)[..., None]
        elif cell.site == "mlp_out":
            change = (runs[1].mlp - runs[0].mlp)[..., None, None]
        else:
            sums = [run.heads.sum(-1) + run.attention_bias for run in runs]
            change = (sums[1] - sums[0])[..., None, None]
        values.append(change)
    return values, [np.zeros_like(value) for value in values]


def _pairs(plain_heads: int, layers: int) -> list[tuple[int, int]]:
    """A head of the first layer and one of the last: two layers cut together."""
    return [(0, 0), (layers - 1, plain_heads - 1)]


def _knockout(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    options = dict(cell.options)
    if options["heads"] == "pairs":
        options["heads"] = _pairs(int(model.cfg.n_heads), int(model.cfg.n_layers))
    result = lcalens.knockout(model, examples.contrast(cell.batch), span="sentence", progress=False, **options)
    values = result.values["value"].reshape(len(examples.chosen(cell.batch)), -1)
    buckets = [_placed(values, rows, examples, cell.batch) for rows, *_ in examples.buckets(cell.batch)]
    ends = result.examples[["clean", "hijacked"]].to_numpy(float)
    return [*buckets, ends], str(result.provenance.get("path", ""))


def _knockout_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    options = dict(cell.options)
    every = [(layer, head) for layer in range(plain.layers) for head in range(plain.heads("z"))]
    sets = {"all": [every], "each": [[head] for head in every], "pairs": [_pairs(plain.heads("z"), plain.layers)]}
    values, bases = [], []
    order = examples.chosen(cell.batch)
    ends = np.zeros((len(order), 2))
    for rows, clean, hijacked, answers in examples.buckets(cell.batch):
        length = hijacked.shape[1]
        hidden = torch.zeros(len(rows), length, length, dtype=torch.bool)
        for at, row in enumerate(rows):
            first, last = examples.sentences[row]
            queries = [q for q in range(length) if not first <= q < last]
            queries = queries if options["positions"] == "all" else [length - 1]
            for query in queries:
                hidden[at, query, first:last] = True
        with torch.no_grad():
            runs = [plain.run(tokens) for tokens in (clean, hijacked)]
        reference = runs[0].logits[:, -1]
        metric = options["metric"]
        measured = [oracle.read(run, answers, metric, reference).numpy() for run in runs]
        values.append(
            oracle.knocked_out(
                plain,
                hijacked,
                answers,
                hidden,
                sets[options["heads"]],
                renormalise=options["renormalise"],
                metric=metric,
                clean=reference,
            )
        )
        bases.append(np.broadcast_to(measured[1][:, None], values[-1].shape))
        ends[[order.index(row) for row in rows]] = np.stack(measured, 1)
    return [*values, ends], [*bases, ends[:, ::-1]]


def _sets(heads: int, layers: int) -> list[list[tuple[int, int]]]:
    """Sets of heads: a whole layer, and two of different layers; the toy has one head."""
    return [[(0, head) for head in range(heads)], _pairs(heads, layers)]


def _exchange(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    sets = _sets(int(model.cfg.n_heads), int(model.cfg.n_layers))
    exchange = getattr(lcalens, "exchange", None)
    if exchange is None:
        from lcalens.mechanism.exchange import exchange
    found = exchange(model, examples.contrast(cell.batch), sets, progress=False)
    values = found.patched if hasattr(found, "patched") else found.values["value"]
    return [_placed(np.asarray(values), rows, examples, cell.batch) for rows, *_ in examples.buckets(cell.batch)], ""


def _exchange_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    values, bases = [], []
    sets = _sets(plain.heads("z"), plain.layers)
    for _, clean, hijacked, answers in examples.buckets(cell.batch):
        values.append(oracle.exchanged(plain, clean, hijacked, answers, sets))
        with torch.no_grad():
            base = oracle.read(plain.run(hijacked), answers).numpy()
        bases.append(np.broadcast_to(base[:, None, None], values[-1].shape))
    return values, bases


_PARTS = {"aligned": ("total", "attention", "recall", "scale"), "unequal": ("total", "inserted", "shared")}


def _split(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    result = lcalens.split(model, examples.contrast(cell.batch), twin=0, progress=False)
    names = list(result.axes["group"])
    columns = [names.index(name) for name in ("sentence", "last", "rest")]
    found = []
    for rows, *_ in examples.buckets(cell.batch):
        for part in _PARTS[cell.control]:
            found.append(_placed(result.values[part][..., columns], rows, examples, cell.batch))
    return found, str(result.provenance.get("path", ""))


def _split_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    values = []
    for rows, clean, hijacked, answers in examples.buckets(cell.batch):
        length, shorter = hijacked.shape[1], clean.shape[1]
        first, last = examples.sentences[rows[0]]
        sentence = np.zeros(length, bool)
        sentence[first:last] = True
        end = np.arange(length) == length - 1
        members = [sentence, end, ~sentence & ~end]
        clean_end = np.arange(shorter) == shorter - 1
        aligned = cell.control == "aligned"
        other = members if aligned else [np.zeros(shorter, bool), clean_end, ~clean_end]
        runs = [oracle.direct(plain, tokens, answers) for tokens in (clean, hijacked)]
        parts = oracle.split_parts(runs[0], runs[1], members, other, aligned)
        values += [parts[name] for name in _PARTS[cell.control]]
    return values, [np.zeros_like(value) for value in values]


def _view(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    contrast, found = examples.contrast(cell.batch), []
    for example in range(len(examples.chosen(cell.batch))):
        for layer in range(int(model.cfg.n_layers)):
            heads = [(layer, head) for head in range(int(model.cfg.n_heads))]
            shown = lcalens.attention_view(model, contrast, heads, example=example)
            found += [np.asarray(shown.clean.patterns), np.asarray(shown.hijacked.patterns)]
    return found, ""


def _view_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    found = []
    for row in examples.chosen(cell.batch):
        with torch.no_grad():
            patterns = [
                plain.run(torch.tensor([side[row]]), keep=["pattern"]).kept["pattern"]
                for side in (examples.clean, examples.hijacked)
            ]
        for layer in range(plain.layers):
            found += [side[layer][0].double().numpy() for side in patterns]
    return found, [np.zeros_like(value) for value in found]


@dataclass(frozen=True)
class Asked:
    """A fact in words, or in the toy's tokens."""

    prompt: str
    subject: str
    true: str
    false: str
    scheme: str
    sentence: str


def _asked(kind: str, number: int) -> Asked:
    """Facts of different lengths."""
    if kind == "lca":
        bits = [format(at, "05b") for at in (3, 17, 9, 30, 12, 21)]
        subject = " ".join(bits[: 2 + number])
        return Asked("{} 00111", subject, "01010 11100" if number else "01010", "10011", "{target_false}", "10011")
    subjects, trues, falses = ("Oslo", "Eiffel", "Rhine"), ("fjord", "Paris", "Basel"), ("dune", "Rome", "Lyon")
    false = falses[number]
    return Asked("{} is at", subjects[number], trues[number], false, "dont-think", f"Do not think of {false}.")


def _count(cell: Cell) -> range:
    return range(3 if cell.batch == "batch" else 1)


def _efficacy(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    asked = [_asked(FAMILIES[cell.family].kind, number) for number in _count(cell)]
    facts = [
        lcalens.Fact(case_id=i, relation_id="P1", prompt=one.prompt, subject=one.subject, target_true=one.true,
                     target_false=one.false)
        for i, one in enumerate(asked)
    ]  # fmt: skip
    counts = (0, 1, 2) if cell.control == "unequal" else (0, 1)
    result = lcalens.efficacy(model, facts, schemes=(asked[0].scheme,), counts=counts, progress=False)
    values = [np.asarray(result.values[name])[:, 0] for name in ("logp_true", "logp_false")]
    return [values[1] - values[0], values[0]], " ".join(map(str, result.provenance.get("path", "")))


def _efficacy_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    counts = (0, 1, 2) if cell.control == "unequal" else (0, 1)
    scores = np.zeros((2, len(_count(cell)), len(counts)))
    for number in _count(cell):
        one = _asked(plain.kind, number)
        for column, count in enumerate(counts):
            text = " ".join([*[one.sentence] * count, one.prompt.format(one.subject)])
            for row, answer in enumerate((one.true, one.false)):
                scores[row, number, column] = _scored(plain, text, answer)
    difference = scores[1] - scores[0]
    return [difference, scores[0]], [difference * 0 + difference[:, :1], scores[0] * 0]


def _scored(plain: Plain, text: str, answer: str) -> float:
    before = plain.tokenizer(text)["input_ids"]
    whole = plain.tokenizer(f"{text} {answer}")["input_ids"]
    return oracle.log_probability(plain, whole, len(before))


def _ask(model: Any, cell: Cell, examples: Examples) -> Measured:
    import lcalens

    found = []
    for number in _count(cell):
        one = _asked(FAMILIES[cell.family].kind, number)
        sentences = [one.sentence] * (2 if cell.control == "unequal" else 1)
        result = lcalens.ask(
            model, one.prompt.format(one.subject), hijack=sentences, answers=(one.true, one.false), top=3
        )
        scored = result.tables["scored"]
        found.append(np.log(np.asarray(result.values["probability"], float)))
        found.append(scored[["clean_logp", "hijacked_logp"]].to_numpy(float))
        found.append(np.asarray(result.values["token_id"], float))
    return found, ""


def _ask_oracle(plain: Plain, cell: Cell, examples: Examples) -> Values:
    found, bases = [], []
    for number in _count(cell):
        one = _asked(plain.kind, number)
        prompt = one.prompt.format(one.subject)
        texts = [prompt, " ".join([*[one.sentence] * (2 if cell.control == "unequal" else 1), prompt])]
        tops, ids, scores = [], [], []
        for text in texts:
            with torch.no_grad():
                logits = plain.run(torch.tensor([plain.tokenizer(text)["input_ids"]])).logits[0, -1].double()
            top = logits.log_softmax(-1).topk(3)
            tops.append(top.values.numpy())
            ids.append(top.indices.numpy())
            scores.append([_scored(plain, text, answer) for answer in (one.true, one.false)])
        found += [np.stack(tops), np.array(scores).T, np.stack(ids).astype(float)]
        bases += [0 * found[-3], found[-2][:, :1] + 0 * found[-2], found[-1]]
    return found, bases


def _site(site: str) -> str:
    return "head" if site == "z" else site


@dataclass(frozen=True)
class Verb:
    """How a verb is called and judged.

    Attributes:
        measure: What lcalens gives.
        oracle: What the oracle gives.
        sites: Its sites; `("",)` if it has none.
        options: What else it is called with; cells take them in turn.
        scale: Whether its numbers can exceed 1: a pattern's cannot.
        first: Of the oracle's values those of the first example.
    """

    measure: Callable[[Any, Cell, Examples], Measured]
    oracle: Callable[[Plain, Cell, Examples], Values]
    sites: tuple[str, ...] = ("",)
    options: tuple[dict[str, Any], ...] = ({},)
    scale: bool = True
    first: Callable[[list[np.ndarray], Cell], list[np.ndarray]] = lambda values, cell: [values[0][:1]]


def _with_ends(values: list[np.ndarray], cell: Cell) -> list[np.ndarray]:
    return [values[0][:1], values[-1][:1]]


def _turns(**choices: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values()))


_WHERE = ("last", "all", "each")
_WAYS = ("restore", "corrupt")
VERBS: dict[str, Verb] = {
    "patch": Verb(
        _patch, _patch_oracle, SITES,
        (*_turns(positions=_WHERE, direction=_WAYS, metric=("logit-difference",)),
         {"positions": "all", "direction": "restore", "metric": "kl"}),
        first=_with_ends,
    ),
    "ablation": Verb(
        _patch, _patch_oracle, tuple(site for site in SITES if site not in oracle.BY_QUERY),
        _turns(positions=_WHERE, direction=_WAYS, metric=("logit-difference",), source=("zero",)), first=_with_ends,
    ),
    "knockout": Verb(
        _knockout, _knockout_oracle,
        options=_turns(heads=("all", "each", "pairs"), renormalise=(True, False), positions=("all", "last"),
                       metric=("logit-difference",)),
        first=_with_ends,
    ),
    "exchange": Verb(_exchange, _exchange_oracle),
    "attribution": Verb(_attribute, _attribution_oracle, SITES, _turns(positions=_WHERE, direction=_WAYS)),
    "integrated": Verb(_attribute, _attribution_oracle, SITES, _turns(positions=_WHERE, direction=_WAYS)),
    "direct": Verb(
        _attribute, _direct_oracle, ("z", "attn_out", "mlp_out"), _turns(positions=("last",), direction=_WAYS)
    ),
    "split": Verb(
        _split, _split_oracle, first=lambda values, cell: [value[:1] for value in values[: len(_PARTS[cell.control])]]
    ),
    "whole-answer": Verb(
        _patch, _whole_oracle, SITES, _turns(positions=_WHERE, direction=_WAYS, metric=("whole-answer",)),
        first=_with_ends,
    ),
    "view": Verb(_view, _view_oracle, scale=False, first=lambda values, cell: values[: len(values) // 4]),
    "efficacy": Verb(_efficacy, _efficacy_oracle, first=lambda values, cell: [value[:1] for value in values]),
    "ask": Verb(_ask, _ask_oracle, first=lambda values, cell: values[:3]),
}  # fmt: skip


def _turn(how: Verb, site: str, number: int) -> dict[str, Any]:
    """The options whose turn it is; one key of many moves too little to be measured by itself."""
    fitting = [one for one in how.options if site != "k" or one["positions"] != "last"]
    return fitting[number % len(fitting)]


def cells(families: Sequence[str] = tuple(FAMILIES)) -> Iterator[Cell]:
    """Every cell: each family, verb, site, control, dtype, batch; other options by turns, all of them met often."""
    for number, family in enumerate(families):
        for verb, how in VERBS.items():
            turn = itertools.count(number)
            for site, control in itertools.product(how.sites, CONTROLS):
                options = _turn(how, site, next(turn))
                for dtype, batch in itertools.product(DTYPES, BATCHES):
                    yield Cell(family, verb, site, control, dtype, batch, tuple(sorted(options.items())))
            if verb == "direct":
                options = (("direction", "restore"), ("positions", "each"))
                yield Cell(family, verb, "z", "aligned", "float32", "batch", options)


def quick_cells() -> Iterator[Cell]:
    """Each family and verb once; which site, control, dtype and batch: those whose pairs were met least so far."""
    met: dict[Any, int] = {}
    for number, family in enumerate(FAMILIES):
        for verb, how in VERBS.items():
            rows = list(itertools.product(how.sites, CONTROLS, DTYPES, BATCHES))
            rows = rows[number % len(rows) :] + rows[: number % len(rows)]

            def pairs(row: tuple[str, ...], verb: str = verb) -> list[Any]:
                return [(verb, a, b) for a, b in itertools.combinations(enumerate(row), 2)]

            best = min(rows, key=lambda row: sum(met.get(pair, 0) for pair in pairs(row)))
            for pair in pairs(best):
                met[pair] = met.get(pair, 0) + 1
            options = _turn(how, best[0], number * 5 + len(verb))
            yield Cell(family, verb, *best, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=2)
def material(family: str) -> Material:
    """What the cells of a family share."""
    return Material(family)


def judge_all(chosen: Sequence[Cell]) -> list[Verdict]:
    """The verdicts on some cells, in a process of its own: one thread, and no warnings about tiny models.

    Args:
        chosen: Which, a family's together.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return [judge(cell) for cell in chosen]


def judge(cell: Cell) -> Verdict:
    """Run a cell and say what became of it.

    Args:
        cell: Which.
    """
    started = time.perf_counter()
    word, details = _judge(cell)
    return Verdict(cell, word, seconds=time.perf_counter() - started, **details)


def _judge(cell: Cell) -> tuple[str, dict[str, Any]]:
    from lcalens import LcalensError

    verb, own = VERBS[cell.verb], material(cell.family)
    try:
        model = own.bridge(cell.dtype)
        examples = own.examples(cell.control)
        found, path = verb.measure(model, cell, examples)
    except LcalensError as error:
        reason = str(error)
        known = [i for i, one in enumerate(expected_refusals()) if one.fits(cell, reason)]
        return "refused", {"reason": reason, "expected": known[0] if known else None}
    except Exception as error:
        return "wrong", {"reason": f"{type(error).__name__}: {error!s:.300}"}
    first = (lambda values: verb.first(values, cell)) if cell.batch == "single" else list
    try:
        everything = own.answer(cell, "float32")
        reference = first(everything[0])
    except (AssertionError, KeyError, IndexError) as error:
        return "wrong", {"reason": f"the oracle has no answer ({type(error).__name__}: {error!s:.200})", "path": path}
    shapes = [value.shape for value in found], [value.shape for value in reference]
    if shapes[0] != shapes[1]:
        return "wrong", {"reason": f"its shapes are {shapes[0]}, not {shapes[1]}", "path": path}
    if not all(np.isfinite(value).all() for value in found):
        return "wrong", {"reason": "not finite", "path": path}
    # Of all four examples, a cell of one among them: by it the weights are sharp enough, and errors are measured.
    effect = max(float(np.abs(value - base).max()) for value, base in zip(*everything, strict=True))
    # In the toy nothing comes of these: its MLP writes zeros, and the last token, which asks, is the same in both.
    nothing = FAMILIES[cell.family].kind == "lca" and cell.site in ("mlp_out", "q", "resid_pre") and effect == 0
    effect = max(effect, 1.0) if nothing else effect
    divergence = dict(cell.options).get("metric") == "kl"
    if verb.scale and not divergence and not effect >= 1:
        return "wrong", {"reason": f"nothing moves by more than 1: the matrix is too gentle here (path {path})",
                         "effect": effect, "path": path}  # fmt: skip
    if cell.dtype == "float32":
        error = max(float(np.abs(a - b).max()) for a, b in zip(found, reference, strict=True))
        # A divergence may be of two runs that are the same: there it is what rounding makes of log probabilities.
        allowed = SHARE * effect + DIVERGENCE * divergence
    else:
        error, allowed = _rounding(cell, own, found, reference, effect)
        for draw in range(1, REDRAWN) if allowed < error < FAR * allowed else ():
            # Two small samples of the same rounding may differ by chance, and much where it sends a token to another
            # expert; a fault stays however many there are.
            other = own.redrawn(draw)
            again, _ = verb.measure(model, cell, other.examples(cell.control))
            reference = first(other.answer(cell, "float32")[0])
            further = _rounding(cell, other, again, reference, effect)
            error, allowed = (math.hypot(old * math.sqrt(draw), new) / math.sqrt(draw + 1)
                              for old, new in zip((error, allowed), further, strict=True))  # fmt: skip
    word = "exact" if error <= allowed else "wrong"
    reason = "" if word == "exact" else f"path: {path}" * bool(path)
    return word, {"error": error, "allowed": allowed, "effect": effect, "path": path, "reason": reason}


def _rounding(
    cell: Cell, own: Material, found: Sequence[np.ndarray], reference: Sequence[np.ndarray], effect: float
) -> tuple[float, float]:
    """The root mean square error of a bfloat16 cell, and what is allowed: by Hugging Face's own, of all examples."""
    sides = [own.answer(cell, dtype)[0] for dtype in ("bfloat16", "float32")]
    if cell.verb == "ask":  # tokens of near probabilities change places
        found, reference, *sides = ([v for i, v in enumerate(side) if i % 3 < 2] for side in
                                    (found, reference, *sides))  # fmt: skip
    rows = [row for pair in zip(*sides, strict=True) for row in zip(*pair, strict=True)]
    return _rms(found, reference), TIMES * max(_rms([one], [other]) for one, other in rows) + SHARE * effect


def _rms(found: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    return float(
        np.sqrt(np.mean(np.concatenate([(a - b).ravel() ** 2 for a, b in zip(found, reference, strict=True)])))
    )
