"""What random controls of both kinds of host share: directions drawn anew at the same norms, and the edit that holds a control."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..edit import Edit
from ..parts import ProjectionPart

if TYPE_CHECKING:
    from ..any_gate import AnyGate
    from ..parts import Part


def redrawn(columns: Float[Tensor, "d r"], gen: torch.Generator) -> Float[Tensor, "d r"]:
    """Gaussian columns with the norms of `columns`."""
    new = torch.randn(columns.shape, generator=gen, dtype=torch.float64)
    return (new * (columns.double().cpu().norm(dim=0) / new.norm(dim=0))).to(columns)


def random_projection(part: ProjectionPart, gen: torch.Generator) -> ProjectionPart:
    """An orthogonal projection at the same hook point, about the same point, of equal rank on random directions."""
    d, r = part.left.shape
    basis = torch.linalg.qr(torch.randn(d, r, generator=gen, dtype=torch.float64))[0].to(part.left)
    return ProjectionPart(part.hook_point, basis, basis.T.contiguous(), part.bias, part.portability, part.reach)


def control_edit(parts: "Sequence[Part]", name: str, seed: int, gate: "AnyGate | None" = None) -> Edit:
    """The draw of a control as an edit, behind the gate of the edit that it stands for."""
    return Edit(
        parts=parts,
        eraser="control",
        config={"control": name, "seed": seed},
        evidence={"control": name},
        seeds={"control": seed},
        gate=gate,
    )
