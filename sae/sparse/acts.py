"""Sparse latents of a batch: compressed rows, with their transpose built once and kept.

A row holds the active latents of one vector. The transpose (latent -> vectors in which it is
active) is what makes the weight gradients deterministic: every latent's gradient row is summed by
one thread, in the order of the vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...base.errors import InputError
from .backend import use_numba


@dataclass(frozen=True)
class Transpose:
    """The same active set, grouped by latent."""

    indptr: Int[Tensor, " d_sae_plus_1"]
    """Latent `l` owns entries `indptr[l]:indptr[l + 1]` (int64)."""
    rows: Int[Tensor, " nnz"]
    """Row (vector) of each entry, ascending within a latent (int32)."""
    position: Int[Tensor, " nnz"]
    """Where the entry stands in the row-major arrays (int32)."""


@dataclass(frozen=True, eq=False)
class SparseActs:
    """Latents `[n, d_sae]` as compressed sparse rows.

    Within a row, indices made by this package ascend; functions that consume a `SparseActs` need no
    order, but a row must not name a latent twice. An entry may hold any value, zero included: what
    the selection functions return has none.
    """

    indptr: Int[Tensor, " n_plus_1"]
    """Row `r` owns entries `indptr[r]:indptr[r + 1]` (int64)."""
    indices: Int[Tensor, " nnz"]
    """Latent of each entry (int32; int64 is accepted)."""
    values: Float[Tensor, " nnz"]
    """Value of each entry."""
    d_sae: int
    """Number of latents."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, d_sae)`."""
        return self.indptr.numel() - 1, self.d_sae

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.indices.numel()

    @cached_property
    def rows(self) -> Int[Tensor, " nnz"]:
        """Row of each entry (int64)."""
        n = self.shape[0]
        return torch.repeat_interleave(torch.arange(n, device=self.indptr.device), self.indptr.diff(), output_size=self.nnz)

    @cached_property
    def transpose(self) -> Transpose:
        """The active set grouped by latent: a stable counting sort, computed at first use."""
        if use_numba(self.values):
            from .numba_products import transpose

            return Transpose(*transpose(self.indptr, self.indices, self.d_sae))
        order = torch.argsort(self.indices, stable=True)
        counts = torch.bincount(self.indices, minlength=self.d_sae)
        indptr = torch.zeros(self.d_sae + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=indptr[1:])
        return Transpose(indptr, self.rows[order].int(), order.int())

    @classmethod
    def from_topk(cls, values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], d_sae: int) -> "SparseActs":
        """Rows from the `k` entries of each vector; entries of value zero are dropped."""
        kept = values != 0
        counts = kept.sum(1)
        indptr = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
        torch.cumsum(counts, 0, out=indptr[1:])
        if int(indptr[-1]) == values.numel():
            return cls(indptr, indices.reshape(-1).int(), values.reshape(-1), d_sae)
        return cls(indptr, indices[kept].int(), values[kept], d_sae)

    def with_values(self, values: Float[Tensor, " nnz"]) -> "SparseActs":
        """The same active set with other values (the transpose is shared, not rebuilt)."""
        other = SparseActs(self.indptr, self.indices, values, self.d_sae)
        for name in ("rows", "transpose"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def to_dense(self) -> Float[Tensor, "n d_sae"]:
        """The dense matrix; differentiable in `values`."""
        dense = self.values.new_zeros(self.shape)
        return dense.index_put((self.rows, self.indices.long()), self.values)

    def l0(self) -> float:
        """Mean number of non-zero latents a row (0 for no rows)."""
        n = self.shape[0]
        return int(torch.count_nonzero(self.values)) / n if n else 0.0

    def counts(self) -> Int[Tensor, " d_sae"]:
        """How many rows each latent is active in (int64)."""
        return self.transpose.indptr.diff()

    def keep(self, mask: Bool[Tensor, " nnz"]) -> "SparseActs":
        """Only the entries where `mask` holds."""
        kept = torch.zeros(self.nnz + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(mask, 0, out=kept[1:])
        return SparseActs(kept[self.indptr], self.indices[mask], self.values[mask], self.d_sae)

    def select(self, feature_ids: Sequence[int] | Int[Tensor, " m"]) -> Float[Tensor, "n m"]:
        """Dense columns of the latents `feature_ids`, in the order given (repeats allowed).

        Raises:
            InputError: an id lies outside `[0, d_sae)`.
        """
        ids = torch.as_tensor(feature_ids, dtype=torch.int64, device=self.indices.device)
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.d_sae):
            raise InputError(f"feature_ids must lie in [0, {self.d_sae}); found {int(ids.min())} to {int(ids.max())}")
        wanted, where = torch.unique(ids, return_inverse=True)
        column = torch.full((self.d_sae,), -1, dtype=torch.int64, device=ids.device)
        column[wanted] = torch.arange(len(wanted), device=ids.device)
        columns = column[self.indices.long()]
        hit = columns >= 0
        dense = self.values.new_zeros(self.shape[0], len(wanted))
        dense = dense.index_put((self.rows[hit], columns[hit]), self.values[hit])
        return dense[:, where]

    def select_rows(self, rows: slice | Int[Tensor, " m"]) -> "SparseActs":
        """The rows named by a slice or by int64 positions, in that order."""
        n = self.shape[0]
        device = self.indptr.device
        picked = torch.arange(n, device=device)[rows]
        lengths = self.indptr.diff()[picked]
        indptr = torch.zeros(len(picked) + 1, dtype=torch.int64, device=device)
        torch.cumsum(lengths, 0, out=indptr[1:])
        start = torch.repeat_interleave(self.indptr[picked] - indptr[:-1], lengths)
        source = start + torch.arange(len(start), device=device)
        return SparseActs(indptr, self.indices[source], self.values[source], self.d_sae)

    @classmethod
    def cat(cls, parts: Sequence["SparseActs"]) -> "SparseActs":
        """Stack the rows of several batches of one dictionary.

        Raises:
            InputError: no part, or parts of different `d_sae`.
        """
        widths = sorted({part.d_sae for part in parts})
        if len(widths) != 1:
            raise InputError(f"cat needs parts of one d_sae; found {widths or 'no part'}")
        offset, ends = 0, [parts[0].indptr[:1]]
        for part in parts:
            ends.append(part.indptr[1:] + offset)
            offset += part.nnz
        indices = torch.cat([part.indices for part in parts])
        return cls(torch.cat(ends), indices, torch.cat([p.values for p in parts]), widths[0])

    @classmethod
    def beside(cls, parts: Sequence["SparseActs"]) -> "SparseActs":
        """Join active sets over the same rows.

        Row `r` holds the entries of every part's row `r`, part after part.
        """
        if len(parts) == 1:
            return parts[0]
        indptr = torch.stack([part.indptr for part in parts]).sum(0)
        total = sum(part.nnz for part in parts)
        indices = parts[0].indices.new_empty(total)
        values = parts[0].values.new_empty(total)
        start = indptr[:-1].clone()
        for part in parts:
            target = torch.arange(part.nnz, device=start.device)
            target += (start - part.indptr[:-1])[part.rows]
            indices[target], values[target] = part.indices, part.values
            start += part.indptr.diff()
        return cls(indptr, indices, values, parts[0].d_sae)
