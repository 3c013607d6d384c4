"""How strongly each of many candidates is edited: the least damage for a wanted fall of the margin, on plain tensors."""

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 400
"""Of accelerated projected gradient, a multiplier."""
ITERATIONS = 30
TOLERANCE = 0.01
"""Share of the wanted fall by which a solution may miss it."""


def least_damage(
    H: Float[Tensor, "p p"],
    linear: Float[Tensor, " p"],
    fall: Float[Tensor, " p"],
    wanted: float,
) -> Float[Tensor, " p"]:
    """The v >= 0 that minimises `v' H v / 2 - linear' v` among those with `fall' v = wanted`.

    Found by regula falsi on the multiplier of the constraint; where no multiplier reaches `wanted` the nearest found is returned.
    H must be symmetric and at least 0; where its diagonal is 0, so is v.
    """
    scale = torch.where(H.diagonal() > 0, H.diagonal().clamp_min(1e-300).rsqrt(), 0.0)
    A, c, f = scale[:, None] * H * scale, scale * linear, scale * fall
    step = 1 / max(_largest(A), 1e-300)

    def at(multiplier: float, start: Tensor) -> tuple[Tensor, float]:
        v = _minimum(A, c + multiplier * f, start, step)
        return v, float(f @ v)

    low = 0.0, *at(0.0, torch.zeros_like(f))
    high = 1.0, *at(1.0, low[1])
    for _ in range(ITERATIONS):  # what is taken grows with the multiplier, piecewise linearly: bracket, then regula falsi
        if high[2] < wanted:
            low, middle = high, high[0] * min(8.0, 1.2 * wanted / high[2] if high[2] > 0 else 8.0)
        else:
            middle = low[0] + (high[0] - low[0]) * min(max((wanted - low[2]) / (high[2] - low[2]), 0.02), 0.98)
        if abs(high[2] - wanted) <= TOLERANCE * abs(wanted):
            break
        found = middle, *at(middle, high[1])
        if low[2] <= found[2] < wanted and high[2] >= wanted:
            low = found
        else:
            high = found
    best = min(low, high, key=lambda x: abs(x[2] - wanted))
    return scale * best[1]


def _minimum(A: Tensor, b: Tensor, start: Tensor, step: float) -> Tensor:
    """Minimum of v'Av/2 - b'v over v >= 0: projected gradient with Nesterov's momentum, restarted where it overshoots."""
    v, y, t = start, start, 1.0
    for _ in range(STEPS):
        new = (y - step * (A @ y - b)).clamp_min(0)
        if float((y - new) @ (new - v)) > 0:
            t = 1.0
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = new + (t - 1) / following * (new - v)
        moved = float((new - v).abs().max())
        v, t = new, following
        if moved <= 1e-6 * float(v.abs().max()):
            break
    return v


def _largest(A: Tensor) -> float:
    """A little more than the largest eigenvalue of a symmetric A >= 0 (power iteration)."""
    x = torch.ones(len(A), dtype=A.dtype) + torch.arange(len(A), dtype=A.dtype) / max(len(A), 1)
    norm = 0.0
    for _ in range(50):
        x = A @ x
        norm = float(x.norm())
        if norm == 0:
            return 0.0
        x = x / norm
    return 1.05 * norm
