"""Losses that several methods share, and what they are made of: pure functions of logits and activations."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Weights = Float[Tensor, " n"] | None
"""What each position weighs in a mean, summing to 1; None: all alike."""


def averaged(values: Float[Tensor, " n"], weights: Weights = None) -> Float[Tensor, ""]:
    """The (weighted) mean."""
    return values.mean() if weights is None else (values * weights.to(values)).sum()


def row_weights(lengths: Sequence[int]) -> Float[Tensor, " n"]:
    """Weights of the positions of several rows under which every row weighs the same."""
    return torch.cat([torch.full((n,), 1 / (n * len(lengths))) for n in lengths])


def soft_cross_entropy(logits: Float[Tensor, "n V"], target: Float[Tensor, "n V"], weights: Weights = None) -> Float[Tensor, ""]:
    """Mean over positions of - sum_v q_v log softmax(z)_v; its gradient in z is (softmax(z) - q) / n."""
    return averaged(-(target.to(logits.dtype) * logits.log_softmax(-1)).sum(-1), weights)


def hard_cross_entropy(logits: Float[Tensor, "n V"], wanted: Int[Tensor, " n"], weights: Weights = None) -> Float[Tensor, ""]:
    """Mean over positions of - log p of one token."""
    return averaged(F.cross_entropy(logits, wanted, reduction="none"), weights)


def to_base(logits: Float[Tensor, "n V"], base: Float[Tensor, "n V"], *, hard: bool = False, weights: Weights = None) -> Float[Tensor, ""]:
    """Cross-entropy to a frozen model: to its distribution, or to its most probable token.

    The soft form has gradient 0 where both agree; the hard one still sharpens.
    """
    return hard_cross_entropy(logits, base.argmax(-1), weights) if hard else soft_cross_entropy(logits, base.softmax(-1), weights)


def next_tokens(
    rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> tuple[list[Int[Tensor, " _"]], list[Int[Tensor, " _"]], Int[Tensor, " N"]]:
    """What predicts what: for each row the positions that predict, the tokens predicted, and, for all, the row's number.

    Row r counts from its token `starts[r]` (at least 1) on; position p predicts token p + 1.
    """
    places = [torch.arange(start - 1, len(ids) - 1) for ids, start in zip(rows, starts, strict=True)]
    wanted = [torch.tensor(list(ids[start:]), dtype=torch.int64) for ids, start in zip(rows, starts, strict=True)]
    return places, wanted, torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(w) for w in wanted]))


def token_logprobs(logits: Float[Tensor, "N V"], wanted: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The log p(token) at each position."""
    return -F.cross_entropy(logits, wanted, reduction="none")


def row_sums(values: Float[Tensor, " N"], row: Int[Tensor, " N"], n: int) -> Float[Tensor, " n"]:
    """Sum of the values of each row."""
    return values.new_zeros(n).index_add(0, row.to(values.device), values)
