"""An SAE and its feature store as plain values: the card, the density histogram, rows, features in full, the map."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.files import cache_dir, digest, write_json
from ...sae.evidence.query import SCORES, Query, best_labelled, containing, densities, labels_of, query
from ...sae.evidence.schema import Feature, FeatureRow
from .plain import Words, flat, short

if TYPE_CHECKING:
    from ...sae import SAE
    from ...sae.evidence import FeatureStore

COLUMNS = (
    "id",
    "label",
    "status",
    "density",
    "max",
    "mean",
    "fired",
    "windows",
    "auroc",
    "auroc_low",
    "auroc_high",
    "validation",
    "fuzzing",
)
"""What stands in a row of the table, in this order."""
SHOWN = {"top": 12, "quantile": 3}
"""Contexts shown a feature; of `quantile` so many a quantile."""
BINS_A_DECADE = 4


class StoreView:
    """One SAE as pages show it.

    Args:
        sae: The dictionary.
        folder: Where it lies.
        store: Its evidence; None: there is none yet, and the page says how to collect it.
    """

    def __init__(self, sae: "SAE", folder: Path | str, store: "FeatureStore | None") -> None:
        self.sae, self.folder, self.store = sae, str(folder), store
        self.hook_point = str(sae.card.get("hook_point") or "")
        self.model = str(sae.card.get("model") or "")
        self._map: dict[str, Any] | None = None

    def about(self) -> dict[str, Any]:
        """Everything but the features."""
        cfg, card = self.sae.cfg, self.sae.card
        size = {"architecture": cfg.architecture, "d_in": cfg.d_in, "d_sae": cfg.d_sae, "k": getattr(cfg, "k", None)}
        weights = card.get("weights")
        known = {"model", "hook_point", "metrics", "token_policy", "training", "weights", "fingerprint", "format"}
        return {
            "name": self.hook_point or Path(self.folder).name,
            "folder": self.folder,
            "hook_point": self.hook_point,
            "model": self.model,
            "d_sae": cfg.d_sae,
            "card": [
                ["What it is", flat({**size, "hook point": self.hook_point, "model": self.model, "folder": self.folder})],
                ["On held-out data", flat(card.get("metrics") or {})],
                ["Which tokens count", flat(card.get("token_policy") or {})],
                ["How it was trained", flat(card.get("training") or {})],
                ["More", flat({k: v for k, v in card.items() if k not in known} | {"weights": (weights or {}).get("sha256")})],
            ],
            "store": self._evidence(),
            "columns": list(COLUMNS),
        }

    def _evidence(self) -> dict[str, Any] | None:
        if self.store is None:
            return None
        manifest = self.store.manifest
        labels = manifest.get("labels") or {}
        return {
            "total": self.store.d_sae,
            "corpus": flat(manifest.get("corpus") or {}),
            "labels": {k: found for k, v in labels.items() if isinstance(v, Mapping) and (found := _sum(v))},
            "density": self._density(),
        }

    def _density(self) -> dict[str, Any]:
        """Histogram of log10 of the share of tokens on which a feature fires; silent features are counted apart."""
        assert self.store is not None
        values = densities(self.store)
        alive = [math.floor(math.log10(v) * BINS_A_DECADE) for v in values if v > 0]
        if not alive:
            return {"edges": [], "counts": [], "silent": len(values)}
        low, high = min(alive), max(alive)
        counts = [0] * (high - low + 1)
        for b in alive:
            counts[b - low] += 1
        return {"edges": [(low + i) / BINS_A_DECADE for i in range(len(counts) + 1)], "counts": counts, "silent": len(values) - len(alive)}

    def rows(self, asked: Query) -> dict[str, Any]:
        """A page of the table, and how many rows there are in all."""
        if self.store is None:
            return {"total": 0, "rows": []}
        total, found = query(self.store, asked)
        return {"total": total, "rows": [row_values(r) for r in found]}

    def containing(self, text: str, limit: int = 200) -> dict[str, Any]:
        """Features with `text` in a context, and how many features were looked through."""
        if self.store is None:
            return {"total": 0, "rows": [], "looked": 0}
        ids, looked = containing(self.store, text, limit=limit)
        return {"total": len(ids), "rows": [row_values(self.store.row(i)) for i in ids], "looked": looked, "of": self.store.d_sae}

    def feature(self, number: int, words: Words | None = None) -> dict[str, Any]:
        """A feature in full. Tokens are numbers into `words`; where none is given the answer brings its own.

        Raises:
            UnknownName: No such feature.
        """
        assert self.store is not None
        own = words or Words()
        found = self.store.feature(number)
        detail = feature_values(found, own, {i: self.store.row(i).label for i, _ in found.neighbours})
        return detail if words is not None else {**detail, "row": row_values(self.store.row(number)), "words": own.listed()}

    def label(self, number: int) -> str:
        """What a feature is called."""
        return self.store.row(number).label if self.store is not None else ""

    def map(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Coordinates and groups of some features (None: of all), from the cache where they were computed before."""
        from .maps import feature_map, label_groups

        wanted = list(range(self.sae.cfg.d_sae)) if ids is None else list(ids)
        if ids is None and self._map is not None:
            return self._map
        place = self._place(wanted)
        kept = _read(place)
        if kept is None:
            xy = feature_map(self.sae.W_dec[wanted])
            kept = {"x": [round(float(v), 4) for v in xy[:, 0]], "y": [round(float(v), 4) for v in xy[:, 1]]}
            write_json(place, kept)
        found = labels_of(self.store, wanted) if self.store is not None else []
        names, group = label_groups([label for label, _ in found], [status for _, status in found])
        values = {"ids": wanted, **kept, "groups": names, "group": group or [0] * len(wanted)}
        if ids is None:
            self._map = values
        return values

    def _place(self, ids: Sequence[int]) -> Path:
        from ..layer import sae_digest

        return cache_dir() / "maps" / f"{digest([1, sae_digest(self.sae), list(ids)])[:32]}.json"

    def chosen(self, first: Iterable[int], n: int) -> list[int]:
        """Up to `n` features for a file: `first`, then those with the best labels, then those that fire most."""
        if self.store is None:
            return []
        found = dict.fromkeys(i for i in first if 0 <= i < self.store.d_sae)
        if len(found) < n:
            found.update(dict.fromkeys(best_labelled(self.store, n)))
        return list(found)[: max(n, 0)]


