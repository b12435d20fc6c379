"""The one rule for texts (docs/text.md): an answer is a word behind its prompt, and what is scored is what is written.

Expected tokens are spelled by Hugging Face's tokenizers from whole texts written out here.
"""

import copy
import unicodedata

import numpy as np
import pytest
import torch
from helpers import standins
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lcalens.core.chat import reply_join
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_padding
from lcalens.core.text import check_written, first_unseen, join_between, join_sentences, word_of
from lcalens.core.tokens import encode, follow
from lcalens.llm.ask import ask
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.efficacy.measure import efficacy
from lcalens.llm.facts.facts import Fact
from lcalens.llm.models.load import load_model
from lcalens.llm.prompts.related import share_token
from lcalens.mechanism.contrast.contrast import Contrast

# --- words and what stands before them --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["Paris", " Paris", "Paris ", "  Paris  "])
def test_an_answers_own_spaces_are_no_part_of_it(answer):
    assert word_of("true", answer) == "Paris"


@pytest.mark.parametrize(
    ("answer", "code"),
    [("\tParis", "U+0009"), ("Paris\n", "U+000A"), ("\u00a0Paris", "U+00A0"), ("Paris\u2009", "U+2009"),
     ("\u3000東京", "U+3000"), (" \nParis", "U+000A"), ("\u200bParis", "U+200B"), ("Par\u00adis", "U+00AD")],
)  # fmt: skip
def test_other_white_space_around_an_answer_is_refused_by_name(answer, code):
    with pytest.raises(LcalensError, match=rf"true: .*{code.replace('+', '.')}"):
        word_of("true", answer)


@pytest.mark.parametrize("answer", ["", " ", "\n", "\u3000"])
def test_an_answer_of_nothing(answer):
    with pytest.raises(LcalensError, match=r"true: .* is empty"):
        word_of("true", answer)


JOINS = [
    ("The capital of France is", "Paris", " "),
    ("Answer:", "Paris", " "),
    ("Q: Where is it? A:", "1984", " "),
    ('He said "Go" and', "went", " "),
    ('He said "Go"', "and", " "),
    ("(so)", "Paris", " "),
    ("2 + 2 =", "4", " "),
    ("5$", "or", " "),
    ("C#", "is", " "),
    ("- one\n-", "two", " "),
    ("I love 🍕", "too", " "),
    ("Η πρωτεύουσα είναι η", "Αθήνα", " "),
    ("العاصمة هي", "باريس", " "),
    ("פריז היא בירת", "צרפת", " "),
    ("फ़्रांस की राजधानी", "पेरिस", " "),
    ("프랑스의 수도는", "파리", " "),
    ("대한민국의 首都", "서울", " "),
    ("The Chinese name of China is", "中国", " "),
    ("法国 is", "中国", " "),
    ("我用 Python 写", "Go", " "),  # as the prompt has it
    # The prompt's end takes none.
    ("A:\n", "Paris", ""),
    ("is ", "Paris", ""),
    ("is\t", "Paris", ""),
    ("is\u00a0", "Paris", ""),
    ("首都は\u3000", "東京", ""),
    ("(", "Paris", ""),
    ("[[", "Paris", ""),
    ('He said "', "Paris", ""),
    ('("', "Paris", ""),
    ("“", "Paris", ""),
    ("sagte „", "Paris", ""),
    ("dit «", "Paris", ""),
    ("the Franco-", "Prussian", ""),
    ("word—", "Paris", ""),
    ("and/", "or", ""),
    ("2+2=", "4", ""),
    ("costs $", "5", ""),
    ("US$", "5", ""),
    ("@", "home", ""),
    ("La capitale de l'", "Italie", ""),
    ("la capitale dell\u2019", "Italia", ""),
    # Languages without spaces.
    ("日本の首都は", "東京", ""),
    ("日本の首都は", "Tokyo", ""),
    ("コーヒー", "です", ""),
    ("法国的首都是", "巴黎", ""),
    ("法国的首都是", "1984", ""),
    ("答案：", "巴黎", ""),
    ("答案:", "巴黎", ""),
    ("「", "東京", ""),
    ("「東京」", "です", ""),
    ("他说“", "你好", ""),
    ("人口は約1400", "万人", ""),
    ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส", ""),
    ("ນະຄອນຫຼວງຂອງຝຣັ່ງແມ່ນ", "ປາຣີ", ""),
    ("រដ្ឋធានីបារាំងគឺ", "ប៉ារីស", ""),
    ("ပြင်သစ်မြို့တော်မှာ", "ပါရီ", ""),
    ("ཕ་རན་སིའི་རྒྱལ་ས་", "པ་རིས", ""),
    # Answers that follow without a space in any language.
    ("The capital is Paris", ".", ""),
    ("The capital is Paris", ", and", ""),
    ("Paris", "'s", ""),
    ("(Paris", ")", ""),
]


