"""Intervals and tests for erasure figures.

The concept is the unit, items are paired inside it, a NaN is an error, every draw is seeded. Float64 throughout;
inputs are sequences of numbers or one-dimensional arrays.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...base.errors import InputError
from .auroc import auroc
from .numbers import Groups, Numbers, check_level, finite, percentiles, z_score
from .value import Value

__all__ = [
    "Equivalence",
    "McNemar",
    "Paired",
    "auroc",
    "equivalence",
    "harmonic_mean",
    "hierarchical_bootstrap",
    "mcnemar",
    "paired_bootstrap",
    "t_interval",
    "tie_credit",
    "wilson",
]

BLOCK = 4_000_000
"""Largest number of resampled items held at once."""


def wilson(successes: int, n: int, level: float = 0.95) -> Value:
    """Wilson score interval of a rate; never of zero width, also at 0 and n successes.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"rate: {successes} of {n} is not a rate; n must be at least 1 and successes between 0 and n")
    z, p = z_score(level), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (max(0.0, centre - half) if successes else 0.0), (min(1.0, centre + half) if successes < n else 1.0)
    return Value(p, low, high, n, "items", "Wilson", level)


def t_interval(values: Numbers, level: float = 0.95, unit: str = "concepts") -> Value:
    """Mean over units (one value a concept) with Student's t-interval, n − 1 degrees of freedom.

    Raises:
        InputError: Fewer than two values: one concept has no spread between concepts; use `hierarchical_bootstrap`
        over its items.
    """
    from scipy.special import stdtrit

    check_level(level)
    x = finite(values, unit, least=2)
    half = float(stdtrit(x.size - 1, (1 + level) / 2)) * x.std(ddof=1) / math.sqrt(x.size)
    mean = float(x.mean())
    return Value(mean, mean - float(half), mean + float(half), int(x.size), unit, "t", level)


