"""Closed-form linear erasers from moments: LEACE, and orthogonal projections (regression, Rayleigh quotient, SAL, mean projection)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError, MatchedNothing
from .fantope import top_eigenvectors
from .frozen import Frozen
from .moments import Moments


@dataclass(frozen=True, eq=False)
class AffineEraser(Frozen):
    """r(x) = x - L R (x - b): P = I - L R keeps, L R removes. Rank 0 is the identity."""

    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d"]
    bias: Float[Tensor, " d"]
    kind: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        d, r = self.left.shape
        if tuple(self.right.shape) != (r, d) or tuple(self.bias.shape) != (d,):
            shapes = ", ".join(str(list(t.shape)) for t in (self.left, self.right, self.bias))
            raise InputError(f"affine eraser: left [d r], right [r d] and bias [d] expected, {shapes} found")

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Erased vectors, in the dtype of `x`; computed in float32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        left, right, bias = (t.to(x.device, wide) for t in (self.left, self.right, self.bias))
        return (x.to(wide) - (x.to(wide) - bias) @ right.T @ left.T).to(x.dtype)

    @property
    def rank(self) -> int:
        """Directions that are removed."""
        return self.left.shape[1]

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


def shrunk(m: Moments) -> Moments:
    """The moments with Sigma_XX shrunk towards tr(Sigma)/d I, the best linear mix as n and d grow together.

    On the strong convergence of the optimal linear shrinkage estimator for large dimensional covariance matrix (Bodnar et al.,
    2014), with the identity's multiple of equal trace as target. For few vectors a dimension; LEACE guards exactly
    with either, since any positive definite matrix in the place of Sigma_XX does.
    """
    s, d = m.xx * ((m.n - 1) / m.n), len(m.xx)
    target = torch.eye(d).to(s) * s.trace() / d
    cross, size = (s * target).sum(), target.square().sum()
    below = s.square().sum() * size - cross.square()
    if not below > 0:
        return m
    alpha = 1 - s.trace().square() * size / m.n / below
    return replace(m, xx=alpha * s + (1 - alpha) * cross / size * target)


def onto(basis: Float[Tensor, "d r"], shift: Float[Tensor, " d"] | None = None) -> AffineEraser:
    """The orthogonal projection that removes the columns of an orthonormal basis; the mean `shift` stays, without it 0 does."""
    return AffineEraser(basis, basis.T, basis.new_zeros(len(basis)) if shift is None else shift)


def orthogonal(m: Moments, *, k: int | None = None, affine: bool = True, tol: float = 1e-8) -> AffineEraser:
    """Removes colspace(Sigma_XZ) orthogonally: the closed form of R-LACE for regression on centred data; SAL.

    Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022, corrected version), section 3; Erasure of unaligned attributes
    from neural representations (Shao et al., TACL 2023), for SAL, which removes the first k left singular vectors.

    Args:
        m: Moments of vectors and labels.
        k: How many singular vectors, largest first; None: all, after which nothing linear is left.
        affine: Keep the mean.
        tol: Singular values up to `tol` times the largest standard deviations of vectors and labels count as 0.
    """
    u, s, _ = torch.linalg.svd(m.xz, full_matrices=False)
    scale = float(torch.linalg.eigvalsh(m.xx)[-1].clamp_min(0)) ** 0.5
    return onto(u[:, _above(s, m, tol * scale)][:, :k], m.mean_x if affine else None)


def mean_projection(means: Float[Tensor, "k d"], *, tol: float = 1e-10) -> AffineEraser:
    """Removes the span of differences of class means; keeps their mean. The same projection as `orthogonal` of one-hot labels.

    Better hit the nail on the head than beat around the bush: removing protected attributes with a single projection (Haghighatkhah
    et al., EMNLP 2022), for two classes.

    Raises:
        MatchedNothing: Fewer than two classes.
    """
    if len(means) < 2:
        raise MatchedNothing(f"mean projection: means of at least two classes are needed, {len(means)} given")
    centre = means.mean(0)
    u, s, _ = torch.linalg.svd((means - centre).T, full_matrices=False)
    return onto(u[:, s > tol * means.abs().max()], centre)


def regression(x: Float[Tensor, "n d"], y: Float[Tensor, "n m"]) -> AffineEraser:
    """Max-min of least squares: removes colspace(XᵀY), after which the best linear predictor without intercept is 0.

    Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022, corrected version), section 3. Uncentred; centre both for predictors
    with an intercept, then it is `orthogonal`.

    Raises:
        MatchedNothing: XᵀY is 0: there is nothing to remove.
    """
    u, s, _ = torch.linalg.svd(x.T @ y, full_matrices=False)
    kept = s > 1e-12 * x.norm() * y.norm()
    if not kept.any():
        raise MatchedNothing("regression: the targets are orthogonal to every coordinate already; nothing to remove")
    return onto(u[:, kept])


def rayleigh(a: Float[Tensor, "d d"], k: int, *, which: Literal["largest", "smallest"] = "largest") -> AffineEraser:
    """Removes k eigenvectors of A, for predictors that are judged by a Rayleigh quotient: PCA, partial least squares (A = XᵀyyᵀX).

    The paper (as `regression`) writes the SMALLEST for its max-min value; a predictor that maximises the quotient, which is the
    use that matters and that its proof about INLP takes, is beaten by removing the LARGEST.

    Raises:
        InputError: k does not lie in [1, d].
    """
    if not 1 <= k <= len(a):
        raise InputError(f"rayleigh: k must lie in [1, {len(a)}], {k} found")
    return onto(top_eigenvectors(a if which == "largest" else -a, k))


def _above(s: Tensor, m: Moments, tol: float) -> Tensor:
    return s > tol * float(m.zz.diagonal().max().clamp_min(0)) ** 0.5
