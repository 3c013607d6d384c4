"""Figures for reports, as data URIs: bars with intervals, before and after, curves. Colour-blind-safe, with alt text.

Drawn through matplotlib's object interface (no global state, no display). Backgrounds are transparent and inks
mid-grey.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...base.errors import InputError, MatchedNothing, NumericsError
from .results import Kind
from .value import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, in the order of best contrast on white."""
MARKERS = ("o", "s", "^", "D", "v", "P")
COLOUR: Mapping[str, str] = {"edited": PALETTE[0], "base": "#555555", "control": "#999999"}
INK = "#404040"


@dataclass(frozen=True)
class Plot:
    """A figure ready for a page."""

    uri: str
    """`data:image/svg+xml;base64,…` or `data:image/png;base64,…`."""
    alt: str
    """What the figure shows, figures included, for those who don't see it."""
    caption: str
    """One sentence under it."""

    def __post_init__(self) -> None:
        if not re.match(r"data:image/(svg\+xml|png);base64,[A-Za-z0-9+/=]+$", self.uri):
            raise InputError("plot: a base64 data URI of an SVG or PNG expected, so that the page needs nothing from outside")
        if not self.alt:
            raise InputError("plot: alt is empty; say in words what the figure shows")


@dataclass(frozen=True)
class Bar:
    """One bar."""

    label: str
    value: Value
    kind: Kind = "edited"


@dataclass(frozen=True)
class Series:
    """One line of a curve: values over x, with their intervals as a band."""

    label: str
    x: tuple[float, ...]
    values: tuple[Value, ...]
    kind: Kind = "edited"

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.values):
            raise InputError(f"series {self.label!r}: {len(self.x)} places and {len(self.values)} values; one each")


def bars(items: Sequence[Bar], axis: str, caption: str, reference: float | None = None, kind: Literal["svg", "png"] = "svg") -> Plot:
    """Horizontal bars with intervals, in the order given.

    Args:
        items: Bars; their `kind` gives the colour, and a hatch besides for controls.
        axis: What the x axis shows.
        caption: Sentence under the figure.
        reference: A dotted line there («chance»).
        kind: File format.
    """
    if not items:
        raise MatchedNothing("bars: nothing to draw")
    figure, ax = _figure(0.55 + 0.34 * len(items) + 0.4)
    for y, item in enumerate(reversed(items)):
        hatch = "////" if item.kind == "control" else ""
        ax.barh(
            y,
            item.value.mean,
            color=COLOUR[item.kind],
            alpha=0.85,
            height=0.62,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
        )
        low, high = item.value.interval
        ax.plot([low, high], [y, y], color=INK, linewidth=1.4, marker="|", markersize=7)
    ax.set_yticks(range(len(items)), [_clip(i.label) for i in reversed(items)])
    ax.axvline(0, color=INK, linewidth=0.8)
    if reference is not None:
        ax.axvline(reference, color=INK, linewidth=1, linestyle=":")
    ax.set_xlabel(_clip(axis, 60))
    words = "; ".join(f"{i.label} {i.value.text()}" for i in items)
    return Plot(_uri(figure, kind), f"Bars of {axis}: {words}.", caption)


def before_after(
    labels: Sequence[str],
    before: Sequence[Value],
    after: Sequence[Value],
    axis: str,
    caption: str,
    kind: Literal["svg", "png"] = "svg",
) -> Plot:
    """One line a concept (or group of items), from a hollow dot before to a filled dot after, both with intervals."""
    if not labels or not len(labels) == len(before) == len(after):
        raise InputError(f"before and after: {len(labels)} labels, {len(before)} and {len(after)} values; one each")
    figure, ax = _figure(0.9 + 0.42 * len(labels) + 0.4)
    for i, (one, two) in enumerate(zip(before, after, strict=True)):
        y = len(labels) - 1 - i
        for value, shift, colour, face in ((one, 0.12, COLOUR["base"], "white"), (two, -0.12, PALETTE[1], PALETTE[1])):
            ax.plot(value.interval, [y + shift] * 2, color=colour, linewidth=1.6)
            named = ("before" if shift > 0 else "after") if i == 0 else None
            ax.plot(
                value.mean,
                y + shift,
                "o",
                color=colour,
                markerfacecolor=face,
                markersize=7,
                linestyle="none",
                label=named,
            )
    ax.set_yticks(range(len(labels)), [_clip(x) for x in reversed(labels)])
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xlabel(_clip(axis, 60))
    _legend(ax)
    words = "; ".join(f"{x}: {a.text()} before, {b.text()} after" for x, a, b in zip(labels, before, after, strict=True))
    return Plot(_uri(figure, kind), f"{axis}, before and after. {words}.", caption)


