"""How edits of image hosts are judged: the judge protocol, erasure metrics, and the suite that runs them. Imports load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ground import ImageSuiteConfig
    from .judging import Judge, load_judges, verdicts
    from .suite import Evaluation, evaluate

__all__ = ["Evaluation", "ImageSuiteConfig", "Judge", "evaluate", "load_judges", "verdicts"]
_HOMES = {
    "Evaluation": "suite",
    "ImageSuiteConfig": "ground",
    "Judge": "judging",
    "evaluate": "suite",
    "load_judges": "judging",
    "verdicts": "judging",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
