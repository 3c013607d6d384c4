"""How language edits are judged: question margins, text figures, relearning, controls, and the suite that puts them in one result."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ... import __version__ as _version

if TYPE_CHECKING:
    from .relearn import RelearnCurve, relearn
    from .scoring import Item, Scores, score_questions
    from .suite import evaluate
    from .texts import TextFigures, text_figures

__all__ = ["Item", "RelearnCurve", "Scores", "TextFigures", "evaluate", "relearn", "score_questions", "text_figures"]
_HOMES = {
    "Item": "scoring",
    "RelearnCurve": "relearn",
    "Scores": "scoring",
    "TextFigures": "texts",
    "evaluate": "suite",
    "relearn": "relearn",
    "score_questions": "scoring",
    "text_figures": "texts",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value  # over the module of the same name
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
