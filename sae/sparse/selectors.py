"""The three ways to choose active latents.

The k largest of a vector, of a batch, or all above a threshold.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

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


def classes_of(width: int, k: int) -> int:
    """Classes to split `width` columns into: some 4k, so that few reach the bound.

    0 where that prunes nothing.
    """
    depth = min(width // (4 * k), 64)
    return width // depth if depth > 1 else 0


def _merge_numba(pre: Tensor, bias: Tensor, column: int, values: Tensor, indices: Tensor, counts: Tensor) -> None:
    from .numba_select import topk_rows

    classes = classes_of(pre.shape[1], values.shape[1])
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
        return join(self.blocks, self.d_sae, self.like)


def join(blocks: dict[int, list[SparseActs]], d_sae: int, like: Tensor) -> SparseActs:
    """Blocks by first row, each a list of its column ranges, as one."""
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
