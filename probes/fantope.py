"""The Fantope: symmetric matrices with eigenvalues in [0, 1] and trace k, the convex hull of the projections of rank k."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError


def fantope(a: Float[Tensor, "d d"], k: int) -> Float[Tensor, "d d"]:
    """The member nearest to a symmetric matrix; gamma found exactly.

    Fantope projection and selection (Vu et al., NeurIPS 2013), Lemma 4.1.

    Raises:
        InputError: k does not lie in [1, d].
    """
    d = len(a)
    if not 1 <= k <= d:
        raise InputError(f"fantope: k must lie in [1, {d}], {k} found")
    values, vectors = torch.linalg.eigh((a + a.T) / 2)
    knots, order = torch.cat([values - 1, values]).sort()
    slope = torch.where(order < d, -1.0, 1.0).to(values).cumsum(0)[:-1]
    at = torch.cat([knots.new_tensor([float(d)]), d + (slope * knots.diff()).cumsum(0)])
    i = min(int((at > k).sum()), len(knots) - 1)
    gamma = knots[0] if i == 0 else knots[i - 1] + (at[i - 1] - k) / (-slope[i - 1])
    return (vectors * (values - gamma).clamp(0, 1)) @ vectors.T


def top_eigenvectors(a: Float[Tensor, "d d"], k: int) -> Float[Tensor, "d k"]:
    """Of a symmetric matrix, those of the k largest eigenvalues, largest first."""
    return torch.linalg.eigh((a + a.T) / 2)[1].flip(1)[:, :k]
