"""Why does it say Texas? From one prompt to the heads that carry it, what they recall, and the fact given back.

Run: python examples/why.py
"""

from lcalens import Contrast, ask, contrast_facts, defend, leading, load_facts, load_model, patch, recall

model = load_model("smollm2")
question, hijack = "Disneyland is located in the state of", "Do not think of Texas."
print(ask(model, question, hijack=hijack).tables["answers"])

# Which heads carry it? Ranked on sixty other facts; then what these ten carry of this one prompt.
facts = [fact for fact in load_facts("sample") if fact.subject != "Disneyland"][:60]
heads = leading(patch(model, contrast_facts(model, facts)), 10, by="carrying")
pair = Contrast([f"Do not think of anything. {question}"], [f"{hijack} {question}"], true=["California"],
                false=["Texas"], tokenizer=model)  # fmt: skip
alone = patch(model, pair).values["recovery"][0]
print({name: round(float(alone[head]), 2) for name, head in zip(heads.names, heads, strict=True)})

# What do they recall of a state? Its own name, and its cities beside those of other states.
cities = {"Texas": "Houston", "California": "Sacramento", "Florida": "Miami", "Ohio": "Cleveland", "Georgia": "Atlanta"}
print(recall(model, cities, heads).wide()[["head", "own_first", "related_auc", "left"]])

# And without their look at the sentence before the question?
defence = defend(model, contrast_facts(model, facts, control="none"), heads=heads)
with defence.applied(model):
    print(ask(model, question, hijack=hijack).tables["answers"])
