"""Text-to-image hosts, erasers and their evaluation. Imports load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as _version

if TYPE_CHECKING:
    from .aliases import packaged_saes
    from .features import FeatureConfig, find_features
    from .host import ImageHost
    from .models import load_pipeline
    from .states import Batch, States

__all__ = ["Batch", "FeatureConfig", "ImageHost", "States", "find_features", "load_pipeline", "packaged_saes"]
__version__ = _version

_HOMES = {
    "Batch": "states",
    "FeatureConfig": "features",
    "ImageHost": "host",
    "States": "states",
    "find_features": "features",
    "load_pipeline": "models",
    "packaged_saes": "aliases",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
