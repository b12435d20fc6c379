"""What `doctor` found, as text for a terminal."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from lcalens.views.text import model_line, plain_line

if TYPE_CHECKING:
    from lcalens.core.results import Result

_WIDTH = 110


def doctor_screen(result: "Result") -> str:
    """The verdicts, what they rest on, and what is known of the libraries.

    Args:
        result: Of `doctor`.
    """
    machine, runs = result.provenance["machine"], result.provenance["runs"]
    free = machine["free_gigabytes"]
    lines = [
        model_line(result),
        f"  {machine['parameters'] / 1e6:.4g} million parameters, {machine['gigabytes']:.3g} GB on "
        f"{machine['device']}{'' if free is None else f', {free:.3g} GB free'}; {machine['threads']} threads",
        f"  tokenizer: {plain_line(machine['tokenizer'])}",
        "  " + ", ".join(f"{name} {version}" for name, version in result.provenance["versions"].items()),
        f"  runs of {runs['tokens']} tokens ({runs['of']}); rounding moves logits by up to {runs['grain']:.2g}",
        *_wrapped([f"known fault: {plain_line(fault)}" for fault in result.provenance.get("known_faults", [])]),
        "",
        f"{'identity':26}{'verdict':9}{'error':>10}{'tolerance':>11}{'effect':>10}{'s':>7}",
    ]
    for row in result.tables["verdicts"].to_dict("records"):
        numbers = f"{_number(row['error']):>10}{_number(row['tolerance']):>11}{_number(row['effect']):>10}"
        lines.append(f"{row['identity']:26}{row['verdict']:9}{numbers}{row['seconds']:7.2f}")
        if row["reason"]:
            lines += _wrapped([plain_line(str(row["reason"]))])
    counts = result.provenance["counts"]
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    lines += ["", f"{said} in {result.values['seconds'].sum():.0f} s; {result.provenance['kept'] or 'nothing is kept'}"]
    return "\n".join(lines)


def _wrapped(texts: list[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, _WIDTH, initial_indent="    ",
                                                             subsequent_indent="    ")]  # fmt: skip


def _number(value: float) -> str:
    return "" if np.isnan(value) else "0" if value == 0 else f"{value:.1e}"
