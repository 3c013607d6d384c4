"""Language models as hosts, the methods that edit them, and their evaluation. Imports load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as _version

if TYPE_CHECKING:
    from .aliases import list_models
    from .feature_stores import make_stores
    from .features import FeatureConfig, find_features
    from .hooks import Fired, HookSite
    from .host import Host, TokenRoles
    from .models import load_model

__all__ = ["FeatureConfig", "Fired", "HookSite", "Host", "TokenRoles", "find_features", "list_models", "load_model", "make_stores"]
__version__ = _version

_HOMES = {
    "FeatureConfig": "features",
    "Fired": "hooks",
    "HookSite": "hooks",
    "Host": "host",
    "TokenRoles": "host",
    "find_features": "features",
    "list_models": "aliases",
    "load_model": "models",
    "make_stores": "feature_stores",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
