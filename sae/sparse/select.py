"""Encode without a dense `[tokens, d_sae]` matrix.

One blocked product, any number of selections from it.

The pre-activations `x @ W_enc + b_enc` exist one block at a time (at most `chunk` numbers, in a
buffer that is reused), and every selector takes what it needs from a block before the next is
computed. TopK and BatchTopK are defined in *Scaling and evaluating sparse autoencoders* (Gao et
al., 2024), §2.3 and *BatchTopK Sparse Autoencoders* (Bussmann et al., 2024); both apply a ReLU, so
a latent whose pre-activation is not positive is never selected.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...base.errors import InputError, NumericsError
from .acts import SparseActs
from .backend import workspace

CHUNK = 2**25
"""Most pre-activations held at once by default: 128 MiB in float32."""
_WIDTH = 2**14


@runtime_checkable
class Selector(Protocol):
    """Chooses latents from blocks of pre-activations that arrive row block by row block.

    Columns ascending.
    """

    def start(self, n: int, d_sae: int, like: Tensor) -> None:
        """Prepare for `n` vectors; `like` has the dtype and device of the pre-activations."""
        ...

    def update(self, pre: Tensor, bias: Tensor, row: int, column: int) -> None:
        """Take from the block `pre + bias` whose corner is (`row`, `column`).

        The block is only lent.
        """
        ...

    def finish(self) -> SparseActs:
        """The selection."""
        ...


def select(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    *selectors: Selector,
    chunk: int = CHUNK,
) -> tuple[SparseActs, ...]:
    """Run the encoder product once and let every selector choose from it; one result a selector.

    No gradient.

    Args:
        x: vectors, with whatever is to be subtracted from them (`b_dec`) already subtracted.
        W_enc: fastest where its storage is `[d_sae, d_in]`, that is `W_enc.T` is contiguous.
        b_enc: encoder bias.
        selectors: for example `TopK(32)` and, for AuxK, `TopK(384, among=dead)`.
        chunk: most pre-activations held at once.

    float16 and bfloat16 are worked on, and returned, in float32.

    Raises:
        InputError: shapes that do not fit.
        NumericsError: NaN or infinity in the pre-activations (selections would hide it).
    """
    _check_shapes(x, W_enc, b_enc, chunk)
    with torch.no_grad():
        x, W_enc, b_enc = (_upcast(t.detach()) for t in (x, W_enc, b_enc))
        n, d_sae = len(x), W_enc.shape[1]
        for selector in selectors:
            selector.start(n, d_sae, x)
        height, width = _block_shape(n, d_sae, chunk)
        for row in range(0, n, height):
            for column in range(0, d_sae, width):
                part, columns = x[row : row + height], slice(column, column + width)
                pre = workspace("pre", len(part), min(width, d_sae - column), x)
                torch.mm(part, W_enc[:, columns], out=pre)
                _check_finite(pre, b_enc[columns], row, column)
                for selector in selectors:
                    selector.update(pre, b_enc[columns], row, column)
        return tuple(selector.finish() for selector in selectors)


def encode_topk(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    chunk: int = CHUNK,
) -> SparseActs:
    """The `k` largest positive pre-activations of each vector; see `TopK` for ties."""
    from .selectors import TopK

    return select(x, W_enc, b_enc, TopK(k), chunk=chunk)[0]


def encode_threshold(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: float | Float[Tensor, ""] | Float[Tensor, " d_sae"],
    *,
    chunk: int = CHUNK,
) -> SparseActs:
    """Pre-activations above their threshold (JumpReLU; BatchTopK at inference; ReLU at 0)."""
    from .selectors import Threshold

    return select(x, W_enc, b_enc, Threshold(threshold), chunk=chunk)[0]


def encode_batch_topk(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    chunk: int = CHUNK,
) -> SparseActs:
    """The `k * n` largest positive pre-activations of the whole batch; see `BatchTopK` for ties."""
    from .batch_selector import BatchTopK, TooFew

    try:
        return select(x, W_enc, b_enc, BatchTopK(k, daring=True), chunk=chunk)[0]
    except TooFew:
        return select(x, W_enc, b_enc, BatchTopK(k), chunk=chunk)[0]


def batch_topk(pre: Float[Tensor, "n d_sae"], k: int) -> SparseActs:
    """`BatchTopK` of dense pre-activations that are already there."""
    from .batch_selector import BatchTopK

    return _from_dense(pre, BatchTopK(k))


def topk(pre: Float[Tensor, "n d_sae"], k: int) -> SparseActs:
    """`TopK` of dense pre-activations that are already there."""
    from .selectors import TopK

    return _from_dense(pre, TopK(k))


def _from_dense(pre: Tensor, selector: Selector) -> SparseActs:
    with torch.no_grad():
        pre = _upcast(pre.detach()).contiguous()
        selector.start(len(pre), pre.shape[1], pre)
        if pre.numel():
            bias = pre.new_zeros(pre.shape[1])
            _check_finite(pre, bias, 0, 0)
            selector.update(pre, bias, 0, 0)
        return selector.finish()


def _upcast(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _block_shape(n: int, d_sae: int, chunk: int) -> tuple[int, int]:
    """Rows and columns of a block.

    Whole rows if the batch fits, else up to 16,384 columns and as many rows as fit.
    """
    if n * d_sae <= chunk:
        return max(n, 1), d_sae
    width = min(d_sae, _WIDTH, chunk)
    return max(1, chunk // width), width


def _check_shapes(x: Tensor, W_enc: Tensor, b_enc: Tensor, chunk: int) -> None:
    if x.shape[1] != W_enc.shape[0] or b_enc.shape[0] != W_enc.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)}, W_enc {tuple(W_enc.shape)} and b_enc {tuple(b_enc.shape)} "
            "do not fit: "
            "expected [n, d_in], [d_in, d_sae] and [d_sae]"
        )
    if chunk < 1:
        raise InputError(f"chunk must be at least 1 (pre-activations held at once); found {chunk}")


def _check_finite(pre: Tensor, bias: Tensor, row: int, column: int) -> None:
    """A NaN or infinity in `x` fills a row of the product, one in `W_enc` a column.

    A row and a column tell.
    """
    bad_columns, bad_rows = ~(pre[0] + bias).isfinite(), ~pre[:, 0].isfinite()
    if bad_rows.any() and not bad_rows.all():
        where = f"vector {row + int(bad_rows.nonzero()[0])} of the batch"
    elif bad_columns.any():
        where = f"latent {column + int(bad_columns.nonzero()[0])}: W_enc, b_enc, or every vector,"
    else:
        return
    raise NumericsError(f"NaN or infinity in the pre-activations; {where} is the first to look at")


def gather_columns(pre: Tensor, bias: Tensor, columns: Int[Tensor, " m"]) -> tuple[Tensor, Tensor]:
    """Columns of a block and of its bias, in a buffer that is reused."""
    out = workspace("gathered", len(pre), len(columns), pre)
    return torch.index_select(pre, 1, columns, out=out), bias[columns]


__all__: Sequence[str] = [
    "CHUNK",
    "Selector",
    "batch_topk",
    "encode_batch_topk",
    "encode_threshold",
    "encode_topk",
    "select",
    "topk",
]
