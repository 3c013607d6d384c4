"""Where training starts: unit decoder rows, the encoder as their transpose, the geometric median, the input's scale."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError, MatchedNothing, NumericsError, UnknownName
from .config import NORMALIZE
from .sparse import decode_sparse, encode_topk


def unit_rows(d_sae: int, d: int, dtype: torch.dtype) -> Float[Tensor, "d_sae d"]:
    """Random directions of norm 1, from torch's global generator."""
    rows = torch.randn(d_sae, d, dtype=torch.float32)
    return rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).to(dtype)


@torch.no_grad()
def geometric_median(points: Float[Tensor, "n d"], *, iterations: int = 100, tolerance: float = 1e-6) -> Float[Tensor, " d"]:
    """The point whose summed distance to `points` is least; `b_dec`'s start (Gao et al. 2024, App. A.1).

    Weiszfeld's iteration from the mean, in float64, with the rule of Vardi and Zhang (The multivariate L1-median, 2000)
    where the guess meets a point: it is left if the pull of the others exceeds the weight of the points there.

    Args:
        points: Vectors.
        iterations: At most.
        tolerance: Stop when a step is shorter than this share of the points' mean distance.

    Raises:
        MatchedNothing: No points.
        NumericsError: NaN or infinity among them.
    """
    if not len(points):
        raise MatchedNothing("geometric_median needs at least one point")
    if not points.isfinite().all():
        raise NumericsError("NaN or infinity among the points of geometric_median")
    x = points.double()
    guess = x.mean(0)
    for _ in range(iterations):
        offset = x - guess
        distance = offset.norm(dim=1)
        scale = float(distance.mean())
        here = distance <= 1e-12 * scale
        if scale == 0 or here.all():
            break
        weights = torch.where(here, 0.0, 1 / distance.clamp_min(1e-300))
        pull = weights @ offset
        strength = float(pull.norm())
        held = min(1.0, int(here.sum()) / strength) if strength > 0 else 1.0
        move = (1 - held) * pull / weights.sum()
        guess = guess + move
        if float(move.norm()) <= tolerance * scale:
            break
    return guess.to(points.dtype)


@torch.no_grad()
def input_scale(x: Float[Tensor, "n d"], normalize: str) -> float:
    """The factor that brings vectors to the scale training expects; `SAE.fold_scale` undoes it in the weights.

    Args:
        x: A sample.
        normalize: `unit`: E|x|^2 becomes 1 (dictionary_learning); `sqrt_d`: the mean norm becomes sqrt(d) (sae-lens'
            `expected_average_only_in`); `none`: 1; `whiten`: as `unit`, of vectors that `whitening` was applied to.

    Raises:
        InputError: All vectors are zero.
    """
    if normalize not in NORMALIZE:
        raise UnknownName("normalize", normalize, NORMALIZE)
    if normalize == "none":
        return 1.0
    norms = x.double().norm(dim=1)
    size = float(norms.mean()) / x.shape[1] ** 0.5 if normalize == "sqrt_d" else float(norms.pow(2).mean().sqrt())
    if not 0 < size < float("inf"):
        raise InputError(f"cannot normalise activations of size {size}: is the hook point's output zero or not finite?")
    return 1 / size


@torch.no_grad()
def whitening(x: Float[Tensor, "n d"], floor: float, *, center: bool = True) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """(A, its inverse), symmetric: `x @ A` has variance 1 in every direction whose variance is well above the floor.

    Args:
        x: A sample.
        floor: Share of the largest variance that is added to all.
        center: Whether A is of the covariance, or of the second moment.

    Raises:
        InputError: All vectors are the same.
    """
    wide = x.double()
    wide = wide - wide.mean(0) if center else wide
    values, vectors = torch.linalg.eigh(wide.T @ wide / len(wide))
    if not 0 < float(values.max()) < float("inf"):
        raise InputError(f"cannot whiten activations whose largest variance is {float(values.max())}: is the hook point's output constant?")
    root = (values.clamp_min(0) + floor * values.max()).sqrt()
    return ((vectors / root) @ vectors.T).to(x.dtype), ((vectors * root) @ vectors.T).to(x.dtype)


@torch.no_grad()
def encoder_scale(
    x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d d_sae"], b_enc: Float[Tensor, " d_sae"], W_dec: Float[Tensor, "d_sae d"], k: int
) -> float:
    """The factor on the encoder with which the k largest latents reconstruct `x` best; what a random dictionary overshoots.

    A dictionary of unit rows whose encoder is its transpose writes too much, the more so the larger k and d_sae are: Adam needs
    hundreds of steps to shrink it. Which latents are the largest does not depend on the factor as long as `b_enc` is zero.

    Args:
        x: The encoder's input, `b_dec` subtracted.
        W_enc: Encoder.
        b_enc: Its bias, zero.
        W_dec: Decoder.
        k: Active latents a vector.

    Returns:
        The least-squares factor; 1 where the reconstruction is zero or points away from `x`.
    """
    made = decode_sparse(encode_topk(x, W_enc, b_enc, k), W_dec).double()
    along, size = float((made * x.double()).sum()), float((made**2).sum())
    return along / size if along > 0 else 1.0
