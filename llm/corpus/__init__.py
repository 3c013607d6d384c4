"""The embedded corpus and the general pool: how they were written, filtered and packed, and how to read them."""

from importlib import import_module
from typing import TYPE_CHECKING

from ... import __version__ as _version

if TYPE_CHECKING:
    from .read import corpus, general_pool, pool, records

__all__ = ["corpus", "general_pool", "pool", "records"]
__version__ = _version


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(".read", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