def hierarchical_bootstrap(groups: Groups, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Value:
    """Mean of concept means; concepts are resampled, then the items inside each drawn concept. Percentile interval.

    `groups` holds one array of items a concept. With a single concept only its items are resampled, and `method` and
    `unit` say so. Below about ten concepts percentile intervals are somewhat narrow: report `t_interval` over the
    concept means beside it.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), §3.8.
    """
    check_level(level)
    if not groups or draws < 100:
        raise InputError(f"bootstrap: at least one concept and 100 draws needed, {len(groups)} and {draws} found")
    arrays = [finite(g, f"concept {i}") for i, g in enumerate(groups)]
    rng, n = np.random.default_rng(seed), len(arrays)
    chosen = rng.integers(n, size=(draws, n))
    means = np.empty((draws, n))
    for i, x in enumerate(arrays):
        picked = chosen == i
        means[picked] = _resampled_means(x, int(picked.sum()), rng)
    mean = float(np.mean([x.mean() for x in arrays]))
    low, high = percentiles(means.mean(axis=1), level)
    if n == 1:
        return Value(mean, low, high, arrays[0].size, "items", "bootstrap over items", level)
    return Value(mean, low, high, n, "concepts", "hierarchical bootstrap", level)


@dataclass(frozen=True)
class Paired:
    """A paired comparison: the difference with its interval, and how many items went which way."""

    difference: Value
    """Mean of a − factor · b."""
    wins: int
    """Items with a > factor · b."""
    losses: int
    """Items with a < factor · b."""
    ties: int
    """Items that are equal: printed as ties, given to neither."""

    @property
    def verdict(self) -> Literal["higher", "lower", "tie"]:
        """Which side the whole interval lies on; «tie» where it holds 0."""
        low, high = self.difference.interval
        return "higher" if low > 0 else "lower" if high < 0 else "tie"


def paired_bootstrap(a: Groups, b: Groups, factor: float = 1.0, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Paired:
    """Interval of the mean of a − factor · b over the same items: one array of items a concept on each side.

    Differences are taken item by item before anything is resampled. `factor` serves claims like «more than three
    times the control».
    """
    if len(a) != len(b):
        raise InputError(f"paired: {len(a)} concepts on one side, {len(b)} on the other; both sides need the same items")
    differences: list[np.ndarray] = []
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        x, y = finite(one, f"a, concept {i}"), finite(other, f"b, concept {i}")
        if x.size != y.size:
            raise InputError(f"paired: concept {i} has {x.size} items on one side, {y.size} on the other")
        differences.append(x - factor * y)
    value = hierarchical_bootstrap(differences, draws, seed, level)
    flat = np.concatenate(differences)
    return Paired(value, int((flat > 0).sum()), int((flat < 0).sum()), int((flat == 0).sum()))


def harmonic_mean(parts: Numbers, floor: float = 1e-6) -> float:
    """Harmonic mean n / Σ 1/part, parts clipped to at least `floor`. Print the parts beside it.

    Raises:
        InputError: A negative part.
    """
    x = finite(parts, "harmonic mean")
    if (x < 0).any():
        raise InputError(f"harmonic mean: parts must not be negative, {x.min()} found; clip them where they are defined")
    return float(x.size / (1.0 / np.maximum(x, floor)).sum())


def tie_credit(scores: Numbers, right: int) -> float:
    """Credit for a choice question: 1/k where the right option is among the k best-scored ones, else 0."""
    x = finite(scores, "scores", least=2)
    if not 0 <= right < x.size:
        raise InputError(f"right option {right} is not among {x.size} options")
    best = x == x.max()
    return float(best[right] / best.sum())


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests."""

    equivalent: bool
    """Whether the difference is shown to lie inside ±margin. False means «not shown», not «harm»."""
    p: float
    """The larger of the two one-sided p-values."""
    difference: Value
    """Mean difference with its (1 − 2 α) interval: equivalent exactly when that lies inside ±margin."""
    margin: float
    """The margin stated before looking."""


def equivalence(differences: Numbers, margin: float, alpha: float = 0.05, unit: str = "concepts") -> Equivalence:
    """«No harm»: is the mean of paired differences within ±margin? Two one-sided t-tests (TOST) at `alpha`.

    Source: Schuirmann, A comparison of the two one-sided tests procedure … (1987).
    """
    from scipy.special import stdtr

    if not margin > 0 or not 0 < alpha < 0.5:
        raise InputError(f"equivalence: margin must be above 0 and alpha in (0, 0.5); {margin} and {alpha} found")
    x = finite(differences, unit, least=2)
    mean, se, df = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(x.size), x.size - 1
    if se == 0:
        p = 0.0 if abs(mean) < margin else 1.0
    else:
        p = max(float(stdtr(df, -(mean + margin) / se)), float(stdtr(df, (mean - margin) / se)))
    return Equivalence(p < alpha, p, t_interval(x, 1 - 2 * alpha, unit), margin)


@dataclass(frozen=True)
class McNemar:
    """Discordant pairs of a yes/no outcome measured twice on the same items."""

    gained: int
    lost: int
    p: float


def mcnemar(before: Numbers, after: Numbers) -> McNemar:
    """Exact McNemar test on paired 0/1 outcomes: two-sided binomial on the items that changed; p = 1 where none did.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions (1947).
    """
    from scipy.stats import binomtest

    x, y = finite(before, "before"), finite(after, "after")
    if x.size != y.size or not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise InputError("mcnemar: both sides must be 0/1 outcomes of the same items")
    gained, lost = int((y > x).sum()), int((y < x).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p)


def _resampled_means(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `k` resamples of `x`, in blocks so that memory stays bounded."""
    step = max(1, BLOCK // x.size)
    blocks = [x[rng.integers(x.size, size=(min(step, k - at), x.size))].mean(axis=1) for at in range(0, k, step)]
    return np.concatenate(blocks) if blocks else np.empty(0)
