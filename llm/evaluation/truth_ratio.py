"""Truth ratios, and how far those of an edited model are from those of models that never saw the facts.

Source: TOFU: A Task of Fictitious Unlearning for LLMs (Maini et al., 2024). Numpy only.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...base.errors import InputError, NumericsError
from ...deactivate.evaluation.numbers import Groups, Numbers

if TYPE_CHECKING:
    from .scoring import Scores

Mean = Literal["arithmetic", "geometric"]


def truth_ratio(scores: Numbers, right: int, mean: Mean = "arithmetic") -> float:
    """Mean over the wrong options of P(option)^(1/tokens), over that of the right one: 0 is certain, 1 knows nothing, above 1 is misled.

    Args:
        scores: Mean log-probability of an option's tokens, one an option (nats).
        right: Place of the right one.
        mean: Of the wrong options: `arithmetic` as in the paper, `geometric` as in the benchmark's code.

    Raises:
        InputError: No wrong option, or `right` is none of them.
        NumericsError: A score that is not finite.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.size < 2 or not 0 <= right < x.size:
        raise InputError(f"truth ratio: at least two options and the place of the right one needed; {x.size} and {right} found")
    if not np.isfinite(x).all():
        raise NumericsError("truth ratio: a score is not finite")
    gaps = np.delete(x, right) - x[right]
    return float(np.exp(gaps).mean() if mean == "arithmetic" else np.exp(gaps.mean()))


def truth_ratios(scores: "Scores", mean: Mean = "arithmetic") -> list[float]:
    """One an item. TOFU divides by the probability of a paraphrased right answer: here the question is the paraphrase, in a held-out template."""
    return [truth_ratio(i.scores, i.right, mean) for i in scores.items]


def ks_distance(a: Numbers, b: Numbers) -> float:
    """Two-sample Kolmogorov-Smirnov distance: the largest gap between the two empirical distribution functions, in [0, 1].

    Raises:
        InputError: An empty sample, or one with NaN in it.
    """
    x, y = np.sort(np.asarray(a, dtype=np.float64)), np.sort(np.asarray(b, dtype=np.float64))
    if not x.size or not y.size or np.isnan(x).any() or np.isnan(y).any():
        raise InputError(f"ks distance: two samples without NaN needed; {x.size} and {y.size} numbers found")
    both = np.concatenate([x, y])
    return float(np.abs(np.searchsorted(x, both, "right") / x.size - np.searchsorted(y, both, "right") / y.size).max())


@dataclass(frozen=True)
class GoldDistance:
    """KS distances of a model's truth ratios to gold seeds, beside those of the seeds among each other."""

    to_gold: tuple[float, ...]
    """One a gold seed."""
    among_gold: tuple[float, ...]
    """One a pair of gold seeds: the spread that comes of the seed alone."""
    n: int
    """Facts. A few hundred cannot show that two distributions are equal: a distance within the spread is no proof of it."""

    @property
    def mean(self) -> float:
        """Mean distance to the gold seeds."""
        return float(np.mean(self.to_gold))

    @property
    def spread(self) -> float | None:
        """Mean distance among gold seeds; None with a single seed."""
        return float(np.mean(self.among_gold)) if self.among_gold else None

    @property
    def within_spread(self) -> bool | None:
        """Whether the mean distance is at most the largest among gold seeds; None with a single seed."""
        return self.mean <= max(self.among_gold) if self.among_gold else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "mean": self.mean, "spread": self.spread, "within_spread": self.within_spread}


def gold_distance(ratios: Numbers, gold: Groups) -> GoldDistance:
    """Distances of `ratios` to those of each gold seed, all on the same facts.

    Raises:
        InputError: No gold, or samples of other sizes.
    """
    if not gold or any(len(g) != len(ratios) for g in gold):
        sizes = [len(g) for g in gold]
        raise InputError(f"gold: at least one seed on the same facts needed; {len(ratios)} facts, and {sizes or 'no'} of gold")
    return GoldDistance(
        tuple(ks_distance(ratios, g) for g in gold), tuple(ks_distance(a, b) for a, b in combinations(gold, 2)), len(ratios)
    )
