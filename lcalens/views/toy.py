"""Figures of the toy world: accuracy over training, embeddings, where the head looks, what a defence gives back."""

from typing import TYPE_CHECKING

import numpy as np

from lcalens.views.style import BAND, BLUE, GREY, ORANGE, SMALL, TEXT, panels_of, plain, short, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lcalens.core.results import Result


def plot_training(result: "Result") -> "Figure":
    """Accuracy over the steps, a line for each recipe: the mean of its seeds, their range, and Bayes.

    Args:
        result: Of `lcalens.lca.training.training`.
    """
    from matplotlib import pyplot

    figure, [[panel]] = panels_of((4.2, 3.0))
    summary = result.summary
    varied = [name for name in summary.columns if name in result.examples.columns and name != "bayes"]
    groups = result.examples.groupby(varied, dropna=False).indices if varied else {(): np.arange(len(result.examples))}
    colors = pyplot.get_cmap("viridis")(np.linspace(0, 0.85, len(groups)))
    for (key, rows), color in zip(groups.items(), colors, strict=True):
        values = key if isinstance(key, tuple) else (key,)
        label = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in zip(varied, values, strict=True)) or "model"  # fmt: skip
        evaluated = ~np.isnan(result.values["accuracy"][rows]).all(0)  # a run that diverged has no end
        steps, curves = (result.values[name][rows][:, evaluated] for name in ("step", "accuracy"))
        if not evaluated.any():
            continue
        steps = np.nanmax(steps, axis=0)
        panel.plot(steps, np.nanmean(curves, axis=0), color=color, lw=1.4, label=plain(short(label, 40)))
        panel.fill_between(steps, np.nanmin(curves, axis=0), np.nanmax(curves, axis=0), color=color, alpha=BAND, lw=0)
    panel.axhline(result.examples["bayes"].mean(), color=GREY, ls="--", lw=1, label="Bayes")
    panel.set(xlabel="step", ylabel="accuracy on fresh contexts", ylim=(-0.02, 1.02))
    tidy(panel)
    panel.legend(fontsize=6, frameon=False)
    return figure


def plot_gram(result: "Result") -> "Figure":
    """Figure 3b: inner products of embeddings over Hamming distance, with the line of equation 5.2.

    Args:
        result: Of `lcalens.lca.gram`.
    """
    figure, [[panel]] = panels_of((3.6, 2.8))
    distance, fit = np.array(result.axes["distance"]), result.summary.iloc[0]
    mean, deviation = result.values["mean"], result.values["deviation"]
    panel.errorbar(distance, mean, deviation, fmt="o", ms=4, color=BLUE, lw=1, capsize=2, label="mean, s.d.")
    line = f"{fit['b']:.2f} − {fit['a']:.2f} D, R² of means {fit['r2_means']:.3f}"
    panel.plot(distance, fit["b"] - fit["a"] * distance, color=ORANGE, lw=1.2, label=line)
    panel.set(xlabel="Hamming distance D of two tokens", ylabel="inner product of their embeddings")
    panel.set_xticks(distance)
    tidy(panel)
    panel.legend(fontsize=6, frameon=False)
    return figure


def plot_attention_pattern(result: "Result") -> "Figure":
    """Figure 3c: where each last token looks, as a heat map over all pairs of tokens.

    Args:
        result: Of `lcalens.lca.attention_pattern`.
    """
    figure, [[panel]] = panels_of((3.8, 3.2))
    pattern, names = result.values["attention"], result.axes["query"]
    image = panel.imshow(pattern, cmap="viridis", vmin=0, interpolation="nearest")
    bar = figure.colorbar(image, ax=panel, shrink=0.85)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("attention", fontsize=8)
    at = np.linspace(0, len(names) - 1, min(8, len(names))).round().astype(int)
    panel.set_xticks(at, [names[i] for i in at], fontsize=SMALL, rotation=90)
    panel.set_yticks(at, [names[i] for i in at], fontsize=SMALL)
    panel.set_xlabel("token looked at", fontsize=8)
    panel.set_ylabel("last token", fontsize=8)
    return figure


def plot_toy_defence(result: "Result") -> "Figure":
    """Accuracy on hijacked and on clean contexts under every defence, beside Bayes; bars are 95% intervals over runs.

    Args:
        result: Of `lcalens.lca.evaluate_toy_defence`.
    """
    table = result.wide()
    names = list(result.axes["defence"])
    at = np.arange(len(names))[::-1]
    figure, [[panel]] = panels_of((4.2, 2.6))
    for shift, condition, colour in ((0.18, "hijacked", ORANGE), (-0.18, "clean", BLUE)):
        rows = table[table["condition"] == condition].set_index("defence").loc[names]
        middle = rows["accuracy"].to_numpy(dtype=float)
        ends = [
            rows[name].to_numpy(dtype=float) if (name := f"accuracy_{end}") in rows else np.full(len(rows), np.nan)
            for end in ("low", "high")
        ]
        reach = np.maximum(np.stack([middle - ends[0], ends[1] - middle]), 0.0)
        panel.barh(at + shift, middle, 0.34, color=colour, label=condition, xerr=reach, error_kw={"elinewidth": 0.6})
    panel.set_yticks(at, [plain(name) for name in names], fontsize=TEXT)
    panel.set_xlabel("accuracy", fontsize=TEXT)
    panel.set_xlim(0, 1.02)
    panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
    panel.grid(axis="x", lw=0.4, alpha=0.5)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=SMALL, frameon=False, ncols=2, loc="outside lower center")
    told = result.provenance
    title = (
        f"m = {told['concepts']['m']}, L = {told['length']}, share {told['share']:g}, {len(result.axes['run'])} models"
    )
    figure.suptitle(plain(title), fontsize=TEXT)
    return figure
