"""Pages that a person reads: an SAE's features, concepts, edits and results as one HTML file, or served on this machine."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .page import render_page, write_page
    from .prompts import PromptReader
    from .server import serve
    from .site import Site
    from .stores import StoreView

_WHERE = {
    "PromptReader": "prompts",
    "Site": "site",
    "StoreView": "stores",
    "render_page": "page",
    "serve": "server",
    "write_page": "page",
}
__all__ = ["PromptReader", "Site", "StoreView", "render_page", "serve", "write_page"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
