"""Facts to contrasts: each fact's hijacked prompt against a control whose tokens align with it.

The controls ask different questions: against a *neutral* sentence, which names no object, both where a head looks and
what it recalls may change; against one that names *another object* of the relation, what it recalls. What they are
made of is in `lcalens.llm.controls`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import pandas as pd

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.tokens import Answer, Encoded, encode, follow, source_tokenizer, spell
from lcalens.llm.controls import Pair, offered
from lcalens.llm.efficacy.measure import SAME_FIRST_TOKEN
from lcalens.llm.facts.facts import Fact, Facts, objects_by_relation
from lcalens.llm.prompts.hijack import HijackedPrompt, hijack_prompts
from lcalens.llm.prompts.named import Scheme, read_control
from lcalens.llm.prompts.related import EmbeddingNeighbours, RelatedTable
from lcalens.llm.prompts.schemes import Surroundings, find_scheme
from lcalens.mechanism.contrast.contrast import Contrast

_FIELDS = ("case_id", "relation_id", "subject", "target_true", "target_false")
_AT_ONCE = 32  # the most offers of a pair that are encoded together


def contrast_facts(
    model: Any,
    facts: Facts | Sequence[Fact],
    *,
    scheme: str | Scheme = "dont-think",
    n: int = 1,
    control: str | None = None,
    related: Literal["table", "embedding"] = "table",
    seed: int = 0,
    limit: int | None = None,
    join: str | None = None,
) -> Contrast:
    """Every fact's prompt behind n sentences of a scheme, against the same prompt behind a control.

    With every control but `none` clean and hijacked tokens are equally many, sentence by sentence, and those of the
    prompt the same. Facts without such a control are left out and counted, as are those the scheme has no n sentences
    for and those whose objects begin with the same token.

    Args:
        model: A TransformerBridge; only its source's tokenizer is used, and for `embedding` its embedding.
        facts: The facts, from `load_facts` or a list of `Fact`.
        scheme: A scheme's name, a template such as `"Forget about {target_false}."`, or a `Scheme`, whose control is
            taken where `control` is not given.
        n: How many sentences, at least 1.
        control: What the clean run has in the sentences' place.

            - `neutral`, the default: sentences that name no object, drawn for each fact among those of as many tokens.
            - `other` (or `other-object`): the scheme's sentences with another object of the relation, neither the true
              nor the false one, drawn among all of as many tokens.
            - A sentence of your own, n times: `"It is a sunny day."`, or `"Forget about {unrelated}."` with an object
              of another relation, drawn among those that give as many tokens. It may name `{subject}`. `unrelated`
              is short for `"Do not think of {unrelated}."`.
            - `none`: the bare prompt, whose tokens align from the end only.
        related: Where the schemes `related-word` and `related-form` take their words: the shipped `table`, or the
            model's own `embedding`.
        seed: Of everything drawn; a fact's draw does not depend on the others.
        limit: The most facts to take, chosen at random and kept in order.
        join: What stands between prompts and objects, such as `" "` or `""`; None finds it (docs/text.md).

    Returns:
        A contrast with the spans `sentence`, `word` (where the scheme works by one), `subject`, `prompt` and `last`.
        Its examples have `case_id`, `relation_id`, `subject`, `target_true`, `target_false`, `true_tokens`,
        `false_tokens` (as the vocabulary spells them), `prompt` (the text), `hijacked_text`, `clean_text`, `word`,
        `control_word`, and `cluster`, the relation, which intervals resample
        whole. `excluded` has `index` (among the facts taken).

    Raises:
        LcalensError: An argument that cannot be used, or no fact gives a contrast; the message says why.

    Example:
        >>> contrast_facts(model, facts, scheme="dont-think", control="other-object")
        >>> forget = Scheme("Forget about {target_false}.", control="Forget about {unrelated}.")
        >>> contrast_facts(model, facts, scheme=forget)
    """
    n, seed = check_int("n", n, low=1), check_int("seed", seed, low=0)
    sentence, own = (scheme.sentence, scheme.control) if isinstance(scheme, Scheme) else (scheme, None)
    asked = own or "neutral" if control is None else control
    beside = read_control(asked)
    check_choice("related", related, ("table", "embedding"))
    tokenizer = source_tokenizer(model)
    facts = facts if isinstance(facts, Facts) else Facts(facts)
    facts = facts if limit is None else facts.sample(check_int("limit", limit, low=1), seed)
    if not len(facts):
        raise LcalensError("facts: there are none; load some with load_facts().")
    try:
        chosen = find_scheme(sentence)
    except LcalensError as error:
        raise LcalensError("scheme" + str(error).removeprefix("schemes")) from error
    words = (
        RelatedTable(tokenizer)
        if related == "table"
        else EmbeddingNeighbours(model, objects_by_relation(facts).values())
    )
    hijacks = hijack_prompts(facts, chosen.name, counts=(n,), seed=seed, words=words)
    left_out = {item.fact.case_id: item.reason for item in hijacks.impossible}
    pairs = _answered(tokenizer, hijacks.prompts, left_out, join)
    if pairs:
        check_length(model, max(len(pair.encoded.ids) + max(len(pair.true), len(pair.false)) for pair in pairs))
    offers = offered(tokenizer, pairs, beside, chosen, n, Surroundings(facts, words, seed))
    fitting = _first_fitting(tokenizer, pairs, [offer.prompts for offer in offers], aligned=beside != "none")
    left_out |= {
        pair.prompt.fact.case_id: offer.missing
        for pair, offer, clean in zip(pairs, offers, fitting, strict=True)
        if clean is None
    }
    rows = [(pair, *clean) for pair, clean in zip(pairs, fitting, strict=True) if clean is not None]
    if not rows:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in Counter(left_out.values()).most_common())
        raise LcalensError(f"facts: none of {len(facts)} gives a contrast with control={asked!r:.80} ({reasons}).")
    return _contrast(tokenizer, facts, rows, left_out)


def _contrast(
    tokenizer: Any,
    facts: Facts,
    rows: Sequence[tuple[Pair, HijackedPrompt, Encoded]],
    left_out: dict[Any, str],
) -> Contrast:
    """The runs of each hijacked prompt with its control, and a table of what they are and of what was left out."""
    # A table's column is of one type, and its whole numbers are of 64 bits.
    id_type = int if all(isinstance(fact.case_id, int) and abs(fact.case_id) < 1 << 63 for fact in facts) else str
    known = {f.case_id: {name: getattr(f, name) for name in _FIELDS} | {"case_id": id_type(f.case_id)} for f in facts}
    excluded = [
        (i, left_out[fact.case_id], *known[fact.case_id].values())
        for i, fact in enumerate(facts)
        if fact.case_id in left_out
    ]
    spans = [name for name in ("sentence", "word", "subject", "prompt") if rows[0][0].encoded.spans[name]]
    return Contrast(
        [clean.ids for _, _, clean in rows],
        [pair.encoded.ids for pair, _, _ in rows],
        true=[pair.true for pair, _, _ in rows],
        false=[pair.false for pair, _, _ in rows],
        spans={name: [pair.encoded.spans[name] for pair, _, _ in rows] for name in spans},
        examples=pd.DataFrame(
            known[pair.prompt.fact.case_id]
            | {"true_tokens": spell(tokenizer, pair.true), "false_tokens": spell(tokenizer, pair.false)}
            | {"prompt": pair.prompt.fact.text, "hijacked_text": pair.prompt.text, "clean_text": control.text}
            | {"word": pair.prompt.word, "control_word": control.word, "cluster": pair.prompt.fact.relation_id}
            for pair, control, _ in rows
        ),
        excluded=pd.DataFrame(excluded, columns=pd.Index(["index", "reason", *_FIELDS])),
    )


def _answered(
    tokenizer: Any, prompts: Sequence[HijackedPrompt], left_out: dict[Any, str], join: str | None
) -> list[Pair]:
    """The prompts with the answers' tokens as they are in place; those without such are put into `left_out`."""
    plain = encode(tokenizer, [prompt.text for prompt in prompts], spans=[prompt.spans for prompt in prompts])
    answered = []
    for prompt, encoded, true, false in zip(prompts, plain, *_objects_behind(tokenizer, prompts, join), strict=True):
        problem = true.problem or false.problem
        if not problem and true.ids[true.start] == false.ids[false.start]:
            problem = SAME_FIRST_TOKEN
        if problem:
            left_out[prompt.fact.case_id] = problem
        else:
            answered.append(Pair(prompt, encoded, true.ids[true.start :], false.ids[false.start :]))
    return answered


