"""Which features an edit moves: their largest activation in a text, with the edit and without it, whatever the edit is made of."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.running import progress
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
    groups = readers_of(host, saes)
    before = {n: p for reader, group in groups for n, p in peaks(host, reader, group, texts).items()}
    with edit.applied(host):
        after = {n: p for reader, group in groups for n, p in peaks(host, reader, group, texts).items()}
    return [_change(n, saes[n], before[n], after[n]) for n in before]


def _change(number: int, sae: "SAE", before: Float[Tensor, "n d_sae"], after: Float[Tensor, "n d_sae"]) -> dict[str, Any]:
    means = before.mean(0), after.mean(0)
    same = (before == after).all(0)
    order = (means[1] - means[0]).abs().topk(min(SHOWN, len(same))).indices.tolist()
    rows = [[i, float(means[0][i]), float(means[1][i])] for i in order if not same[i]]
    about = {"sae": number, "hook_point": sae_hook_point(sae), "texts": len(before), "unmoved": int(same.sum())}
    return {**about, "features": shortened(rows)}


def peaks(host: Any, reader: Any, saes: "Mapping[int, SAE]", texts: Sequence[str]) -> dict[int, Float[Tensor, "n _"]]:
    """Number of an SAE -> the largest activation of its features in each text, over the tokens that count; texts are read one at a time."""
    out = {n: torch.zeros(len(texts), s.cfg.d_sae) for n, s in saes.items()}
    at = {n: sae_hook_point(s) for n, s in saes.items()}
    points = list(dict.fromkeys(at.values()))
    for i, text in enumerate(progress(texts, desc="reading prompts", unit="prompt", inner=True)):
        ids, mask = reader.pad(reader.token_ids([text]))
        seen = host.activations([text], points) if reader is not host else host.activations(ids, mask, points)
        for n, sae in saes.items():
            x = seen[at[n]][0]
            sparse = sae.encode_sparse(x[reader.keep_mask(ids, mask)[0].to(x.device)].to(sae.W_enc))
            out[n][i].scatter_reduce_(0, sparse.indices.long().cpu().flatten(), sparse.values.float().cpu().flatten(), "amax")
    return out
