"""The one result type: numbers with named axes, a value for each example, tables made from them, and their provenance.

Functions return results; they never print. A result shows itself in a notebook, draws itself when asked, and is saved
without pickle: safetensors for the numbers, parquet for the tables, JSON for the rest.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.folders import RESULT, lacking
from lcalens.core.sealed import folder_path, read_sealed, sealed_folder
from lcalens.core.statistics import CONFIDENCE, RESAMPLES, clustered_mean_interval
from lcalens.core.tables import SCHEMA, lengthen, widen

EXAMPLE = "example"
_DRAWING = "lcalens.views"  # looked up by name when it is needed: no other room depends on the one that draws
_FORMAT = 2  # 1, of lcalens 0.1, had wide tables in which `low` meant one quantity's interval or another's
_HEAD, _VALUES, _EXAMPLES = "result.json", "values.safetensors", "examples.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a measurement found.

    Attributes:
        kind: What was measured (`efficacy`, `answers`, ...).
        axes: Each axis's name and labels, in the order of the arrays' dimensions.
        values: For each measured quantity an array over the axes; NaN where there is nothing to measure. What is named
            `x_low` and `x_high` are the ends of the interval of `x`.
        units: Each quantity's unit (`logits`, `nats`, `share`, ...).
        examples: One row for each label of the axis `example`; empty where there is no such axis.
        tables: Summaries of the values, the most important first.
        provenance: Model, facts, configuration, versions: what it takes to do it again.

    Example:
        >>> result = patch(model, contrast, site="attn_out")
        >>> result.wide()  # the summary, a column for each quantity
        >>> result.to_frame()  # every example
        >>> result.save("attn_out")
        >>> same = Result.load("attn_out")
    """

    kind: str
    axes: Mapping[str, tuple[Any, ...]]
    values: Mapping[str, np.ndarray]
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        shape = tuple(len(labels) for labels in self.axes.values())
        for name, array in self.values.items():
            if array.shape != shape:
                raise LcalensError(
                    f"values: {name!r} has shape {array.shape}, the axes {tuple(self.axes)} give {shape}."
                )
        if EXAMPLE in self.axes and len(self.examples) != len(self.axes[EXAMPLE]):
            raise LcalensError(f"examples: {len(self.examples)} rows for {len(self.axes[EXAMPLE])} examples.")

    @property
    def summary(self) -> pd.DataFrame:
        """The most important table, or all the values where there is none."""
        return next(iter(self.tables.values())) if self.tables else self.to_frame()

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of `values`, but for the ends of intervals."""
        return tuple(name for name in self.values if not _is_end(name, self.values))

    def to_frame(self) -> pd.DataFrame:
        """Every value in tidy form, a row for each.

        Its columns are the examples', the other axes, then `quantity`, `value`, `value_low`, `value_high` and `unit`.
        Rows where nothing was measured are left out.

        Example:
            >>> frame = patch(model, contrast[:2]).to_frame()
            >>> frame.query("quantity == 'value'").groupby(["layer", "head"])["value"].mean()
        """
        units = {name: self.units.get(name, "") for name in self.quantities}
        frame = lengthen(self._grid(), units)
        return frame.dropna(subset=["value"]).reset_index(drop=True)

    def wide(self, name: str | None = None) -> pd.DataFrame:
        """A table with a column for each quantity, and its interval in `{quantity}_low` and `{quantity}_high`.

        Args:
            name: Which of `tables`; the most important by default, and `values` for every value.

        Raises:
            LcalensError: There is no such table.
        """
        if name == "values" or (name is None and not self.tables):
            grid = self._grid()
            return grid.dropna(subset=list(self.quantities), how="all").reset_index(drop=True)
        chosen = next(iter(self.tables)) if name is None else check_choice("name", name, [*self.tables, "values"])
        return widen(self.tables[chosen])

    def _grid(self) -> pd.DataFrame:
        grid = np.indices(tuple(len(labels) for labels in self.axes.values()))
        columns: dict[str, Any] = {}
        for (name, labels), index in zip(self.axes.items(), grid, strict=True):
            if name == EXAMPLE:
                rows = self.examples.iloc[index.ravel()].reset_index(drop=True)
                taken = {*SCHEMA, *self.values}  # an example's own column of such a name says whose it is
                columns |= {f"example_{name}" if name in taken else name: rows[name] for name in rows.columns}
            else:
                columns[name] = pd.Series(labels).iloc[index.ravel()].reset_index(drop=True)
        columns |= {name: array.ravel() for name, array in self.values.items()}
        return pd.DataFrame(columns)

    def mean(
        self,
        quantity: str | None = None,
        *,
        cluster: str | None = None,
        confidence: float = CONFIDENCE,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Means over the examples with bootstrap intervals, a row for each place on the other axes, and `n` behind.

        Args:
            quantity: Which; the first by default.
            cluster: A column of `examples` whose groups are resampled whole.
            confidence: The intervals' coverage.
            resamples: Bootstrap samples.
            seed: Of the resampling.

        Raises:
            LcalensError: There is no axis `example`, no such quantity or column, or the quantity is `recovery`, whose
                mean over examples is not the recovery of the means.
        """
        if EXAMPLE not in self.axes:
            raise LcalensError(
                f"mean: a result of kind {self.kind!r} has no axis {EXAMPLE!r} to average over; "
                "take its tables, or to_frame()."
            )
        name = self.quantities[0] if quantity is None else check_choice("quantity", quantity, self.quantities)
        if name == "recovery":
            raise LcalensError(
                "quantity: a mean of 'recovery' over examples is no recovery of their means, as one example that the "
                "hijack hardly changes outweighs all others; take wide(), or ranking(result, cluster=...)."
            )
        if cluster is not None:
            check_choice("cluster", cluster, map(str, self.examples.columns))
        other_axes = {axis: labels for axis, labels in self.axes.items() if axis != EXAMPLE}
        array = np.moveaxis(self.values[name], list(self.axes).index(EXAMPLE), -1)
        groups = None if cluster is None else self.examples[cluster].to_numpy()
        rows = []
        for place in np.ndindex(array.shape[:-1]):
            measured = ~np.isnan(array[place])
            numbers = array[place][measured]
            low, high = clustered_mean_interval(
                numbers,
                None if groups is None else groups[measured],
                confidence=confidence,
                resamples=resamples,
                seed=seed,
            )
            labels = {axis: other_axes[axis][i] for axis, i in zip(other_axes, place, strict=True)}
            mean = numbers.mean() if len(numbers) else np.nan
            rows.append(labels | {name: mean, f"{name}_low": low, f"{name}_high": high, "n": len(numbers)})
        return lengthen(pd.DataFrame(rows), {name: self.units.get(name, "")}, behind=["n"])

    def plot(self, **options: Any) -> Any:
        """Draw it: a matplotlib figure. The options are those of the kind's function in `lcalens.views`."""
        return import_module(_DRAWING).plot(self, **options)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it into a folder, whole or not at all, and sealed; what was saved there before is replaced.

        Args:
            folder: Made where it is missing; `~` is the home folder.

        Raises:
            LcalensError: The folder holds something else than a result, or something besides, or cannot be written.
        """
        from safetensors.numpy import save_file

        target = folder_path(folder)
        files = {name: _table_file(name) for name in self.tables}
        with sealed_folder(target, "a result") as new:
            head = {
                "format": _FORMAT,
                "kind": self.kind,
                "axes": {name: list(labels) for name, labels in self.axes.items()},
                "values": list(self.values),
                "units": dict(self.units),
                "tables": list(self.tables),
                # How much of it was found finished is of the run: a resumed one's files are the undisturbed one's.
                "provenance": {name: value for name, value in self.provenance.items() if name != "cells"},
            }
            (new / _HEAD).write_text(json.dumps(head, indent=1, default=_plain), encoding="utf-8")
            save_file({name: np.ascontiguousarray(array) for name, array in self.values.items()}, new / _VALUES)
            self.examples.to_parquet(new / _EXAMPLES)
            for name, table in self.tables.items():
                table.to_parquet(new / files[name])
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Result":
        """Read what `save` wrote.

        Raises:
            LcalensError: The folder holds no result, files that are not those that `save` wrote together, or a result
                of lcalens 0.1 or of a later lcalens.
        """
        from safetensors.numpy import load

        place = folder_path(folder)
        try:
            problem = lacking(place, RESULT)
            if problem:
                raise LcalensError(f"folder: {problem}")
            written = json.loads((place / _HEAD).read_text(encoding="utf-8"))["format"]
            if written > _FORMAT:
                raise LcalensError(f"folder: {str(folder)!r} was written by a later lcalens; upgrade to read it.")
            if written < _FORMAT:
                raise LcalensError(
                    f"folder: {str(folder)!r} was written by lcalens 0.1, whose tables and metrics are others "
                    "(intervals in `low` and `high`, logit differences after a soft cap); measure again, or read it "
                    "with lcalens 0.1."
                )
            files = read_sealed(place)
            head = json.loads(files[_HEAD])
            stored = load(files[_VALUES])  # sorted by name
            return cls(
                kind=head["kind"],
                axes={name: tuple(labels) for name, labels in head["axes"].items()},
                values={name: stored[name] for name in head["values"]},
                examples=pd.read_parquet(BytesIO(files[_EXAMPLES])),
                tables={name: pd.read_parquet(BytesIO(files[_table_file(name)])) for name in head["tables"]},
                units=head["units"],
                provenance=head["provenance"],
            )
        except LcalensError:
            raise
        except FileNotFoundError as error:
            name = Path(error.filename or place).name
            raise LcalensError(
                f"folder: {str(folder)!r} holds no result ({name} is missing); give a folder that save() wrote."
            ) from error
        except Exception as error:
            raise LcalensError(
                f"folder: the result in {str(folder)!r} is damaged ({error!s:.120}); measure it again."
            ) from error

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} {len(labels)}" for name, labels in self.axes.items())
        said = self.provenance.get("resolution", {}).get("says")
        nothing = self.provenance.get("unmeasured", {})
        notes = [said] if said else []
        notes += [f"Nothing was measured of {name!r:.60}: {why}." for name, why in nothing.items()]
        return " ".join([f"Result({self.kind}: {', '.join(self.quantities)} over {axes})", *notes])

    def _repr_html_(self) -> str:
        return import_module(_DRAWING).html_of(self)


def _is_end(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a value is the end of another's interval."""
    quantity, _, end = name.rpartition("_")
    return end in ("low", "high") and quantity in values


def _table_file(name: str) -> str:
    if not name or Path(name).name != name or "\\" in name:
        raise LcalensError(f"tables: {name!r:.80} cannot be a file's name; use letters and underscores.")
    return f"{name}.parquet" if f"{name}.parquet" != _EXAMPLES else "examples-table.parquet"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
