"""efface: interpret a model with sparse autoencoders, take a concept out of it, and prove what that did.

Heavy modules load on first use: importing this package imports neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "erase"]

if TYPE_CHECKING:
    from .deactivate.erasing import erase


def __getattr__(name: str) -> Any:
    if name == "erase":
        from .deactivate.erasing import erase

        return erase
    raise AttributeError(f"module 'efface' has no attribute {name!r}")
