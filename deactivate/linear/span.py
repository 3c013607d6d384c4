"""The subspace that features of an SAE span: where R-LACE may remove directions, when it is told to stay in a dictionary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ..layer import sae_hook_point

if TYPE_CHECKING:
    from ...sae import SAE


def sae_by_point(saes: Sequence["SAE"], points: Sequence[str], features: int) -> dict[str, "SAE"]:
    """Hook point -> its SAE; empty where no features are asked for.

    Raises:
        InputError: Features are asked for and a hook point has no SAE.
    """
    if not features:
        return {}
    found = {sae_hook_point(s): s for s in saes}
    if missing := [p for p in points if p not in found]:
        raise InputError(
            f"features={features} needs an SAE at {', '.join(missing)} (--sae DIR); given are those of {', '.join(found) or 'none'}"
        )
    return {p: found[p] for p in points}


@torch.no_grad()
def feature_span(
    sae: "SAE", x: Float[Tensor, "n d"], y: Int[Tensor, " n"], n: int, rows: int = 2048
) -> tuple[Float[Tensor, "d m"], list[int]]:
    """Decoder rows, as columns, of the features whose mean activation in a concept's class differs most from that in class 0.

    The difference is in standard deviations over all vectors; of several concepts the largest counts. Features that are silent on all vectors are left out.

    Raises:
        MatchedNothing: No feature fires.
    """
    k, total, square = int(y.max()) + 1, 0, torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
    sums = torch.zeros(k, sae.cfg.d_sae, dtype=torch.float64)
    for part, own in zip(x.split(rows), y.split(rows), strict=True):
        acts = sae.encode(part.to(sae.W_dec)).double().cpu()
        sums.index_add_(0, own, acts)
        square += acts.square().sum(0)
        total += len(part)
    variance = square / total - (sums.sum(0) / total).square()
    means = sums / torch.bincount(y, minlength=k)[:, None]
    apart = ((means[1:] - means[0]).abs() / variance.clamp_min(1e-12).sqrt()).amax(0)
    apart[square == 0] = -1
    ids = [int(i) for i in apart.argsort(descending=True, stable=True)[:n] if apart[i] > 0]
    if not ids:
        raise MatchedNothing(
            f"{sae_hook_point(sae)}: no feature of the SAE fires on the concept's texts; train it longer, or leave features off"
        )
    return sae.W_dec.detach()[ids].T.to(x.device), ids
