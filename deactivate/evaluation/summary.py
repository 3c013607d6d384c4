"""A grid's outcomes as one table: rows of one axis, figures averaged over the values of another, in Markdown and as a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import InputError, MatchedNothing
from ...base.files import read_json
from .plots import Plot, panels
from .results import Kind, Metric
from .statistics import t_interval
from .value import Value

INTERVALS = "intervals"
"""Figure of a cell that holds its other figures' intervals: name -> [low, high, n]."""


@dataclass(frozen=True)
class Point:
    """A cell of a grid and what came of it."""

    at: Mapping[str, Any]
    """Axis -> value."""
    inputs: Mapping[str, Any]
    status: str
    figures: Mapping[str, Any]
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"at": dict(self.at), "inputs": dict(self.inputs), "status": self.status, "figures": dict(self.figures), "error": self.error}


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    name: str
    done: int
    """Cells behind it."""
    wanted: int
    values: Mapping[str, Value]
    """Figure -> mean over the cells that have it; of three or more with a t-interval over them, of one with the cell's own interval. Of two
    there is none: with one degree of freedom it is thirteen standard errors wide, and says nothing.
    """


def collect(folder: Path, inputs: Sequence[str] = ()) -> list[Point]:
    """The cells of a grid that was run into `folder`, with those of their inputs that are named.

    Raises:
        ArtefactError: There is no table.
    """
    found = []
    for cell in read_json(folder / "table.json")["cells"]:
        path = folder / "cells" / cell["key"] / "cell.json"
        told = read_json(path)["inputs"] if path.is_file() else {}
        rest = {k: v for k, v in cell.items() if k not in ("key", "status", "figures", "error", "seconds")}
        last = cell["error"].strip().splitlines()[-1:] or [""]
        found.append(Point(rest, {k: told[k] for k in inputs if k in told}, cell["status"], cell["figures"], last[0]))
    return found


def read_points(path: Path) -> list[Point]:
    """Inverse of `[p.to_json() for p in points]` in a JSON file."""
    return [Point(**p) for p in read_json(path)]


def summarise(points: Sequence[Point], rows: str, columns: Sequence[str]) -> list[Line]:
    """One line a value of the axis `rows`, in the order in which they come.

    Raises:
        MatchedNothing: No points.
        InputError: A point without that axis.
    """
    if not points:
        raise MatchedNothing("table: no cells to sum up")
    by_row: dict[str, list[Point]] = {}
    for p in points:
        if rows not in p.at:
            raise InputError(f"table: a cell has no axis {rows!r}; its axes are {', '.join(p.at)}")
        by_row.setdefault(str(p.at[rows]), []).append(p)
    return [_line(name, own, columns) for name, own in by_row.items()]


def _line(name: str, points: Sequence[Point], columns: Sequence[str]) -> Line:
    done = [p for p in points if p.status in ("done", "old")]
    values = {}
    for column in columns:
        have = [p for p in done if p.figures.get(column) is not None]
        found = [float(p.figures[column]) for p in have]
        if len(have) > 2:
            values[column] = t_interval(found)
        elif len(have) == 2:
            values[column] = Value(sum(found) / 2, n=2, unit="concepts")
        elif have:
            values[column] = _own(have[0].figures, column)
    return Line(name, len(done), len(points), values)


def _own(figures: Mapping[str, Any], column: str) -> Value:
    low, high, n = figures.get(INTERVALS, {}).get(column, (None, None, 1))
    return Value(float(figures[column]), low, high, n, "items" if low is not None else "concepts")


def markdown(lines: Sequence[Line], columns: Mapping[str, Metric], head: str = "") -> str:
    """The lines as a Markdown table; «–» where a row has no such figure."""
    heads = [head, *(m.heading for m in columns.values()), "cells"]
    body = [
        [x.name, *(m.text(x.values[c]) if c in x.values else "–" for c, m in columns.items()), f"{x.done} of {x.wanted}"] for x in lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *body]) + "\n"


def drawn(lines: Sequence[Line], columns: Mapping[str, Metric], caption: str, kind_of: Callable[[str], Kind]) -> Plot:
    """The lines as a figure: a panel a column, rows aligned."""
    shown = [x for x in lines if x.values]
    values = {m.label: [x.values.get(c) for x in shown] for c, m in columns.items()}
    return panels([x.name for x in shown], values, caption, [kind_of(x.name) for x in shown])
