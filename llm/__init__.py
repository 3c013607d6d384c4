"""Language models as hosts, the methods that edit them, and their evaluation. Imports load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as _version

if TYPE_CHECKING:
    from .aliases import list_models
    from .hooks import Fired, HookSite
    from .host import Host, TokenRoles
    from .models import load_model

__all__ = ["Fired", "HookSite", "Host", "TokenRoles", "list_models", "load_model"]
__version__ = _version

_HOMES = {
    "Fired": "hooks",
    "HookSite": "hooks",
    "Host": "host",
    "TokenRoles": "host",
    "list_models": "aliases",
    "load_model": "models",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
