"""RMU's formulas as pure functions of activations.

The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning (Li et al., arXiv:2403.03218), section 4.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def control_vector(d: int, norm: float, generator: torch.Generator) -> Float[Tensor, " d"]:
    """A vector norm * u / |u| with u uniform on [0, 1]^d, so that all its entries are positive."""
    u = torch.rand(d, generator=generator)
    return norm * u / u.norm()


def mean_square(difference: Float[Tensor, "b t d"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean over the tokens that count, and over dimensions, of the squares.

    The paper sums over dimensions: both losses then grow d-fold, which AdamW does not see.
    """
    return difference[counted].float().square().mean()


def forget_loss(hidden: Float[Tensor, "b t d"], control: Float[Tensor, " d"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, ""]:
    """How far activations on what is unlearnt are from the control vector, whatever the token."""
    return mean_square(hidden - control.to(hidden), counted)


def retain_loss(hidden: Float[Tensor, "b t d"], frozen: Float[Tensor, "b t d"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, ""]:
    """How far activations on what must stay are from the frozen model's."""
    return mean_square(hidden - frozen, counted)
