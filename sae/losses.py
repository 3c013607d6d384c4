"""Training losses as pure functions of tensors. Squared errors are summed over the width and averaged over the batch.

Where a variance enters a loss it is that of the global batch of data parallel training.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import distributed
from .sparse import SparseActs

TINY = 1e-30


@dataclass(frozen=True)
class Coefficients:
    """Weights of the loss terms at one step (`TrainConfig.l1`, `.auxk_coef`, `.pre_act_coef`, warm-up applied)."""

    sparsity: float = 1e-3
    auxk: float = 1 / 32
    pre_act: float = 3e-6


@dataclass(frozen=True, eq=False)
class Loss:
    """What a training forward pass returns; call `total.backward()`."""

    total: Float[Tensor, ""]
    """The weighted sum that is to be minimised."""
    mse: Float[Tensor, ""]
    """`|target - reconstruction|^2`, mean over the batch, of all latents together."""
    sparsity: Float[Tensor, ""]
    """The sparsity term without its weight (0 for the TopK family)."""
    auxk: Float[Tensor, ""]
    """AuxK, JumpReLU's pre-activation loss or Gated's auxiliary reconstruction, without its weight."""
    acts: SparseActs | Float[Tensor, "n d_sae"]
    """Latents of the batch, without gradient; sparse ones hold no zeros."""

    def fired(self) -> Int[Tensor, " d_sae"]:
        """In how many vectors of the batch each latent is active."""
        return self.acts.counts() if isinstance(self.acts, SparseActs) else (self.acts > 0).sum(0)

    def l0(self) -> float:
        """Mean number of active latents a vector."""
        return self.acts.l0() if isinstance(self.acts, SparseActs) else int((self.acts > 0).sum()) / max(1, len(self.acts))


def squared_error(error: Float[Tensor, "*groups n d_out"]) -> Float[Tensor, ""]:
    """`|e|^2`, mean over vectors (and over Matryoshka's prefixes)."""
    return error.pow(2).sum(-1).mean()


def variance(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """`E |x - E x|^2` over the global batch, without gradient, in float64."""
    with torch.no_grad():
        wide = x.detach().double()
        mean = distributed.all_mean(wide.mean(0))
        return distributed.all_mean((wide - mean).pow(2).sum(1).mean()).to(x.dtype)


def auxk(error: Float[Tensor, "n d_out"], error_hat: Float[Tensor, "n d_out"]) -> Float[Tensor, ""]:
    """AuxK: `E |e - e_hat|^2 / E |e - E e|^2`, the residual `e` without gradient.

    Scaling and evaluating sparse autoencoders (Gao et al., 2024), App. A.2, in the normalised form of their
    code; `error_hat` is the dead latents' reconstruction **without** bias.

    Args:
        error: Target minus reconstruction.
        error_hat: `z_aux W_dec`.
    """
    e = error.detach()
    return squared_error(e - error_hat) / variance(e).clamp_min(TINY)


def l1(acts: Float[Tensor, "n d_sae"], W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, ""]:
    """`E sum_i f_i |w_i|` (Anthropic, April 2024 update): shrinking latents while growing the decoder gains nothing."""
    return (acts @ W_dec.norm(dim=1)).mean()


def jump(pre: Float[Tensor, " m"], threshold: Float[Tensor, " m"], bandwidth: float, ste_to_input: bool = False) -> Float[Tensor, " m"]:
    """`a 1[a > theta]` with `d/d theta = -(theta / h) K((a - theta) / h)`, `K` the box of width 1.

    Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders (Rajamanoharan et al., 2024),
    Eq. 11.

    Args:
        pre: Pre-activations `a`.
        threshold: `theta` of each.
        bandwidth: `h`.
        ste_to_input: The estimator's negative also goes to `a`.
    """
    return _Jump.apply(pre, threshold, bandwidth, ste_to_input)


def heaviside(
    pre: Float[Tensor, " m"], threshold: Float[Tensor, " m"], bandwidth: float, ste_to_input: bool = False
) -> Float[Tensor, " m"]:
    """`1[a > theta]` with `d/d theta = -(1 / h) K((a - theta) / h)` (ibid., Eq. 12); arguments as in `jump`."""
    return _Step.apply(pre, threshold, bandwidth, ste_to_input)


def quadratic(l0: Float[Tensor, " n"], target: float) -> Float[Tensor, ""]:
    """`E (2 / L*) (L0 - L*)^2` over the vectors (Gemma Scope 2)."""
    return (2 / target * (l0 - target).pow(2)).mean()


def pre_activation(pre: Float[Tensor, "n dead"], threshold: Float[Tensor, " dead"], norms: Float[Tensor, " dead"]) -> Float[Tensor, ""]:
    """`E sum_i relu(theta_i - a_i) |w_i|` over dead latents (Anthropic, January 2025 update)."""
    return ((threshold - pre).relu() @ norms).mean()


def dead_latents(dead_mask: Bool[Tensor, " d_sae"] | None) -> Int[Tensor, " m"] | None:
    """Positions of the dead latents, ascending; None where there are none."""
    if dead_mask is None:
        return None
    dead = dead_mask.nonzero()[:, 0]
    return dead if len(dead) else None


def _kernel(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return pre * (pre > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]: one output
        pre, threshold = ctx.saved_tensors
        ste = threshold / ctx.bandwidth * _kernel(pre, threshold, ctx.bandwidth) * grad
        through = (pre > threshold) * grad
        return (through + ste if ctx.ste_to_input else through), -ste, None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]: one output
        pre, threshold = ctx.saved_tensors
        ste = _kernel(pre, threshold, ctx.bandwidth) / ctx.bandwidth * grad
        return (ste if ctx.ste_to_input else None), -ste, None, None
