"""ELM's formulas: targets, losses and guided decoding, as pure functions of logits. Nothing here knows a model.

Erasing Conceptual Knowledge from Language Models (Gandikota et al., arXiv:2410.02760); README gives the equations.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...tuning.losses import Weights, averaged, hard_cross_entropy, soft_cross_entropy

Action = Literal["erase", "enhance"]


def eta_ramp(n: int, end: float, start: float | None = None) -> Float[Tensor, " n"]:
    """Strength of the guidance at each of a text's n positions: constant, or linear from `start` to `end`; float64."""
    return torch.full((n,), end, dtype=torch.float64) if start is None else torch.linspace(start, end, n, dtype=torch.float64)


def guided_scores(
    base: Float[Tensor, "n V"],
    expert: Float[Tensor, "n V"],
    novice: Float[Tensor, "n V"],
    eta: Float[Tensor, " n"],
    temperature: float = 1.0,
    action: Action = "erase",
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "n V"]:
    """The guided law log P(x) + eta (log P(x | novice) - log P(x | expert)), up to a constant, from logits, in float64 as the authors' code has it.

    P is softmax(z / temperature). `enhance` turns the guidance round.
    """
    sign = 1.0 if action == "erase" else -1.0
    plain, up, down = ((z.to(dtype) / temperature).log_softmax(-1) for z in (base, novice, expert))
    return plain + sign * eta.to(plain)[:, None] * (up - down)


def plausible(scores: Float[Tensor, "n V"], top_k: int) -> Bool[Tensor, "n V"]:
    """The `top_k` best of each row; the |top_k| lowest where it is negative; all where it is 0. Ties go to one of them."""
    n, size = scores.shape
    if top_k == 0 or abs(top_k) >= size:
        return torch.ones(n, size, dtype=torch.bool, device=scores.device)
    best = scores.topk(abs(top_k), dim=-1, largest=top_k > 0).indices
    return torch.zeros(n, size, dtype=torch.bool, device=scores.device).scatter_(-1, best, True)


def target(
    base: Float[Tensor, "n V"],
    scores: Float[Tensor, "n V"],
    top_k: int = 50,
    mode: Literal["after", "before"] = "after",
) -> Float[Tensor, "n V"]:
    """q: the softmax of the guided scores over the tokens kept.

    `after` keeps the best guided scores. With a large eta these are the tokens with the largest novice-to-expert ratio, whatever
    the base thinks of them. `before` keeps the base's best, so that q never leaves what the base finds plausible.
    """
    kept = plausible(scores if mode == "after" else base.to(scores), top_k)
    return scores.masked_fill(~kept, -torch.inf).softmax(-1)


def random_target(n: int, size: int, generator: torch.Generator) -> Float[Tensor, "n V"]:
    """The ablation «random»: a softmax of Gaussian noise, float64."""
    return torch.randn(n, size, dtype=torch.float64, generator=generator).softmax(-1)


def erase_loss(
    logits: Float[Tensor, "n V"], q: Float[Tensor, "n V"], kind: Literal["ce", "hard", "kld"] = "ce", weights: Weights = None
) -> Float[Tensor, ""]:
    """Mean over positions of the student's distance to the target; the student's temperature is 1.

    `ce` and `kld` differ by the target's entropy, so their gradients are the same; `hard` takes the target's best token.
    """
    if kind == "hard":
        return hard_cross_entropy(logits, q.argmax(-1), weights)
    ce = soft_cross_entropy(logits, q, weights)
    return ce if kind == "ce" else ce - averaged(entropy(q).to(ce), weights)


def entropy(q: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """Entropy of each row, nats."""
    return torch.special.entr(q).sum(-1)


def fluency_loss(logits: Float[Tensor, "t V"], ids: Int[Tensor, " t"], start: int) -> Float[Tensor, ""]:
    """Next-token cross-entropy of one row, counted for the tokens from `start` on: none that a prompt position predicts counts.

    Raises:
        ValueError: `start` leaves nothing to count.
    """
    if not 1 <= start < len(ids):
        raise ValueError(f"start must lie in [1, {len(ids)}), {start} found")
    return F.cross_entropy(logits[start - 1 : -1], ids[start:])


def guided_logits(
    base: Float[Tensor, "b V"], expert: Float[Tensor, "b V"], novice: Float[Tensor, "b V"], gamma: float
) -> Float[Tensor, "b V"]:
    """Scores of the next token when text is led away from a concept: log p - gamma (log p_expert - log p_novice), float32."""
    plain, up, down = (z.float().log_softmax(-1) for z in (base, novice, expert))
    return plain + gamma * (up - down)


def collapse(q: Float[Tensor, "n V"], base: Float[Tensor, "n V"]) -> dict[str, float]:
    """How far targets are from a distribution over what the base finds plausible.

    Returns:
        `largest`: mean of each row's largest probability (1: one-hot); `entropy`: mean, nats; `base rank`: median rank (0: best) that
        the base gives to a row's best token; `base probability`: median probability that it gives to it.
    """
    best = q.argmax(-1, keepdim=True)
    p = base.double().softmax(-1)
    chosen = p.gather(-1, best)
    return {
        "largest": float(q.amax(-1).mean()),
        "entropy": float(entropy(q).mean()),
        "base rank": float((p > chosen).sum(-1).double().median()),
        "base probability": float(chosen.median()),
    }
