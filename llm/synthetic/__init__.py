"""A made-up world of facts, a small language model that knows them, and «gold» models that never saw a part of them."""

from importlib import import_module
from typing import TYPE_CHECKING

from ... import __version__ as _version

if TYPE_CHECKING:
    from .gold import GoldConfig, compare_with_gold
    from .recipe import Recipe
    from .world import Fact, World, make_world, packaged_world

__all__ = ["Fact", "GoldConfig", "Recipe", "World", "compare_with_gold", "make_world", "packaged_world"]
__version__ = _version

_HOMES = {
    "Fact": "world",
    "GoldConfig": "gold",
    "Recipe": "recipe",
    "World": "world",
    "compare_with_gold": "gold",
    "make_world": "world",
    "packaged_world": "world",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
