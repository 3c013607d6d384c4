"""How language edits are judged: question margins, text figures, relearning, controls, and the suite of them all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .relearn import RelearnConfig, RelearnCurve
    from .scoring import Item, Scores, score_questions
    from .suite import SuiteConfig, evaluate
    from .texts import TextFigures, text_figures

__all__ = [
    "Item",
    "RelearnConfig",
    "RelearnCurve",
    "Scores",
    "SuiteConfig",
    "TextFigures",
    "evaluate",
    "score_questions",
    "text_figures",
]
_HOMES = {
    "Item": "scoring",
    "RelearnConfig": "relearn",
    "RelearnCurve": "relearn",
    "Scores": "scoring",
    "SuiteConfig": "suite",
    "TextFigures": "texts",
    "evaluate": "suite",
    "score_questions": "scoring",
    "text_figures": "texts",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
