"""The sparse products and their gradients: only active latents are read or written.

With active set S, values `f` and upstream gradient `g`:

- decode: `xhat[r] = sum_{l in S(r)} f[r, l] W_dec[l]`;
- `df[r, l] = g[r] . W_dec[l]`, `dW_dec[l] = sum_{r: l in S(r)} f[r, l] g[r]`;
- encode: `a[r, l] = x[r] . W_enc[:, l] + b_enc[l]`, `dW_enc[:, l] = sum_r da[r, l] x[r]`,
  `db_enc[l] = sum_r da[r, l]`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from .acts import SparseActs, Transpose
from .backend import even_bounds, run_ranges, use_numba, use_triton
from .rowgrad import RowGrad

_GATHER = 2**24
"""Most numbers the plain-torch dot products gather at once."""


def combine(
    acts: SparseActs,
    values: Float[Tensor, " nnz"],
    weights: Float[Tensor, "d_sae d"],
    out: Float[Tensor, "n d"],
) -> Float[Tensor, "n d"]:
    """Add `acts @ weights`, with the given values, to `out` (contiguous), which is returned."""
    n = acts.shape[0]
    if use_numba(values, weights, out):
        from .numba_products import combine_rows

        args = (acts.indptr, acts.indices, values, weights, out)
        run_ranges(combine_rows, even_bounds(n), *(t.numpy() for t in args))
    elif use_triton(values, weights, out):
        from .triton_products import combine_rows

        combine_rows(acts.indptr, acts.indices, values, weights, out)
    elif acts.nnz:
        offsets = acts.indptr.to(acts.indices.dtype)
        out += embedding_bag(
            acts.indices,
            weights,
            offsets,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )
    return out


def dots(by: Transpose, vectors: Float[Tensor, "m d"], weights: Float[Tensor, "d_sae d"]) -> Float[Tensor, " nnz"]:
    """`vectors[r] . weights[l]` for every entry (r, l), in row-major order of the entries."""
    out = vectors.new_empty(len(by.rows))
    if use_numba(vectors, weights):
        from .numba_products import dots_by_latent, latent_bounds

        ptr = by.indptr.numpy()
        args = (by.rows, by.position, vectors, weights, out)
        run_ranges(dots_by_latent, latent_bounds(ptr), ptr, *(t.numpy() for t in args))
        return out
    if use_triton(vectors, weights):
        from .triton_products import dots_by_latent

        dots_by_latent(by.indptr, by.rows, by.position, vectors, weights, out)
        return out
    latents = torch.arange(len(weights), device=out.device).repeat_interleave(by.indptr.diff())
    step = max(1, _GATHER // max(1, vectors.shape[1]))
    for lo in range(0, len(out), step):
        part = slice(lo, lo + step)
        products = vectors[by.rows[part].long()] * weights[latents[part]]
        out[by.position[part].long()] = products.sum(1)
    return out


def scatter(
    by: Transpose,
    values: Float[Tensor, " nnz"],
    vectors: Float[Tensor, "m d"],
    into: RowGrad,
) -> Float[Tensor, " d_sae"]:
    """Add `sum of values * vectors[r]` over the entries (r, l) into row `l`.

    Returns each latent's sum of values.
    """
    sums = values.new_zeros(len(into.rows))
    if use_numba(values, vectors, into.rows):
        from .numba_products import latent_bounds, scatter_by_latent

        ptr = by.indptr.numpy()
        args = (by.rows, by.position, values, vectors, into.rows, into.touched, sums)
        run_ranges(scatter_by_latent, latent_bounds(ptr), ptr, *(t.numpy() for t in args))
        return sums
    if use_triton(values, vectors, into.rows):
        from .triton_products import scatter_by_latent

        scatter_by_latent(by.indptr, by.rows, by.position, values, vectors, into.touched, into.rows)
        # A sum of each latent's values is the product with vectors of one column, all 1.
        ones, marks = torch.ones_like(vectors[:, :1]), torch.zeros_like(into.touched)
        scatter_by_latent(by.indptr, by.rows, by.position, values, ones, marks, sums[:, None])
        return sums
    active = by.indptr.diff() > 0
    if not active.any():
        return sums
    ordered = values[by.position.long()]
    offsets = by.indptr[:-1][active].to(by.rows.dtype)
    found = embedding_bag(by.rows, vectors, offsets, mode="sum", per_sample_weights=ordered)
    found += torch.where(into.touched[active][:, None], into.rows[active], 0)
    into.rows[active] = found
    into.touched |= active
    ones = torch.ones_like(vectors[:, :1])
    total = embedding_bag(by.rows, ones, offsets, mode="sum", per_sample_weights=ordered)
    sums[active] = total[:, 0]
    return sums
