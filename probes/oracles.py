"""Erasers that are told the label: the least-squares residual, and transport of every class to one Gaussian (quadratic)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, MatchedNothing
from .frozen import Frozen
from .moments import Moments, MomentsFitter


@dataclass(frozen=True, eq=False)
class OracleEraser(Frozen):
    """r(x, z) = x - coef (z - E Z)."""

    coef: Float[Tensor, "d k"]
    mean_z: Float[Tensor, " k"]
    kind: ClassVar[str] = "oracle"

    def __post_init__(self) -> None:
        if self.coef.ndim != 2 or self.mean_z.shape != self.coef.shape[1:]:
            raise InputError(f"oracle eraser: coef [d k], mean_z [k] expected, {list(self.coef.shape)}, {list(self.mean_z.shape)} found")

    def __call__(self, x: Float[Tensor, "n d"], z: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Residuals, in the dtype of `x`; computed in float32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        coef, mean = self.coef.to(x.device, wide), self.mean_z.to(x.device, wide)
        return (x.to(wide) - (z.to(x.device, wide) - mean) @ coef.T).to(x.dtype)


def oracle(m: Moments, *, tol: float = 1e-10) -> OracleEraser:
    """X - Sigma_XZ Sigma_ZZ^+ (z - E Z): of all erasers the one that changes least, where labels are known at run time.

    LEACE: Perfect linear concept erasure in closed form (Belrose et al., 2023), oracle LEACE. The authors warn that it can ADD
    non-linear information about the label: train nothing non-linear on what it gives. With f(x) = E[Z | x] of a calibrated classifier in the
    place of z, in the moments and at run time, it is free-form LEACE, which needs no labels at run time.

    Args:
        m: Moments of vectors and labels, or of vectors and f(x).
        tol: Eigenvalues of Sigma_ZZ up to `tol` times the largest count as 0.
    """
    return OracleEraser(m.xz @ torch.linalg.pinv(m.zz, rtol=tol, hermitian=True), m.mean_z)


@dataclass(frozen=True, eq=False)
class QuadraticEraser(Frozen):
    """r(x, y) = T_y (x - mu_y) + mu: every class transported to the same mean and covariance."""

    means: Float[Tensor, "k d"]
    centre: Float[Tensor, " d"]
    maps: Float[Tensor, "k d d"]
    kind: ClassVar[str] = "quadratic"

    def __post_init__(self) -> None:
        k, d = self.means.shape
        if tuple(self.centre.shape) != (d,) or tuple(self.maps.shape) != (k, d, d):
            raise InputError("quadratic eraser: means [k d], centre [d] and maps [k d d] expected")

    def __call__(self, x: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Transported vectors, in the dtype of `x`.

        Raises:
            InputError: A class that was not fitted.
        """
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < len(self.means)):
            raise InputError(f"quadratic eraser: classes are 0 to {len(self.means) - 1}; found {int(y.min())} to {int(y.max())}")
        wide = torch.promote_types(x.dtype, torch.float32)
        means, centre, maps = (t.to(x.device, wide) for t in (self.means, self.centre, self.maps))
        out = torch.empty_like(x, dtype=wide)
        for c in range(len(means)):
            rows = y == c
            out[rows] = (x[rows].to(wide) - means[c]) @ maps[c].T + centre
        return out.to(x.dtype)


class ClassMoments:
    """Streams means and covariances of each class.

    Args:
        k: Number of classes.
        dtype: Of the sums.
    """

    def __init__(self, k: int, dtype: torch.dtype = torch.float64) -> None:
        if k < 2:
            raise InputError(f"class moments: at least two classes are needed, k is {k}")
        self.fitters = [MomentsFitter(dtype) for _ in range(k)]

    def update(self, x: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> "ClassMoments":
        """Adds a batch.

        Raises:
            InputError: A class beyond k.
        """
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < len(self.fitters)):
            raise InputError(f"class moments: classes are 0 to {len(self.fitters) - 1}; found {int(y.min())} to {int(y.max())}")
        for c, fitter in enumerate(self.fitters):
            own = x[y == c]
            fitter.update(own, own.new_zeros(len(own), 1))
        return self

    def moments(self) -> list[Moments]:
        """Of each class.

        Raises:
            MatchedNothing: A class has fewer than two vectors.
        """
        return [f.moments() for f in self.fitters]


def quadratic(classes: list[Moments], *, weighted: bool = True) -> QuadraticEraser:
    """Optimal transport of every class to the Wasserstein barycentre of the class Gaussians: nothing quadratic is left.

    Belrose et al. (2023), concept-erasure 0.2; barycentre of two classes in closed form, of more by the fixed point of Álvarez-Esteban et al.
    (2016), both weighted by the classes' sizes. The label must be known at run time.

    Args:
        classes: Moments of each class; covariances must have full rank.
        weighted: The common mean is that of all vectors; off: of the class means, as concept-erasure 0.2.4 takes it.

    Raises:
        MatchedNothing: Fewer than two classes.
        InputError: A class has a covariance without full rank.
    """
    if len(classes) < 2:
        raise MatchedNothing(f"quadratic eraser: at least two classes are needed, {len(classes)} given")
    weights = classes[0].xx.new_tensor([float(m.n) for m in classes])
    weights = weights / weights.sum()
    covariances = torch.stack([m.xx for m in classes])
    for c, lowest in enumerate(torch.linalg.eigvalsh(covariances)):
        if not lowest[0] > lowest[-1] * len(lowest) * torch.finfo(lowest.dtype).eps:
            raise InputError(f"quadratic eraser: class {c} has {classes[c].n} vectors, too few for a covariance of full rank; give more")
    means = torch.stack([m.mean_x for m in classes])
    centre = weights @ means if weighted else means.mean(0)
    goal = barycentre(covariances, weights)
    return QuadraticEraser(means, centre, torch.stack([transport(c, goal) for c in covariances]))


def transport(a: Float[Tensor, "d d"], b: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric T with T A T = B: optimal transport of N(0, A) to N(0, B)."""
    root, inverse = _roots(a)
    return inverse @ _roots(root @ b @ root)[0] @ inverse


def barycentre(
    covariances: Float[Tensor, "k d d"], weights: Float[Tensor, " k"], *, rounds: int = 500, tol: float = 1e-13
) -> Float[Tensor, "d d"]:
    """Covariance of the 2-Wasserstein barycentre of centred Gaussians.

    Of two, in closed form (a point of the geodesic); of more, the fixed point of A fixed-point approach to barycenters in Wasserstein space
    (Álvarez-Esteban et al., 2016), Eq. 7.
    """
    if len(covariances) == 2:
        eye = torch.eye(covariances.shape[1]).to(covariances)
        step = weights[0] * eye + weights[1] * transport(covariances[0], covariances[1])
        return step @ covariances[0] @ step
    s = torch.einsum("k,kij->ij", weights, covariances)
    for _ in range(rounds):
        root, inverse = _roots(s)
        inner = torch.einsum("k,kij->ij", weights, torch.stack([_roots(root @ c @ root)[0] for c in covariances]))
        step = inverse @ inner @ inverse
        moved = step @ s @ step
        moved = (moved + moved.T) / 2
        near = (moved - s).norm() <= tol * s.norm()
        s = moved
        if near:
            break
    return s


def _roots(a: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a p.s.d. matrix, and the pseudo-inverse of the root."""
    values, vectors = torch.linalg.eigh((a + a.T) / 2)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root = values.clamp_min(0).sqrt()
    return (vectors * root) @ vectors.T, (vectors * torch.where(kept, 1 / root.clamp_min(1e-300), 0)) @ vectors.T
