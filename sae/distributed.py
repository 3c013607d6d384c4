"""Data parallel training: what must be global (selection, dead counts, variances, gradients) goes through here.

Every function is the identity in a single process, so that the training code has one form.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from .sparse import row_grad_of


def begin() -> None:
    """Joins the process group of `torchrun` or `accelerate launch`, where there is one and none was joined yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        from accelerate import PartialState

        PartialState()


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if world() > 1 else 0


def barrier() -> None:
    """Waits for all."""
    if world() > 1:
        dist.barrier()


@torch.no_grad()
def all_sum(t: Tensor) -> Tensor:
    """Sum over the processes; without gradient where there are several."""
    if world() == 1:
        return t
    t = t.detach().clone()
    dist.all_reduce(t)
    return t


def all_mean(t: Tensor) -> Tensor:
    """Mean over the processes; without gradient where there are several."""
    return t if world() == 1 else all_sum(t) / world()


def all_max(values: list[int]) -> list[int]:
    """Largest of each number over the processes."""
    if world() == 1:
        return values
    t = torch.tensor(values)
    dist.all_reduce(t, op=dist.ReduceOp.MAX)
    return t.tolist()


def gather_rows(t: Tensor) -> Tensor:
    """The processes' tensors (of one shape) below one another, in their order."""
    if world() == 1:
        return t
    parts = [torch.empty_like(t, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, t.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def average_gradients(params: Iterable[Parameter]) -> None:
    """Mean gradient over the processes, in place, in `grad` and in an attached `RowGrad`."""
    if world() == 1:
        return
    for p in params:
        rows = row_grad_of(p)
        for grad in (p.grad, None if rows is None else rows.dense_()):
            if grad is not None:
                flat = grad if grad.is_contiguous() else grad.T  # W_enc lies transposed
                dist.all_reduce(flat)
                grad /= world()


def gather_values(t: Tensor) -> Tensor:
    """1-D tensors of the processes (lengths may differ) one after the other: what `BatchTopK(k, gather=…)` takes."""
    lengths = all_max([len(t) if rank() == r else 0 for r in range(world())])
    padded = t.new_zeros(max(lengths))
    padded[: len(t)] = t
    parts = gather_rows(padded).view(world(), -1)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
