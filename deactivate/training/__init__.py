"""The one training loop that every fine-tuning eraser uses."""

from typing import TYPE_CHECKING, Any

from .config import LoopConfig

__all__ = ["LoopConfig", "LoopResult", "fit_loop", "lr_factor"]

if TYPE_CHECKING:
    from .loop import LoopResult, fit_loop, lr_factor


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
