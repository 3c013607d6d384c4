"""Everything that the pages show, put together from its parts: for a file, whole; for the server, without what it loads on demand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...base.errors import InputError, MatchedNothing
from ...base.running import progress
from ...sae.evidence.query import rows_of
from .edits import edit_values
from .plain import Words
from .results import Found, result_values, tables
from .stores import StoreView, row_values

if TYPE_CHECKING:
    from pathlib import Path

    from ..edit import Edit

FORMAT = 1
OF_PROMPT = 8
"""Features that a prompt brings into a file, the strongest at each hook point: with all of them there would be no room for those with labels."""
Pictures = Callable[[int, int], "list[dict[str, Any]]"]
"""(number of the SAE, feature) -> pictures of prompts that fire it, drawn with and without it."""


@dataclass
class Site:
    """What there is to look at.

    Raises:
        MatchedNothing: Nothing at all.
    """

    title: str
    saes: Sequence[StoreView] = ()
    concepts: Sequence[Mapping[str, Any]] = ()
    """Dossiers: `{name, kind, report, gate, test}`; `llm.inspecting` and `t2i.inspecting` make them."""
    edits: "Sequence[tuple[Edit, Path]]" = ()
    results: Sequence[Found] = ()
    prompts: Sequence[Mapping[str, Any]] = ()
    """Readings of `PromptReader.read`."""
    notes: Sequence[str] = ()
    moved: Sequence[Mapping[str, Any]] = ()
    """Which features edits move: `{edit, saes}`, the edit's digest and what `moved_features` gave."""
    pictures: Pictures | None = None
    live: Mapping[str, bool] = field(default_factory=dict)
    """What the server can do: `prompts`, `pictures`."""

    def __post_init__(self) -> None:
        if not (self.saes or self.edits or self.results or self.concepts):
            raise MatchedNothing("nothing to inspect: give --sae DIR, --edit EDIT or --result DIR")

    def head(self) -> dict[str, Any]:
        """All of it but the features."""
        return {
            "format": FORMAT,
            "efface": __version__,
            "title": self.title,
            "saes": [s.about() for s in self.saes],
            "concepts": list(self.concepts),
            "edits": self.shown_edits,
            "results": [result_values(f) for f in self.results],
            "tables": tables(self.results),
            "prompts": list(self.prompts),
            "labels": {v.hook_point: self._labels(v) for v in self.saes if v.store is not None},
            "notes": list(self.notes),
            "live": dict(self.live) or None,
        }

    @cached_property
    def shown_edits(self) -> list[dict[str, Any]]:
        """Edits as pages show them."""
        moved = {change["edit"]: change["saes"] for change in self.moved}
        return [{**edit_values(e, place), "moved": list(moved.get(e.digest, ()))} for e, place in self.edits]

    def _labels(self, view: StoreView) -> dict[str, str]:
        """What the features are called that something names."""
        assert view.store is not None
        rows = (view.store.row(i) for i in self.wanted(view.hook_point) if 0 <= i < view.store.d_sae)
        return {str(r.id): r.label for r in rows if r.status == "labelled"}

    def whole(self, features: int, pictured: int = 0) -> dict[str, Any]:
        """Everything that fits into a file: of each SAE at most `features` features, of which the first `pictured` with pictures.

        Raises:
            InputError: A negative number.
        """
        if features < 0 or pictured < 0:
            raise InputError(f"features and pictures must not be negative; found {features} and {pictured}")
        values = self.head()
        words = Words()
        for number, (view, about) in enumerate(zip(self.saes, values["saes"], strict=True)):
            if view.store is None:
                continue
            ids = view.chosen(self.wanted(view.hook_point), features)
            about["rows"] = [row_values(r) for r in rows_of(view.store, ids)]
            about["details"] = {str(i): view.feature(i, words) for i in sorted(ids)}  # in the store's order: each block of it is read once
            about["map"] = view.map(ids) if ids else None
            if self.pictures is not None:
                for i in progress(ids[:pictured], desc="pictures", unit="feature"):
                    about["details"][str(i)]["pictures"] = self.pictures(number, i)
        return {**values, "words": words.listed()}

    def wanted(self, hook_point: str) -> list[int]:
        """Features at a hook point that concepts, edits, prompts and gates name, the most important first, each once; a gate may name a thousand."""
        found: list[int] = []
        for concept in self.concepts:
            found += [f["id"] for f in concept["report"]["features"] if f["hook_point"] == hook_point]
        for edit in self.shown_edits:
            found += [f["id"] for f in edit["features"] if f["hook_point"] == hook_point]
        for change in self.moved:
            found += [f for row in change["saes"] if row["hook_point"] == hook_point for f, *_ in row["features"]]
        for reading in self.prompts:
            found += [f for layer in reading["layers"] if layer["hook_point"] == hook_point for f, *_ in layer["strongest"][:OF_PROMPT]]
        for known in (*self.shown_edits, *self.concepts):
            found += _listened(known.get("gate"), hook_point)
        return list(dict.fromkeys(found))


def _listened(gate: Mapping[str, Any] | None, hook_point: str) -> list[int]:
    """Features that a gate listens to, those of the largest weight first."""
    sources = [s for s in (gate or {}).get("sources", ()) if s["hook_point"] == hook_point]
    heard = [(f, w) for s in sources for f, w in zip(s["features"], s["weights"], strict=True)]
    return [f for f, _ in sorted(heard, key=lambda pair: -abs(pair[1]))]
