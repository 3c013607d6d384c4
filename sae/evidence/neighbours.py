"""Nearest features by the cosine of their decoder rows, a block of features at a time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

ELEMENTS = 1 << 22
"""Cosines held at once: 16 MiB in float32."""


@torch.no_grad()
def nearest_features(W_dec: Float[Tensor, "d_sae d_out"], n: int) -> tuple[Int[Tensor, "d_sae m"], Float[Tensor, "d_sae m"]]:
    """Ids and cosines of the `n` features (all others, where there are fewer) that point most nearly the same way.

    The largest cosine first; a feature is not its own neighbour. A row of norm 0 has cosine 0 with all.
    """
    rows = W_dec.detach().float()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    m = min(n, len(rows) - 1)
    ids, cosines = torch.zeros(len(rows), m, dtype=torch.int64), torch.zeros(len(rows), m)
    step = max(1, ELEMENTS // len(rows))
    for first in range(0, len(rows), step):
        block = rows[first : first + step] @ rows.T
        own = torch.arange(len(block), device=block.device)
        block[own, own + first] = -torch.inf
        best = block.topk(m, dim=1)
        ids[first : first + step] = best.indices  # copied: kept results of topk would hold on to each block's memory
        cosines[first : first + step] = best.values.clamp(-1, 1)
    return ids, cosines
