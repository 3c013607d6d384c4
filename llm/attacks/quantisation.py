"""Quantisation round trips (L6): the weights that stand after the edit, rounded to a coarse grid and back.

Source: Catastrophic Failure of LLM Unlearning via Quantization (Zhang et al., arXiv:2410.16454): round to nearest. An edit whose
changes are smaller than half a step of the grid is undone by it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...base.errors import InputError, MatchedNothing
from .answering import answers, outcome
from .config import QuantisationConfig
from .protocol import AttackResult, Cost, Level

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host


def quantised(weight: Float[Tensor, "o i"], bits: int, group: int = 0) -> Float[Tensor, "o i"]:
    """Rounded to a grid: s * round(w / s), s = max|w| / (2^(bits-1) - 1) of a row, or of each `group` entries of it; in the dtype of `weight`.

    Idempotent up to rounding. A row of zeros stays one.

    Raises:
        InputError: Bits outside 2 to 16.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"quantisation: bits must lie between 2 and 16, {bits} found")
    rows, width = weight.shape
    size = group or width
    padded = nn.functional.pad(weight.detach().double(), (0, -width % size)).reshape(rows, -1, size)
    top = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(-1, keepdim=True) / top
    grid = torch.where(scale > 0, scale * torch.round(padded / scale.where(scale > 0, torch.ones_like(scale))), padded)
    return grid.reshape(rows, -1)[:, :width].to(weight.dtype)


@contextmanager
def quantise(host: "Host", bits: int, group: int = 0) -> Iterator[dict[str, float]]:
    """Every matrix of attention and MLPs on the grid while the block runs, each output channel with its scale; then as before, to the bit.

    Yields:
        Parameter -> largest absolute change of an entry.
    """
    matrices = _matrices(host)
    before = {n: p.detach().clone() for n, p in matrices.items()}
    try:
        moved: dict[str, float] = {}
        with torch.no_grad():
            for name, p in matrices.items():
                rows = p.T if host.family.transposed else p
                new = quantised(rows, bits, group)
                p.copy_(new.T if host.family.transposed else new)
                moved[name] = float((p - before[name]).abs().max())
        yield moved
    finally:
        with torch.no_grad():
            for name, p in matrices.items():
                p.copy_(before[name])


def _matrices(host: "Host") -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for role in ("attention", "up_proj", "gate_proj", "down_proj"):
        try:
            found |= host.weights(role)
        except MatchedNothing:  # the family has no matrices of that role
            continue
    return found


@dataclass(frozen=True)
class Quantisation:
    """The attack; one variant a number of bits."""

    config: QuantisationConfig = field(default_factory=QuantisationConfig)

    @property
    def name(self) -> str:
        """`quantisation`."""
        return "quantisation"

    @property
    def level(self) -> Level:
        """L6: the attacker has the weights and changes them."""
        return "L6"

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`; `found` has the largest change of an entry by variant.

        Raises:
            InputError: An edit behind a gate, whose weights are put on prompt by prompt.
        """
        from ..evaluation.suite import applied

        if gated := [e.name for e in edits if e.gate is not None]:
            raise InputError(f"quantisation: {', '.join(gated)} lies behind a gate and has no weights of its own to round")
        begun = time.perf_counter()
        questions = concept.require("questions", split)
        hits: dict[str, list[bool]] = {}
        moved: dict[str, float] = {}
        with applied(host, edits):
            before = answers(host, questions, concept.form)
            for bits in self.config.bits:
                with quantise(host, bits, self.config.group) as changes:
                    hits[f"int{bits}"] = answers(host, questions, concept.form)
                moved[f"int{bits}"] = max(changes.values())
        cost = Cost(seconds=time.perf_counter() - begun)
        return outcome(self.name, self.level, before, hits, cost, {"largest change": moved})
