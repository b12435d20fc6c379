"""The toy's defence: positions that look redrawn are no longer seen. What that gives back, and what can be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.results import Result
from lcalens.core.statistics import student_interval
from lcalens.core.tables import lengthen
from lcalens.lca.marks import Detector, defended, fit_detector, position_evidence
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.provenance import world_provenance

DEFENCES = ("none", "random", "detector", "Bayes's marks", "told")
"""Which positions are knocked out: none; as many as the detector's at random; its own; the optimum's; the redrawn."""
READERS = ("Bayes, told nothing", "Bayes, told the share")
CONDITIONS = ("hijacked", "clean")
_QUANTILES = np.linspace(0.1, 1.0, 19)  # of the marks; the last one knocks nothing out
_TIE = 1e-9


@torch.no_grad()
def evaluate_toy_defence(
    concepts: LatentConcepts,
    models: Sequence[Any],
    *,
    length: int,
    share: float = 0.4,
    distance: int | None = None,
    contexts: int = 1000,
    seed: int = 0,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Knock positions that look redrawn out of the attention, and hold the answers against what can be known.

    A context of y is hijacked as `LatentConcepts.hijack` does: each position but the last is redrawn for y~ with
    probability `share`. A logistic regression reads from what the model itself computes (see
    `lcalens.lca.marks.position_evidence`) which positions were. It is fitted on contexts of its own; so is its
    threshold, the one under which the model is right most often there. The last token is never knocked out.

    Args:
        concepts: The world; m is at most 8.
        models: Trained models of it: those of `train`, or their runs.
        length: L, tokens in a context.
        share: Probability with which each position but the last is redrawn, independently; above 0 and below 1.
        distance: D_H(y, y~); by default y~ is uniform among all tokens but y.
        contexts: How many are drawn to fit on, and how many others to judge on, anew for every model.
        seed: Of everything drawn; the n-th model's contexts are those of seed + n.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes run (a model), defence and condition (`hijacked`, `clean`): `accuracy`, how often y has
        the largest score, and `other`, how often y~ has. The defences: `none`; `random`, as many positions as the
        detector's, anywhere; `detector`; `Bayes's marks`, positions by the exact probability that they were redrawn,
        of one who knows the share and no more (their threshold is fitted like the detector's): the best that any
        detector gives this model; and `told`, the redrawn positions. Two readers that are no model stand beside:
        `Bayes, told nothing` takes contexts for clean; `Bayes, told the share` is the ceiling of all that do not know
        which positions were redrawn. Its tables: `summary`, means over runs with 95% Student intervals, and for
        hijacked contexts `recovery`, (accuracy - that of none) / (that of none on clean contexts - that of none);
        `detector`, for the detector and for Bayes's marks the AUC and the share of redrawn, kept and clean positions
        that are knocked out.

    Raises:
        LcalensError: An argument that cannot be used, or a model of another vocabulary.

    Example:
        >>> concepts = LatentConcepts(3)
        >>> runs = train(concepts, TrainConfig(context_length=16, d_model=8, d_head=8, steps=20), seeds=range(2))
        >>> from lcalens.lca import evaluate_toy_defence
        >>> evaluate_toy_defence(concepts, runs, length=16, contexts=50).wide()
    """
    listed = _models(concepts, models)
    check_int("length", length, low=2, why="the last token is never redrawn")
    check_real("share", share, low=0, high=1)
    if share in (0, 1):
        raise LcalensError(f"share: {share} leaves nothing to tell apart; give a number above 0 and below 1.")
    distances = None if distance is None else [check_int("distance", distance, low=1, high=concepts.m)]
    check_int("contexts", contexts, low=10)
    check_int("seed", seed, low=0)
    check_int("m", concepts.m, low=2, high=8, why="Bayes sums over V x V x V terms")
    labels = DEFENCES + READERS
    values = {name: np.full((len(listed), len(labels), len(CONDITIONS)), np.nan) for name in ("accuracy", "other")}
    told: list[dict[str, Any]] = []
    with progress_callback(progress, unit="models") as report:
        for run, model in enumerate(listed):
            generator = torch.Generator().manual_seed(seed + run)
            fit, judged = (_draw(concepts, contexts, length, share, distances, generator) for _ in range(2))
            marks = _marks(concepts, model, fit, share, distances)
            by_bayes: dict[str, Any] = {}
            for condition, number in (("hijacked", 0), ("clean", 1)):
                tokens = judged.tokens(condition)
                rows = dict(_read(concepts, model, judged, tokens, marks, share, distances, generator, by_bayes))
                for at, label in enumerate(labels):
                    for name, target in (("accuracy", judged.y), ("other", judged.other)):
                        right = bayes.accuracy(rows[label], target, tie=_TIE if label in READERS else 0.0)
                        values[name][run, at, number] = float(right.mean())
                told += _told(run, condition, judged, by_bayes.pop("scores"), marks)
            report(run + 1, len(listed), "knockout by a detector")
    return Result(
        kind="toy-defence",
        axes={"run": tuple(range(len(listed))), "defence": labels, "condition": CONDITIONS},
        values=values,
        tables={"summary": _summary(values, labels), "detector": _by_detector(told)},
        units={"accuracy": "share", "other": "share"},
        provenance=world_provenance(concepts)
        | {"length": length, "share": share, "distance": distance, "contexts": contexts, "seed": seed},
    )


