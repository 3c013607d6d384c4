"""One Adam update of the rows of a matrix, in plain torch or compiled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .backend import even_bounds, run_ranges
from .rowgrad import RowGrad, fits_kernels


@dataclass(frozen=True)
class RowUpdate:
    """The scalars of one step."""

    step_size: float
    """`lr / (1 - beta1 ** t)`."""
    beta1: float
    beta2: float
    root: float
    """`sqrt(1 - beta2 ** t)`."""
    eps: float
    scale: float
    """Factor on the gradient (clipping)."""

    @classmethod
    def at(cls, t: float, lr: float, betas: tuple[float, float], eps: float, scale: float) -> "RowUpdate":
        """The scalars of step `t` (from 1)."""
        beta1, beta2 = betas
        return cls(lr / (1 - beta1**t), beta1, beta2, (1 - beta2**t) ** 0.5, eps, scale)


def squared_norm_and_overlap(weight: Float[Tensor, "m d"], grad: RowGrad, project: bool) -> tuple[float, Tensor | None]:
    """Squared norm of the gradient, and with `project` each row's `g .

    W / |w|^2`, its part along `w` then left out.
    """
    if fits_kernels(weight, grad.rows):
        from .numba_adam import survey_rows

        squares = torch.zeros(len(weight), dtype=torch.float64)
        overlap = weight.new_zeros(len(weight))
        args = (weight, grad.rows, grad.touched)
        arrays = (t.numpy() for t in (*args, squares, overlap))
        run_ranges(survey_rows, even_bounds(len(weight)), project, *arrays)
        return float(squares.sum()), overlap if project else None
    rows = grad.to_dense()
    square = rows.double().pow(2).sum(1)
    if not project:
        return float(square.sum()), None
    along, norm = (rows * weight).double().sum(1), weight.double().pow(2).sum(1)
    safe = torch.where(norm > 0, norm, 1)
    return float((square - along**2 / safe).clamp_min(0).sum()), (along / safe).to(weight.dtype)


def update_rows(
    weight: Float[Tensor, "m d"],
    exp_avg: Float[Tensor, "m d"],
    exp_avg_sq: Float[Tensor, "m d"],
    grad: RowGrad,
    overlap: Float[Tensor, " m"] | None,
    update: RowUpdate,
    unit: bool,
) -> None:
    """Adam in place on `weight` and its moments.

    `overlap` times the weight row is taken off its gradient first.
    """
    if fits_kernels(weight, exp_avg, exp_avg_sq, grad.rows):
        from .numba_adam import adam_rows, scalars

        if overlap is None:
            overlap = weight.new_zeros(len(weight))
        tensors = (weight, exp_avg, exp_avg_sq, grad.rows, grad.touched, overlap)
        arrays = (t.numpy() for t in tensors)
        numbers = scalars(update, weight.numpy().dtype)
        run_ranges(adam_rows, even_bounds(len(weight)), unit, *numbers, *arrays)
        return
    rows = grad.to_dense().to(weight.dtype)
    if overlap is not None:
        rows -= overlap[:, None] * weight
    rows *= update.scale
    exp_avg.lerp_(rows, 1 - update.beta1)
    exp_avg_sq.mul_(update.beta2).addcmul_(rows, rows, value=1 - update.beta2)
    denominator = exp_avg_sq.sqrt().div_(update.root).add_(update.eps)
    weight.addcdiv_(exp_avg, denominator, value=-update.step_size)
    if unit:
        norm = weight.norm(dim=1, keepdim=True)
        weight.div_(torch.where(norm > 0, norm, 1))
