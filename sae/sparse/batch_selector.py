"""BatchTopK: the largest pre-activations of a whole batch, in few passes over blocks that are only lent.

BatchTopK Sparse Autoencoders (Bussmann et al., 2024).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool1d

from ...base.errors import InputError
from .acts import SparseActs
from .backend import even_bounds, run_ranges, use_numba
from .selectors import above, classes_of, join

GUESS_ROWS, GUESS_MARGIN = 64, 1.25
"""Rows that a guess is made from, and how many times the wanted share it should let through."""


class TooFew(Exception):
    """A daring selection let too little through."""


class BatchTopK:
    """The `k * n` largest positive pre-activations of the whole batch of `n` vectors.

    Of values equal to the smallest kept one, those of the earlier vector, then of the lower latent,
    are kept.

    Args:
        k: latents a vector on average, at most.
        gather: for data parallel training: takes a 1-D tensor and returns those of all processes,
            one after the other (lengths differ). The selection is then that of the global batch,
            but every value equal to the smallest kept one stays, so that the processes need not
            agree on an order.
        daring: take the first block's word for what the later ones hold: one pass over each block. `finish` raises
            `TooFew` where that was wrong; then run it again without.
    """

    def __init__(self, k: int, gather: Callable[[Tensor], Tensor] | None = None, *, daring: bool = False) -> None:
        if k < 1:
            raise InputError(f"k must be at least 1; found {k}")
        self.k, self.gather, self.daring = k, gather, daring

    def start(self, n: int, d_sae: int, like: Tensor) -> None:
        """Fix how many entries the whole batch keeps."""
        self.n, self.d_sae, self.like, self.edge = n, d_sae, like.new_empty(0), 0.0
        self.guess: float | None = None
        self.budget = self.k * n
        if self.gather is not None:
            self.budget = int(self.gather(torch.tensor([self.budget], device=like.device)).sum())
        self.blocks: dict[int, list[SparseActs]] = {}
        self.found = 0

    def update(self, pre: Tensor, bias: Tensor, row: int, column: int) -> None:
        """Take the entries of one block that can still be among the largest."""
        part = self._likely(pre, bias)
        if part is None:
            self.edge = max(self.edge, _lower_bound(pre, bias, self.budget))
            part = above(pre, bias, torch.full_like(bias, _below(self.edge, bias.dtype)), column, self.d_sae)
        self.blocks.setdefault(row, []).append(part)
        self.found += part.nnz
        if self.found > 4 * self.budget:
            self._prune()

    def _likely(self, pre: Tensor, bias: Tensor) -> SparseActs | None:
        """What exceeds an edge guessed from some rows, in one pass; None where it must be bounded properly.

        A guess is proven by the count: if the whole batch holds `budget` entries at or above it, none below is wanted.
        """
        whole = self.gather is None and pre.shape[1] == self.d_sae
        if not whole or not (self.daring or len(pre) == self.n):
            return None
        if self.guess is None:
            rows = pre[:: max(1, len(pre) // GUESS_ROWS)]
            wanted = min(int(GUESS_MARGIN * self.k * len(rows)), rows.numel())
            guess = kth_of((rows + bias).reshape(-1), wanted)
            if guess <= 0:
                return None
            self.guess = self.edge = max(self.edge, guess)
        part = above(pre, bias, torch.full_like(bias, _below(self.edge, bias.dtype)), 0, self.d_sae)
        if len(pre) == self.n and part.nnz < self.budget:
            self.guess, self.edge = None, 0.0
            return None
        return part

    def _prune(self) -> None:
        """Raise the edge to the budget's smallest value so far and forget what lies below it."""
        values = torch.cat([part.values for parts in self.blocks.values() for part in parts])
        self.edge = kth_of(values, self.budget)
        for row, parts in self.blocks.items():
            self.blocks[row] = [part.keep(part.values >= self.edge) for part in parts]
        self.found = sum(part.nnz for parts in self.blocks.values() for part in parts)

    def finish(self) -> SparseActs:
        """Cut the candidates down to the budget."""
        acts = join(self.blocks, self.d_sae, self.like)
        values = acts.values
        if self.guess is not None and int((values >= self.guess).sum()) < self.budget:
            raise TooFew
        if self.gather is not None:
            local = min(self.budget, len(values))
            values = self.gather(values[values >= kth_of(values, local)] if local else values)
        if len(values) <= self.budget:
            return acts
        edge = kth_of(values, self.budget)
        mask, ties = acts.values > edge, acts.values == edge
        if self.gather is None:
            ties &= torch.cumsum(ties, 0) <= self.budget - mask.sum()
        return acts.keep(mask | ties)


def _below(edge: float, dtype: torch.dtype) -> float:
    """The next number under `edge`, but never under 0.

    So `v > _below(edge)` means `v >= edge and v > 0`.
    """
    here = torch.tensor(edge, dtype=dtype)
    return max(0.0, float(torch.nextafter(here, here.new_tensor(-torch.inf))))


def kth_of(values: Float[Tensor, " m"], k: int) -> float:
    """The `k`-th largest of `values` (from 1)."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        import numpy as np

        place = len(values) - k
        return float(np.partition(values.numpy(), place)[place])
    return float(values.topk(k).values[-1])


def _lower_bound(pre: Tensor, bias: Tensor, budget: int) -> float:
    """A number that at least `budget` entries reach.

    The budget-th largest maximum of a class of entries.
    """
    n, width = pre.shape
    classes = classes_of(width, max(1, budget // n))
    if n * classes < budget:
        return 0.0
    if use_numba(pre, bias):
        from .numba_select import maxima_rows

        maxima = pre.new_empty(n, classes)
        arrays = (t.numpy() for t in (pre, bias, maxima))
        run_ranges(maxima_rows, even_bounds(n), *arrays)
    else:
        maxima = max_pool1d((pre + bias).unsqueeze(1), width // classes)
    return max(0.0, kth_of(maxima.reshape(-1), budget))