def _objects_behind(
    tokenizer: Any, prompts: Sequence[HijackedPrompt], join: str | None
) -> tuple[list[Answer], list[Answer]]:
    """The true and the false objects behind the prompts."""
    texts, before = [prompt.text for prompt in prompts], [prompt.fact.text for prompt in prompts]
    true, false = ([getattr(prompt.fact, name) for prompt in prompts] for name in ("target_true", "target_false"))
    objects = follow(tokenizer, texts * 2, true + false, prompts=before * 2, join=join)
    return objects[: len(texts)], objects[len(texts) :]


def _aligns(pair: Pair, clean: Encoded) -> bool:
    """Whether sentences are as long, one by one, words in the same place, and the prompt's tokens the same."""
    hijacked, first = pair.encoded, pair.encoded.spans["prompt"][0][0]
    return (
        hijacked.ids[first:] == clean.ids[first:]  # and so as many in all
        and hijacked.ids != clean.ids
        and hijacked.spans["sentence"] == clean.spans["sentence"]
        and (not clean.spans["word"] or hijacked.spans["word"] == clean.spans["word"])
    )


def _first_fitting(
    tokenizer: Any, pairs: Sequence[Pair], offers: Sequence[Iterator[HijackedPrompt]], *, aligned: bool
) -> list[tuple[HijackedPrompt, Encoded] | None]:
    """Each pair's first offer that aligns; all pairs' offers are encoded together, a few of each at a time."""
    fitting: list[tuple[HijackedPrompt, Encoded] | None] = [None] * len(pairs)
    waiting, width = list(range(len(pairs))), 2
    while waiting:
        tried = [(i, offer) for i in waiting for offer in islice(offers[i], width)]
        encoded = encode(tokenizer, [offer.text for _, offer in tried], spans=[offer.spans for _, offer in tried])
        for (i, offer), clean in zip(tried, encoded, strict=True):
            if fitting[i] is None and (not aligned or _aligns(pairs[i], clean)):
                fitting[i] = offer, clean
        waiting = sorted({i for i, _ in tried if fitting[i] is None})
        width = min(2 * width, _AT_ONCE)
    return fitting
