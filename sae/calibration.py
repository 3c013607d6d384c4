"""The one threshold at which a stated number of latents a vector is active: an exact quantile over held-out vectors."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import MatchedNothing
from .sparse import BatchTopK, select


@torch.no_grad()
def threshold_for(
    inputs: Iterable[Float[Tensor, "n d_in"]],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    l0: float,
) -> float:
    """`theta >= 0` with `round(l0 n)` pre-activations above it over all `n` inputs; 0 where fewer are positive.

    Args:
        inputs: Encoder inputs, in batches.
        W_enc: Encoder.
        b_enc: Its bias.
        l0: Mean number of active latents a vector.

    Raises:
        MatchedNothing: No inputs.
    """
    batches = [b for b in inputs if len(b)]
    if not batches:
        raise MatchedNothing("calibration needs at least one batch of held-out vectors")
    budget = max(1, round(l0 * sum(map(len, batches))))
    width = W_enc.shape[1]
    kept = min(width, max(1, round(4 * l0)))  # candidates a vector of each batch; a batch that may hold more is read again
    pools = [_largest(b, W_enc, b_enc, kept) for b in batches]
    theta = _edge(pools, budget)
    while kept < width:
        cut = [_cut(pool, kept * len(b)) for b, pool in zip(batches, pools, strict=True)]
        kept = min(4 * kept, width)
        short = [i for i, c in enumerate(cut) if c > theta]
        if not short:
            break
        for i in short:
            pools[i] = _largest(batches[i], W_enc, b_enc, kept)
        theta = _edge(pools, budget)
    return theta


def _largest(x: Tensor, W_enc: Tensor, b_enc: Tensor, per_vector: int) -> Tensor:
    """The largest `per_vector * n` positive pre-activations of a batch."""
    return select(x, W_enc, b_enc, BatchTopK(per_vector))[0].values


def _cut(pool: Tensor, asked: int) -> float:
    """Under what value the batch may hold more than its pool does; -1 where the pool is all there is."""
    return float(pool.min()) if len(pool) >= asked else -1.0


def _edge(pools: list[Tensor], budget: int) -> float:
    """Midway between the `budget`-th largest value and the next; 0 where there are not so many."""
    values = torch.cat(pools)
    if len(values) <= budget:
        return 0.0
    last, after = values.topk(budget + 1).values[-2:].tolist()
    middle = (last + after) / 2
    return middle if middle < last else after
