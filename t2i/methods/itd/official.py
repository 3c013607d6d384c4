"""`compat="official"`: where the released code of Interpret-then-Deactivate does otherwise than the paper, and what that does.

What is reproduced: features that are not active fill a short prompt's list (which ones is left to the sort); celebrities are
calibrated by the largest of the tokens, and compared by their mean; styles are calibrated with a multiplier of -6, and drawn with
another; prompts are calibrated at their own length, and scored padded; nothing is gated for nudity. Its other faults lie in how
its SAE is trained.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....base.errors import MatchedNothing
from ....deactivate.calibration import Calibration, Rate
from ....deactivate.change_gate import PUBLISHED_SHARE, ChangeGate
from ....deactivate.layer import DeactivationPart
from ....sae.sparse import SparseActs
from .config import RELEASED_STYLE_GAMMA, ItdConfig
from .selection import EmptySelection, Selected

if TYPE_CHECKING:
    from ...host import ImageHost


def official_lists(peaks: SparseActs, k_sel: int) -> Int[Tensor, "n k"]:
    """The `k_sel` features with the largest peaks of each prompt, inactive ones where fewer are active."""
    return peaks.to_dense().topk(min(k_sel, peaks.d_sae), dim=1).indices


def official_features(target: SparseActs, retain: SparseActs, k_sel: int) -> Selected:
    """Union over target prompts of their lists, minus the union of the retain prompts' lists.

    Raises:
        EmptySelection: Nothing is left.
    """
    lists, others = official_lists(target, k_sel), official_lists(retain, k_sel)
    union = torch.zeros(target.d_sae, dtype=torch.bool)
    union[others.unique()] = True
    mine = lists.unique()
    left, lost = mine[~union[mine]], mine[union[mine]]
    if not len(left):
        held = torch.isin(others, lost).sum(1)
        takers = [i for i in torch.argsort(held, descending=True, stable=True).tolist() if held[i]]
        raise EmptySelection(tuple(lost.tolist()), tuple(takers))
    peak = torch.zeros(target.d_sae).scatter_reduce(0, target.indices.long(), target.values.float(), "amax")
    left = left[torch.argsort(peak[left], descending=True, stable=True)]
    return Selected(tuple(left.tolist()), tuple(peak[left].tolist()), tuple(lost.tolist()))


@torch.no_grad()
def official_scores(host: "ImageHost", layer: DeactivationPart, prompts: Sequence[str], config: ItdConfig) -> Float[Tensor, " n"]:
    """What the released code calibrates with: each prompt alone at its own length, by its task's statistic."""
    if config.task == "style":
        layer = replace(layer, value=RELEASED_STYLE_GAMMA)
    reader = host.reader([layer.hook_point])
    out = []
    for row in reader.token_ids(prompts):
        ids = torch.tensor([row])
        x = reader.activations(ids, torch.ones_like(ids), [layer.hook_point])[layer.hook_point]
        each = (layer.reconstruction(x) + layer.change(x)[0] - x).double().square().mean(-1)[0]
        out.append(each.amax() if config.task == "celebrity" else each.mean())
    return torch.stack(out).cpu()


def official_gate(host: "ImageHost", layer: DeactivationPart, target: Sequence[str], config: ItdConfig) -> ChangeGate:
    """The gate that scores as the hook does (mean over the padded prompt), with the threshold that calibration gave it.

    Raises:
        MatchedNothing: The layer does not move a target prompt.
    """
    scores = official_scores(host, layer, target, config)
    if not float(scores.min()) > 0:
        raise MatchedNothing(f"gate: the layer does not move {target[int(scores.argmin())]!r}; the published threshold would be 0")
    unknown, note = Rate(1.0, 0.0, 1.0, 0), "Threshold by another statistic than the score's, as in the released code."
    return ChangeGate(layer, "reconstruction", Calibration(PUBLISHED_SHARE * float(scores.min()), 0.0, 1.0, unknown, note=note))
