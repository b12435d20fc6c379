"""A hijack study as one page: what was asked, what was found, how sure it is, and how to do it again."""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.views.attention import AttentionView, attention_charts
from lcalens.views.report.published import Beside, beside
from lcalens.views.report.sections import Section, sections_of

if TYPE_CHECKING:
    from jinja2 import Template

# Nothing is loaded from anywhere, and a browser sees to it. (circuitsvis asks whether there is WebAssembly.)
_POLICY = (
    "default-src 'none'; img-src data:; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_LARGEST = 8_000_000  # bytes: what is sent by mail and opened on a phone


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """A page of results. Jupyter shows it; `save` writes it as one file that needs nothing else.

    Attributes:
        title: Of the page.
        sections: One for each result, in the order in which they explain each other.
        views: Attention of chosen heads, clean beside hijacked.
        beside: What lcalens' own pages have for the same model, scheme and n.
        made: The model, its type and the versions, by name.
        command: What was typed to make it; empty where it was made in Python.
        unmeasured: What could not be measured, and why.
    """

    title: str
    sections: tuple[Section, ...]
    views: tuple[AttentionView, ...] = ()
    beside: tuple[Beside, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    unmeasured: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Report({self.title}: {', '.join(section.name for section in self.sections)})"

    def _repr_html_(self) -> str:
        page = html.escape(self.page(), quote=True)
        style = "width:100%;height:48em;border:0"
        return f'<iframe title="{html.escape(self.title)}" srcdoc="{page}" style="{style}"></iframe>'

    def page(self) -> str:
        """The whole page, as text."""
        charts = attention_charts(self.views)
        return _template().render(
            report=self, charts=charts, policy=_POLICY, style=_read("page.css"), script=_read("page.js")
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one HTML file that needs nothing else, no network either.

        Args:
            path: Of the file; it is replaced, and folders are made.

        Raises:
            LcalensError: It cannot be written there, or is larger than 8 MB: leave results or views out.
        """
        written = self.page().encode("utf-8", errors="backslashreplace")
        if len(written) > _LARGEST:
            raise LcalensError(
                f"results: the page would have {len(written) / 1e6:.1f} MB, and 8 are the most; leave views or "
                "results out."
            )
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(written)
        except OSError as error:
            raise LcalensError(f"path: {str(path)!r} cannot be written ({error.strerror}); name a file.") from error
        return target


def report(
    results: Sequence[Result | AttentionView],
    *,
    title: str | None = None,
    command: str = "",
    unmeasured: Mapping[str, str] | None = None,
) -> Report:
    """One self-contained page of a study: its results as a story, attention to look at, and how it was made.

    The page needs no network and no other file. It has a section for each result (one prompt, the curve with its
    controls, heads, attention against recall, heads together, recall, defences, in this order), each with its main
    numbers in a sentence, a figure or a map of the heads, sortable tables and the whole provenance.

    Args:
        results: Of one model: what `ask`, `efficacy`, `patch`, `ranking`, `split`, `shapley`, `recall`,
            `evaluate_defence` and the other verbs gave, and views of `attention_view`. Their order does not matter,
            but for several of one kind.
        title: Of the page; the model's name by default.
        command: The command line that made it, to be shown.
        unmeasured: What could not be measured, and why, to be shown.

    Raises:
        LcalensError: No results, something that is none, or results of two models.

    Example:
        >>> patched = patch(model, contrast)
        >>> report([patched, attention_view(model, contrast, leading(patched, 3))]).save("report.html")
    """
    if isinstance(results, str) or not isinstance(results, Sequence) or not len(results):
        raise LcalensError(f"results: expected a list of results and attention views, got {results!r:.60}.")
    for one in results:
        if not isinstance(one, Result | AttentionView):
            raise LcalensError(f"results: {one!r:.60} is neither a Result nor an AttentionView.")
    found = tuple(one for one in results if isinstance(one, Result))
    views = tuple(one for one in results if isinstance(one, AttentionView))
    model = _one_model([one.provenance for one in results])
    stored = model.get("quantisation")
    name = str(model.get("source", "a model"))
    made = {
        "model": name + (f" ({stored})" if stored and stored != "none" else ""),
        **{key: str(model[key]) for key in ("family", "dtype", "processing", "fingerprint") if model.get(key)},
        **{key: str(number) for key, number in results[0].provenance.get("versions", {}).items()},
    }
    return Report(
        title=title or f"A hijack study of {name}",
        sections=sections_of(found),
        views=views,
        beside=beside(found),
        made=made,
        command=command,
        unmeasured=dict(unmeasured or {}),
    )


def _one_model(made: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The model of all results.

    Raises:
        LcalensError: They are of two models.
    """
    models = [of for provenance in made if (of := _model_of(provenance))]
    known = {str(of.get("fingerprint")): str(of.get("source")) for of in models}
    if len(known) > 1:
        of = ", ".join(f"{source} ({weights})" for weights, source in known.items())
        raise LcalensError(f"results: they are of several models: {of:.200}; make a report for each.")
    return models[0] if models else {}


def _model_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's entry; a ranking has that of the result which it ranks."""
    of = provenance.get("of")
    inner = of.get("provenance", {}) if isinstance(of, Mapping) else {}
    return provenance.get("model") or inner.get("model") or {}


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data"] = lambda image: f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return environment.from_string(_read("page.html.jinja"))


def _read(name: str) -> str:
    return resources.files("lcalens.views.report").joinpath(name).read_text(encoding="utf-8")
