"""How the learning rate and the sparsity coefficient move over a run: pure functions of the step."""

from ..base.errors import InputError

DEAD_WINDOW = 10_000_000
"""Vectors without firing after which a latent counts as dead (openai, sparsify and dictionary_learning alike)."""
DEAD_SHARE = 0.05
"""…but never more than this share of the run, so that short runs revive latents too."""


def learning_rate(step: int, steps: int, lr: float, warmup: int, decay_fraction: float) -> float:
    """Linear warm-up from `lr / warmup`, constant, linear decay towards 0 over the last `decay_fraction` of the run.

    Args:
        step: From 0.
        steps: Of the run.
        lr: Peak.
        warmup: Steps to the peak.
        decay_fraction: 0 (none) to 1.
    """
    if not 0 <= step < steps:
        raise InputError(f"step must lie in [0, {steps}); found {step}")
    decay = round(decay_fraction * steps)
    falling = 1.0 if steps - step > decay else (steps - step) / (decay + 1)
    return lr * ramp(step, warmup) * falling


def ramp(step: int, warmup: int) -> float:
    """Rises linearly from `1 / warmup` at step 0 to 1 at step `warmup - 1`, then stays."""
    return 1.0 if step + 1 >= warmup else (step + 1) / warmup


def dead_window(steps: int, batch: int, given: int | None = None) -> int:
    """Vectors after which a silent latent counts as dead: as given, else `min(10 M, 5 % of the run)`."""
    if given is not None:
        return given
    return max(1, min(DEAD_WINDOW, int(DEAD_SHARE * steps * batch)))
