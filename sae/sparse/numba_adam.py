"""Compiled Adam over rows. Imported only where numba is in use."""

import numpy as np

from .adam_rows import RowUpdate
from .numba_select import jit


def scalars(update: RowUpdate, dtype: np.dtype) -> tuple[np.floating, ...]:
    """The step's scalars in the weights' dtype, so that the loops stay in it."""
    numbers = (
        update.step_size,
        update.beta2,
        1 - update.beta1,
        1 - update.beta2,
        1 / update.root,
        update.eps,
        update.scale,
    )
    return tuple(dtype.type(number) for number in numbers)


@jit
def _products(g, w):
    gg = gw = ww = w.dtype.type(0)
    for t in range(w.shape[0]):
        gg += g[t] * g[t]
        gw += g[t] * w[t]
        ww += w[t] * w[t]
    return gg, gw, ww


@jit
def survey_rows(project, weight, grad, touched, squares, overlap, lo, hi):
    """Squared norms of the gradient rows `lo:hi` and, with `project`.

    Their overlap with the weight rows.
    """
    for r in range(lo, hi):
        if touched[r]:
            gg, gw, ww = _products(grad[r], weight[r])
            squares[r] = gg
            if project and ww > 0:
                overlap[r] = gw / ww
                squares[r] = max(0.0, np.float64(gg) - np.float64(gw) * gw / ww)


@jit
def _with_gradient(step_size, beta2, c1, c2, inverse_root, eps, scale, w, m, v, g, along):
    for t in range(w.shape[0]):
        x = (g[t] - along * w[t]) * scale
        m1 = m[t] + c1 * (x - m[t])
        v1 = beta2 * v[t] + c2 * x * x
        m[t] = m1
        v[t] = v1
        w[t] -= step_size * m1 / (np.sqrt(v1) * inverse_root + eps)


@jit
def _without(step_size, beta2, c1, inverse_root, eps, w, m, v):
    for t in range(w.shape[0]):
        m1 = m[t] - c1 * m[t]
        v1 = beta2 * v[t]
        m[t] = m1
        v[t] = v1
        w[t] -= step_size * m1 / (np.sqrt(v1) * inverse_root + eps)


@jit
def _normalise(w):
    total = w.dtype.type(0)
    for t in range(w.shape[0]):
        total += w[t] * w[t]
    if total > 0:
        factor = w.dtype.type(1) / np.sqrt(total)
        for t in range(w.shape[0]):
            w[t] *= factor


@jit
def adam_rows(
    unit,
    step_size,
    beta2,
    c1,
    c2,
    inverse_root,
    eps,
    scale,
    weight,
    exp_avg,
    exp_avg_sq,
    grad,
    touched,
    overlap,
    lo,
    hi,
):
    """Adam on rows `lo:hi`; a row that is not touched has gradient zero."""
    for r in range(lo, hi):
        w, m, v = weight[r], exp_avg[r], exp_avg_sq[r]
        if touched[r]:
            along = overlap[r]
            _with_gradient(step_size, beta2, c1, c2, inverse_root, eps, scale, w, m, v, grad[r], along)
        else:
            _without(step_size, beta2, c1, inverse_root, eps, w, m, v)
        if unit:
            _normalise(w)