def curve(
    series: Sequence[Series],
    x_axis: str,
    y_axis: str,
    caption: str,
    reference: float | None = None,
    kind: Literal["svg", "png"] = "svg",
) -> Plot:
    """Lines with bands: the relearning curve, a ROC, a trade-off. Lines differ in colour, marker and dash.

    Args:
        series: Lines.
        x_axis: What x is.
        y_axis: What y is.
        caption: Sentence under the figure.
        reference: A dotted horizontal line («base», «chance»).
        kind: File format.
    """
    if not series:
        raise MatchedNothing("curve: nothing to draw")
    if any(x != x or abs(x) == float("inf") for s in series for x in s.x):
        raise NumericsError("curve: a place on the x axis is NaN or infinite")
    figure, ax = _figure(3.4)
    for i, line in enumerate(series):
        _band(ax, line, PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)])
    if reference is not None:
        ax.axhline(reference, color=INK, linewidth=1, linestyle=":")
    ax.set_xlabel(_clip(x_axis, 60))
    ax.set_ylabel(_clip(y_axis, 40))
    _legend(ax)
    words = "; ".join(f"{s.label} from {s.values[0].text()} at {s.x[0]:g} to {s.values[-1].text()} at {s.x[-1]:g}" for s in series)
    return Plot(_uri(figure, kind), f"{y_axis} over {x_axis}: {words}.", caption)


def panels(
    rows: Sequence[str],
    columns: Mapping[str, Sequence[Value | None]],
    caption: str,
    kinds: Sequence[Kind] = (),
    kind: Literal["svg", "png"] = "png",
) -> Plot:
    """A panel a column, side by side: a dot with its interval for each row, rows aligned and in the order given.

    Args:
        rows: Their names.
        columns: Axis -> a value a row; None: the row has none.
        caption: Sentence under the figure.
        kinds: Of the rows, which gives the colour, and hollow dots to all but edited ones; empty: all edited.
        kind: File format.
    """
    if not rows or not columns or any(len(v) != len(rows) for v in columns.values()):
        raise InputError(
            f"panels: {len(rows)} rows, and {[len(v) for v in columns.values()]} values in the columns; one each, at least one"
        )
    figure, axes = _axes(0.9 + 0.26 * len(rows), len(columns), 1.6 + 1.9 * len(columns))
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        for i, (value, own) in enumerate(zip(values, kinds or ["edited"] * len(rows), strict=True)):
            if value is not None:
                face = COLOUR[own] if own == "edited" else "white"
                ax.plot(value.interval, [len(rows) - 1 - i] * 2, color=COLOUR[own], linewidth=1.4)
                ax.plot(value.mean, len(rows) - 1 - i, "o", color=COLOUR[own], markerfacecolor=face, markersize=5)
        ax.set_xlabel(_clip(name, 30))
        ax.set_ylim(-0.6, len(rows) - 0.4)
    axes[0].set_yticks(range(len(rows)), [_clip(x) for x in reversed(rows)])
    told = [f"{n}: " + ", ".join(f"{x} {v.text()}" for x, v in zip(rows, vs, strict=True) if v is not None) for n, vs in columns.items()]
    return Plot(_uri(figure, kind), "; ".join(told) + ".", caption)


def _band(ax: "Axes", line: Series, colour: str, marker: str) -> None:
    """A line through the means on a band of the intervals."""
    lows, highs = zip(*(v.interval for v in line.values), strict=True)
    ax.fill_between(line.x, lows, highs, color=colour, alpha=0.18, linewidth=0)
    style = "-" if line.kind == "edited" else "--"
    ax.plot(line.x, [v.mean for v in line.values], style, color=colour, marker=marker, markersize=5, label=_clip(line.label))


def _figure(height: float) -> "tuple[Figure, Axes]":
    figure, (ax,) = _axes(height)
    return figure, ax


def _axes(height: float, n: int = 1, width: float = 6.4) -> "tuple[Figure, list[Axes]]":
    """A figure of `n` plots side by side, with one y axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, n, sharey=True, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="both", color="#bbbbbb", linewidth=0.4, alpha=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _legend(ax: "Axes") -> None:
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)


def _clip(label: str, length: int = 34) -> str:
    """Short enough for an axis, with matplotlib's formula sign taken literally."""
    plain = "".join(c if c.isprintable() else " " for c in label)
    return (plain if len(plain) <= length else plain[: length - 1] + "…").replace("$", r"\$")


def image_bytes(plot: Plot) -> bytes:
    """The file that a plot's data URI holds."""
    return base64.b64decode(plot.uri.partition(",")[2])


def _uri(figure: "Figure", kind: str) -> str:
    """The figure as a data URI; an SVG loses its document type and metadata, and equal figures give equal bytes."""
    import warnings

    from matplotlib import rc_context

    buffer = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "efface", "svg.fonttype": "path"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box; the alt text has it
        dated = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, transparent=True, dpi=144, metadata=dated)
    data = buffer.getvalue()
    if kind == "svg":
        text = re.sub(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", data.decode(), flags=re.DOTALL)
        data = text.encode()
    return f"data:image/{'svg+xml' if kind == 'svg' else 'png'};base64,{base64.b64encode(data).decode()}"