@pytest.mark.parametrize(("prompt", "word", "join"), JOINS)
def test_the_join_is_the_languages_and_the_prompts(prompt, word, join):
    assert join_between(prompt, word) == join


@pytest.mark.parametrize("prompt", ["the boys'", "**", "a |", "x >", "`", "rock 'n roll'"])
def test_an_end_that_leaves_the_join_open_asks_for_it(prompt):
    with pytest.raises(LcalensError, match=r"join: .* give join=' ' or join=''"):
        join_between(prompt, "Paris")
    tokenizer = standins.byte_level_tokenizer()
    (open_,) = follow(tokenizer, [prompt], ["Paris"])
    assert "give join" in open_.problem
    # An answer that is written with its space says it.
    assert follow(tokenizer, [prompt], [" Paris"])[0].ids == tuple(tokenizer(f"{prompt} Paris").input_ids)
    for join in (" ", "", "\n"):
        assert follow(tokenizer, [prompt], ["Paris"], join=join)[0].ids == tuple(
            tokenizer(f"{prompt}{join}Paris").input_ids
        )


def test_a_join_is_white_space_and_agrees_with_the_answer():
    tokenizer = standins.byte_level_tokenizer()
    for join in ("x", "\u200b", "-"):
        with pytest.raises(LcalensError, match="join: expected white space"):
            follow(tokenizer, ["It is"], ["Paris"], join=join)
    with pytest.raises(LcalensError, match="answers: ' Paris' begins with a space and join=''"):
        follow(tokenizer, ["It is"], [" Paris"], join="")


def test_sentences_are_joined_by_a_space_where_their_language_has_one():
    for before, after, join in (
        ("Do not think of Rome.", "It is in", " "), ("東京を忘れて。", "日本の首都は", ""), ("A.\n", "B", ""),
        ("A.", "\nB", ""), ("忘掉东京！", "It is", ""), ("กรุงเทพ", "ปารีส", " "), ("", "x", ""),
    ):  # fmt: skip
        assert join_sentences(before, after) == join


# --- what cannot be seen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "character",
    ["\x00", "\r", "\x1b", "\x7f", "\x85", "\u00ad", "\u034f", "\u061c", "\u115f", "\u180e", "\u200b", "\u200e",
     "\u200f", "\u202a", "\u202e", "\u2060", "\u2064", "\u2066", "\u2069", "\u2800", "\u3164", "\ufeff", "\uffa0",
     "\ufff9", "\U000e0001", "\U000e0041", "\u200c", "\u200d", "\U0001d173"],
)  # fmt: skip
def test_what_cannot_be_seen_is_refused_by_its_code_point(character):
    text = f"Par{character}is"
    with pytest.raises(LcalensError, match=rf"prompt: .*U\+{ord(character):04X}.* at character 3"):
        check_written("prompt", text)


