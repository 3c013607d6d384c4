"""Greedy coordinate gradient (L3).

Source: Universal and Transferable Adversarial Attacks on Aligned Language Models (Zou et al., arXiv:2307.15043), Alg. 1. The gradient
of the loss with respect to the one-hot suffix names the `top_k` substitutions of each position; `width` candidates with one
substitution each, drawn by lot, are scored, and the best becomes the suffix. Deviations: a candidate that is worse than the best
suffix so far is not taken, so the loss never rises; candidates that decode to other tokens are left out, as nanoGCG does, as
long as there are others; each question has a suffix of its own; the target is the right option.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from .config import GcgConfig
from .objective import Objective, own_ids
from .suffixes import Found, Search, SuffixAttack, marks, surviving


@dataclass(frozen=True)
class Gcg(SuffixAttack):
    """The attack."""

    config: GcgConfig = field(default_factory=GcgConfig)  # type: ignore[reportIncompatibleVariableOverride]  # frozen: no other can be put there

    @property
    def name(self) -> str:
        """`gcg`."""
        return "gcg"

    def budget(self) -> int:
        """Steps."""
        return self.config.steps

    def search(self, search: Search) -> list[Found]:
        """See `SuffixAttack.search`."""
        c, objective = self.config, search.objective
        ids = torch.tensor(first_suffix(search, c.length), device=objective.host.device)
        best = float(objective.loss(objective.embed(ids)[None]).detach())
        out, at = [], marks(c.steps, c.points)
        for step in range(1, c.steps + 1):
            top = substitutions(objective, ids, search.allowed, c.top_k)
            search.gradients += 1
            tried = surviving(objective.host, search.slot, swapped(ids, top, c.width, search.generator))
            losses = objective.loss(objective.embed(tried)).detach()
            i = int(losses.argmin())
            if float(losses[i]) < best:
                ids, best = tried[i], float(losses[i])
            if step in at:
                out.append(Found(step, tuple(ids.tolist()), best))
        return out


def first_suffix(search: Search, length: int) -> list[int]:
    """Exclamation marks, as the authors start; tokens drawn by lot where these are no tokens of their own or may not be used."""
    text = " !" * length
    start = own_ids(search.objective.host, text if search.slot.head_text else text.strip())
    return start if len(start) == length and set(start) <= set(search.allowed.tolist()) else search.random(length)


def substitutions(objective: Objective, ids: Int[Tensor, " k"], allowed: Int[Tensor, " n"], top_k: int) -> Int[Tensor, "k m"]:
    """By position the allowed tokens that lower the loss most to first order, best first (at most `top_k`)."""
    with torch.enable_grad():
        e = objective.embed(ids).detach()[None].requires_grad_()
        (g,) = torch.autograd.grad(objective.loss(e).sum(), e)
    scores = -(g[0] @ objective.matrix[allowed].T)  # [k n]
    return allowed[scores.topk(min(top_k, len(allowed)), dim=1).indices]


def swapped(ids: Int[Tensor, " k"], top: Int[Tensor, "k m"], width: int, gen: torch.Generator) -> Int[Tensor, "w k"]:
    """`width` copies with one position each replaced by one of its substitutions, both drawn by lot."""
    k, m = top.shape
    place = torch.randint(k, (width,), generator=gen).to(ids.device)
    pick = torch.randint(m, (width,), generator=gen).to(ids.device)
    out = ids.repeat(width, 1)
    out[torch.arange(width, device=ids.device), place] = top[place, pick]
    return out
