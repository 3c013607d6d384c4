"""CRISP's losses as pure functions of activations.

CRISP: Persistent Concept Unlearning via Sparse Autoencoders (Ashuach et al., arXiv:2508.13650).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def suppression_loss(acts: Sequence[Float[Tensor, "n _"]], scales: Sequence[float]) -> Float[Tensor, ""]:
    """Mean activation of the chosen features over tokens, in units of `scales`, mean over hook points.

    Activations are not negative: the loss is 0 exactly where none of the features fires.
    """
    return torch.stack([a.float().mean() / s for a, s in zip(acts, scales, strict=True)]).mean()


def firing_loss(acts: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, ""]:
    """The same as the authors' code has it: the mean over what fires alone, so that a feature that falls silent raises it."""
    found = [a[a > 0].float().mean() for a in acts if bool((a > 0).any())]
    return torch.stack(found).mean() if found else torch.stack([a.float().sum() for a in acts]).sum() * 0.0


def distance(hidden: Float[Tensor, "n d"], frozen: Float[Tensor, "n d"], scale: float = 1.0) -> Float[Tensor, ""]:
    """Mean square of the difference over tokens and dimensions, in units of `scale`."""
    return (hidden - frozen).float().square().mean() / scale