@pytest.mark.parametrize(
    "text",
    ["می\u200cخواهم", "क्\u200dष", "श्री\u200cलंका", "👩\u200d👩\u200d👧", "👩🏽\u200d🚀", "❤\ufe0f\u200d🔥",
     "ភាសា\u200bខ្មែរ", "ภาษา\u200bไทย", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
     "line\none\ttab", "\u00a0x\u2009y", "a\u2028b", "Łódź, Ñandú", "e\u0301", "\u0600 1", "한국어", "☃\ufe0f"],
)  # fmt: skip
def test_what_a_script_needs_is_kept(text):
    assert first_unseen(text) is None


def test_every_door_refuses_it(standin):
    model = standin("gpt2").model
    fact = {"case_id": 1, "relation_id": "P36", "prompt": "{} is in", "subject": "x", "target_true": "Paris",
            "target_false": "Rome"}  # fmt: skip
    bad = "zero\u200bwidth"
    for name, attempt in {
        "prompt": lambda: ask(model, bad),
        "hijack": lambda: ask(model, "It is", hijack=bad),
        "answers": lambda: ask(model, "It is", answers=bad),
        "clean": lambda: Contrast(bad, "It is", true="Paris", false="Rome", tokenizer=model),
        "hijacked": lambda: Contrast("It is", bad, true="Paris", false="Rome", tokenizer=model),
        "true": lambda: Contrast("It is", "It was", true=bad, false="Rome", tokenizer=model),
        "false": lambda: Contrast("It is", "It was", true="Rome", false=bad, tokenizer=model),
        "subject": lambda: Fact(**fact | {"subject": bad}),
        "target_true": lambda: Fact(**fact | {"target_true": bad}),
        "schemes": lambda: efficacy(model, [Fact(**fact)], schemes=f"Forget {bad}.", progress=False),
    }.items():
        with pytest.raises(LcalensError, match=rf"^{name}\b.*U\+200B"):
            attempt()


# --- tokenizers -------------------------------------------------------------------------------------------------------


def plain(**options):
    """A tokenizer of letters, spaces and newlines, each a token; `options` are parts of it."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n\"()'.,:?!-/[]<>_=éç\u0301\u0327"
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=options.pop("unk", None)))
    for name, part in options.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def template(single):
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])


@pytest.mark.parametrize(
    ("single", "start"),
    [("$A", []), ("<s> $A", [0]), ("<s> $A </s>", [0]), ("$A </s>", []), ("$A </s> </s>", []), ("</s> $A </s>", [1]),
     ("$A </s> <s>", []), ("</s> <s> $A", [1, 0])],
)  # fmt: skip
def test_nothing_is_read_behind_a_text(single, start):
    """As T5's, BERT's, NLLB's tokenizers and `add_eos_token=True` put something there."""
    tokenizer, bare = plain(post_processor=template(single)), plain()
    wanted = [*start, *bare("It is").input_ids]
    assert encode(tokenizer, ["It is"])[0].ids == tuple(wanted)
    (item,) = encode(tokenizer, ["It is"], answers=["so"], spans=[{"is": [(3, 5)]}])
    assert item.ids == (*wanted, *bare(" so").input_ids)
    assert item.spans["answer"] == ((len(wanted), len(item.ids)),)
    assert item.spans["is"] == ((len(wanted) - 2, len(wanted)),)


@pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A </s>"])
def test_a_bos_is_never_there_twice(single):
    tokenizer, bare = plain(post_processor=template(single)), plain()
    wanted = (0, *bare("It is").input_ids)
    assert encode(tokenizer, ["<s>It is"])[0].ids == wanted
    (item,) = encode(tokenizer, ["<s>It is"], answers=["so"], spans=[{"is": [(6, 8)]}])
    assert item.ids == (*wanted, *bare(" so").input_ids)
    assert item.spans["is"] == ((4, 6),)
    with pytest.raises(LcalensError, match=r"texts: .* begins with '<s>' twice"):
        encode(tokenizer, ["<s><s>It is"])
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}:{% endif %}{% endfor %}"
    )
    assert encode(tokenizer, ["It is"], chat=True)[0].ids == (*wanted, *bare(":").input_ids)
    assert encode(tokenizer, ["<s>It is"], chat=True)[0].ids == (*wanted, *bare(":").input_ids)


