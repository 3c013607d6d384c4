"""Text states in coordinates in which every direction counts: a denoiser learns captions from them in fewer steps.

A contrastively trained tower puts most of its variance into a dozen directions, and what tells one caption from its near neighbours
into the others. A step of Adam scales weights, not directions of their input, so cross-attention learns the small ones last. Training
on whitened states, with the keys' and values' weights turned the other way, is the same function with another metric; folded back,
the denoiser is an ordinary one.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.errors import MatchedNothing

READERS = ("attn2.to_k.weight", "attn2.to_v.weight")
"""What reads text states in a diffusers U-Net."""


@torch.no_grad()
def fold(unet: Any, matrix: Float[Tensor, "d d"]) -> None:
    """Multiplies every weight that reads text states by `matrix` from the right, in place.

    Raises:
        MatchedNothing: The denoiser has no cross-attention.
    """
    readers = [p for name, p in unet.named_parameters() if name.endswith(READERS)]
    if not readers:
        raise MatchedNothing("the denoiser has no cross-attention to read captions with")
    for p in readers:
        p.copy_(p.double() @ matrix.to(p.device, torch.float64))
