"""The packaged concept files (`Concept.load(name)`), and the command that screens their sources and builds them."""

from importlib import import_module
from typing import TYPE_CHECKING

from ... import __version__ as _version

if TYPE_CHECKING:
    from .parsing import Item, Source, parse
    from .screen import ScoreCache, credits, screened
    from .splitting import Splits, assign

__all__ = ["Item", "ScoreCache", "Source", "Splits", "assign", "credits", "parse", "screened"]
__version__ = _version

_HOMES = {
    "Item": "parsing",
    "Source": "parsing",
    "parse": "parsing",
    "Splits": "splitting",
    "assign": "splitting",
    "ScoreCache": "screen",
    "credits": "screen",
    "screened": "screen",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
