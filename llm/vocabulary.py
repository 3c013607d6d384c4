"""What a direction says in the vocabulary.

Logit lens d W_U (no final norm, no bias), chunked over directions and tokens.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..base.running import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def extreme_tokens(
    directions: Float[Tensor, "r d"], unembedding: Float[Tensor, "d V"], k: int
) -> tuple[Int[Tensor, "r k"], Int[Tensor, "r k"]]:
    """The `k` tokens that each direction promotes most and suppresses most, strongest first.

    Memory: at most about 2**24 logits at a time, whatever the vocabulary.
    """
    V = unembedding.shape[1]
    k = min(k, V)
    step = max(k, min(V, 1 << 16))
    tops, bottoms = [], []
    chunks = list(_chunks(len(directions), max(1, ELEMENTS // step)))
    for rows in progress(chunks, desc="promoted tokens", unit="chunk", inner=True):
        best: tuple[Tensor, Tensor] | None = None
        worst: tuple[Tensor, Tensor] | None = None
        for cols in _chunks(V, step):
            logits = directions[rows] @ unembedding[:, cols]
            best, worst = _merge(best, logits, cols.start, k), _merge(worst, -logits, cols.start, k)
        assert best is not None
        assert worst is not None
        tops.append(best[1])
        bottoms.append(worst[1])
    empty = torch.zeros(0, k, dtype=torch.int64, device=directions.device)
    return (torch.cat(tops), torch.cat(bottoms)) if tops else (empty, empty)


def _merge(held: tuple[Tensor, Tensor] | None, logits: Tensor, offset: int, k: int) -> tuple[Tensor, Tensor]:
    values, ids = logits.topk(min(k, logits.shape[1]), dim=1)
    ids = ids + offset
    if held is None:
        return values, ids
    values, ids = torch.cat([held[0], values], 1), torch.cat([held[1], ids], 1)
    values, order = values.topk(min(k, values.shape[1]), dim=1)
    return values, ids.gather(1, order)


def tokens_among_extremes(
    directions: Float[Tensor, "r d"], unembedding: Float[Tensor, "d V"], tokens: Int[Tensor, " n"], k: int
) -> tuple[Bool[Tensor, "r n"], Bool[Tensor, "r n"]]:
    """Which of `tokens` are among the `k` most promoted, and the `k` most suppressed, tokens of each direction.

    A token is among the top k when fewer than k tokens have a larger logit. That many in a part of the vocabulary
    already rule it
    out, so directions are sieved on a sixteenth and a quarter of the vocabulary before the whole: the result is exact,
    at about a
    quarter of the cost.
    """
    r, V = len(directions), unembedding.shape[1]
    top = torch.ones(r, len(tokens), dtype=torch.bool, device=directions.device)
    bottom = top.clone()
    own = directions @ unembedding[:, tokens]
    for stride in (16, 4, 1) if 64 * k <= V else (1,):
        alive = (top | bottom).any(1).nonzero()[:, 0]
        part = unembedding[:, ::stride].contiguous() if stride > 1 else unembedding
        above, below = _ranks(directions[alive], part, own[alive])
        top[alive] &= above < k
        bottom[alive] &= below < k
    return top, bottom


def _ranks(directions: Tensor, unembedding: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """How many logits lie above, and below, each of `own` [r n] (counted once by sorting, not token by token)."""
    above, below = torch.zeros_like(own, dtype=torch.int64), torch.zeros_like(own, dtype=torch.int64)
    V = unembedding.shape[1]
    step = min(V, 1 << 14)
    # a token's logit from a product of another shape may differ in the last bits: nearer than this counts as equal
    slack = 1e-5 * own.abs().amax(1, keepdim=True).clamp_min(1e-30) if own.numel() else own
    for rows in _chunks(len(directions), max(1, ELEMENTS // step)):
        for cols in _chunks(V, step):
            logits = directions[rows] @ unembedding[:, cols]
            for j in range(own.shape[1]):
                above[rows, j] += (logits > own[rows, j : j + 1] + slack[rows]).sum(1)
                below[rows, j] += (logits < own[rows, j : j + 1] - slack[rows]).sum(1)
    return above, below


def single_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Texts that are one token (leading space included) with its id, and those that this tokenizer splits."""
    one: dict[str, int] = {}
    split: list[str] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            one[text] = int(ids[0])
        else:
            split.append(text)
    return one, split


def token_strings(tokenizer: "PreTrainedTokenizerBase", ids: Int[Tensor, " n"]) -> list[str]:
    """Each id decoded alone, so that leading spaces show; `<id>` for rows of the unembedding that are no token."""
    return [str(tokenizer.decode([i])) if i < len(tokenizer) else f"<{i}>" for i in ids.tolist()]
