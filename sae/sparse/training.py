"""Differentiable encode and decode over a chosen active set.

The choice itself (`select`) has no gradient: a latent's value is a differentiable function of the
weights on the active set and zero elsewhere. That is the gradient of TopK, BatchTopK and
Matryoshka; JumpReLU chooses a slightly larger set (down to half a bandwidth under the threshold)
and applies its own function to the values. A step reads:

    sae_in = (x - b_dec).detach()
    acts, aux = select(sae_in, W_enc, b_enc, TopK(k), TopK(k_aux, among=dead))
    feature_acts = encode_on(acts, sae_in, W_enc, b_enc, b_pre=b_dec)
    sae_out = decode_on(acts, feature_acts, W_dec, b_dec)

Transcoders decode to another width and take `b_pre=None`. AuxK is the same pair of calls on `aux`
without a bias.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...base.errors import InputError
from .acts import SparseActs, Transpose
from .products import combine, dots, scatter
from .rowgrad import RowGrad, row_grad_of


def encode_on(
    acts: SparseActs,
    sae_in: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    b_pre: Float[Tensor, " d_in"] | None = None,
) -> Float[Tensor, " nnz"]:
    """Pre-activations on the active set, as a differentiable function of everything but the choice.

    Args:
        acts: a selection made by `select` from these very `sae_in`, `W_enc`, `b_enc`: its values
            are returned.
        sae_in: encoder input with `b_pre` already subtracted. It gets a gradient if it requires
            one.
        W_enc: gets a dense gradient, or adds to its `RowGrad` if one is attached.
        b_enc: gets the sums of its latents' gradients.
        b_pre: what was subtracted from the input (`b_dec`); gets `-W_enc @ db_enc`, which costs one
            matrix-vector product where a gradient through `sae_in` would gather a row of `W_enc`
            for every active latent. Do not let both carry it: pass a detached `sae_in`.
    """
    return _Encode.apply(sae_in, W_enc, b_enc, b_pre, acts, row_grad_of(W_enc))


def decode_on(
    acts: SparseActs,
    values: Float[Tensor, " nnz"],
    W_dec: Float[Tensor, "d_sae d_out"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "n d_out"]:
    """Reconstruction from the active latents.

    `values` on the active set, times `W_dec`, plus `bias`.
    """
    return decode_prefixes(acts, values, W_dec, bias, (acts.d_sae,))[0]


def decode_prefixes(
    acts: SparseActs,
    values: Float[Tensor, " nnz"],
    W_dec: Float[Tensor, "d_sae d_out"],
    bias: Float[Tensor, " d_out"] | None,
    prefixes: Sequence[int],
) -> Float[Tensor, "m n d_out"]:
    """Reconstructions from the first `prefixes[s]` latents, for each `s` (Matryoshka).

    Prefix by prefix only the new latents are added, and backwards each latent meets the sum of the
    gradients of the prefixes that hold it, so `m` prefixes cost little more than one. A sparse
    latent beyond the last prefix has no part in any.

    Raises:
        InputError: prefixes that do not ascend or exceed `d_sae`, or an active set and a `W_dec` of
            different `d_sae`.
    """
    ascending = all(a < b for a, b in zip((0, *prefixes), prefixes, strict=False))
    if not prefixes or not ascending or prefixes[-1] > acts.d_sae:
        raise InputError(f"prefixes must ascend from 1 to {acts.d_sae} at most; found {prefixes}")
    if len(W_dec) != acts.d_sae:
        raise InputError(f"W_dec has {len(W_dec)} rows; the latents are {acts.d_sae}")
    return _Decode.apply(values, W_dec, bias, acts, tuple(prefixes), row_grad_of(W_dec))


def decode_sparse(
    acts: SparseActs,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "n d_out"]:
    """Reconstruction `acts @ W_dec + b_dec`.

    Differentiable in the acts' values, `W_dec` and `b_dec`.
    """
    return decode_on(acts, acts.values, W_dec, b_dec)


def _rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight `[d_sae, d]` as the products want it (a copy only if it does not lie so)."""
    return weight.detach().to(dtype).contiguous()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sae_in: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_pre: Tensor | None,
        acts: SparseActs,
        sink: RowGrad | None,
    ) -> Tensor:
        ctx.save_for_backward(sae_in, W_enc, b_enc)
        ctx.acts, ctx.sink, ctx.pre_dtype = acts, sink, None if b_pre is None else b_pre.dtype
        return acts.values.detach()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: one output, so one gradient
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        sae_in, W_enc, b_enc = ctx.saved_tensors
        acts, dtype = ctx.acts, grad.dtype
        grad = grad.contiguous()
        into = ctx.sink or RowGrad(W_enc.T.to(dtype))
        sums = scatter(acts.transpose, grad, sae_in.to(dtype).contiguous(), into)
        d_in = d_pre = d_W = None
        if ctx.needs_input_grad[0]:
            start = torch.zeros_like(sae_in, dtype=dtype, memory_format=torch.contiguous_format)
            d_in = combine(acts, grad, _rows(W_enc.T, dtype), start).to(sae_in.dtype)
        if ctx.needs_input_grad[1] and ctx.sink is None:
            d_W = into.dense_().T.to(W_enc.dtype)
        if ctx.needs_input_grad[3]:
            d_pre = -(W_enc.to(dtype) @ sums).to(ctx.pre_dtype)
        return d_in, d_W, sums.to(b_enc.dtype), d_pre, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        W_dec: Tensor,
        bias: Tensor | None,
        acts: SparseActs,
        prefixes: tuple[int, ...],
        sink: RowGrad | None,
    ) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.acts, ctx.prefixes, ctx.sink = acts, prefixes, sink
        ctx.bias_dtype = None if bias is None else bias.dtype
        values, weights = values.detach(), _rows(W_dec, values.dtype)
        n, d = acts.shape[0], weights.shape[1]
        out = weights.new_zeros(len(prefixes), n, d)
        if bias is not None:
            out[0] = bias
        lo = 0
        for s, hi in enumerate(prefixes):
            part, kept = acts, values
            if hi - lo < acts.d_sae:
                inside = (acts.indices >= lo) & (acts.indices < hi)
                part, kept = acts.keep(inside), values[inside]
            combine(part, kept, weights, out[s])
            if s + 1 < len(prefixes):
                out[s + 1] = out[s]
            lo = hi
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: one output, so one gradient
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        grad = grad.to(values.dtype)
        d_values = d_W = d_bias = None
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum((0, 1)).to(ctx.bias_dtype)
        vectors, by = _stack(grad, ctx.acts, ctx.prefixes)
        if ctx.needs_input_grad[0]:
            d_values = dots(by, vectors, _rows(W_dec, values.dtype))
        if ctx.needs_input_grad[1]:
            into = ctx.sink or RowGrad(W_dec.to(values.dtype))
            scatter(by, values.detach(), vectors, into)
            d_W = None if ctx.sink else into.dense_().to(W_dec.dtype)
        return d_values, d_W, d_bias, None, None, None


def _stack(grad: Tensor, acts: SparseActs, prefixes: tuple[int, ...]) -> tuple[Tensor, Transpose]:
    """What each latent meets of the prefixes' gradients `[m, n, d]`, and where.

    Returns their suffix sums, stacked to `[m * n, d]`, and the active set with each entry pointing
    at its latent's part of the stack (one more part, of zeros, for latents beyond the last prefix).
    """
    by = acts.transpose
    if prefixes == (acts.d_sae,):
        return grad[0].contiguous(), by
    n = acts.shape[0]
    parts = grad.flip(0).cumsum(0).flip(0)
    if prefixes[-1] < acts.d_sae:
        parts = torch.cat([parts, torch.zeros_like(parts[:1])])
    edges = torch.tensor(prefixes, device=grad.device)
    latents = torch.arange(acts.d_sae, device=grad.device)
    band = torch.bucketize(latents, edges, right=True)
    shift = (band * n).repeat_interleave(by.indptr.diff()).int()
    return parts.flatten(0, 1).contiguous(), Transpose(by.indptr, by.rows + shift, by.position)
