"""Sparse autoencoders and transcoders: architectures, training, sources, formats, metrics, feature evidence."""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as _version
from .config import SAEConfig, TrainConfig

if TYPE_CHECKING:
    from .corpora import read_corpus
    from .evidence.store import FeatureStore
    from .metrics import evaluate
    from .sae import SAE
    from .sources import ActivationStore, HostSource
    from .sparse import SparseActs
    from .trainer import train, train_many

_WHERE = {
    "ActivationStore": "sources",
    "FeatureStore": "evidence.store",
    "HostSource": "sources",
    "SAE": "sae",
    "SparseActs": "sparse",
    "evaluate": "metrics",
    "read_corpus": "corpora",
    "train": "trainer",
    "train_many": "trainer",
}

__all__ = [
    "SAE",
    "ActivationStore",
    "FeatureStore",
    "HostSource",
    "SAEConfig",
    "SparseActs",
    "TrainConfig",
    "evaluate",
    "read_corpus",
    "train",
    "train_many",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} (efface {_version}) has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
