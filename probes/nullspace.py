"""Iterative null-space projection: a classifier, its row space removed, another classifier, and so on."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError
from .erasers import AffineEraser, onto
from .linear import LinearConfig, LinearProbe, fit_linear
from .scores import check_labels


@dataclass(frozen=True)
class InlpConfig:
    """Null It Out (Ravfogel et al., ACL 2020)."""

    rounds: int = 35
    """Classifiers (released GloVe matrix: 35; BERT: 300; in the R-LACE paper: 21 and 101)."""
    kind: Literal["logistic", "svm", "regression"] = "logistic"
    """Classifiers, or least squares on labels (removes (XᵀX)⁻¹Xᵀy, where the optimum is Xᵀy)."""
    l2: float = 1e-4
    """Penalty of the classifiers; `regression` has none."""
    min_accuracy: float = 0.0
    """Classifiers whose training accuracy is lower remove nothing; rounds end there, since the next one would be the same."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, {self.rounds} found")
        if not 0 <= self.min_accuracy <= 1:
            raise InputError(f"min_accuracy must lie in [0, 1], {self.min_accuracy} found")


@dataclass(frozen=True, eq=False)
class Inlp:
    """What the rounds removed."""

    eraser: AffineEraser
    directions: list[Float[Tensor, "d r"]] = field(default_factory=list)
    """Orthonormal basis of each classifier's row space."""


def inlp(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], config: InlpConfig | None = None) -> Inlp:
    """Removes the row spaces of `rounds` classifiers, each fitted on what those before it left; the mean stays.

    The projection onto the intersection of null spaces is N(sum of row-space projections), which holds where directions are not quite
    orthogonal, too; chained projections would drift. Not optimal for any loss of the R-LACE game but the Rayleigh quotient's: it takes many
    directions where one is enough.

    Raises:
        InputError: Labels are not 0 to k - 1, or not one a vector.
        MatchedNothing: One class.
    """
    config = config or InlpConfig()
    check_labels(x, y, "inlp")
    mean = x.mean(0)
    centred = x - mean
    found: list[Tensor] = []
    basis = centred.new_zeros(x.shape[1], 0)
    for _ in range(min(config.rounds, x.shape[1])):
        left = centred - centred @ basis @ basis.T
        probe = _classifier(left, y, config)
        if config.min_accuracy and float((probe.predict(left) == y).double().mean()) < config.min_accuracy:
            break
        rows = _row_space(probe.weight.to(x), left)
        if not rows.shape[1]:
            break
        found.append(rows)
        basis = intersection(found)
    return Inlp(onto(basis, mean), found)


def intersection(directions: list[Float[Tensor, "d r"]]) -> Float[Tensor, "d m"]:
    """Orthonormal basis of what is NOT in the intersection of the null spaces: range of the sum of row-space projections.

    Projectors on intersections of subspaces (Ben-Israel, 2015), as used in Null It Out.
    """
    values, vectors = torch.linalg.eigh(sum((r @ r.T for r in directions), torch.zeros(())))
    return vectors[:, values > 1e-6]


def _classifier(x: Tensor, y: Tensor, config: InlpConfig) -> LinearProbe:
    if config.kind != "regression":
        return fit_linear(x, y, LinearConfig(kind=config.kind, l2=config.l2, max_iter=200))
    z = torch.nn.functional.one_hot(y).to(x)
    weight = torch.linalg.pinv(x, rtol=1e-8) @ (z - z.mean(0))
    return LinearProbe(weight.T.contiguous(), z.mean(0))


def _row_space(weight: Float[Tensor, "k d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "d r"]:
    """Orthonormal basis of the rows; none where no row tells vectors apart."""
    w = weight - weight.mean(0)
    u, s, _ = torch.linalg.svd(w.T, full_matrices=False)
    scale = float(x.square().mean().sqrt()) * x.shape[1] ** 0.5
    return u[:, (s > 1e-6 * s[0].clamp_min(1e-30)) & (s * scale > 1e-9)]