@pytest.mark.parametrize("trim", [True, False])
def test_an_answers_tokens_do_not_depend_on_offsets(trim):
    tokenizer = standins.byte_level_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    for text, answer in (("The answer is", "1984"), ("The capital of France is", "Paris"), ("x", "🙂")):
        (item,) = encode(tokenizer, [text], answers=[answer])
        start = len(tokenizer(text).input_ids)
        assert item.ids == tuple(tokenizer(f"{text} {answer}").input_ids)
        assert item.spans["answer"] == ((start, len(item.ids)),)


def test_a_token_that_reaches_across_the_border_is_refused():
    tokenizer = standins.byte_level_tokenizer()  # it has " Paris" and "Paris"; "is in" never merges with either
    (ends_in_space, inside) = follow(tokenizer, ["It is ", "It is Par"], ["Paris", "is"], prompts=None, join="")
    assert "ends with white space" in ends_in_space.problem
    assert "a token reaches from one into the other" in inside.problem
    with pytest.raises(LcalensError, match="answers: 'Paris': the prompt ends with white space"):
        encode(tokenizer, ["It is "], answers=["Paris"])
    # Where tokens do not merge with spaces, a space at the end is a part of the prompt as any other.
    letters = plain()
    (item,) = follow(letters, ["It is "], ["Paris"])
    assert (item.start, item.problem) == (6, "")
    assert item.ids == tuple(letters("It is Paris").input_ids)


@pytest.mark.parametrize("kind", ["unk", "dropped"])
def test_what_the_vocabulary_does_not_have_is_told(kind):
    tokenizer = plain(unk="<unk>") if kind == "unk" else plain()
    known, unknown, both = follow(tokenizer, ["It is"] * 3, ["Paris", "ß", "naßs"])
    assert known.problem == ""
    assert unknown.problem == both.problem == "the answer is not in the tokenizer's vocabulary"
    assert "the prompt holds" in follow(tokenizer, ["It ß is"], ["Paris"])[0].problem
    assert [item.unknown > 0 for item in encode(tokenizer, ["It is", "It ß is"])] == [False, True]


def test_the_unknown_token_itself_and_bytes_are_known():
    tokenizer = plain(unk="<unk>")
    assert encode(tokenizer, ["a <unk> b"])[0].unknown == 0
    for made in (
        standins.byte_level_tokenizer(),
        standins.metaspace_tokenizer(),
        standins.metaspace_tokenizer("first"),
    ):
        assert [item.problem for item in follow(made, ["東京は", "It is"], ["🙂", "ßæ"])] == ["", ""]


def test_an_answer_in_another_form_than_the_usual_is_refused_where_its_tokens_differ():
    written = unicodedata.normalize("NFD", "façé")
    (item,) = follow(plain(), ["It is"], [written])
    assert "NFC" in item.problem
    assert follow(plain(), ["It is"], ["façé"])[0].problem == ""
    same = plain(normalizer=normalizers.NFC())  # as Qwen's: the tokens are the same
    assert follow(same, ["It is"], [written])[0].problem == ""
    hangul = standins.byte_level_tokenizer()
    hangul.backend_tokenizer.normalizer = normalizers.NFC()
    for name in ("서울", "façé", "Łódź"):
        (item,) = follow(hangul, ["It is"], [unicodedata.normalize("NFD", name)])
        assert (item.problem, item.ids) == ("", tuple(hangul(f"It is {name}").input_ids))


