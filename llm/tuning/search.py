"""How much of a trained change to keep: factors on it, tried on `validation`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.errors import MatchedNothing
from ...base.running import log, progress
from ...deactivate.edit import Edit
from ...deactivate.parts import Dense, LowRank, WeightsPart
from ..evaluation.validation import Seen, Validation
from .trained import Deltas

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ..host import Host
    from .config import TuningConfig


@dataclass(frozen=True)
class Scale:
    """One factor and what it did on `validation`, worst over the concepts."""

    factor: float
    fall: float
    """Share of the concept's margin that is gone."""
    kept: float
    """Share of the neighbours' margin that is left."""
    coherence: float
    """Base bits per byte over edited on neutral text, at most 1."""
    objective: float
    """Harmonic mean of the three."""


def scaled(deltas: Deltas, factor: float) -> Deltas:
    """The changes times a factor; without a trace of rounding at 1."""
    if factor == 1.0:
        return dict(deltas)
    return {n: LowRank(factor * d.B, d.A) if isinstance(d, LowRank) else Dense(factor * d.change) for n, d in deltas.items()}


def best_scale(host: "Host", concepts: "Sequence[Concept]", deltas: Deltas, config: "TuningConfig") -> tuple[Deltas, dict[str, Any]]:
    """The changes at the factor that does best on `validation`, and all that were tried.

    Best is the harmonic mean of fall, neighbours kept and coherence among the factors that keep `min_kept` and `min_coherence`;
    where none does, a warning says so and the factor that comes nearest is taken.

    Raises:
        InputError: A concept lacks the questions of `validation`.
        MatchedNothing: No factor lowers the margin.
    """
    judges = [Validation(host, c, config) for c in concepts]
    tried: list[Scale] = []
    for factor in progress(sorted(set(config.scales)), desc="search", unit="scale"):
        with Edit([WeightsPart(scaled(deltas, factor))], "trial").applied(host):
            tried.append(_worst(factor, [j.seen() for j in judges]))
    best = choose_scale(tried, config.min_kept, config.min_coherence)
    return scaled(deltas, best.factor), {"best": dataclasses.asdict(best), "tried": [dataclasses.asdict(s) for s in tried]}


def choose_scale(tried: Sequence[Scale], min_kept: float, min_coherence: float) -> Scale:
    """The best factor; see `best_scale`."""
    fit = [s for s in tried if s.kept >= min_kept and s.coherence >= min_coherence]
    if fit:
        best = max(fit, key=lambda s: (s.objective, -s.factor))
    else:
        best = max(tried, key=lambda s: (min(0.0, s.kept - min_kept) + min(0.0, s.coherence - min_coherence), s.objective))
        log.warning("search: no scale keeps min_kept=%g and min_coherence=%g; %g comes nearest", min_kept, min_coherence, best.factor)
    if best.fall <= 0:
        raise MatchedNothing(
            f"search: no scale of {[s.factor for s in tried]} lowers the concept's margin and keeps the rest; train longer, or set larger scales"
        )
    return best


def _worst(factor: float, found: Sequence[Seen]) -> Scale:
    return Scale(factor, *(min(getattr(s, k) for s in found) for k in ("fall", "kept", "coherence", "objective")))
