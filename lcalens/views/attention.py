"""Attention patterns to look at: circuitsvis, clean and hijacked side by side, in a notebook or one offline file."""

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.mechanism.labels import read_text, read_token, tokenizer_of
from lcalens.views.style import BLUE, short

if TYPE_CHECKING:
    from lcalens.mechanism.arguments import Head
    from lcalens.mechanism.contrast.contrast import Contrast

# Stands where the chart will be: a notebook from another machine shows no script's work until it is trusted.
_UNTIL_DRAWN = (
    "<em>A script draws this. In a notebook that was not run here, trust the notebook (in JupyterLab the command "
    "<q>Trust Notebook</q>), or run the cell again.</em>"
)
_RUNS = ("clean", "hijacked")
_DIGITS = 4
_RENDER = "CircuitsVis.render("
# Nothing is loaded from anywhere, and a browser sees to it. (circuitsvis asks whether there is WebAssembly.)
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'"
_STYLE = """
.lcalens-attention {max-width: 1500px; margin: 0 auto; font: 14px/1.4 sans-serif; color: #111; background: #fff;}
.lcalens-attention h2 {font-size: 17px; margin: 0.4em 0;}
.lcalens-attention h3 {font-size: 15px; margin: 1.2em 0 0.2em; border-top: 1px solid #ccc; padding-top: 0.6em;}
.lcalens-attention small {font-weight: normal; color: #666;}
.lcalens-attention .pair {display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px 24px;}
.lcalens-attention .run {overflow-wrap: anywhere; white-space: pre-wrap; background: #f4f4f4; padding: 6px 8px;}
.lcalens-attention details {margin-top: 1.2em; color: #666; font-size: 12px; overflow-wrap: anywhere;}
.lcalens-attention pre {white-space: pre-wrap;}
.lcalens-attention .chart {overflow: hidden; padding: 0 16px; min-width: 0;}
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One run.

    Attributes:
        text: The whole of it.
        tokens: As they are shown.
        patterns: Attention of each chosen head, (head, query, key).
    """

    text: str
    tokens: tuple[str, ...]
    patterns: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionView:
    """Attention patterns of some heads, clean beside hijacked. Jupyter shows it; `save` writes it.

    Attributes:
        title: What it shows.
        heads: Which, as (layer, head), in the order in which they are shown.
        clean: The clean run.
        hijacked: The hijacked run.
        causal: Whether no position looks ahead; what lies ahead is then greyed.
        provenance: Model with fingerprint and hooks, contrast, heads, example, the runs' tokens, versions.
    """

    title: str
    heads: "tuple[Head, ...]"
    clean: Side
    hijacked: Side
    causal: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"AttentionView({self.title})"

    def _repr_html_(self) -> str:
        texts = "".join(
            f'<div><b>{run}</b><div class="run">{html.escape(getattr(self, run).text)}</div></div>' for run in _RUNS
        )
        drawn = attention_charts([self])
        charts = [
            f"<h3>{pair.head} <small>darkest: {pair.most:.2f}</small></h3>"
            f'<div class="pair">{"".join(_chart(name) for name in pair.containers)}</div>'
            for pair in drawn.pairs
        ]
        calls = "".join(call for pair in drawn.pairs for call in pair.calls)
        script = f'<script crossorigin type="module">{drawn.code}\n{calls}</script>'
        head = f"<style>{_STYLE}</style><h2>{html.escape(self.title)}</h2>"
        made, record = html.escape(self._made_of()), html.escape(self._record())
        made = f"<details><summary>{made}</summary><pre>{record}</pre></details>"
        parts = f'{head}<div class="pair">{texts}</div>{"".join(charts)}{made}{script}'
        return f'<div class="lcalens-attention">{parts}</div>'

    def _made_of(self) -> str:
        """The provenance in a line."""
        model, versions = (self.provenance.get(name, {}) for name in ("model", "versions"))
        told = [str(model[key]) for key in ("source", "dtype", "quantisation") if model.get(key)]
        told += [f"weights {model['fingerprint']}"] if model.get("fingerprint") else []
        told += [f"contrast {self.provenance['contrast']}"] if "contrast" in self.provenance else []
        return ", ".join([*told, *(f"{name} {number}" for name, number in versions.items())]) or "provenance: none"

    def _record(self) -> str:
        return json.dumps(dict(self.provenance), indent=1, ensure_ascii=False, default=str)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one HTML file that needs nothing else, no network either.

        Args:
            path: Of the file; it is replaced, and folders are made.

        Raises:
            LcalensError: It cannot be written there.
        """
        page = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{html.escape(self.title)}</title></head><body>{self._repr_html_()}</body></html>\n"
        )
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise LcalensError(f"path: {str(path)!r} cannot be written ({error.strerror}); name a file.") from error
        return target


def attention_view(
    model: Any,
    contrast: "Contrast",
    heads: "Sequence[Head]",
    *,
    example: int = 0,
) -> AttentionView:
    """Where heads look in the clean run and in the hijacked one, to be looked at (circuitsvis).

    Args:
        model: A TransformerBridge. If hooks are attached, the patterns are those with the hooks.
        contrast: The runs.
        heads: Pairs (layer, head), such as `leading` gives; they are shown in this order.
        example: Which of the contrast's examples.

    Returns:
        A view that Jupyter shows, and whose `save("view.html")` writes one offline file. Its `clean` and `hijacked`
        hold the tokens and the patterns, (head, query, key), its `provenance` the model's fingerprint, the contrast
        and the versions, which the page shows as well.

    Raises:
        LcalensError: An argument that cannot be used, or a model that does not keep its attention.

    Example:
        >>> attention_view(model, contrast, [(23, 4)])  # shown in a notebook
        >>> attention_view(model, contrast, leading(patch(model, contrast), 10)).save("attention.html")
    """
    from lcalens.core.stamp import steady

    with steady(model):
        return _view(model, contrast, heads, example)


def _view(model: Any, contrast: "Contrast", heads: Any, example: Any) -> AttentionView:
    from lcalens.mechanism.arguments import check_contrast, read_heads

    check_contrast(model, contrast)
    tokenizer = tokenizer_of(model)
    chosen = read_heads("heads", heads, int(model.cfg.n_layers), int(model.cfg.n_heads), as_given=True)
    example = check_int("example", example, low=0, high=len(contrast) - 1)
    runs = [contrast.clean[example], contrast.hijacked[example]]
    patterns = [_patterns(model, tokens, chosen) for tokens in runs]
    sides = [
        Side(
            text=read_text(tokenizer, tokens),
            tokens=tuple(read_token(tokenizer, token) for token in tokens),
            patterns=pattern,
        )
        for tokens, pattern in zip(runs, patterns, strict=True)
    ]
    answers = [read_text(tokenizer, answer[example]) for answer in (contrast.true, contrast.false)]
    return AttentionView(
        title=f"{_source(model)}, example {example}: true {answers[0]!r}, false {answers[1]!r}",
        heads=chosen,
        clean=sides[0],
        hijacked=sides[1],
        causal=not any(np.triu(pattern, 1).any() for pattern in patterns),
        provenance=_provenance(model, contrast, chosen, example),
    )


def _provenance(model: Any, contrast: "Contrast", heads: "tuple[Head, ...]", example: int) -> dict[str, Any]:
    from lcalens.core.cells import content_key
    from lcalens.core.provenance import provenance_of

    settings = {
        "contrast": content_key(contrast.content()),
        "example": example,
        "heads": [list(head) for head in heads],
        "tokens": {run: list(map(int, getattr(contrast, run)[example])) for run in _RUNS},
    }
    return provenance_of(model, path="one run at a time", settings=settings)


def _source(model: Any) -> str:
    from lcalens.core.provenance import model_info

    return short(model_info(model).source, 60)


def _patterns(model: Any, tokens: Sequence[int], heads: "tuple[Head, ...]") -> np.ndarray:
    """Of each head, (head, query, key)."""
    import torch

    from lcalens.core.tensors import check_finite
    from lcalens.engine.forward import trace
    from lcalens.engine.reading import read_decoder

    decoder = read_decoder(model, len(tokens))
    device = next(model.original_model.parameters()).device
    ids = torch.tensor([list(tokens)], device=device)
    layers = {layer for layer, _ in heads}
    with torch.no_grad():
        if not isinstance(decoder, str):
            kept = trace(decoder, ids, keep=("pattern",)).kept["pattern"]
            patterns = {layer: kept[layer] for layer in layers}
        else:
            names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in layers}
            logits, cache = model.run_with_cache(ids, names_filter=lambda hook: hook in names.values())
            for name in names.values():
                if name not in cache:
                    raise LcalensError(
                        f"model: it does not keep its attention at {name}; load it with eager attention."
                    )
            check_finite(logits)
            patterns = {layer: cache[name] for layer, name in names.items()}
    for pattern in patterns.values():
        check_finite(pattern, "attention patterns")
    return np.stack([patterns[layer][0, head].double().cpu().numpy() for layer, head in heads])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two charts of one head in one view.

    Attributes:
        view: The view's number.
        head: `L23H4`.
        most: The largest attention of both, which is darkest.
        containers: The ids of the elements that circuitsvis draws into, clean and hijacked.
        calls: The JavaScript that draws them.
    """

    view: int
    head: str
    most: float
    containers: tuple[str, str]
    calls: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Charts:
    """All charts of some views, with circuitsvis's code once.

    Attributes:
        code: circuitsvis; it makes `CircuitsVis` known to the script that it stands in.
        pairs: View by view and head by head.
    """

    code: str
    pairs: tuple[Pair, ...]


