"""BEAST (L3): a beam over suffixes that the model itself would write.

Source: Fast Adversarial Attacks on Language Models In One GPU Minute (Sadasivan et al., arXiv:2402.15570), Alg. 1: `beams` (k1)
first tokens drawn from the model's next-token law; then each beam is continued by `width` (k2) drawn tokens, and the
`beams` candidates of least loss are kept. No gradients. Deviation: tokens of the options and specials are never drawn.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from .config import BeastConfig
from .suffixes import Found, Search, SuffixAttack, marks


@dataclass(frozen=True)
class Beast(SuffixAttack):
    """The attack."""

    config: BeastConfig = field(default_factory=BeastConfig)  # type: ignore[reportIncompatibleVariableOverride]  # frozen: no other can be put there

    @property
    def name(self) -> str:
        """`beast`."""
        return "beast"

    def budget(self) -> int:
        """Tokens: one a step."""
        return self.config.length

    @torch.no_grad()
    def search(self, search: Search) -> list[Found]:
        """See `SuffixAttack.search`; after n steps a suffix has n tokens."""
        c, objective = self.config, search.objective
        beams = torch.empty(1, 0, dtype=torch.long, device=objective.host.device)
        out, at = [], marks(c.length, c.points)
        for step in range(1, c.length + 1):
            tried = continued(search, beams, c.beams if step == 1 else c.width)
            losses = objective.loss(objective.embed(tried))
            order = losses.argsort(stable=True)[: c.beams]
            beams = tried[order]
            if step in at:
                out.append(Found(step, tuple(beams[0].tolist()), float(losses[order[0]])))
        return out


def continued(search: Search, beams: Int[Tensor, "b k"], width: int) -> Int[Tensor, "c k1"]:
    """Each beam with each of `width` different next tokens, drawn from the model's law among the allowed ones."""
    objective, allowed = search.objective, search.allowed
    host = objective.host
    x = torch.cat([objective.head.expand(len(beams), -1, -1), objective.embed(beams)], 1)
    if x.shape[1] == 0:  # nothing to continue: every token is as likely
        law = torch.ones(len(beams), len(allowed))
    else:
        mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        hidden = host.base(inputs_embeds=x, attention_mask=mask, use_cache=False)[0][:, -1]
        law = host.head(hidden)[:, allowed].float().softmax(-1).cpu()
    n = min(width, len(allowed))
    drawn = torch.multinomial(law.clamp_min(1e-12), n, generator=search.generator)
    tokens = allowed.cpu()[drawn].to(beams.device)  # [b n]
    return torch.cat([beams.repeat_interleave(n, 0), tokens.reshape(-1, 1)], 1)
