"""The three ways to choose active latents.

The k largest of a vector, of a batch, or all above a threshold.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d

from ...base.errors import InputError
from .acts import SparseActs
from .backend import even_bounds, run_ranges, use_numba
from .select import gather_columns


class TopK:
    """The `k` largest positive pre-activations of each vector.

    Of equal ones the latent of lower index.

    Args:
        k: how many at most; a vector with fewer positive pre-activations has fewer latents.
        among: only these latents compete (int64, ascending; for AuxK: the dead ones). `None`: all.
    """

    def __init__(self, k: int, among: Int[Tensor, " m"] | None = None) -> None:
        if k < 1:
            raise InputError(f"k must be at least 1; found {k}")
        self.k, self.among = k, among

    def start(self, n: int, d_sae: int, like: Tensor) -> None:
        """Make the running top k of `n` vectors."""
        self.d_sae = d_sae
        self.pool = d_sae if self.among is None else len(self.among)
        k = min(self.k, self.pool)
        self.values = like.new_zeros(n, k)
        self.indices = torch.zeros(n, k, dtype=torch.int32, device=like.device)
        self.counts = torch.zeros(n, dtype=torch.int64, device=like.device)

    def update(self, pre: Tensor, bias: Tensor, row: int, column: int) -> None:
        """Merge one block into the running top k."""
        if self.among is not None:
            ends = torch.tensor([column, column + pre.shape[1]], device=self.among.device)
            first, last = torch.searchsorted(self.among, ends).tolist()
            pre, bias = gather_columns(pre, bias, self.among[first:last] - column)
            column = first
        if 0 in pre.shape:
            return
        rows = slice(row, row + len(pre))
        state = self.values[rows], self.indices[rows], self.counts[rows]
        (_merge_numba if use_numba(pre, bias) else _merge_torch)(pre, bias, column, *state)

    def finish(self) -> SparseActs:
        """Compress the running top k to rows without zeros."""
        indices = self.indices
        if self.among is not None and indices.numel():
            indices = self.among[indices.long()]
        return SparseActs.from_topk(self.values, indices, self.d_sae)


def _classes(width: int, k: int) -> int:
    """Classes to split `width` columns into: some 4k, so that few reach the bound.

    0 where that prunes nothing.
    """
    depth = min(width // (4 * k), 64)
    return width // depth if depth > 1 else 0


def _merge_numba(pre: Tensor, bias: Tensor, column: int, values: Tensor, indices: Tensor, counts: Tensor) -> None:
    from .numba_select import topk_rows

    classes = _classes(pre.shape[1], values.shape[1])
    state = (t.numpy() for t in (values, indices, counts))
    bounds = even_bounds(len(pre))
    run_ranges(topk_rows, bounds, pre.numpy(), bias.numpy(), column, classes, *state)


def _merge_torch(pre: Tensor, bias: Tensor, column: int, values: Tensor, indices: Tensor, counts: Tensor) -> None:
    k = values.shape[1]
    dense = pre + bias
    best = _first_of_topk(dense, min(k, dense.shape[1]))
    both_values = torch.cat([values, dense.gather(1, best).clamp_min(0)], 1)
    both_indices = torch.cat([indices, (best + column).int()], 1)
    best = _first_of_topk(both_values, k)
    values.copy_(both_values.gather(1, best))
    indices.copy_(both_indices.gather(1, best))
    counts.copy_((values > 0).sum(1))


def _first_of_topk(a: Float[Tensor, "n m"], k: int) -> Int[Tensor, "n k"]:
    """Positions of the `k` largest of each row, ascending.

    Of equal ones the first (`torch.topk` promises none).
    """
    found = a.topk(k, dim=1)
    kth = found.values[:, -1:]
    tied = (a >= kth).sum(1) > k
    positions = found.indices
    if tied.any():
        some = a[tied]
        above, equal = some > kth[tied], some == kth[tied]
        equal &= equal.cumsum(1) <= k - above.sum(1, keepdim=True)
        positions[tied] = (above | equal).nonzero()[:, 1].view(-1, k)
    return positions.sort(dim=1).values


class Threshold:
    """Every latent whose pre-activation, its value here, exceeds a threshold (one, or one each)."""

    def __init__(self, threshold: float | Tensor) -> None:
        self.threshold = threshold

    def start(self, n: int, d_sae: int, like: Tensor) -> None:
        """Bring the thresholds to one a latent."""
        threshold = torch.as_tensor(self.threshold, dtype=like.dtype, device=like.device).detach()
        if threshold.shape not in ((), (d_sae,)):
            raise InputError(f"threshold must be a number or of shape [{d_sae}] (d_sae); found {tuple(threshold.shape)}")
        self.n, self.d_sae, self.limits = n, d_sae, threshold.expand(d_sae).contiguous()
        self.like = like.new_empty(0)
        self.blocks: dict[int, list[SparseActs]] = {}

    def update(self, pre: Tensor, bias: Tensor, row: int, column: int) -> None:
        """Take what exceeds the thresholds in one block."""
        limits = self.limits[column : column + pre.shape[1]]
        self.blocks.setdefault(row, []).append(above(pre, bias, limits, column, self.d_sae))

    def finish(self) -> SparseActs:
        """Join the blocks."""
        return _join(self.blocks, self.d_sae, self.like)


def _join(blocks: dict[int, list[SparseActs]], d_sae: int, like: Tensor) -> SparseActs:
    if not blocks:
        empty = torch.zeros(1, dtype=torch.int64, device=like.device)
        return SparseActs(empty, empty[:0].int(), like[:0], d_sae)
    rows = [SparseActs.beside(parts) for parts in blocks.values()]
    return rows[0] if len(rows) == 1 else SparseActs.cat(rows)


def above(
    pre: Float[Tensor, "n width"],
    bias: Float[Tensor, " width"],
    limits: Float[Tensor, " width"],
    column: int,
    d_sae: int,
) -> SparseActs:
    """Entries of `pre + bias` that exceed `limits`; the block's first column is latent `column`."""
    n = len(pre)
    indptr = torch.zeros(n + 1, dtype=torch.int64, device=pre.device)
    if not use_numba(pre, bias, limits):
        dense = pre + bias
        mask = dense > limits
        torch.cumsum(mask.sum(1), 0, out=indptr[1:])
        return SparseActs(indptr, (mask.nonzero()[:, 1] + column).int(), dense[mask], d_sae)
    from .numba_select import take_above

    counts = torch.empty(n, dtype=torch.int64)
    block = (t.numpy() for t in (pre, bias, limits))
    parts = run_ranges(take_above, even_bounds(n), *block, column, counts.numpy())
    torch.cumsum(counts, 0, out=indptr[1:])
    values, indices = (torch.cat([torch.from_numpy(part[i]) for part in parts]) for i in range(2))
    return SparseActs(indptr, indices, values, d_sae)


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
        acts = _join(self.blocks, self.d_sae, self.like)
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
    classes = _classes(width, max(1, budget // n))
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
