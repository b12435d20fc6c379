"""Text to ids and spans: the ids are the tokenizer's own, and a span's tokens are those whose bytes it is made of."""

import itertools

import pytest
import torch
from helpers import standins
from hypothesis import given, settings
from hypothesis import strategies as st

from lcalens.core.chat import chat_prompt
from lcalens.core.errors import LcalensError
from lcalens.core.tokens import Encoded, encode, pad, source_tokenizer, tokenize

KINDS = ("byte-level", "metaspace", "metaspace-first")
TEXTS = [
    "The capital of France is",
    "x",
    " ",
    "   ",
    " leading and trailing  ",
    "two  spaces,   three",
    "a line\nand\n\nanother\ttab",
    "Curaçao, Łódź, Ñandú and İstanbul",
    "日本の首都は東京です",
    "🙂 a family: 👩‍👩‍👧‍👦 and a flag 🇫🇷",
    "e\u0301 combining, \u00a0 no-break, \u200b zero width",
    "<|endoftext|> inside <bos> and <eos>",
    "Paris" * 30,
]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """Each kind twice from one folder: the one under test, and one that lcalens never touches."""
    made = {
        "byte-level": standins.byte_level_tokenizer(),
        "metaspace": standins.metaspace_tokenizer(),
        "metaspace-first": standins.metaspace_tokenizer("first"),
    }
    folder = tmp_path_factory.mktemp("tokenizers")
    pairs = {}
    for kind, tokenizer in made.items():
        tokenizer.save_pretrained(folder / kind)
        pairs[kind] = tuple(standins.hugging_face_tokenizer(folder / kind) for _ in range(2))
    return lambda kind: pairs[kind]  # a dict of tokenizers is long to print


def tokens_covering(tokenizer, kind, ids, text, first, last):
    """The first and one past the last of the tokens that hold one of the bytes of text[first:last]."""
    pieces = standins.token_bytes(tokenizer, ids, byte_level=kind == "byte-level")
    first, last = (len(text[:place].encode()) for place in (first, last))
    if kind == "metaspace-first" and not text.startswith(" "):
        # It puts a space before the text: that space belongs to the first word, as all leading spaces do.
        first, last = first + (first > 0), last + 1
    ends = list(itertools.accumulate(map(len, pieces)))
    inside = [i for i, piece in enumerate(pieces) if piece and ends[i] - len(piece) < last and ends[i] > first]
    return inside[0], inside[-1] + 1


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_tokenizers_own(tokenizers, kind):
    tokenizer, untouched = tokenizers(kind)
    wanted = [tuple(untouched(text).input_ids) for text in TEXTS]
    assert [item.ids for item in encode(tokenizer, TEXTS)] == wanted
    assert [encode(tokenizer, [text])[0].ids for text in TEXTS] == wanted


def test_only_the_tokenizer_with_a_bos_adds_one(tokenizers):
    text = "The capital of France is"
    for kind, bos in (("byte-level", 0), ("metaspace", 1), ("metaspace-first", 1)):
        tokenizer = tokenizers(kind)[0]
        (item,) = encode(tokenizer, [text])
        assert item.ids.count(tokenizer.bos_token_id) == bos


@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_text_is_what_the_tokenizer_makes_of_it(tokenizers, kind):
    tokenizer, untouched = tokenizers(kind)
    assert encode(tokenizer, [""])[0].ids == tuple(untouched("").input_ids)


