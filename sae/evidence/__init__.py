"""Evidence of every feature: one pass over a corpus, and the store that it fills."""

from importlib import import_module
from typing import TYPE_CHECKING

from .config import EvidenceConfig

if TYPE_CHECKING:
    from .neighbours import nearest_features
    from .query import Query
    from .reading import Evidence, Reading, collect
    from .schema import Feature, FeatureRow, StoredContext
    from .store import FeatureStore
    from .write import write_store

_WHERE = {
    "Evidence": "reading",
    "Feature": "schema",
    "FeatureRow": "schema",
    "FeatureStore": "store",
    "Query": "query",
    "Reading": "reading",
    "StoredContext": "schema",
    "collect": "reading",
    "nearest_features": "neighbours",
    "write_store": "write",
}

__all__ = [
    "Evidence",
    "EvidenceConfig",
    "Feature",
    "FeatureRow",
    "FeatureStore",
    "Query",
    "Reading",
    "StoredContext",
    "collect",
    "nearest_features",
    "write_store",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
