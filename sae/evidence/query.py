"""Pages of a feature store's table: searched, filtered by any column, sorted, and counted; and which contexts hold a text."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...base.errors import InputError, UnknownName
from . import schema as s
from .schema import FeatureRow
from .store import FeatureStore

NUMBERS = tuple(n for n, kind in s.COLUMNS.items() if kind.split()[0] in ("REAL", "INTEGER"))
"""Columns that can be bounded."""
STATUSES = ("labelled", "at chance", "too few contexts", "no word", "silent")
SCORES = ("auroc", "auroc_low", "auroc_high", "fuzzing", "fuzzing_low", "fuzzing_high")
"""Scores of a label: a proposal that does not stand has none here, though the store keeps what it would be."""
LIMIT = 1000
"""Rows of a page, at most."""
_FOUND = " JOIN (SELECT json_extract(value, '$[0]') AS hit, json_extract(value, '$[1]') AS place FROM json_each(?)) AS found ON found.hit = features.id"

_ASKED = "SELECT {} FROM json_each(?) AS asked JOIN features ON features.id = asked.value ORDER BY asked.key"


@dataclass(frozen=True)
class Query:
    """Which features, in which order."""

    text: str = ""
    """In a label, or the beginning of a promoted or firing token; case is ignored. Empty: all."""
    where: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Column -> (least, most), None where it is open; features without a value are left out."""
    status: str = ""
    """Only features of this status of the label."""
    column: str = ""
    """Sorted by it, features without a value last; empty: by how well the text fits, else by number."""
    descending: bool = True
    limit: int = 50
    offset: int = 0

    def __post_init__(self) -> None:
        if self.column and self.column not in s.RANKED:
            raise UnknownName("column", self.column, s.RANKED)
        for name in self.where:
            if name not in NUMBERS:
                raise UnknownName("column with numbers", name, NUMBERS)
        if self.status and self.status not in STATUSES:
            raise UnknownName("status of a label", self.status, STATUSES)
        if not 0 <= self.limit <= LIMIT or self.offset < 0:
            raise InputError(f"limit must lie in [0, {LIMIT}] and offset not be negative; found {self.limit} and {self.offset}")


def query(store: FeatureStore, asked: Query) -> tuple[int, list[FeatureRow]]:
    """(how many features match, those of the page)."""
    wanted = asked.text.strip().casefold()
    joined, values = (_FOUND, [store.matches(wanted)]) if wanted else ("", [])
    tests: list[str] = ["status = ?"] if asked.status else []
    bounds: list[Any] = [asked.status] if asked.status else []
    for name, (low, high) in asked.where.items():
        value = _value(name)
        tests.append(f"{value} IS NOT NULL")
        for bound, sign in ((low, ">="), (high, "<=")):
            if bound is not None:
                tests.append(f"{value} {sign} ?")
                bounds.append(float(bound))
    rest = f"FROM features{joined}" + (f" WHERE {' AND '.join(tests)}" if tests else "")
    way = "DESC" if asked.descending else "ASC"
    order = f"{_value(asked.column)} {way} NULLS LAST, id {way}" if asked.column else "place, id" if wanted else "id"
    values += bounds
    total = int(store.read(f"SELECT COUNT(*) AS n {rest}", *values)[0]["n"])
    found = store.read(f"SELECT features.id AS id {rest} ORDER BY {order} LIMIT ? OFFSET ?", *values, asked.limit, asked.offset)
    return total, rows_of(store, [int(r["id"]) for r in found])


def _value(column: str) -> str:
    return f"CASE WHEN status = 'labelled' THEN \"{column}\" END" if column in SCORES else f'"{column}"'


def densities(store: FeatureStore) -> list[float]:
    """The density of every feature, by number."""
    return [float(r["density"]) for r in store.read("SELECT density FROM features ORDER BY id")]


def rows_of(store: FeatureStore, ids: Sequence[int]) -> list[FeatureRow]:
    """Figures of some features, in the order given."""
    return [FeatureRow(**row) for row in store.read(_ASKED.format("features.*"), json.dumps(list(ids)))]


def best_labelled(store: FeatureStore, n: int) -> list[int]:
    """The `n` features whose labels detect best, then those that fire most; none that never fires."""
    found = store.read(
        f"SELECT id FROM features WHERE fired > 0 ORDER BY {_value('auroc')} DESC NULLS LAST, density DESC, id LIMIT ?", max(n, 0)
    )
    return [int(r["id"]) for r in found]


def labels_of(store: FeatureStore, ids: Sequence[int]) -> list[tuple[str, str]]:
    """(label, status) of some features, in the order given; of a hundred thousand in one reading."""
    found = store.read(_ASKED.format("label, status"), json.dumps(list(ids)))
    return [(r["label"], r["status"]) for r in found]


def containing(store: FeatureStore, text: str, *, limit: int = 50, seconds: float = 2.0) -> tuple[list[int], int]:
    """Features with `text` in one of their contexts, case ignored, by number: (those found, how many features were looked through).

    Contexts are not indexed: they are read from the first feature on until `limit` are found or the time is up.

    Raises:
        InputError: An empty text.
    """
    wanted = text.strip().casefold()
    if not wanted:
        raise InputError("search: the text is empty; give some words of a context")
    end, found = time.monotonic() + seconds, []
    for f in range(store.d_sae):
        if f % s.BLOCK == 0 and time.monotonic() > end:
            return found, f
        if any(wanted in "".join(c.pieces).casefold() for c in store.contexts(f) if c.kind in ("top", "quantile")):
            found.append(f)
            if len(found) >= limit:
                return found, f + 1
    return found, store.d_sae
