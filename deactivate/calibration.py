"""From scores to a threshold: ROC, stated false-positive rate, intervals, dead band. Pure functions of numbers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.errors import InputError, MatchedNothing, NumericsError

DEAD_BAND = 1e-4
ROC_POINTS = 201


@dataclass(frozen=True)
class Rate:
    """A share of texts at which the gate fires, with its 95 % Wilson interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """A threshold and what is known about it. Scores are in the gate's own units."""

    threshold: float
    dead_band: float
    """Scores down to `threshold - dead_band` fire: more than machines differ by, so doubt is on the safe side."""
    fpr: float
    """The false-positive rate asked for."""
    pool: Rate
    """What of the general pool fires: the rate reached."""
    target: Rate | None = None
    """What of the target texts fires (the true-positive rate)."""
    neighbours: Rate | None = None
    auroc_pool: Mapping[str, Any] | None = None
    """Target against pool: mean, low, high, …"""
    auroc_neighbours: Mapping[str, Any] | None = None
    roc: Sequence[tuple[float, float]] = ()
    """(false-positive rate on the pool, true-positive rate), ascending, at most `ROC_POINTS`."""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Inverse of `as_dict`."""
        rates = {n: Rate(**values[n]) if values[n] else None for n in ("pool", "target", "neighbours")}
        return cls(**{**values, **rates, "roc": tuple((float(a), float(b)) for a, b in values["roc"])})


def calibrate(
    target: Sequence[float] | np.ndarray,
    pool: Sequence[float] | np.ndarray,
    neighbours: Sequence[float] | np.ndarray = (),
    *,
    fpr: float = 0.01,
    dead_band: float = DEAD_BAND,
    apart: bool = False,
    at: float | None = None,
) -> Calibration:
    """The lowest threshold at which at most `fpr` of the pool fires, dead band included.

    With n pool scores and k = floor(fpr n), the (k+1)-th highest must not fire; ties with it don't either. The
    threshold depends on the pool alone; target and neighbours only give rates and curves. With `apart` they raise it where
    that tells them apart better: at or above it, to where (share of targets − share of neighbours that fire) is largest (Youden,
    Index for rating diagnostic tests, 1950). `at` sets it instead.

    Raises:
        InputError: `fpr` outside [0, 1), or a negative dead band.
        MatchedNothing: No pool scores.
        NumericsError: Scores that are not numbers.
    """
    if not 0 <= fpr < 1 or dead_band < 0:
        raise InputError(f"gate: fpr must lie in [0, 1) and dead_band at or above 0; found {fpr} and {dead_band}")
    pos, neg, near = (_scores(s, n) for s, n in ((target, "target"), (pool, "pool"), (neighbours, "neighbours")))
    if not neg.size:
        raise MatchedNothing("gate: the pool is empty; a threshold at a false-positive rate needs general texts (≥ 3,000)")
    silent = float(np.sort(neg)[::-1][min(math.floor(fpr * neg.size + 1e-9), neg.size - 1)])
    # half a band above it at least, so that neither rounding nor another machine makes it fire
    threshold = silent + max(2 * dead_band, np.spacing(abs(silent)) * 4)
    if apart and pos.size and near.size:
        threshold = _apart(pos, near, threshold)
    threshold, dead_band = (threshold, dead_band) if at is None else (at, 0.0)
    reached = rate(neg, threshold, dead_band)
    assert reached is not None
    rates = reached, rate(pos, threshold, dead_band), rate(near, threshold, dead_band)
    curves = _auroc(pos, neg), _auroc(pos, near), _roc(pos, neg)
    return Calibration(threshold, dead_band, fpr, *rates, *curves, _note(pos.size, neg.size, fpr))


def _apart(pos: np.ndarray, near: np.ndarray, least: float) -> float:
    """Halfway between the two scores between which targets and neighbours come apart best; `least` where that is no worse."""
    cuts = np.unique(np.concatenate([pos, near]))
    cuts = np.concatenate([[least], cuts[cuts > least]])
    below = [np.searchsorted(np.sort(x), cuts, side="left") / x.size for x in (near, pos)]
    best = int(np.argmax(below[0] - below[1]))
    return least if best == 0 else float(cuts[best - 1] + cuts[best]) / 2


def rate(scores: np.ndarray, threshold: float, dead_band: float) -> Rate | None:
    """Share of the scores that fire; None of none."""
    from .evaluation.statistics import wilson

    if not scores.size:
        return None
    value = wilson(int(fires(scores, threshold, dead_band).sum()), scores.size)
    return Rate(value.mean, float(value.low or 0.0), float(value.high or 0.0), int(scores.size))


def fires(scores: np.ndarray, threshold: float, dead_band: float) -> np.ndarray:
    """Whether each score is at or above the threshold, or within the dead band below it."""
    return scores >= threshold - dead_band


def _scores(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(x).all():
        raise NumericsError(f"gate: scores of {name} are not all finite")
    return x


def _note(n_target: int, n_pool: int, fpr: float) -> str:
    """What a reader of the threshold must know."""
    notes = []
    if 0 < fpr * n_pool < 1:
        notes.append(f"a pool of {n_pool} texts cannot show a rate of {fpr}; the threshold lies above all of it")
    if n_target < 30:
        notes.append(f"{n_target} target texts: threshold from the pool alone; the true-positive rate is rough")
    return "; ".join(notes)


def _auroc(pos: np.ndarray, neg: np.ndarray) -> dict[str, Any] | None:
    if not pos.size or not neg.size:
        return None
    from .evaluation.auroc import auroc

    return dataclasses.asdict(auroc(pos, neg))


def _roc(pos: np.ndarray, neg: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Points of the curve at every distinct score, thinned."""
    if not pos.size:
        return ()
    cuts = np.unique(np.concatenate([pos, neg]))[::-1]
    false = 1 - np.searchsorted(np.sort(neg), cuts, side="left") / neg.size
    true = 1 - np.searchsorted(np.sort(pos), cuts, side="left") / pos.size
    points = [(0.0, 0.0), *((float(a), float(b)) for a, b in zip(false, true, strict=True))]
    if len(points) <= ROC_POINTS:
        return tuple(points)
    return tuple(points[i] for i in np.unique(np.linspace(0, len(points) - 1, ROC_POINTS).round().astype(int)))
