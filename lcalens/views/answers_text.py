"""What `ask` found, as text for a terminal: the likeliest tokens, whole answers, which way a sentence moved them."""

import re
from typing import TYPE_CHECKING

from lcalens.views.text import model_line, printable

if TYPE_CHECKING:
    from lcalens.core.results import Result


def answers_screen(result: "Result") -> str:
    """The top answers beside each other, and the whole answers' scores."""
    table = result.tables["answers"]
    config = result.provenance["config"]
    contexts = result.axes["context"]
    lines = [model_line(result), f"  clean:    {config['prompt']}"]
    if len(contexts) > 1:
        lines.append(f"  hijacked: {' '.join(config['hijack'])} {config['prompt']}")
    lines += ["", "  " + "    ".join(f"{context:<18}{'p':>6}" for context in contexts)]
    for _, row in table.iterrows():
        cells = [f"{printable(row[context]):<18}{row[f'{context}_probability']:6.3f}" for context in contexts]
        lines.append("  " + "    ".join(cells))
    scored = result.tables["scored"]
    if len(scored):
        shown = scored.assign(answer=scored["answer"].map(printable))
        lines += ["", "log-probability of whole answers (nats)", shown.to_string(index=False, float_format="%.3f")]
    if len(contexts) > 1:
        lines += ["", moved_in_words(result)]
    return "\n".join(lines)


def moved_in_words(result: "Result") -> str:
    """Which way the sentence moved the answers, and whether the likeliest next token is another.

    Args:
        result: Of `ask` with a hijack.
    """
    table, scored = result.tables["answers"], result.tables["scored"]
    before, after = (str(table[context].iloc[0]) for context in ("clean", "hijacked"))
    token = (f"The likeliest next token was {printable(before)} and is {printable(after)}." if before != after else
             f"The likeliest next token is {printable(before)} with and without it.")  # fmt: skip
    if len(scored) < 2:
        return token
    order = scored.sort_values("change", ascending=False, kind="stable")
    up, down = order.iloc[0], order.iloc[-1]
    by = float(up["change"] - down["change"])
    said = " ".join(result.provenance["config"]["hijack"])
    named = [name for name in (str(up["answer"]), str(down["answer"]))
             if re.search(rf"(?<!\w){re.escape(name.strip())}(?!\w)", said)]  # fmt: skip
    toward = ""
    if len(named) == 1:
        toward = "towards" if named[0] == up["answer"] else "away from"
        toward = f", {toward} the answer that it names"
    pair = f"{printable(str(up['answer']))} against {printable(str(down['answer']))}"
    return f"The sentence moved the log odds of {pair} by {by:+.2f} nats{toward}. {token}"
