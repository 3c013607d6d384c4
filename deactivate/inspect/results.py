"""Results of `efface eval` and `efface attack` as plain values: tables of one protocol each, and before | after samples."""

import base64
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import ArtefactError
from ...base.files import read_json
from ..evaluation.compare import Comparison, compare
from ..evaluation.results import Result
from .plain import flat, shortened

SAMPLES = "samples.json"
"""Continuations before | after, beside a language model's result."""
SHEET_BYTES = 2 * 2**20
"""A contact sheet larger than this is left out, and the page says so."""


@dataclass(frozen=True)
class Found:
    """A result and where it lies."""

    result: Result
    place: Path

    @classmethod
    def load(cls, path: Path) -> "Found":
        """A result file, or the folder of one.

        Raises:
            ArtefactError: It is none, or was altered.
        """
        return cls(Result.load(path), path if path.is_dir() else path.parent)


def tables(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Tables of results that share a protocol, in the order of their first result."""
    often = Counter(f.result.name for f in found)
    named = [dataclasses.replace(f.result, name=f.place.name) if often[f.result.name] > 1 else f.result for f in found]
    twice = Counter(r.name for r in named)
    named = [dataclasses.replace(r, name=f"{r.name} {i + 1}") if twice[r.name] > 1 else r for i, r in enumerate(named)]
    groups: dict[str, list[int]] = {}
    for i, r in enumerate(named):
        groups.setdefault(r.card.digest, []).append(i)
    return [{**table_values(compare([named[i] for i in of])), "results": of} for of in groups.values()]


def table_values(table: Comparison) -> dict[str, Any]:
    """A comparison with how its columns read."""
    return shortened({
        "suite": table.card.suite,
        "host": table.card.host,
        "concept": table.card.concept,
        "split": table.card.split,
        "card": flat(table.card.to_json()),
        "protocol": table.card.digest,
        "looks": table.card.looks,
        "columns": {name: {**dataclasses.asdict(m), "heading": m.heading} for name, m in table.columns.items()},
        "rows": [
            {
                "result": line.result,
                "name": line.row.name,
                "kind": line.row.kind,
                "note": line.row.note,
                "metrics": {k: {**dataclasses.asdict(v), "mark": table.mark(line, k)} for k, v in line.row.metrics.items()},
            }
            for line in table.lines
        ],
    }, 6)  # fmt: skip


def result_values(found: Found) -> dict[str, Any]:
    """What a page shows of one result: its own table, and what lies beside it."""
    r = found.result
    return {
        "name": r.name,
        "place": str(found.place),
        "concept": r.card.concept,
        "suite": r.card.suite,
        "erasers": [row.name for row in r.rows if row.kind == "edited"],
        "edits": [str(d) for d in r.extra.get("edits", ())],
        "table": table_values(compare([r])),
        "commands": list(r.commands),
        "absent": [str(a) for a in r.extra.get("absent", ())],
        "samples": _samples(found.place),
        "sheets": _sheets(found.place),
    }


def _samples(place: Path) -> list[dict[str, str]]:
    if not (place / SAMPLES).is_file():
        return []
    values = read_json(place / SAMPLES)
    wanted = ("prompt", "before", "after", "about")
    if not isinstance(values, list) or not all(isinstance(v, dict) and all(isinstance(v.get(k), str) for k in wanted) for v in values):
        raise ArtefactError(f"{place / SAMPLES}: a list of prompt, before, after and about expected; evaluate again, or remove the file")
    return [{k: v[k] for k in wanted} for v in values]


def _sheets(place: Path) -> list[dict[str, str]]:
    """Contact sheets `<group>-base.png` and `<group>-edited.png`, in the order of their names."""
    found = []
    for before in sorted((place / "sheets").glob("*-base.png")):
        group = before.name.removesuffix("-base.png")
        after = before.with_name(f"{group}-edited.png")
        if after.is_file():
            found.append({"group": group, "before": _picture(before), "after": _picture(after)})
    return found


def _picture(path: Path) -> str:
    """A PNG file as an address that holds it; empty where it is too large or none."""
    data = path.read_bytes()
    if len(data) > SHEET_BYTES or not data.startswith(b"\x89PNG\r\n"):
        return ""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