def _models(concepts: Any, models: Any) -> list[LCAForCausalLM]:
    if not isinstance(concepts, LatentConcepts):
        raise LcalensError(f"concepts: expected a LatentConcepts, got {concepts!r:.60} ({type(concepts).__name__}).")
    given = list(models) if isinstance(models, Sequence) and not isinstance(models, str | bytes) else []
    listed = [getattr(one, "model", one) for one in given]
    if not listed or not all(isinstance(one, LCAForCausalLM) for one in listed):
        raise LcalensError(f"models: expected trained models of the toy, or what train() gave, got {models!r:.60}.")
    for one in listed:
        if one.config.m != concepts.m:
            raise LcalensError(f"models: one has {one.config.m} latent bits, the world has {concepts.m}.")
    return listed


@dataclass(frozen=True, eq=False)
class _Contexts:
    """Contexts, clean and hijacked.

    Attributes:
        clean: As they were drawn.
        hijacked: The same, with the positions of `redrawn` drawn for y~.
        y: Their concepts.
        other: y~.
        redrawn: Which positions.
    """

    clean: Int[Tensor, "batch length"]
    hijacked: Int[Tensor, "batch length"]
    y: Int[Tensor, " batch"]
    other: Int[Tensor, " batch"]
    redrawn: Bool[Tensor, "batch length"]

    def tokens(self, condition: str) -> Int[Tensor, "batch length"]:
        """Those of a condition."""
        return self.hijacked if condition == "hijacked" else self.clean


def _draw(
    concepts: LatentConcepts, size: int, length: int, share: float, distances: Any, generator: torch.Generator
) -> _Contexts:
    clean, y = concepts.sample(size, length, generator)
    allowed = concepts.offset_distance > 0 if distances is None else concepts.offset_distance == distances[0]
    offsets = torch.nonzero(allowed).squeeze(1)
    other = y ^ offsets[torch.randint(len(offsets), (size,), generator=generator)]
    redrawn = torch.rand(size, length, generator=generator, dtype=torch.float64) < share
    redrawn[:, -1] = False
    hijacked = concepts.hijack(clean, y, other, positions=redrawn, generator=generator)
    return _Contexts(clean, hijacked, y, other, redrawn)


@dataclass(frozen=True, eq=False)
class _Marks:
    """What marks positions.

    Attributes:
        detector: The logistic regression.
        thresholds: Above which score a position is knocked out, of the detector and of Bayes's marks.
    """

    detector: Detector
    thresholds: dict[str, float]


def _marks(concepts: LatentConcepts, model: LCAForCausalLM, fit: _Contexts, share: float, distances: Any) -> _Marks:
    """Fit the detector, and both thresholds: those under which the model is right most often."""
    evidence = position_evidence(concepts, model, fit.hijacked)
    detector = fit_detector(evidence, fit.redrawn[:, :-1])
    scores = {
        "detector": detector.scores(evidence),
        "Bayes's marks": _exact(concepts, fit.hijacked, share, distances),
    }
    thresholds = {}
    for name, marks in scores.items():
        tried = np.quantile(marks.numpy(), _QUANTILES)
        right = [
            float(bayes.accuracy(defended(concepts, model, fit.hijacked, marks > at), fit.y).mean()) for at in tried
        ]
        thresholds[name] = float(tried[len(tried) - 1 - int(np.argmax(right[::-1]))])  # of equals, what cuts least
    return _Marks(detector, thresholds)


