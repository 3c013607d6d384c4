"""Concepts, edits and their parts, the ledger, the gate, the registry of erasers. Imports load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as _version

if TYPE_CHECKING:
    from .any_gate import load_gate
    from .change_gate import ChangeGate
    from .concept import Concept, Question, packaged_concepts
    from .edit import Edit
    from .erasing import erase
    from .export import export_edit
    from .gate import Gate, GateSource, calibrate
    from .layer import DeactivationPart
    from .ledger import apply_edits, undo_edits
    from .parts import Dense, LowRank, Part, ProjectionPart, WeightsPart
    from .registry import Method, method, methods, register
    from .stepwise import StepFeatures, StepwisePart

__version__ = _version
_HOMES = {
    "ChangeGate": "change_gate",
    "Concept": "concept",
    "DeactivationPart": "layer",
    "Dense": "parts",
    "Edit": "edit",
    "Gate": "gate",
    "GateSource": "gate",
    "LowRank": "parts",
    "Method": "registry",
    "Part": "parts",
    "ProjectionPart": "parts",
    "Question": "concept",
    "StepFeatures": "stepwise",
    "StepwisePart": "stepwise",
    "WeightsPart": "parts",
    "apply_edits": "ledger",
    "calibrate": "gate",
    "erase": "erasing",
    "export_edit": "export",
    "load_gate": "any_gate",
    "method": "registry",
    "methods": "registry",
    "packaged_concepts": "concept",
    "register": "registry",
    "undo_edits": "ledger",
}
__all__ = [
    "ChangeGate",
    "Concept",
    "DeactivationPart",
    "Dense",
    "Edit",
    "Gate",
    "GateSource",
    "LowRank",
    "Method",
    "Part",
    "ProjectionPart",
    "Question",
    "StepFeatures",
    "StepwisePart",
    "WeightsPart",
    "apply_edits",
    "calibrate",
    "erase",
    "export_edit",
    "load_gate",
    "method",
    "methods",
    "packaged_concepts",
    "register",
    "undo_edits",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