def row_values(row: FeatureRow) -> list[Any]:
    """The figures of `COLUMNS`; scores of a label only where one stands."""
    values = (None if name in SCORES and row.status != "labelled" else getattr(row, name) for name in COLUMNS)
    return [short(v) if isinstance(v, float) else v for v in values]


def feature_values(found: Feature, words: Words, labels: Mapping[int, str]) -> dict[str, Any]:
    """Everything about a feature, tokens as numbers; held-out contexts are left out, which nobody should choose by."""
    kept: list[list[Any]] = []
    seen: dict[Any, int] = {}
    for c in found.contexts:
        if c.kind not in SHOWN:
            continue
        place = c.kind if c.kind == "top" else c.quantile
        seen[place] = seen.get(place, 0) + 1
        if seen[place] <= SHOWN[c.kind]:
            fires = [[i, short(a, 3)] for i, a in enumerate(c.activations) if a > 0]
            kept.append([c.kind, c.quantile, c.document, c.position, c.peak, short(c.value, 3), [words(p) for p in c.pieces], fires])
    return {
        "proposal": found.proposal,
        "source": found.source,
        "histogram": [[short(a, 3), short(b, 3), n] for a, b, n in found.histogram],
        "promoted": [words(p) for p in found.promoted],
        "suppressed": [words(p) for p in found.suppressed],
        "firing": [[words(t), short(share, 3), short(odds, 3)] for t, share, odds in found.firing],
        "neighbours": [[i, short(c, 3), labels.get(i, "")] for i, c in found.neighbours],
        "contexts": kept,
    }


def _sum(report: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a part of the report, short."""
    return {str(k): short(v) if isinstance(v, float) else v for k, v in report.items() if isinstance(v, int | float | str)}


def _read(place: Path) -> dict[str, list[float]] | None:
    """Coordinates that were kept; what cannot be read is computed again."""
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
        return {"x": list(values["x"]), "y": list(values["y"])}
    except (OSError, ValueError, LookupError, TypeError):
        return None
