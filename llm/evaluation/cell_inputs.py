"""What a cell of a grid of erasers is told. Torch-free."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...base.config import from_mapping
from ...base.errors import InputError

if TYPE_CHECKING:
    from ...deactivate.concept import Concept

ROWS = {
    "edited": "edited",
    "base": "identity",
    "gold": "gold",
    "random features": "random features",
    "random directions": "random directions",
}
"""Row of a result -> the state that is attacked; a string filter is no state of a host."""
UNFITTED = ("base", "string filter", "gold")
"""Rows for which nothing is fitted."""


@dataclass(frozen=True)
class ErasureCell:
    """Inputs of a cell that are no mappings."""

    model: str
    """Alias, folder or hub id."""
    concept: str
    """Packaged name or file."""
    eraser: str
    """A name of `efface methods`; with `method` or `row`, what the row is called."""
    method: str = ""
    """A name of `efface methods`, where `eraser` is none."""
    row: Literal["edited", "base", "string filter", "gold", "random features", "random directions"] = "edited"
    """What the figures are of: the edit, one of the controls drawn for it, or a row for which nothing is fitted."""
    sae: str = ""
    """Folder of SAE folders, where the eraser needs them."""
    layers: tuple[int, ...] = ()
    """SAEs of these layers only; empty: all."""
    gated: bool = False
    """Put the edit behind the concept's gate, in the trials too."""
    fpr: float = 0.01
    """False-positive rate of that gate."""
    budget: int = 0
    """Looks at `validation` that a cell may take, so that methods are compared at equal ones; 0: any number."""
    gold: tuple[str, ...] = ()
    """Models that were trained without the concept."""
    fits: str = ""
    """Folder of fits that several cells share (gated or not, drawn controls); empty: the cell's own."""
    split: str = "test"
    """Split that is measured."""
    draws: int = 10
    """Draws of random controls; 0: none."""
    texts: int = 60
    """Neutral and concept texts read, at most."""
    max_tokens: int = 64
    """Tokens read of each."""
    questions: int = 0
    """Questions asked of the concept, and of its neighbours, at most, drawn by lot; 0: all."""
    written: int = 0
    """Texts of the concept whose beginnings each state continues by itself (suite)."""
    reader: str = ""
    """Model that reads them; empty: the unedited host."""
    relearn: tuple[str, ...] = ()
    """Fine-tuning attacks of the suite: full, lora."""
    decoys: bool = True
    """Aim attacks at wrong options too."""
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.row in UNFITTED and (self.method or self.gated):
            raise InputError(f"inputs of the cell: row {self.row!r} is of no edit; leave method and gated out")
        if self.row.startswith("random ") and not self.draws:
            raise InputError(f"inputs of the cell: row {self.row!r} needs draws of at least 1")
        if self.row == "gold" and not self.gold:
            raise InputError("inputs of the cell: row 'gold' needs gold, models that were trained without the concept")
        for name in ("budget", "questions", "draws"):
            if getattr(self, name) < 0:
                raise InputError(f"inputs of the cell: {name} must be at least 0, {getattr(self, name)} found")


def parsed(inputs: Mapping[str, Any]) -> tuple[ErasureCell, dict[str, Any], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The cell, settings of its eraser, trials, attacks.

    Raises:
        InputError: Names the input.
    """
    settings, trials, attacks = (inputs.get(k) or kind() for k, kind in (("set", dict), ("trials", list), ("attacks", dict)))
    if not isinstance(settings, Mapping):
        raise InputError(f"inputs of the cell: set must map settings of the eraser to values, {settings!r} found")
    if not isinstance(trials, list | tuple) or not all(isinstance(t, Mapping) for t in trials):
        raise InputError(f"inputs of the cell: trials must be a list of mappings of settings, {trials!r} found")
    if not isinstance(attacks, Mapping) or not all(isinstance(v or {}, Mapping) for v in attacks.values()):
        raise InputError(f"inputs of the cell: attacks must map attacks to their settings, {attacks!r} found")
    rest = {k: v for k, v in inputs.items() if k not in ("set", "trials", "attacks")}
    cell = from_mapping(ErasureCell, rest, where="inputs of the cell")
    if cell.budget and len(trials) > cell.budget:
        raise InputError(f"inputs of the cell: {len(trials)} trials of {cell.eraser} and a budget of {cell.budget}; drop some")
    return cell, dict(settings), [dict(t) for t in trials], {k: dict(v or {}) for k, v in attacks.items()}


def fewer(concept: "Concept", most: int, seed: int = 0) -> "Concept":
    """The concept with at most so many questions of `validation` and `test`, its own and its neighbours'; 0: as it is."""
    from ..pools import choose

    def cut(pools: "Mapping[str, Sequence[Any]]") -> dict[str, tuple[Any, ...]]:
        return {s: tuple(q if s == "train" else choose(q, most, seed)) for s, q in pools.items()}

    if not most:
        return concept
    return dataclasses.replace(concept, questions=cut(concept.questions), neighbour_questions=cut(concept.neighbour_questions))
