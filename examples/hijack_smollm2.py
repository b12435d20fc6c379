# %% [markdown]
# # How far is SmolLM2 hijacked?
# Run it as a script, or open it as a notebook with jupytext. It takes two minutes on two cores.

# %%
from pathlib import Path

import lcalens

model = lcalens.load_model("smollm2")

# %% [markdown]
# One prompt first: the top answers, and two whole answers, without and with a sentence before it.

# %%
answers = lcalens.ask(model, "Kyoto is a place in", hijack="Do not think of Canada.", answers=["Japan", "Canada"])
print(answers.summary.to_string(index=False))
print(answers.tables["scored"].to_string(index=False))

# %% [markdown]
# Now two hundred facts, with the two controls without which no claim about association stands: the same sentence with
# an object of another relation, and with none.

# %%
facts = lcalens.load_facts("sample", limit=200)
result = lcalens.efficacy(model, facts, schemes=("dont-think", "unrelated", "neutral"), counts=(0, 1, 3))
print(result.wide("controls").query("subset == 'all'").to_string(index=False))

# %%
out = Path("out/example")
out.mkdir(parents=True, exist_ok=True)
result.plot().savefig(out / "hijack_smollm2.png", dpi=150)
