"""The hosts that edits lie on, for type checkers, and their packaged pools: this package loads neither kind before it is asked."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..llm.host import Host as LanguageHost
    from ..t2i.host import ImageHost
    from .concept import Concept

    Host = LanguageHost | ImageHost

_POOLS = {False: "llm.pools", True: "t2i.pools"}
"""Whether it is an image host -> module of the general pool."""


def general_texts(host: "Host", concept: "Concept", split: str) -> list[str]:
    """The concept's general texts of a split; where its file has none at all, those of the host's packaged pool."""
    if any(concept.general.values()):
        return list(concept.general.get(split, ()))
    image = bool(getattr(host, "selective", False))
    root = (__package__ or "efface.deactivate").rpartition(".")[0]
    pools = import_module(f"{root}.{_POOLS[image]}")
    return list(pools.with_general(concept).general[split]) if image else pools.general_texts(concept, split)
