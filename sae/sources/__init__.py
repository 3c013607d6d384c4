"""Where activations come from: a host that reads texts, a store on disk, or any iterable of `[n, d]` tensors."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import ActivationSource, Batch
    from .buffer import MixingBuffer
    from .feed import Feed
    from .host import HostSource
    from .store import ActivationStore

_WHERE = {
    "ActivationSource": "base",
    "Batch": "base",
    "Feed": "feed",
    "HostSource": "host",
    "ActivationStore": "store",
    "MixingBuffer": "buffer",
}

__all__ = ["ActivationSource", "ActivationStore", "Batch", "Feed", "HostSource", "MixingBuffer"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