def test_slow_tokenizers_keep_the_rule():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    for text, join, answer in (("Łódź is", " ", "🙂"), ("東京は", "", "首都"), ("A:\n", "", "b"), ("is ", "", "x")):
        for written in (answer, f" {answer}"):
            (item,) = follow(tokenizer, [text], [written])
            assert item.ids == tuple(tokenizer(text + join + answer, add_special_tokens=False).input_ids)
            assert item.start == len(text.encode())
            assert item.problem == ""


def test_words_without_spaces_share_tokens_as_they_stand():
    tokenizer = plain()
    assert share_token(tokenizer, "ab", "bc")
    assert not share_token(tokenizer, "ab", "cd")
    assert not share_token(standins.byte_level_tokenizer(), "東", "人")  # no byte in common, nor a space


# --- chat templates ---------------------------------------------------------------------------------------------------

USER = "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
GENERATE = "{% if add_generation_prompt %}<a>{% endif %}"


def chatty(reply, end=""):
    tokenizer = plain()
    tokenizer.chat_template = "{% for m in messages %}" + USER + reply + "{% endif %}{% endfor %}" + end
    return tokenizer


@pytest.mark.parametrize(
    ("reply", "end", "join"),
    [
        (" {{ m.content }}</s>", "", " "),  # Llama 2, Mistral
        ("{{ m.content }}</s>", "", ""),
        (" {{ m.content | trim }} </s>", "", " "),
        ("<a>{{ m.content }}", GENERATE, ""),  # ChatML and its like: the turn's start is in the generation prompt
        ("<a>\n{{ m.content }}", GENERATE, "\n"),
    ],
)
def test_the_join_of_a_chat_is_what_the_template_writes_before_a_reply(reply, end, join):
    tokenizer = chatty(reply, end=end)
    assert reply_join(tokenizer, ["Paris"]) == join
    turns = [{"role": "user", "content": "It is"}, {"role": "assistant", "content": "Paris"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    upto = whole[: whole.rindex("Paris") + len("Paris")]
    for answer in ("Paris", " Paris"):
        (item,) = encode(tokenizer, ["It is"], answers=[answer], chat=True)
        assert item.ids == tuple(tokenizer(upto, add_special_tokens=False).input_ids)
        ((first, last),) = item.spans["answer"]
        assert last - first == len(join) + len("Paris")
    (given,) = encode(tokenizer, ["It is"], answers=["Paris"], chat=True, join="\n")
    assert given.ids == (*encode(tokenizer, ["It is"], chat=True)[0].ids, *tokenizer("\nParis").input_ids)


@pytest.mark.parametrize(
    ("reply", "end", "reason"),
    [
        ("<think>\n\n</think>\n\n{{ m.content }}", "", "puts '<think>"),
        ("<a>{{ m.content }}", "{% if add_generation_prompt %}<a><think>{% endif %}", "does not write one there"),
        ("{{ m.content | upper }}", "", "rewrites the reply 'Paris'"),
        ("", "", "puts '' before a reply"),
        ("{{ raise_exception('no replies') }}", "", "cannot be rendered .*no replies"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(reply, end, reason):
    with pytest.raises(LcalensError, match=f"chat: .*{reason}"):
        encode(chatty(reply, end=end), ["It is"], answers=["Paris"], chat=True)


def test_a_template_that_strips_the_text_is_refused_where_there_is_something_to_strip():
    tokenizer = plain()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert encode(tokenizer, ["It is"], chat=True)[0].ids == tuple(tokenizer("[It is]").input_ids)
    with pytest.raises(LcalensError, match="chat: the chat template drops the white space around 'It is\\\\n'"):
        encode(tokenizer, ["It is\n"], chat=True)


# --- the verbs --------------------------------------------------------------------------------------------------------


def by_hand(model, ids, start):
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logp[at - 1, ids[at]].item() for at in range(start, len(ids)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("prompt", "join", "true", "false"),
    [
        ("The capital of {} is", " ", "Paris", "Rome"),
        ("Q: {}?\nA:\n", "", "Paris", "Rome"),
        ("{}は", "", "東京", "大阪"),
    ],
)
def test_one_word_means_one_thing_everywhere(standin, family, prompt, join, true, false):
    one = standin(family)
    fact = Fact(
        case_id=1, relation_id="P36", prompt=prompt, subject="France", target_true=true, target_false=f" {false}"
    )
    context = one.tokenizer(fact.text).input_ids
    whole = {name: one.tokenizer(fact.text + join + name).input_ids for name in (true, false)}
    right = {name: by_hand(one.plain, ids, len(context)) for name, ids in whole.items()}
    spelled = [" ".join(one.tokenizer.convert_ids_to_tokens(ids[len(context) :])) for ids in whole.values()]

    for answers in ([true, false], [f" {true}", f"{false} "]):
        scored = ask(one.model, fact.text, answers=answers).tables["scored"]
        np.testing.assert_allclose(scored["clean_logp"], list(right.values()), atol=1e-3)
        assert scored["tokens"].tolist() == spelled
    result = efficacy(one.model, [fact], counts=(0,), progress=False)
    found = [result.values[f"logp_{name}"][0, 0, 0] for name in ("true", "false")]
    np.testing.assert_allclose(found, list(right.values()), atol=1e-3)
    assert result.examples[["true_tokens", "false_tokens"]].to_numpy().tolist() == [spelled]
    made = Contrast(fact.text, fact.text, true=true, false=f" {false}", tokenizer=one.model)
    assert [list(made.true[0]), list(made.false[0])] == [ids[len(context) :] for ids in whole.values()]
    assert made.examples[["true_tokens", "false_tokens"]].to_numpy().tolist() == [spelled]
    if len(set(map(tuple, (ids[len(context) :][:1] for ids in whole.values())))) == 2:
        facts = contrast_facts(one.model, [fact], control="none", scheme="neutral")
        assert (facts.true, facts.false) == (made.true, made.false)
        assert facts.examples[["true_tokens", "false_tokens"]].to_numpy().tolist() == [spelled]


@pytest.mark.parametrize("join", [" ", "", "\n"])
def test_a_join_that_is_given_is_taken(standin, join):
    one = standin("gpt2")
    fact = Fact(case_id=1, relation_id="P36", prompt="The capital of {} is", subject="France", target_true="Paris",
                target_false="Rome")  # fmt: skip
    start = len(one.tokenizer(fact.text).input_ids)
    wanted = one.tokenizer(f"{fact.text}{join}Paris").input_ids
    right = by_hand(one.plain, wanted, start)
    assert ask(one.model, fact.text, answers="Paris", join=join).tables["scored"]["clean_logp"][0] == pytest.approx(
        right, abs=1e-3
    )
    result = efficacy(one.model, [fact], counts=(0,), join=join, progress=False)
    assert result.values["logp_true"][0, 0, 0] == pytest.approx(right, abs=1e-3)
    assert result.provenance["config"]["join"] == join
    if join != "\n":  # there the answers begin alike
        made = Contrast(fact.text, fact.text, true="Paris", false="Rome", tokenizer=one.model, join=join)
        assert list(made.true[0]) == wanted[start:]
        assert contrast_facts(one.model, [fact], control="none", join=join).true == made.true


def few_words(standin, words):
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
    return load_model(standin("llama").plain, tokenizer=made)


def test_facts_the_vocabulary_does_not_have_are_left_out_and_counted(standin):
    words = "The capital of France Japan is Paris Rome Do not think ."
    model = few_words(standin, words.split())
    named = [("France", "Paris", "Rome"), ("Japan", "Tokyo", "Osaka"), ("Japan", "Tokyo", "Rome")]
    named.append(("Peru", "Paris", "Rome"))
    facts = [
        Fact(case_id=i, relation_id="P36", prompt="The capital of {} is", subject=subject, target_true=true,
             target_false=false)
        for i, (subject, true, false) in enumerate(named)
    ]  # fmt: skip
    result = efficacy(model, facts, counts=(0, 1), progress=False)
    assert np.isfinite(result.values["logp_true"][0]).all()
    assert np.isnan(result.values["logp_true"][1:]).all()
    assert np.isnan(result.values["logp_false"][1:]).all()
    assert result.wide().query("subset == 'all'")["facts"].tolist() == [1, 1]
    counted = result.tables["impossible"].groupby(["n", "reason"])["facts"].sum().to_dict()
    for n, answers, prompts in ((0, 2, 1), (1, 1, 2)):  # "Do not think of Osaka." is read as something else, too
        assert counted[n, "the answer is not in the tokenizer's vocabulary"] == answers
        assert counted[n, "the prompt holds what the tokenizer's vocabulary does not have"] == prompts
    assert result.examples["true_tokens"].tolist() == ["Paris", "", "", ""]
    made = contrast_facts(model, facts, control="none")
    assert made.examples["case_id"].tolist() == [0]
    assert sorted(made.excluded["reason"]) == [
        "the answer is not in the tokenizer's vocabulary",
        *["the prompt holds what the tokenizer's vocabulary does not have"] * 2,
    ]
    with pytest.raises(LcalensError, match="facts: none of 3 can be scored exactly"):
        efficacy(model, facts[1:], counts=(0,), progress=False)
    with pytest.raises(LcalensError, match="answers: 'Tokyo': the answer is not in the tokenizer's vocabulary"):
        ask(model, "The capital of Japan is", answers="Tokyo")
    with pytest.raises(
        LcalensError, match="prompt: the tokenizer's vocabulary does not have all of 'The capital of Peru"
    ):
        ask(model, "The capital of Peru is")
    with pytest.raises(LcalensError, match="true: 'Tokyo': the answer is not in the tokenizer's vocabulary"):
        Contrast("Japan is", "France is", true="Tokyo", false="Rome", tokenizer=model)
    with pytest.raises(LcalensError, match="clean: the tokenizer's vocabulary does not have all of 'Peru is'"):
        Contrast("Peru is", "France is", true="Paris", false="Rome", tokenizer=model)


# --- ids as they are given --------------------------------------------------------------------------------------------


def test_padding_without_a_mask_and_a_second_bos_are_refused():
    tokenizer = plain()
    body = tokenizer("It is").input_ids
    for rows, reason in (
        ([[2, 2, *body]], r"clean: example 0 begins with padding \('<pad>', token 2\); give clean_mask"),
        ([body, [*body[:-1], 2]], "clean: example 1 ends with padding"),
        ([[0, 0, *body[:-1]]], "clean: example 0 begins with '<s>' twice"),
    ):
        others = [body] * len(rows)
        with pytest.raises(LcalensError, match=reason):
            Contrast(torch.tensor(rows), others, true=5, false=6, tokenizer=tokenizer)
        with pytest.raises(LcalensError, match=reason.replace("clean", "hijacked")):
            Contrast(others, rows, true=5, false=6, tokenizer=tokenizer)
    made = Contrast(
        [[2, 2, *body]], [body], true=5, false=6, tokenizer=tokenizer, clean_mask=[[0, 0, *[1] * len(body)]]
    )
    assert made.clean == made.hijacked
    one_bos = copy.deepcopy(tokenizer)
    one_bos.pad_token = "<s>"  # GPT-2's users pad with the token that begins texts
    check_padding(one_bos, [[0, *body]], "clean")
    with pytest.raises(LcalensError, match="twice"):
        check_padding(one_bos, [[0, 0, *body]], "clean")
    with pytest.raises(LcalensError, match="ends with padding"):
        check_padding(one_bos, [[*body, 0]], "clean")


def test_a_normalizer_that_changes_what_is_read_is_told():
    tokenizer = plain(normalizer=normalizers.Replace(Regex("q"), ""))
    assert follow(tokenizer, ["It is"], ["quick"])[0].problem == "the answer is not in the tokenizer's vocabulary"
