"""Results as text for a terminal."""

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from lcalens.results import Result

_SUBSETS = {
    "all": "all facts",
    "known": "known facts: greedy decoding of the clean prompt gives the true object",
    "prefers-true": "facts where the clean prompt gives the true object the higher probability",
}
_ALPHA = 0.05


def efficacy_screen(result: "Result") -> str:
    """ES by scheme and n with intervals, the controls, and what could not be made."""
    facts, config = result.provenance["facts"], result.provenance["config"]
    lines = [
        f"{_model(result)}; {facts['count']} facts of {facts['source']!r}; {config['scoring']}-object scoring"
        + ("; through the chat template" if config["chat"] else ""),
        "ES: share of facts where the false object is the more probable [95% Wilson interval]; retention = 1 - ES.",
        f"*: differs from n=0 (McNemar's exact test, Holm-corrected over all tests of this study, p < {_ALPHA}).",
    ]
    for subset, table in result.summary.groupby("subset", sort=False):
        lines += ["", f"ES, {_SUBSETS[str(subset)]}", _pivot(table)]
    controls = result.tables["controls"]
    last = max(result.axes["n"])
    against = controls[(controls["subset"] == "all") & (controls["n"] == last)]
    if len(against):
        lines += ["", f"ES of each scheme minus its control's, n={last} [95% bootstrap interval, clustered by relation]"]
        lines += [
            f"  {row.scheme:20} - {row.control:16}{row.difference:+.2f} [{row.difference_low:+.2f}, "
            f"{row.difference_high:+.2f}]{'*' if row.holm_p < _ALPHA else ' '} {row.facts:5d} facts"
            for row in against.itertuples()
        ]
    if len(result.tables["impossible"]):
        lines += ["", "Not possible, and left out (a scheme's curve uses the facts that have every n):"]
        lines += [
            f"  {row.scheme:20} n={row.n:<3}{row.facts:5d} facts: {row.reason}"
            for row in result.tables["impossible"].itertuples()
        ]
    if facts["skipped"]:
        lines += ["", f"{facts['skipped']} malformed records of the source were skipped (--strict stops at the first)."]
    cells = result.provenance["cells"]
    if cells["loaded"]:
        lines += ["", f"{cells['loaded']} parts were found finished, {cells['computed']} computed."]
    return "\n".join(lines)


def answers_screen(result: "Result") -> str:
    """The top answers beside each other, and the whole answers' scores."""
    table = result.tables["answers"]
    config = result.provenance["config"]
    contexts = result.axes["context"]
    lines = [_model(result), f"  clean:    {config['prompt']}"]
    if len(contexts) > 1:
        lines.append(f"  hijacked: {' '.join(config['hijack'])} {config['prompt']}")
    lines += ["", "  " + "    ".join(f"{context:<18}{'p':>6}" for context in contexts)]
    for _, row in table.iterrows():
        cells = [f"{_printable(row[context]):<18}{row[f'{context}_probability']:6.3f}" for context in contexts]
        lines.append("  " + "    ".join(cells))
    scored = result.tables["scored"]
    if len(scored):
        shown = scored.assign(answer=scored["answer"].map(_printable))
        lines += ["", "log-probability of whole answers (nats)", shown.to_string(index=False, float_format="%.3f")]
    return "\n".join(lines)


def _model(result: "Result") -> str:
    model = result.provenance["model"]
    stored = "" if model["quantisation"] == "none" else f", {model['quantisation']}"
    return f"{model['source']} ({model['dtype']}{stored})"


def _printable(text: str) -> str:
    """Text whose control characters are written out, so that a token cannot steer a terminal."""
    return repr(text)


def _pivot(table: pd.DataFrame) -> str:
    cells = [
        "     -"
        if not row.facts
        else f"{row.es:.2f} [{row.es_low:.2f}, {row.es_high:.2f}]{'*' if row.holm_p < _ALPHA else ' '}"
        for row in table.itertuples()
    ]
    schemes = [name if len(name) <= 28 else name[:27] + "…" for name in table["scheme"]]
    frame = pd.DataFrame({"scheme": schemes, "facts": table["facts"], "n": table["n"], "cell": cells})
    wide = frame.pivot(index=["scheme", "facts"], columns="n", values="cell").reindex(
        pd.MultiIndex.from_frame(frame[["scheme", "facts"]].drop_duplicates())
    )
    wide.columns = [f"n={n}" for n in wide.columns]
    lines = wide.reset_index().to_string(index=False, justify="left").splitlines()
    return "\n".join("  " + line for line in lines)
