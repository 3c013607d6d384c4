"""Compiled sparse products. Imported only where numba is in use.

Every output row is summed by one thread in a fixed order, so results do not depend on the number of
threads. Four rows are taken at a time: one read and write of the accumulator for four
multiply-adds.
"""

import numpy as np
import torch

from .numba_select import jit


@jit
def _counting_sort(rows_ptr, columns, ptr, rows, position):
    n = rows_ptr.shape[0] - 1
    for j in range(columns.shape[0]):
        ptr[columns[j] + 1] += 1
    for c in range(ptr.shape[0] - 1):
        ptr[c + 1] += ptr[c]
    following = ptr[:-1].copy()
    for r in range(n):
        for j in range(rows_ptr[r], rows_ptr[r + 1]):
            place = following[columns[j]]
            following[columns[j]] = place + 1
            rows[place] = r
            position[place] = j


def transpose(indptr, indices, d_sae):
    """Stable counting sort of compressed rows by column.

    `(indptr, rows, position)` as torch tensors.
    """
    ptr = torch.zeros(d_sae + 1, dtype=torch.int64)
    rows, position = torch.empty(2, len(indices), dtype=torch.int32)
    args = (t.numpy() for t in (indptr, indices, ptr, rows, position))
    _counting_sort(*args)
    return ptr, rows, position


@jit
def _add4(out, v0, w0, v1, w1, v2, w2, v3, w3):
    for t in range(out.shape[0]):
        out[t] += v0 * w0[t] + v1 * w1[t] + v2 * w2[t] + v3 * w3[t]


@jit
def _add1(out, v, w):
    for t in range(out.shape[0]):
        out[t] += v * w[t]


@jit
def combine_rows(indptr, indices, values, weights, out, lo, hi):
    """`out[r] += sum of values[j] * weights[indices[j]]` over the entries `j` of row `r`.

    For rows `lo:hi`.
    """
    for r in range(lo, hi):
        acc = out[r]
        j, end = indptr[r], indptr[r + 1]
        while j + 4 <= end:
            _add4(
                acc,
                values[j],
                weights[indices[j]],
                values[j + 1],
                weights[indices[j + 1]],
                values[j + 2],
                weights[indices[j + 2]],
                values[j + 3],
                weights[indices[j + 3]],
            )
            j += 4
        while j < end:
            _add1(acc, values[j], weights[indices[j]])
            j += 1


@jit
def _dot(a, b):
    total = a.dtype.type(0)
    for t in range(a.shape[0]):
        total += a[t] * b[t]
    return total


@jit
def _dot4(a, b0, b1, b2, b3):
    s0 = s1 = s2 = s3 = a.dtype.type(0)
    for t in range(a.shape[0]):
        s0 += a[t] * b0[t]
        s1 += a[t] * b1[t]
        s2 += a[t] * b2[t]
        s3 += a[t] * b3[t]
    return s0, s1, s2, s3


@jit
def dots_by_latent(ptr, rows, position, vectors, weights, out, lo, hi):
    """`out[position[j]] = vectors[rows[j]] . weights[l]` for the entries of latents `lo:hi`."""
    for latent in range(lo, hi):
        w = weights[latent]
        j, end = ptr[latent], ptr[latent + 1]
        while j + 4 <= end:
            s0, s1, s2, s3 = _dot4(
                w,
                vectors[rows[j]],
                vectors[rows[j + 1]],
                vectors[rows[j + 2]],
                vectors[rows[j + 3]],
            )
            out[position[j]] = s0
            out[position[j + 1]] = s1
            out[position[j + 2]] = s2
            out[position[j + 3]] = s3
            j += 4
        while j < end:
            out[position[j]] = _dot(w, vectors[rows[j]])
            j += 1


@jit
def scatter_by_latent(ptr, rows, position, values, vectors, out, touched, sums, lo, hi):
    """`out[l] += sum of values[position[j]] * vectors[rows[j]]`, `sums[l] += sum of values`.

    For latents `lo:hi`.

    A row of `out` that is not yet `touched` is written, not added to.
    """
    for latent in range(lo, hi):
        j, end = ptr[latent], ptr[latent + 1]
        if j == end:
            continue
        acc = out[latent]
        if not touched[latent]:
            acc[:] = 0
            touched[latent] = True
        total = values.dtype.type(0)
        while j + 4 <= end:
            v0, v1 = values[position[j]], values[position[j + 1]]
            v2, v3 = values[position[j + 2]], values[position[j + 3]]
            x0, x1 = vectors[rows[j]], vectors[rows[j + 1]]
            x2, x3 = vectors[rows[j + 2]], vectors[rows[j + 3]]
            _add4(acc, v0, x0, v1, x1, v2, x2, v3, x3)
            total += (v0 + v1) + (v2 + v3)
            j += 4
        while j < end:
            v = values[position[j]]
            _add1(acc, v, vectors[rows[j]])
            total += v
            j += 1
        sums[latent] += total


def latent_bounds(ptr):
    """Split the latents over torch's threads so that each part has about as many entries."""
    threads = torch.get_num_threads()
    weight = ptr + np.arange(len(ptr))
    inner = np.searchsorted(weight, weight[-1] * np.arange(1, threads) // threads)
    return [0, *inner.tolist(), len(ptr) - 1]
