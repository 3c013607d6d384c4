"""A small fixed input and the output it gave at saving: loading tells whether code and weights still agree."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.errors import ArtefactError, NumericsError
from ..sae import SAE

ROWS = 4
SHOWN = 8
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def probe(d_in: int, size: float) -> Float[Tensor, "rows d_in"]:
    """`sin(1 + i)` over `i = 0 … 4 d_in - 1`, scaled so that the rows' norms are about `size`."""
    wave = torch.sin(torch.arange(1, ROWS * d_in + 1, dtype=torch.float64)).view(ROWS, d_in)
    return (wave * size * math.sqrt(2 / d_in)).float()


@torch.no_grad()
def take(sae: SAE) -> dict[str, Any]:
    """The fingerprint of an SAE: size of the input, L0, and of the output its norm and first entries, a row each.

    The size is the first power of 4 at which latents fire.
    """
    size = 0.25
    for exponent in range(-1, 8):
        size = 4.0**exponent
        if sae.encode_sparse(probe(sae.cfg.d_in, size).to(sae.device)).nnz >= ROWS:
            break
    return {"size": size, **_output(sae, size)}


@torch.no_grad()
def check(sae: SAE, expected: Mapping[str, Any], where: str) -> None:
    """Compares the SAE's output on the fixed input with what was stored.

    One row in four may differ: of two nearly equal pre-activations another machine's rounding may choose the other.

    Raises:
        ArtefactError: They differ by more than rounding, or the fingerprint is malformed.
    """
    try:
        found = _output(sae, float(expected["size"]))
        want, have = (torch.tensor(f["head"], dtype=torch.float64) for f in (expected, found))
        norms, here = (torch.tensor(f["norm"], dtype=torch.float64) for f in (expected, found))
        shapes_fit = want.shape == have.shape and norms.shape == here.shape
    except (KeyError, TypeError, ValueError, NumericsError) as e:
        raise ArtefactError(f"{where}: the fingerprint is malformed ({e})") from None
    agree = 0
    if shapes_fit:
        slack = TOLERANCE[sae.dtype] * norms.max().clamp_min(1e-12)
        agree = int((((want - have).abs().amax(1) <= slack) & ((norms - here).abs() <= slack)).sum())
    if agree < ROWS - 1:
        raise ArtefactError(
            f"{where}: the loaded SAE does not give the output stored when it was saved; the file was altered or "
            "another version changed what it means. Save it again from its source"
        )


def _output(sae: SAE, size: float) -> dict[str, Any]:
    x = probe(sae.cfg.d_in, size).to(sae.device)
    acts = sae.encode_sparse(x)
    out = sae.decode(acts, x).double().cpu()
    return {"l0": acts.l0(), "norm": out.norm(dim=1).tolist(), "head": out[:, :SHOWN].tolist()}