def test_no_texts_are_no_encodings(tokenizers):
    assert encode(tokenizers("metaspace")[0], []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_truncation_set_on_the_tokenizer_change_nothing(tokenizers, kind):
    tokenizer, untouched = tokenizers(kind)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    try:
        assert encode(tokenizer, TEXTS[:1])[0].ids == tuple(untouched(TEXTS[0]).input_ids)
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


# --- spans ----------------------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        ["Paris", "capital", "Curaçao", "naïve", "東京", "日", "🙂", "👩‍👩‍👧‍👦", "is", "x.", "O'Brien", "e\u0301"]
    ),
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Z", "Cs"), exclude_characters="▁"),
        min_size=1,
        max_size=5,
    ),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(
    words=st.lists(WORDS, min_size=1, max_size=7),
    gaps=st.sampled_from([" ", "  ", "\n", "\t "]),
    picks=st.lists(st.integers(0, 6), min_size=1, max_size=3),
)
def test_a_spans_tokens_hold_its_bytes(tokenizers, kind, words, gaps, picks):
    tokenizer, untouched = tokenizers(kind)
    text = gaps.join(words)
    chosen = [pick % len(words) for pick in picks]
    starts = [len(gaps.join([*words[:i], ""])) for i in chosen]
    places = [(start, start + len(words[i])) for start, i in zip(starts, chosen, strict=True)]
    (item,) = encode(tokenizer, [text], spans=[{"word": places, "all": [(0, len(text))]}])
    assert item.ids == tuple(untouched(text).input_ids)
    for place, (first, last) in zip(places, item.spans["word"], strict=True):
        assert text[slice(*place)] in untouched.decode(item.ids[first:last])
        assert (first, last) == tokens_covering(untouched, kind, item.ids, text, *place)
    assert item.spans["all"] == (tokens_covering(untouched, kind, item.ids, text, 0, len(text)),)


def test_a_words_leading_space_is_in_its_token(tokenizers):
    tokenizer = tokenizers("byte-level")[0]
    (item,) = encode(tokenizer, ["The capital of France is"], spans=[{"word": [(4, 11)], "none": []}])
    first, last = item.spans["word"][0]
    assert tokenizer.decode(item.ids[first:last]) == " capital"
    assert item.spans["none"] == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "join", "answer"),
    [("The capital of France is", " ", "Paris"), ("東京は", "", "Łódź 🙂"), ("x", " ", "a b"), ("A:\n", "", "Paris")],
)
def test_an_answer_is_a_word_behind_the_text_and_a_span(tokenizers, kind, text, join, answer):
    tokenizer, untouched = tokenizers(kind)
    (item,) = encode(tokenizer, [text], answers=[answer])
    whole = text + join + answer
    assert item.ids == tuple(untouched(whole).input_ids)
    ((first, last),) = item.spans["answer"]
    assert untouched.decode(item.ids[first:last]) == join + answer
    assert (first, last) == tokens_covering(untouched, kind, item.ids, whole, len(text), len(whole))
    assert last == len(item.ids)


def test_a_tokenizer_without_offsets_gives_the_same_promises():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    text = "Łódź is 🙂 here"
    (item,) = encode(tokenizer, [text], spans=[{"a": [(0, 4)], "b": [(8, 9)], "c": [(10, 14)]}], answers=["né"])
    assert item.ids == tuple(tokenizer(f"{text} né").input_ids[:-1])
    for name, wanted in (("a", "Łódź"), ("b", "🙂"), ("c", "here"), ("answer", " né")):
        first, last = item.spans[name][0]
        assert tokenizer.decode(item.ids[first:last]) == wanted


# --- chat -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def chatty(request, tokenizers):
    tokenizer, untouched = tokenizers(request.param)
    bos = "" if request.param == "byte-level" else "{{ bos_token }}"
    tokenizer.chat_template = untouched.chat_template = bos + standins.TEMPLATE
    yield tokenizer, untouched
    tokenizer.chat_template = untouched.chat_template = None


def chat_ids(tokenizer, text, **options):
    turn = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False, **options)


@pytest.mark.parametrize("text", ["The capital of France is", "Łódź 🙂\n日本", "user", "assistant", "a"])
def test_a_chats_ids_are_the_templates(chatty, text):
    tokenizer, untouched = chatty
    (item,) = encode(tokenizer, [text], chat=True)
    assert item.ids == tuple(chat_ids(untouched, text, tokenize=True))
    assert chat_prompt(tokenizer, text) == chat_ids(untouched, text, tokenize=False)


def test_a_chats_spans_count_in_the_bare_text(chatty):
    tokenizer, untouched = chatty
    text = "The capital of France is"
    (item,) = encode(tokenizer, [text], spans=[{"subject": [(15, 21)]}], answers=["Paris"], chat=True)
    prompt = chat_ids(untouched, text, tokenize=False)
    assert item.ids == tuple(untouched(prompt + "Paris", add_special_tokens=False).input_ids)
    for name, wanted in (("subject", "France"), ("answer", "Paris")):
        first, last = item.spans[name][0]
        assert untouched.decode(item.ids[first:last]).strip() == wanted


