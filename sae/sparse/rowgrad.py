"""Weight gradients of which most rows may be zero.

One reused buffer and a mark for each row that was written.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...base.errors import InputError
from .backend import use_numba

_NAME = "row_grad"


class RowGrad:
    """Gradient of a weight whose rows are latents.

    `rows[l]` means something only where `touched[l]`; the other rows are zero, whatever the buffer
    holds. The sparse products add into it instead of returning a gradient, so that no `[d_sae, d]`
    matrix is allocated, cleared, or summed in a step.
    """

    def __init__(self, like: Float[Tensor, "d_sae d"]) -> None:
        # not zeros: the system gives memory where a row is first written
        self.rows: Float[Tensor, "d_sae d"] = torch.empty_like(like, memory_format=torch.contiguous_format, requires_grad=False)
        self.touched: Bool[Tensor, " d_sae"] = torch.zeros(len(like), dtype=torch.bool, device=like.device)

    @classmethod
    def from_dense(cls, rows: Float[Tensor, "d_sae d"]) -> "RowGrad":
        """A gradient whose rows are all touched; shares the memory of `rows` (contiguous)."""
        grad = cls(rows[:0])
        grad.rows = rows
        grad.touched = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        return grad

    def clear_(self) -> "RowGrad":
        """Make every row zero (without writing to it)."""
        self.touched.zero_()
        return self

    def dense_(self) -> Float[Tensor, "d_sae d"]:
        """Write out the zero rows, mark all rows, and return the buffer.

        For an all-reduce in place.
        """
        self.rows[~self.touched] = 0
        self.touched.fill_(True)
        return self.rows

    def to_dense(self) -> Float[Tensor, "d_sae d"]:
        """The gradient as a new dense tensor."""
        return torch.where(self.touched[:, None], self.rows, 0)


def attach_row_grad(weight: torch.nn.Parameter) -> RowGrad:
    """Let the sparse products write the gradient of `weight` into a `RowGrad`.

    Found as `weight.row_grad`.

    `weight.grad` then stays `None` for what goes through them; `FusedAdam` reads the `RowGrad` (and
    adds `weight.grad` where other operations made one), and its `zero_grad` clears it. Latents are
    the rows of the storage: `W_dec` as it is, `W_enc` as its contiguous transpose.

    Raises:
        InputError: neither `weight` nor its transpose is contiguous.
    """
    grad = RowGrad(latent_rows(weight.detach()))
    setattr(weight, _NAME, grad)
    return grad


def detach_row_grad(weight: torch.nn.Parameter) -> None:
    """Undo `attach_row_grad`: gradients arrive in `weight.grad` again."""
    if row_grad_of(weight) is not None:
        delattr(weight, _NAME)


def row_grad_of(weight: Tensor) -> RowGrad | None:
    """The attached `RowGrad`, if any."""
    return getattr(weight, _NAME, None)


def latent_rows(weight: Float[Tensor, "a b"]) -> Float[Tensor, "d_sae d"]:
    """`weight` or its transpose, whichever has contiguous rows.

    Raises:
        InputError: neither has.
    """
    for rows in (weight, weight.T):
        if rows.is_contiguous():
            return rows
    raise InputError(
        f"a weight of shape {tuple(weight.shape)} and strides {weight.stride()} has no contiguous "
        "rows; build W_enc as torch.empty(d_sae, d_in).T"
    )


def fits_kernels(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can take these weights.

    Dtype and device, and rows that lie together.
    """
    return use_numba(*tensors) and all(tensor.is_contiguous() for tensor in tensors)