def _exact(concepts: LatentConcepts, tokens: Tensor, share: float, distances: Any) -> Float[Tensor, "batch position"]:
    """The exact probability that each position but the last was redrawn."""
    found = bayes.redrawn_posterior(concepts, *concepts.count(tokens), share=share, distances=distances)
    return found.gather(1, tokens[:, :-1])


def _read(
    concepts: LatentConcepts,
    model: LCAForCausalLM,
    judged: _Contexts,
    tokens: Tensor,
    marks: _Marks,
    share: float,
    distances: Any,
    generator: torch.Generator,
    kept: dict[str, Any],
) -> Iterator[tuple[str, Float[Tensor, "batch vocab"]]]:
    """Every defence's and every reader's scores of the concepts; the positions' marks are left in `kept`."""
    scores = {
        "detector": marks.detector.scores(position_evidence(concepts, model, tokens)),
        "Bayes's marks": _exact(concepts, tokens, share, distances),
    }
    kept["scores"] = scores
    cut = {name: some > marks.thresholds[name] for name, some in scores.items()}
    cut["none"] = torch.zeros_like(cut["detector"])
    order = torch.rand(cut["none"].shape, generator=generator).argsort(1).argsort(1)
    cut["random"] = order < cut["detector"].sum(1, keepdim=True)
    cut["told"] = judged.redrawn[:, :-1] if tokens is judged.hijacked else cut["none"]
    for name in DEFENCES:
        yield name, defended(concepts, model, tokens, cut[name])
    counts = concepts.count(tokens)
    yield READERS[0], bayes.log_likelihood(concepts, *counts)
    yield READERS[1], bayes.mixture_posterior(concepts, *counts, share=share, distances=distances)


def _told(
    run: int, condition: str, judged: _Contexts, scores: dict[str, Tensor], marks: _Marks
) -> list[dict[str, Any]]:
    from sklearn.metrics import roc_auc_score

    rows = []
    redrawn = judged.redrawn[:, :-1]
    for name, some in scores.items():
        cut = (some > marks.thresholds[name]).double()
        if condition == "clean":
            rows.append({"run": run, "marks": name, "cut_clean": float(cut.mean())})
            continue
        rows.append({
            "run": run, "marks": name, "auc": float(roc_auc_score(redrawn.flatten().numpy(), some.flatten().numpy())),
            "cut_redrawn": float(cut[redrawn].mean()), "cut_kept": float(cut[~redrawn].mean()),
        })  # fmt: skip
    return rows


def _by_detector(told: list[dict[str, Any]]) -> pd.DataFrame:
    frame, rows = pd.DataFrame(told), []
    units = {"auc": "share", "cut_redrawn": "share", "cut_kept": "share", "cut_clean": "share"}
    for name, some in frame.groupby("marks", sort=False):
        row: dict[str, Any] = {"marks": name}
        for quantity in units:
            row |= _mean(quantity, some[quantity].dropna().to_numpy(dtype=float))
        rows.append(row)
    return lengthen(pd.DataFrame(rows), units)


def _summary(values: dict[str, np.ndarray], labels: Sequence[str]) -> pd.DataFrame:
    rows = []
    accuracy = values["accuracy"]
    hijacked, clean = (accuracy[:, labels.index("none"), CONDITIONS.index(name)] for name in ("hijacked", "clean"))
    lost = clean - hijacked
    for column, condition in enumerate(CONDITIONS):
        for at, label in enumerate(labels):
            row: dict[str, Any] = {"defence": label, "condition": condition}
            for name, array in values.items():
                row |= _mean(name, array[:, at, column])
            if condition == "hijacked":
                gained = accuracy[:, at, column] - hijacked
                row |= _mean("recovery", np.divide(gained, lost, out=np.full(len(lost), np.nan), where=lost != 0))
            rows.append(row)
    return lengthen(pd.DataFrame(rows), {"accuracy": "share", "other": "share", "recovery": "share"})


def _mean(name: str, values: Float[np.ndarray, " run"]) -> dict[str, float]:
    low, high = student_interval(values)
    return {name: float(values.mean()) if len(values) else np.nan, f"{name}_low": low, f"{name}_high": high}
