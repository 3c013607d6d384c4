"""The tokens that a feature fires on, against how often they occur at all."""

import math
from dataclasses import dataclass

from .reading import Evidence, Reading


@dataclass(frozen=True)
class FiringToken:
    """A token in a feature's contexts."""

    id: int
    share: float
    """Of the feature's activation in those contexts (each context weighs as much as any other)."""
    log_odds: float
    """Of that share against the token's share of the corpus."""


def firing_tokens(evidence: Evidence, reading: Reading, feature: int, n: int) -> list[FiringToken]:
    """The `n` tokens with the largest `share * log_odds`, of those that occur more than by chance.

    `log_odds = log(p / (1 - p)) - log(q / (1 - q))`, half a token added to the counts of the corpus and to both sides
    of `p`.
    """
    mass: dict[int, float] = {}
    contexts = evidence.reservoir.contexts(feature)
    for c in contexts:
        whole = sum(c.activations)
        for token, a in zip(c.tokens, c.activations, strict=True):
            if a > 0:
                mass[token] = mass.get(token, 0.0) + a / whole
    total, size = len(contexts), int(reading.counts.sum())
    found = []
    for token, m in mass.items():
        p, q = (m + 0.5) / (total + 1), (int(reading.counts[token]) + 0.5) / (size + 1)
        found.append(FiringToken(token, m / total, math.log(p / (1 - p)) - math.log(q / (1 - q))))
    found = [t for t in found if t.log_odds > 0]
    return sorted(found, key=lambda t: (-t.share * t.log_odds, t.id))[:n]
