"""Closed-form linear erasers: LEACE and the orthogonal projection (SAL, mean projection), and the Fantope's projection."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError
from .moments import Moments


@dataclass(frozen=True, eq=False)
class AffineEraser:
    """r(x) = x - L R (x - b): P = I - L R keeps, L R removes. Rank 0 is the identity."""

    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d"]
    bias: Float[Tensor, " d"]

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Erased vectors, in the dtype of `x`; computed in float32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        left, right, bias = (t.to(x.device, wide) for t in (self.left, self.right, self.bias))
        return (x.to(wide) - (x.to(wide) - bias) @ right.T @ left.T).to(x.dtype)

    @property
    def P(self) -> Float[Tensor, "d d"]:
        """I - L R."""
        return torch.eye(len(self.bias)).to(self.left) - self.left @ self.right


def leace(m: Moments, *, affine: bool = True, tol: float = 1e-8) -> AffineEraser:
    """Least-squares concept erasure: x - W^+ U U^T W (x - E X), W = (Sigma_XX^(1/2))^+, U spans W Sigma_XZ.

    LEACE: Perfect linear concept erasure in closed form (Belrose et al., 2023), Theorem 4.3. No shrinkage and no trace
    constraint, which never binds.

    Args:
        m: Moments of vectors and labels.
        affine: Keep the mean; else x - L R x.
        tol: Singular values of W Sigma_XZ up to `tol` times the labels' largest standard deviation count as 0.
    """
    values, vectors = torch.linalg.eigh(m.xx)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[kept], vectors[:, kept]
    u, s, _ = torch.linalg.svd(values.rsqrt()[:, None] * (vectors.T @ m.xz), full_matrices=False)
    u = u[:, _above(s, m, tol)]
    left, right = vectors @ (values.sqrt()[:, None] * u), (vectors @ (values.rsqrt()[:, None] * u)).T
    return AffineEraser(left, right, m.mean_x if affine else torch.zeros_like(m.mean_x))


def orthogonal(m: Moments, *, affine: bool = True, tol: float = 1e-8) -> AffineEraser:
    """Removes colspace(Sigma_XZ) orthogonally: the closed form of R-LACE for regression on centred data; SAL.

    Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022, corrected version), section 3.
    """
    u, s, _ = torch.linalg.svd(m.xz, full_matrices=False)
    scale = float(torch.linalg.eigvalsh(m.xx)[-1].clamp_min(0)) ** 0.5
    u = u[:, _above(s, m, tol * scale)]
    return AffineEraser(u, u.T, m.mean_x if affine else torch.zeros_like(m.mean_x))


def _above(s: Tensor, m: Moments, tol: float) -> Tensor:
    return s > tol * float(m.zz.diagonal().max().clamp_min(0)) ** 0.5


def fantope(a: Float[Tensor, "d d"], k: int) -> Float[Tensor, "d d"]:
    """The nearest symmetric matrix with eigenvalues in [0, 1] and trace k (Vu et al., 2013), gamma found exactly.

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
