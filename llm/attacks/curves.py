"""Figures of a curve of accuracy over fine-tuning: area, leak against gold, steps to half recovery. Pure functions."""

import numpy as np

from ...base.errors import InputError
from ...deactivate.evaluation.numbers import Numbers


def area(steps: Numbers, accuracy: Numbers) -> float:
    """Mean of the curve over the steps (trapezoids), between its least and its largest accuracy.

    Raises:
        InputError: Lists of other lengths, fewer than two points, steps that do not rise, or a number that is not finite.
    """
    x, y = _checked(steps, accuracy)
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def leak(steps: Numbers, accuracy: Numbers, gold_steps: Numbers, gold: Numbers) -> float:
    """Mean over training of the accuracy above gold's at the same step: what fine-tuning brings back beyond what it teaches anew.

    Gold's curve is read between its points; 0 where the curves are the same.

    Raises:
        InputError: See `area`, or curves that do not cover the same steps.
    """
    x, y = _checked(steps, accuracy)
    gx, gy = _checked(gold_steps, gold)
    if x[0] != gx[0] or x[-1] != gx[-1]:
        raise InputError(f"leak: the curves run from {x[0]:g} to {x[-1]:g} and from {gx[0]:g} to {gx[-1]:g}; train both alike")
    at = np.union1d(x, gx)
    return area(at, np.interp(at, x, y) - np.interp(at, gx, gy))


def half_recovery(steps: Numbers, accuracy: Numbers, base: float) -> float | None:
    """The step, read between points, at which half of what the edit took is back: A(0) + (base - A(0)) / 2.

    None where that is never reached; 0 where the edit took nothing (A(0) at or above `base`).

    Raises:
        InputError: See `area`.
    """
    x, y = _checked(steps, accuracy)
    if y[0] >= base:
        return 0.0
    goal = y[0] + (base - y[0]) / 2
    reached = np.flatnonzero(y >= goal)
    if not reached.size:
        return None
    i = int(reached[0])  # above 0: the first point lies below the goal
    return float(x[i - 1] + (goal - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def _checked(steps: Numbers, accuracy: Numbers) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.size != y.size or x.size < 2 or not (np.diff(x) > 0).all() or not np.isfinite(y).all():
        raise InputError(f"curve: at least two points at rising steps, all finite, expected; {x.size} steps and {y.size} values found")
    return x, y
