"""Which features an edit moves: their largest activation in a text, with the edit and without it, whatever the edit is made of."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..layer import sae_hook_point
from .plain import shortened
from .prompts import readers_of

if TYPE_CHECKING:
    from ...sae import SAE
    from ..edit import Edit

SHOWN = 15
"""Features shown an SAE, those that move most."""


@torch.no_grad()
def moved_features(host: Any, edit: "Edit", saes: "Mapping[int, SAE]", texts: Sequence[str]) -> list[dict[str, Any]]:
    """Of each SAE that reads texts, the features whose mean peak moves most while `edit` is in force.

    Args:
        host: What the edit was made for; other edits that lie on it stay.
        edit: Of any parts; a gated one moves nothing in texts at which its gate is shut.
        saes: Number of an SAE on the page -> the SAE.
        texts: Read with the edit and without it.

    Returns:
        `{sae, hook_point, texts, unmoved, features: [[feature, mean peak before, after]]}`; `unmoved` counts features that are the same in every text.
    """
    served = [(reader, number, sae) for reader, group in readers_of(host, saes) for number, sae in group.items()]
    before = [peaks(host, reader, sae, texts) for reader, _, sae in served]
    with edit.applied(host):
        after = [peaks(host, reader, sae, texts) for reader, _, sae in served]
    return [_change(number, sae, a, b) for (_, number, sae), a, b in zip(served, before, after, strict=True)]


def _change(number: int, sae: "SAE", before: Float[Tensor, "n d_sae"], after: Float[Tensor, "n d_sae"]) -> dict[str, Any]:
    means = before.mean(0), after.mean(0)
    same = (before == after).all(0)
    order = (means[1] - means[0]).abs().topk(min(SHOWN, len(same))).indices.tolist()
    rows = [[i, float(means[0][i]), float(means[1][i])] for i in order if not same[i]]
    about = {"sae": number, "hook_point": sae_hook_point(sae), "texts": len(before), "unmoved": int(same.sum())}
    return {**about, "features": shortened(rows)}


def peaks(host: Any, reader: Any, sae: "SAE", texts: Sequence[str]) -> Float[Tensor, "n d_sae"]:
    """The largest activation of every feature in each text, over the tokens that count; texts are read one at a time."""
    out = torch.zeros(len(texts), sae.cfg.d_sae)
    point = sae_hook_point(sae)
    for i, text in enumerate(texts):
        ids, mask = reader.pad(reader.token_ids([text]))
        seen = host.activations([text], [point]) if reader is not host else host.activations(ids, mask, [point])
        keep = reader.keep_mask(ids, mask)[0].to(seen[point].device)
        sparse = sae.encode_sparse(seen[point][0][keep].to(sae.W_enc))
        out[i].scatter_reduce_(0, sparse.indices.long().cpu().flatten(), sparse.values.float().cpu().flatten(), "amax")
    return out
