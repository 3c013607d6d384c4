"""NPO's loss as a pure function of log-likelihoods.

Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning (Zhang et al., arXiv:2404.05868), eq. 3.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def npo_loss(logp: Float[Tensor, " n"], reference: Float[Tensor, " n"], beta: float) -> Float[Tensor, ""]:
    """(2 / beta) mean over texts of log(1 + (p / p_ref)^beta), from log-likelihoods.

    At the reference it is 2 log 2 / beta with the gradient of gradient ascent; as p falls it goes to 0, and its gradient with it,
    where gradient ascent has no lower bound.
    """
    return -F.logsigmoid(-beta * (logp - reference)).mean() * 2 / beta


def npo_weight(logp: Float[Tensor, " n"], reference: Float[Tensor, " n"], beta: float) -> Float[Tensor, " n"]:
    """2 p^beta / (p^beta + p_ref^beta): what a text's gradient ascent is multiplied by (eq. 5); 1 at the reference."""
    return 2 * (beta * (logp - reference)).sigmoid()