def attention_charts(views: Sequence[AttentionView]) -> Charts:
    """What it takes to draw views in a page: the code once, and for each head two containers and two calls.

    Args:
        views: Any, of any model.
    """
    pairs, code = [], ""
    for number, view in enumerate(views):
        for i, (layer, head) in enumerate(view.heads):
            most = max(float(getattr(view, run).patterns[i].max()) for run in _RUNS)  # one scale for both
            drawn = [_rendered(getattr(view, run), i, most, view.causal) for run in _RUNS]
            code = drawn[0][1]
            pairs.append(
                Pair(
                    view=number,
                    head=f"L{layer}H{head}",
                    most=most,
                    containers=(drawn[0][0], drawn[1][0]),
                    calls=(drawn[0][2], drawn[1][2]),
                )
            )
    return Charts(code=code, pairs=tuple(pairs))


def _chart(name: str) -> str:
    return f'<div class="chart"><div id="{name}">{_UNTIL_DRAWN}</div></div>'


def _rendered(side: Side, head: int, most: float, causal: bool) -> tuple[str, str, str]:
    """One chart in parts, so that a page of many holds circuitsvis's code once: the container's id, code, call.

    circuitsvis gives `<div id="..."/> <script> code, then CircuitsVis.render("...", component, properties) </script>`,
    whole and offline in `local_src` (its `str` and its display in a notebook look for the internet).
    """
    from circuitsvis.attention import attention_pattern

    drawn = attention_pattern(
        tokens=list(side.tokens),
        attention=np.round(side.patterns[head], _DIGITS),
        max_value=most,
        min_value=-most,
        positive_color=BLUE,
        mask_upper_tri=causal,
    ).local_src
    opening, _, rest = drawn.partition(">")
    name = opening.split('"')[1]  # random: in nobody's token
    code, _, _ = rest.rpartition("</script>")
    code = code.partition(">")[2]
    call = code.rindex(_RENDER, 0, code.rindex(f'"{name}"'))
    # `</script>` ends a script wherever it stands. All `<` of the call are in strings, which escapes leave as they are.
    escaped = code[call:].replace("<", "\\u003c")
    return name, _without_map(code[:call]), escaped


def _without_map(code: str) -> str:
    """Without the last line's address of a source map, which a debugger would ask for."""
    return "\n".join(line for line in code.split("\n") if not line.startswith("//# sourceMappingURL="))
