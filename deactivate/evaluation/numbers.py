"""Checked numbers: what goes into a statistic is finite, of one dimension, and long enough."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ...base.errors import InputError, NumericsError

Numbers = Sequence[float | int] | np.ndarray
Groups = Sequence[Sequence[float | int] | np.ndarray]


def finite(values: Numbers, name: str, least: int = 1) -> np.ndarray:
    """`values` as float64 `[n]`.

    Raises:
        NumericsError: NaN or infinity among them; names the first position.
        InputError: Fewer than `least` values, or more than one dimension.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name}: one dimension expected, shape {array.shape} found")
    if array.size < least:
        raise InputError(f"{name}: at least {least} value{'s' * (least > 1)} needed, {array.size} found")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise NumericsError(f"{name}: value {bad[0]} of {array.size} is {array[bad[0]]}; a NaN is an error, never left out")
    return array


def check_level(level: float) -> None:
    """Refuses a coverage outside (0, 1)."""
    if not 0 < level < 1:
        raise InputError(f"level: a coverage between 0 and 1 expected, {level} found")


def z_score(level: float) -> float:
    """Two-sided normal quantile of a coverage: 1.96 for 0.95."""
    check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)


def percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
    """Ends of the central `level` share of `drawn`."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
