"""Dense Adam in one pass over memory, aware of gradients of which most rows are zero.

The result is that of `torch.optim.Adam` (*Adam: A Method for Stochastic Optimization*, Kingma and
Ba, 2015, Alg. 1) to rounding: a row without gradient is not skipped, it decays its moments and
moves by them. What is saved is the memory traffic: gradients of such rows are neither written nor
read, and clipping, projection and normalisation of decoder rows happen while a row is in the cache.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...base.errors import InputError
from .adam_rows import RowUpdate, squared_norm_and_overlap, update_rows
from .rowgrad import RowGrad, latent_rows, row_grad_of


class FusedAdam(torch.optim.Optimizer):
    """Adam whose state and `state_dict` have the form of `torch.optim.Adam`'s.

    Args:
        params: parameters or groups. A group may set `unit_rows` and `remove_parallel` (see below)
            for its matrices.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        max_norm: clip the gradient to this global norm over all groups, as `clip_grad_norm_` does;
            `None`: no clipping.
        unit_rows: scale each latent's row to unit norm after the step (rows of zeros stay).
        remove_parallel: before clipping, remove from each latent's gradient row its component along
            the weight row.

    After a step `grad_norm` holds the global norm before clipping if `max_norm` is set, else
    `None`.

    Raises:
        InputError: a hyperparameter out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_norm: float | None = None,
        unit_rows: bool = False,
        remove_parallel: bool = False,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"lr and eps must be >= 0 and betas in [0, 1); found {lr=}, {eps=}, {betas=}")
        if max_norm is not None and max_norm <= 0:
            raise InputError(f"max_norm must be > 0, or None for no clipping; found {max_norm}")
        defaults = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "unit_rows": unit_rows, "remove_parallel": remove_parallel})
        self.max_norm = max_norm
        self.grad_norm: Tensor | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, those in a `RowGrad` included."""
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for param in group["params"]:
                if (grad := row_grad_of(param)) is not None:
                    grad.clear_()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A parameter without any gradient is left alone.

        One with an attached `RowGrad` always takes part.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(param, grad, group) for group in self.param_groups for param in group["params"] if (grad := _gradient(param)) is not None]
        overlaps, scale = self._survey(work)
        for (param, grad, group), overlap in zip(work, overlaps, strict=True):
            self._update(param, grad, group, overlap, scale)
        return loss

    def _survey(self, work: list[tuple[Tensor, RowGrad, dict]]) -> tuple[list[Tensor | None], float]:
        """Per parameter the rows' overlap with their gradient.

        And the factor that clips the whole gradient.
        """
        self.grad_norm = None
        overlaps: list[Tensor | None] = []
        total = 0.0
        for param, grad, group in work:
            project = group["remove_parallel"] and param.dim() == 2
            overlap = None
            if project or self.max_norm is not None:
                square, overlap = squared_norm_and_overlap(_rows_of(param), grad, project)
                total += square
            overlaps.append(overlap)
        if self.max_norm is None:
            return overlaps, 1.0
        self.grad_norm = torch.tensor(total**0.5, dtype=torch.float64)
        return overlaps, min(1.0, self.max_norm / (total**0.5 + 1e-6))

    def _update(self, param: Tensor, grad: RowGrad, group: dict, overlap: Tensor | None, scale: float) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].stride() != param.stride():
                state[name] = torch.empty_like(param).copy_(state[name])
        state["step"] += 1
        update = RowUpdate.at(float(state["step"]), float(group["lr"]), group["betas"], group["eps"], scale)
        moments = _rows_of(state["exp_avg"]), _rows_of(state["exp_avg_sq"])
        unit = group["unit_rows"] and param.dim() == 2
        update_rows(_rows_of(param), *moments, grad, overlap, update, unit)


def _rows_of(tensor: Tensor) -> Tensor:
    """The tensor's memory as a matrix: latents' rows of a weight, one row for anything else."""
    tensor = tensor.detach()
    if tensor.dim() == 2:
        return latent_rows(tensor)
    return tensor.view(1, -1)


def _gradient(param: Tensor) -> RowGrad | None:
    """What both `param.grad` and an attached `RowGrad` hold, as a `RowGrad`."""
    rows, dense = row_grad_of(param), param.grad
    if dense is None:
        return rows
    like = _rows_of(param)
    transposed = param.dim() == 2 and not param.is_contiguous()
    dense = (dense.T if transposed else dense).reshape(like.shape).contiguous()
    if rows is not None:
        rows.dense_().add_(dense)
        param.grad = None
        return rows
    return RowGrad.from_dense(dense)