@pytest.mark.parametrize("text", ["assistant", "user", "turn", "a"])
def test_a_chats_spans_are_in_the_users_turn(chatty, text):
    """The template's own words around the text are not the text."""
    tokenizer, untouched = chatty
    (item,) = encode(tokenizer, [text], spans=[{"word": [(0, len(text))]}], chat=True)
    first, last = item.spans["word"][0]
    before, after = (untouched.decode(part) for part in (item.ids[:first], item.ids[last:]))
    assert before.endswith("<|turn|>user\n")
    assert after.startswith("<|end|>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_needs_a_template(tokenizers, kind):
    with pytest.raises(LcalensError, match="chat template"):
        encode(tokenizers(kind)[0], ["x"], chat=True)


# --- padding --------------------------------------------------------------------------------------------------------


def test_padding_is_on_the_left_and_moves_the_spans():
    batch = pad([Encoded((5, 6, 7), {"a": ((0, 2),)}), Encoded((8,), {"a": ((0, 1),), "b": ()})])
    assert batch.ids[0].tolist() == [5, 6, 7]
    assert batch.ids[1, 2] == 8
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.spans == ({"a": ((0, 2),)}, {"a": ((2, 3),), "b": ()})


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=6), st.data())
def test_padded_rows_say_what_the_texts_say(rows, data):
    places = [sorted(data.draw(st.lists(st.integers(0, len(row)), min_size=2, max_size=2))) for row in rows]
    encoded = [Encoded(tuple(row), {"s": (tuple(place),)}) for row, place in zip(rows, places, strict=True)]
    batch = pad(encoded, device="cpu")
    for i, row in enumerate(rows):
        kept = batch.attention_mask[i].bool()
        assert batch.ids[i][kept].tolist() == row
        assert kept.tolist() == sorted(kept.tolist())
        assert batch.position_ids[i][kept].tolist() == list(range(len(row)))
        first, last = batch.spans[i]["s"][0]
        assert batch.ids[i, first:last].tolist() == row[slice(*places[i])]


@pytest.mark.parametrize("encoded", [[], [Encoded(())], [Encoded((1, 2)), Encoded(())]])
def test_nothing_cannot_be_padded(encoded):
    with pytest.raises(LcalensError, match="at least one token"):
        pad(encoded)


# --- a model's tokenizer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tokenize_asks_the_sources_tokenizer(standin, family):
    one = standin(family)
    texts = [text for text in TEXTS if len(one.tokenizer(text).input_ids) < 100]
    batch = tokenize(one.model, texts, spans=[{"all": [(0, len(text))]} for text in texts])
    for i, text in enumerate(texts):
        assert batch.ids[i][batch.attention_mask[i].bool()].tolist() == one.tokenizer(text).input_ids
        assert batch.spans[i]["all"][0][1] == batch.ids.shape[1]
    single = tokenize(one.model, texts[0])
    assert single.ids.tolist() == [one.tokenizer(texts[0]).input_ids]
    assert single.ids.dtype == torch.long


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bridge_booted_by_hand_gets_its_sources_tokenizer(standin, family):
    from transformer_lens.model_bridge import TransformerBridge

    from lcalens.core.quiet import quiet_libraries

    one = standin(family)
    with quiet_libraries():
        bridge = TransformerBridge.boot_transformers(
            str(one.folder),
            hf_model=standins.hugging_face(one.folder),
            tokenizer=standins.hugging_face_tokenizer(one.folder),
        )
    wanted = one.tokenizer("The capital of France is").input_ids
    assert tokenize(bridge, "The capital of France is").ids.tolist() == [wanted]
    assert source_tokenizer(bridge)("x").input_ids == one.tokenizer("x").input_ids
    if family == "gpt2":  # what there is to guard against
        assert bridge.to_tokens("The capital of France is").tolist() == [[one.tokenizer.bos_token_id, *wanted]]


def test_a_text_longer_than_the_context_is_refused(standin):
    one = standin("gpt2")
    with pytest.raises(LcalensError, match=r"161 tokens.*holds 160"):
        tokenize(one.model, "\n" * 161)
    assert tokenize(one.model, "\n" * 160).ids.shape == (1, 160)
