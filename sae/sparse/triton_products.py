"""The sparse products as Triton kernels, for tensors on a CUDA device. Imported only with `EFFACE_KERNELS=triton`.

Tested in Triton's interpreter on the CPU; never run on a GPU, so nothing is known of their speed. No atomics: every output row
is summed by one program in a fixed order, as on the CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
"""Columns a program holds at once."""


@triton.jit
def _combine(indptr, indices, values, weights, out, d, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.load(out + row * d + columns, mask=inside, other=0.0)
    for j in range(tl.load(indptr + row), tl.load(indptr + row + 1)):
        latent = tl.load(indices + j).to(tl.int64)
        total += tl.load(values + j) * tl.load(weights + latent * d + columns, mask=inside, other=0.0)
    tl.store(out + row * d + columns, total, mask=inside)


@triton.jit
def _dots(latents, rows, position, vectors, weights, out, d, BLOCK: tl.constexpr):
    entry = tl.program_id(0)
    latent, row = tl.load(latents + entry).to(tl.int64), tl.load(rows + entry).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=out.dtype.element_ty)
    for start in range(0, d, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        left = tl.load(weights + latent * d + columns, mask=columns < d, other=0.0)
        total += left * tl.load(vectors + row * d + columns, mask=columns < d, other=0.0)
    tl.store(out + tl.load(position + entry), tl.sum(total, 0))


@triton.jit
def _scatter(indptr, rows, position, values, vectors, touched, out, d, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    first, last = tl.load(indptr + latent), tl.load(indptr + latent + 1)
    if first < last:
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < d
        # What an untouched row of the buffer holds means nothing: none of it is read.
        written = tl.load(touched + latent).to(tl.int32) * d
        total = tl.load(out + latent * d + columns, mask=columns < written, other=0.0)
        for j in range(first, last):
            row = tl.load(rows + j).to(tl.int64)
            total += tl.load(values + tl.load(position + j)) * tl.load(vectors + row * d + columns, mask=inside, other=0.0)
        tl.store(out + latent * d + columns, total, mask=inside)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any) -> None:
    kernel[grid](*args, BLOCK=BLOCK)


def _blocks(d: int) -> int:
    return triton.cdiv(d, BLOCK)


def combine_rows(indptr: Tensor, indices: Tensor, values: Tensor, weights: Tensor, out: Tensor) -> None:
    """`out[r] += sum of values[j] * weights[indices[j]]` over the entries `j` of row `r`."""
    n, d = out.shape
    if n:
        _launch(_combine, (n, _blocks(d)), indptr, indices, values, weights, out, d)


def dots_by_latent(indptr: Tensor, rows: Tensor, position: Tensor, vectors: Tensor, weights: Tensor, out: Tensor) -> None:
    """`out[position[j]] = vectors[rows[j]] . weights[l]` for every entry `j` of every latent `l`."""
    if len(rows):
        latents = torch.arange(len(weights), device=out.device, dtype=torch.int32)
        of_entry = latents.repeat_interleave(indptr.diff(), output_size=len(rows))
        _launch(_dots, (len(rows),), of_entry, rows, position, vectors, weights, out, vectors.shape[1])


def scatter_by_latent(
    indptr: Tensor, rows: Tensor, position: Tensor, values: Tensor, vectors: Tensor, touched: Tensor, out: Tensor
) -> None:
    """`out[l] += sum of values[position[j]] * vectors[rows[j]]`; a row that is not `touched` is written, not added to.

    Marks the rows it writes.
    """
    d_sae, d = out.shape
    _launch(_scatter, (d_sae, _blocks(d)), indptr, rows, position, values, vectors, touched.view(torch.uint8), out, d)
    touched |= indptr.diff() > 0
