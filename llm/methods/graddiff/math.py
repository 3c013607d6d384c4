"""The loss of gradient difference as a pure function of log-likelihoods.

Continual Learning and Private Unlearning (Liu et al., 2022); TOFU: A Task of Fictitious Unlearning for LLMs (Maini et al., 2024).
"""

from jaxtyping import Float
from torch import Tensor


def ascent_loss(logp: Float[Tensor, " n"], ceiling: float | None = None) -> Float[Tensor, ""]:
    """Mean over tokens of log p, which descent lowers without end; a token at `ceiling` nats or more has no gradient."""
    return logp.mean() if ceiling is None else logp.clamp_min(-ceiling).mean()
