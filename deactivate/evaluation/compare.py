"""One table of several results, refused where their cards differ; as plain text, for the terminal, and as JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError, MatchedNothing, UnknownName
from .cards import ProtocolCard, differences, require_comparable
from .results import Metric, Result, Row
from .value import Value

if TYPE_CHECKING:
    from rich.table import Table


WIDTH = 160
"""Characters of the widest table of a row a line."""


@dataclass(frozen=True)
class Line:
    """One line of a comparison."""

    result: str
    row: Row


@dataclass(frozen=True)
class Comparison:
    """Rows of several results under one protocol."""

    card: ProtocolCard
    columns: dict[str, Metric]
    lines: tuple[Line, ...]
    ignored: dict[str, tuple[Any, Any]]
    """Fields of the cards that differ and were allowed to: (first value, another value). Printed under the table."""

    def mark(self, line: Line, metric: str) -> str:
        """`*` for the best edited row of a column, `=` for all whose interval overlaps the best one's (ties)."""
        better = self.columns[metric].better
        edited = [x for x in self.lines if x.row.kind == "edited" and metric in x.row.metrics]
        if better == "neither" or line not in edited or len(edited) < 2:
            return ""
        sign = 1 if better == "higher" else -1
        best = max(edited, key=lambda x: sign * x.row.metrics[metric].mean)
        tied = [x for x in edited if x.row.metrics[metric].overlaps(best.row.metrics[metric])]
        return "" if line not in tied else "=" if len(tied) > 1 else "*"

    def cell(self, line: Line, metric: str) -> str:
        """The printed figure with its mark; «–» where the row has none."""
        value: Value | None = line.row.metrics.get(metric)
        return "–" if value is None else (self.columns[metric].text(value) + " " + self.mark(line, metric)).rstrip()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(headings, cells): result, row, kind, then the metrics."""
        heads = ["result", "row", "kind", *(m.heading for m in self.columns.values())]
        body = [[x.result, x.row.name, x.row.kind, *(self.cell(x, m) for m in self.columns)] for x in self.lines]
        return heads, body

    def plain(self) -> str:
        """Aligned text with the protocol and the legend under it; a metric a line where a row a line would be too wide."""
        heads, body = self.table()
        text = layout(heads, body)
        if max(map(len, text.splitlines())) > WIDTH:
            text = layout(["", *(line[1] for line in body)], [[h, *(line[i] for line in body)] for i, h in enumerate(heads) if i != 1])
        return text + "\n\n" + "\n".join(self.legend()) + "\n"

    def rich(self) -> "Table":
        """A `rich` table; names are printed as text, not read as markup."""
        from rich.table import Table
        from rich.text import Text

        heads, body = self.table()
        table = Table(caption="\n".join(self.legend()), caption_justify="left")
        for i, head in enumerate(heads):
            table.add_column(Text(head), justify="left" if i < 3 else "right", overflow="fold")
        styles = {"edited": "bold", "base": "", "control": "dim"}
        for line, cells in zip(self.lines, body, strict=True):
            table.add_row(*map(Text, cells), style=styles[line.row.kind])
        return table

    def legend(self) -> list[str]:
        """What stands under the table: protocol, looks, marks, and whatever was allowed to differ."""
        card = self.card
        lines = [
            f"{card.suite} · {card.host} · {card.concept} · split {card.split} · n = {card.n} · {card.digest[:12]}",
            "* best edited row; = tied with the best (intervals overlap); – not measured",
        ]
        if card.split == "test":
            lines.insert(1, f"looks at test so far: {card.looks}")
        lines += [f"differs between the results: {k}: {a!r}, {b!r}" for k, (a, b) in self.ignored.items()]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values: one object for `--json`."""
        rows = [
            {
                "result": x.result,
                "row": x.row.name,
                "kind": x.row.kind,
                "metrics": {k: {**dataclasses.asdict(v), "mark": self.mark(x, k)} for k, v in x.row.metrics.items()},
            }
            for x in self.lines
        ]
        ignored = {k: list(v) for k, v in self.ignored.items()}
        return {"card": self.card.to_json(), "protocol": self.card.digest, "ignored": ignored, "rows": rows}


def compare(results: Sequence[Result], metrics: Sequence[str] = (), ignore: Iterable[str] = ()) -> Comparison:
    """Puts results side by side.

    A base or control row that stands in several of them with the same figures is printed once.

    Args:
        results: At least one; their names must differ.
        metrics: Columns wanted, in this order; none: all.
        ignore: Fields of the card allowed to differ; they are printed under the table.

    Raises:
        InputError: The cards differ: names the field.
    """
    if not results:
        raise MatchedNothing("no result to compare; give at least one result file")
    names = [r.name for r in results]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"two results are called {twice!r}; names must differ, so that rows can be told apart")
    ignored = list(ignore)
    require_comparable([r.card for r in results], ignored)
    columns: dict[str, Metric] = {}
    for result in results:
        for name, metric in result.columns().items():
            if name not in columns:
                columns[name] = metric
    for name in metrics:
        if name not in columns:
            raise UnknownName("metric", name, columns)
    columns = {m: columns[m] for m in metrics} if metrics else columns
    differing: dict[str, tuple[Any, Any]] = {}
    for result in results[1:]:
        for k, v in differences(results[0].card, result.card).items():
            differing.setdefault(k, v)
    card = max((r.card for r in results), key=lambda c: c.looks)
    return Comparison(card, columns, _merged(results), differing)


def _merged(results: Sequence[Result]) -> tuple[Line, ...]:
    lines: list[Line] = []
    for kind in ("base", "edited", "control"):
        for result in results:
            for row in result.rows:
                shared = kind != "edited" and any(x.row == row for x in lines)
                if row.kind == kind and not shared:
                    everywhere = kind != "edited" and len(results) > 1 and all(row in r.rows for r in results)
                    lines.append(Line("all" if everywhere else result.name, row))
    return tuple(lines)


def layout(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces, a rule under the headings; control characters are replaced."""
    table = [["".join(c if c.isprintable() else "�" for c in cell) for cell in line] for line in (heads, *body)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([lines[0], "  ".join("─" * w for w in widths), *lines[1:]])
