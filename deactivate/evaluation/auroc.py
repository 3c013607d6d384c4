"""Area under the ROC curve with an interval that does not vanish at perfect separation."""

import math
from typing import Literal

import numpy as np

from .numbers import Numbers, check_level, finite, percentiles, z_score
from .value import Value


def auroc(
    positives: Numbers,
    negatives: Numbers,
    method: Literal["delong", "bootstrap"] = "delong",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Value:
    """P(positive score > negative score) + ½ P(equal), with an interval.

    `delong` works on the logit scale, so its ends stay inside (0, 1). Where DeLong's variance is 0 (perfect
    separation, or a class of one item) the interval is Newcombe's, which does not shrink to a point; `Value.method`
    says which was used. `bootstrap` resamples each class.

    Source: DeLong et al., Comparing the areas under two or more correlated ROC curves (1988), by midranks (Sun and
    Xu, 2014, Alg. 2); Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic
    (2006), method 5.
    """
    check_level(level)
    x, y = finite(positives, "positives"), finite(negatives, "negatives")
    n = int(x.size + y.size)
    if method == "bootstrap":
        rng = np.random.default_rng(seed)
        drawn = [_area(rng.choice(x, x.size), rng.choice(y, y.size)) for _ in range(draws)]
        low, high = percentiles(np.asarray(drawn), level)
        return Value(_area(x, y), low, high, n, "items", "bootstrap", level)
    area, variance = _delong(x, y)
    if variance <= 0 or not 0 < area < 1:
        return Value(
            area,
            _newcombe(area, x.size, y.size, level),
            1 - _newcombe(1 - area, x.size, y.size, level),
            n,
            "items",
            "Newcombe",
            level,
        )
    logit, half = math.log(area / (1 - area)), z_score(level) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-v)) if v > -700 else 0.0 for v in (logit - half, logit + half))
    return Value(area, low, high, n, "items", "DeLong", level)


def _area(x: np.ndarray, y: np.ndarray) -> float:
    ordered = np.sort(y)
    below, upto = np.searchsorted(ordered, x, "left"), np.searchsorted(ordered, x, "right")
    return float((below + upto).mean() / (2 * y.size))


def _delong(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Area and its variance; variance 0 where a class has a single item."""
    m, n = x.size, y.size
    joint = _midranks(np.concatenate([x, y]))
    placed_x = (joint[:m] - _midranks(x)) / n  # share of negatives below each positive
    placed_y = 1 - (joint[m:] - _midranks(y)) / m
    if min(m, n) < 2:
        return float(placed_x.mean()), 0.0
    return float(placed_x.mean()), float(placed_x.var(ddof=1) / m + placed_y.var(ddof=1) / n)


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, equal values each with the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _newcombe(area: float, m: int, n: int, level: float) -> float:
    """Lower end: the root θ < area of area − θ = z √V(θ). The upper end is 1 − that of 1 − area, V being symmetric."""
    from scipy.optimize import brentq

    if area <= 0:
        return 0.0
    z, size = z_score(level), (m + n) / 2

    def gap(theta: float) -> float:
        spread = 1 + (size - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return area - theta - z * math.sqrt(theta * (1 - theta) * spread / (m * n))

    top = min(area, 1 - 1e-12)
    return float(np.asarray(brentq(gap, 0.0, top))) if gap(top) < 0 else area
