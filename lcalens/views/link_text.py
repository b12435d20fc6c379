"""Recall and defences as text: for a terminal, and as a Markdown page."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lcalens.core.tables import widen
from lcalens.views.defence import draws_of
from lcalens.views.intervals import about_intervals
from lcalens.views.text import fenced, model_line, printable, short_name

if TYPE_CHECKING:
    from lcalens.core.results import Result
    from lcalens.mechanism.defence.defence import Defence

_WIDTH = 110
_BACK = ("es", "recovery", "returned", "agreement")


def recall_screen(result: "Result") -> str:
    """Each head's recall, the same numbers of what looks like recall and is not, and the test against random circuits.

    Args:
        result: Of `recall`.
    """
    told = result.provenance
    sources, answers = (len(labels) for labels in list(result.axes.values())[1:])
    lines = [
        f"{model_line(result)}; {sources} words, {answers} answers; the circuit reads the {told['level']}",
        *_wrapped(f"Heads: {', '.join(result.axes['head'])} ({told['heads_rule']})."),
        "own first: share of words whose own token has the largest entry. AUC: related answers above unrelated ones.",
        "rel/own: their leads over unrelated answers. left: the related one's lead in sd, own token and similarity",
        f"regressed out; p: of {told['draws']} random circuits of the same spectrum, Holm-corrected. 95% intervals.",
        "",
        f"  {'head':8}{'own first':>10}{'AUC':>6}{'rel/own':>9}  {'left':21}{'p':>6}{'copying':>9}{'induction':>11}",
    ]
    tests, scores = (result.wide(name).set_index("head") for name in ("tests", "scores"))
    for row in result.wide().to_dict("records"):
        head = row["head"]
        lines.append(
            f"  {head:8}{_number(row, 'own_first'):>10}{_number(row, 'related_auc'):>6}{_number(row, 'relative'):>9}"
            f"  {_estimate(row, 'left'):21}{_number(tests.loc[head], 'p_holm', 3):>6}"
            f"{_number(scores.loc[head], 'copying'):>9}{_number(scores.loc[head], 'induction'):>11}"
        )
    lines += ["", "The same of what is no recall (of many: the mean, and the middle 95% of them; rel/own where the own"]
    lines += ["token's lead is of one sign in that range):"]
    lines += [f"  {'head':8}{'':25}{'own first':>10}{'AUC':>6}{'rel/own':>9}  left"]
    nulls = result.wide("nulls")
    for row in [one for head in result.axes["head"] for one in nulls[nulls["head"] == head].to_dict("records")]:
        own, related = row["own_gap"], row["related_gap"]
        of_one_sign = not row.get("own_gap_low", math.nan) <= 0 <= row.get("own_gap_high", math.nan)
        share = {"share": related / own if own and of_one_sign else math.nan}
        lines.append(
            f"  {row['head']:8}{row['null']:25}{_number(row, 'own_first'):>10}{_number(row, 'related_auc'):>6}"
            f"{_number(share, 'share'):>9}  {_estimate(row, 'left')}"
        )
    about = about_intervals(result)
    if about:
        lines += ["", *(line for sentence in about for line in _wrapped(sentence))]
    if told["left_out"]:
        shown = ", ".join(printable(word) for word in told["left_out"])
        lines += ["", *_wrapped(f"Left out, as they are not one token: {shown}.")]
    return "\n".join(lines)


def recall_markdown(result: "Result", command: str) -> str:
    """The same as a Markdown page.

    Args:
        result: Of `recall`.
        command: What was typed.
    """
    return fenced(recall_screen(result), command)


def defence_screen(result: "Result") -> str:
    """What each defence gives back, scheme by scheme, and what it takes of all else.

    Args:
        result: Of `evaluate_defence`.
    """
    table = _by_condition(result.summary)
    n = ", ".join(f"n={count}" for count in sorted({count for _, count in result.provenance["schemes"].values()}))
    lines = [
        f"{model_line(result)}; {len(result.examples)} facts; {n}; 95% intervals.",
        *about_intervals(result),
        *about_draws(result),
        "ES: share of facts where the false object is preferred. recovery: (ES hijacked - ES defended) /",
        "(ES hijacked - ES clean). returned: of the facts that the hijack flips, those whose clean preference is back.",
        "agreement: of all facts, those that prefer what they prefer clean and undefended.",
        "",
        f"  {'defence':20}{'scheme':22}{'ES':>6}  {'recovery':21}{'returned':21}{'agreement':>9}",
    ]
    for row in table[table["agreement"].notna()].to_dict("records"):
        lines.append(
            f"  {short_name(row['defence'], 18):20}{short_name(row['condition'], 20):22}{_number(row, 'es'):>6}  "
            f"{_estimate(row, 'recovery'):21}{_estimate(row, 'returned'):21}{_number(row, 'agreement'):>9}"
        )
    lines += _nothing_to_recover(table)
    lines += ["", "What it takes: clean facts that flip; those whose most likely next token is right; honest contexts"]
    lines += ["still followed; KL(undefended || defended) of the next token of plain text."]
    kinds = list(dict.fromkeys(table.loc[table["kept"].notna(), "condition"])) if "kept" in table else []
    columns = ["clean ES", "flips", "right", *map(str, kinds), "KL, nats"]
    lines.append("  " + f"{'defence':20}" + "".join(f"{name:>{len(name) + 2}}" for name in columns))
    for defence, rows in table.groupby("defence", sort=False):
        of = rows.groupby("condition").first().to_dict("index")  # plain text has a row a unit
        cells = [_number(of["clean"], name, 3) for name in ("es", "flips", "accuracy")]
        cells += [_number(of.get(kind, {}), "kept") for kind in kinds] + [_number(of.get("plain text", {}), "kl", 4)]
        shown = (f"{cell:>{len(name) + 2}}" for cell, name in zip(cells, columns, strict=True))
        lines.append("  " + f"{short_name(defence, 18):20}" + "".join(shown))
    cells = result.provenance["cells"]
    if cells["loaded"]:
        lines += ["", f"{cells['loaded']} parts were found finished, {cells['computed']} computed."]
    return "\n".join(lines)


def about_draws(result: "Result") -> list[str]:
    """Which defences are means of several draws, whose brackets are no intervals.

    Args:
        result: Of `evaluate_defence`.
    """
    return [
        f"{short_name(name, 18)}: the mean of {count} draws, and in brackets the middle 95% of them, no interval."
        for name, count in draws_of(result).items()
    ]


def _nothing_to_recover(table: pd.DataFrame) -> list[str]:
    """Which schemes did not raise ES here, so that recovery says nothing of a defence."""
    if "recovery" not in table:
        return []
    without = table[table["es"].notna() & table["recovery"].isna() & (table["condition"] != "clean")]
    return [
        f"  {short_name(str(scheme), 40)}: it does not raise ES on its facts; nothing is there to recover."
        for scheme in dict.fromkeys(without["condition"])
    ]


def _by_condition(summary: pd.DataFrame) -> pd.DataFrame:
    """A row for each defence and condition, of however many facts each quantity is."""
    return widen(summary.drop(columns="n"))


def defence_markdown(result: "Result", command: str) -> str:
    """The same as a Markdown page.

    Args:
        result: Of `evaluate_defence`.
        command: What was typed.
    """
    return fenced(defence_screen(result), command)


def fitted_screen(defence: "Defence", model: str) -> str:
    """What a defence is, and what is known of its detector.

    Args:
        defence: As it was made.
        model: As it was asked for.
    """
    record = defence.record
    facts = record["facts"]
    lines = [
        f"{printable(model)}; {len(facts['case_ids'])} facts of {printable(facts['source'])}, "
        f"{len(facts['relations'])} relations; scheme {printable(record['scheme'])}",
        f"method {defence.method}, at {'the last position' if defence.where == 'last' else 'all positions'}",
        *_wrapped(f"heads: {_heads(defence.heads)} ({record['heads_rule']})"),
    ]
    if defence.detector is not None:
        if record["too_early"]:
            lines += _wrapped(f"not cut, as they have run before the detector reads: {_heads(record['too_early'])}")
        lines += [
            f"detector before layer {defence.detector.layer}; of hijacked prompts it catches "
            f"{record['caught']:.2f} (held-out folds)",
            f"  {'negatives':18}{'texts':>6}{'AUC':>7}{'false alarms':>14}",
        ]
        for kind, count in record["negatives"].items():
            alarms = record["false_alarms"][kind]
            lines.append(f"  {kind:18}{count:6d}{record['auc'][kind]:7.3f}{alarms:14.3f}")
    return "\n".join(lines)


def generated_screen(name: str, defence: "Defence", rows: Sequence[tuple[str, str, str]]) -> str:
    """How each prompt goes on, without the defence and with it.

    Args:
        name: The defence's.
        defence: The defence.
        rows: Prompts, each with both continuations.
    """
    lines = [f"{printable(name)}: {defence.method}, {len(defence.heads)} heads; greedy"]
    for prompt, plain, defended in rows:
        lines += ["", *_wrapped(printable(prompt)), *_beside("without:", plain), *_beside("with:", defended)]
    return "\n".join(lines)


def _beside(label: str, text: str) -> list[str]:
    indent = " " * 12
    return textwrap.wrap(printable(text), _WIDTH, initial_indent=f"  {label:10}", subsequent_indent=indent) or [label]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ")


def _heads(heads: Any) -> str:
    return ", ".join(f"L{layer}H{head}" for layer, head in heads)


def _number(row: Any, name: str, digits: int = 2) -> str:
    value = row.get(name, float("nan"))
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _estimate(row: Any, name: str) -> str:
    low, high = row.get(f"{name}_low", float("nan")), row.get(f"{name}_high", float("nan"))
    return _number(row, name) if pd.isna(low) or pd.isna(high) else f"{_number(row, name)} [{low:.2f}, {high:.2f}]"
