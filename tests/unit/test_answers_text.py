"""What the screen of `ask` says in words: which way a sentence moved the answers, and whether the token is another."""

import numpy as np
import pandas as pd
import pytest

from lcalens.core.results import Result
from lcalens.views.answers_text import answers_screen, moved_in_words
from lcalens.views.efficacy import plot_answers


def asked(changes, *, hijack=("Do not think of Texas.",), tokens=(" California", " Texas"), prompt="Disneyland is in"):
    contexts = ("clean", "hijacked") if hijack else ("clean",)
    table = {"rank": [1]} | {name: [token] for name, token in zip(contexts, tokens, strict=False)}
    table |= {f"{name}_probability": [0.5] for name in contexts}
    scored = {"answer": list(changes), "clean_logp": [-1.0] * len(changes), "change": list(changes.values())}
    return Result(
        kind="answers",
        axes={"context": contexts, "rank": (1,)},
        values={"probability": np.full((len(contexts), 1), 0.5), "token_id": np.ones((len(contexts), 1))},
        tables={"answers": pd.DataFrame(table), "scored": pd.DataFrame(scored)},
        provenance={"config": {"prompt": prompt, "hijack": list(hijack)},
                    "model": {"source": "x", "dtype": "float32", "quantisation": "none"}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"California": -1.25, "Texas": 5.5}, "'Texas' against 'California' by +6.75 nats, towards the answer"),
        ({"California": 3.0, "Texas": 0.5}, "'California' against 'Texas' by +2.50 nats, away from the answer"),
        ({"Ohio": 1.0, "Utah": 0.0}, "'Ohio' against 'Utah' by +1.00 nats. The"),
        ({"Tex": 1.0, "Utah": 0.0}, "'Tex' against 'Utah' by +1.00 nats. The"),
    ],
)
def test_which_way_the_answers_moved(changes, expected):
    told = moved_in_words(asked(changes))
    assert expected in told
    assert told.endswith("The likeliest next token was ' California' and is ' Texas'.")
    assert told in answers_screen(asked(changes))


def test_with_one_answer_or_none_the_token_alone_is_told():
    same = asked({"Texas": 1.0}, tokens=(" the", " the"))
    assert moved_in_words(same) == "The likeliest next token is ' the' with and without it."
    assert "likeliest" in moved_in_words(asked({}))
    assert "likeliest" not in answers_screen(asked({"Texas": 1.0, "Ohio": 0.0}, hijack=()))


def test_the_prompts_stand_over_their_panels_as_they_are():
    figure = plot_answers(asked({}, prompt="It costs $5 and $6 in \x1b[31m" + "very " * 60))
    titles = [panel.get_title(loc="left").replace("\n", " ") for panel in figure.axes]
    assert titles[0].startswith(r"It costs \$5 and \$6 in \x1b[31m")
    assert titles[1].startswith("Do not think of Texas. It costs")
    assert all(title.endswith("...") and len(title) < 150 for title in titles)
    figure.canvas.draw()
