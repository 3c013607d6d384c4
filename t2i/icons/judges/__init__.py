"""Judges of the embedded miniature: object, style, flag and mark, in two copies of different architecture and data."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .judge import HeadJudge, IconJudge, load, load_judge

__all__ = ["HeadJudge", "IconJudge", "load", "load_judge"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import judge

        return getattr(judge, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
