"""Result files: rows of figures under one protocol card, as JSON with a format version."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...base.config import cast, from_mapping
from ...base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from ...base.files import first_line, read_json, write_json
from .cards import ProtocolCard
from .value import Value

FORMAT = 1
KINDS = ("edited", "base", "control")
Kind = Literal["edited", "base", "control"]


@dataclass(frozen=True)
class Metric:
    """How a column reads: its heading, which way is better, how it is printed."""

    label: str
    """Heading, a few words."""
    better: Literal["higher", "lower", "neither"] = "neither"
    """Which way is better; «neither» marks nothing as best."""
    digits: int = 3
    """Decimals printed."""
    scale: float = 1.0
    """Printed value = stored value × scale (100 with `unit` «%»)."""
    unit: str = ""
    """Printed after the heading in brackets."""
    about: str = ""
    """One sentence: what it is and how it is computed."""

    def text(self, value: Value) -> str:
        """The figure with its interval, as it stands in a table."""
        return value.scaled(self.scale).text(self.digits)

    @property
    def heading(self) -> str:
        """Label, unit and an arrow for the better direction."""
        arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[self.better]
        return f"{self.label}{f' ({self.unit})' if self.unit else ''}{arrow}"


@dataclass(frozen=True)
class Row:
    """One line of a result: an edited host, the base, or a control."""

    name: str
    """«PISCES», «identity», «random features», …"""
    kind: Kind
    """`edited`, `base` (the unedited host) or `control`."""
    metrics: Mapping[str, Value]
    """Metric name -> figure. A metric that does not apply to the row is left out, not set to 0."""
    note: str = ""
    """One sentence, where the row needs one."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("kind of row", self.kind, KINDS)
        if not self.metrics:
            raise MatchedNothing(f"row {self.name!r} has no figure")


@dataclass(frozen=True)
class Result:
    """What one evaluation found."""

    name: str
    """Short name: stands before the row's name where several results are compared."""
    card: ProtocolCard
    """How it was measured."""
    rows: tuple[Row, ...]
    """Edited rows and everything they must be read beside."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Metric name -> how it is printed; metrics without an entry print under their own name."""
    commands: tuple[str, ...] = ()
    """Commands that made this result, in order."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Plain values beside the table: curves, per-item scores, counts of what was dropped."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise MatchedNothing(f"result {self.name!r} has no row")
        names = [r.name for r in self.rows]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise InputError(f"result {self.name!r}: two rows are called {twice!r}; names must differ")
        used = {m for r in self.rows for m in r.metrics}
        for m in self.metrics:
            if m not in used:
                raise UnknownName("metric", m, used, hint="It is described, but no row has it")

    def row(self, name: str) -> Row:
        """The row of that name."""
        found = {r.name: r for r in self.rows}
        if name not in found:
            raise UnknownName("row", name, found)
        return found[name]

    def columns(self) -> dict[str, Metric]:
        """Every metric any row has, described ones first, in their order."""
        seen = dict(self.metrics)
        for row in self.rows:
            for name in row.metrics:
                seen.setdefault(name, Metric(name.replace("_", " ")))
        return seen

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        rows = [{**asdict(r), "metrics": {k: asdict(v) for k, v in r.metrics.items()}} for r in self.rows]
        metrics = {k: asdict(v) for k, v in self.metrics.items()}
        about = {
            "format": FORMAT,
            "kind": "efface result",
            "name": self.name,
            "card": self.card.to_json(),
            "protocol": self.card.digest,
        }
        return {**about, "metrics": metrics, "rows": rows, "commands": list(self.commands), "extra": dict(self.extra)}

    def save(self, path: Path) -> Path:
        """Writes the JSON file whole or not at all (a folder: `result.json` in it); returns the file's path."""
        target = path if path.suffix == ".json" else path / "result.json"
        write_json(target, self.to_json())
        return target

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Reads a result file, or `result.json` of a folder.

        Raises:
            ArtefactError: Not a result, of another format version, changed by hand (the card does not match its
            digest), or incomplete.
        """
        file = path / "result.json" if path.is_dir() else path
        values = read_json(file)
        if not isinstance(values, dict) or values.get("kind") != "efface result":
            raise ArtefactError(f"{file} is not a result file; give one written by `efface eval`")
        if values.get("format") != FORMAT:
            raise ArtefactError(
                f"{file}: format {values.get('format')!r}, this version reads {FORMAT}; evaluate again or use the version that wrote it"
            )
        try:
            result = _from_json(values)
        except (KeyError, TypeError, AttributeError, InputError, ArithmeticError) as e:
            raise ArtefactError(f"{file} is damaged: {type(e).__name__}: {first_line(e)}") from e
        if result.card.digest != values.get("protocol"):
            raise ArtefactError(f"{file}: the protocol card does not match its digest; it was changed after it was written")
        return result


def _from_json(values: Mapping[str, Any]) -> Result:
    rows = tuple(
        Row(
            r["name"],
            cast(r["kind"], Kind, "kind of row"),
            {k: from_mapping(Value, v, where=f"{r['name']}: {k}") for k, v in r["metrics"].items()},
            r["note"],
        )
        for r in values["rows"]
    )
    metrics = {k: from_mapping(Metric, v, where=f"metric {k}") for k, v in values["metrics"].items()}
    card = ProtocolCard.from_json(values["card"])
    return Result(values["name"], card, rows, metrics, tuple(values["commands"]), values["extra"])
