"""Kernel Inception Distance on the features of a named extractor."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ...base.errors import InputError, NumericsError
from ...deactivate.evaluation.statistics import t_interval
from ...deactivate.evaluation.value import Value


@dataclass(frozen=True)
class Kid:
    """KID between two sets of images. Comparable only where `features` and `size` are the same."""

    value: Value
    """Mean over disjoint subsets, with Student's t-interval; may be negative, and is 0 in expectation for equal distributions."""
    standard_error: float
    """Of that mean."""
    features: str
    """Extractor: its name, version and digest."""
    size: int
    """Images a side in each subset."""


def polynomial_mmd(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy under k(a, b) = (a.b / d + 1)^3, in float64.

    sum over i != j of [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 / m^2 sum over i, j of k(x_i, y_j).
    Source: Demystifying MMD GANs (Binkowski et al., 2018), section 4.
    """
    m, d = x.shape
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (m * (m - 1)) - 2 * xy.mean())


def kid(x: Float[np.ndarray, "a d"], y: Float[np.ndarray, "b d"], features: str, size: int = 100, seed: int = 0) -> Kid:
    """KID with a standard error: both sides are shuffled and cut into disjoint subsets, whose estimates are independent.

    Args:
        x: Features of one set.
        y: Features of the other, of the same extractor.
        features: The extractor's name: part of the result.
        size: Images a side in a subset; what is left over is not read.
        seed: Of the shuffles.

    Raises:
        InputError: Other widths, no name, or fewer than two subsets.
        NumericsError: NaN or infinity among the features.
    """
    if not features:
        raise InputError("KID: features is empty; a KID without the name of its extractor cannot be compared with any other")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"KID: features of one width expected, shapes {x.shape} and {y.shape} found")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NumericsError("KID: a feature is NaN or infinite")
    n = min(len(x), len(y)) // size if size > 1 else 0
    if n < 2:
        raise InputError(f"KID: two subsets of {size} images a side needed (size at least 2), {len(x)} and {len(y)} images found")
    rng = np.random.default_rng(seed)
    a, b = rng.permutation(len(x)), rng.permutation(len(y))
    cuts = [slice(i * size, (i + 1) * size) for i in range(n)]
    found = np.array([polynomial_mmd(x[a[c]], y[b[c]]) for c in cuts])
    return Kid(t_interval(found, unit="subsets"), float(found.std(ddof=1) / n**0.5), features, size)
