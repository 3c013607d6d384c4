"""JumpReLU with a straight-through estimator on the thresholds.

Jumping ahead (Rajamanoharan et al., 2024); sparsity terms: `step` (ibid., Eq. 9), `tanh` (Anthropic, January 2025
update), `quadratic` (Gemma Scope 2). The sparse path takes every latent down to half a bandwidth under its threshold,
where the estimator's kernel ends.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..losses import Coefficients, Loss, dead_latents, heaviside, jump, pre_activation, quadratic, squared_error
from ..sparse import SparseActs, encode_threshold
from .base import Architecture, stored

if TYPE_CHECKING:
    from ..sae import SAE


class JumpRelu(Architecture):
    """`f = a 1[a > theta]`, loss `E |e|^2 + lambda S + lambda_p sum over dead relu(theta - a) |w|`."""

    scaled = ("b_enc", "threshold")

    def extra_weights(self, sae: "SAE") -> None:
        """Thresholds keep float32 under bfloat16 weights: steps of Adam would round away."""
        super().extra_weights(sae)
        wide = torch.promote_types(sae.dtype, torch.float32)
        sae.threshold = torch.nn.Parameter(torch.full((sae.cfg.d_sae,), sae.cfg.threshold_init, dtype=wide))

    def choose(self, sae: "SAE", sae_in: Tensor) -> SparseActs:
        """All above their thresholds."""
        return encode_threshold(sae_in, sae.W_enc, sae.b_enc, sae.threshold)

    def alone(self, sae: "SAE", pre: Tensor, ids: Tensor) -> Tensor:
        """What is above its threshold."""
        return torch.where(pre > sae.threshold[ids], pre, 0)

    def training(self, sae: "SAE", x: Tensor, target: Tensor, dead_mask: Tensor | None, weights: Coefficients) -> Loss:
        """The STE moves the thresholds (and, with `ste_to_input`, the pre-activations)."""
        cfg = sae.cfg
        with torch.no_grad():  # projection, not a clamp in the graph: a threshold at 0 must be able to leave it
            sae.threshold.clamp_(min=0)
        acts = encode_threshold(sae.center(x).detach(), sae.W_enc, sae.b_enc, sae.threshold - cfg.bandwidth / 2)
        pre = self.active(sae, acts, x)
        threshold = sae.threshold.to(pre.dtype).index_select(0, acts.indices)
        values = jump(pre, threshold, cfg.bandwidth, cfg.ste_to_input)
        mse = squared_error(target - self.reconstruct(sae, acts, values, x))
        sparsity = self._sparsity(sae, acts, pre, values, threshold)
        extra, dead = mse.new_zeros(()), dead_latents(dead_mask) if weights.pre_act else None
        if dead is not None:
            below = sae.center(x) @ sae.W_enc.T[dead].T + sae.b_enc[dead]
            extra = pre_activation(below, sae.threshold[dead].to(below.dtype), sae.W_dec[dead].norm(dim=1))
        total = mse + weights.sparsity * sparsity + weights.pre_act * extra
        return Loss(total, mse.detach(), sparsity.detach(), extra.detach(), stored(acts, values))

    def _sparsity(self, sae: "SAE", acts: SparseActs, pre: Tensor, values: Tensor, threshold: Tensor) -> Tensor:
        cfg, n = sae.cfg, acts.shape[0]
        if cfg.sparsity_loss == "tanh":
            norms = sae.W_dec.norm(dim=1).index_select(0, acts.indices)
            return torch.tanh(cfg.tanh_scale * values * norms).sum() / n
        steps = heaviside(pre, threshold, cfg.bandwidth, cfg.ste_to_input)
        if cfg.sparsity_loss == "step":
            return steps.sum() / n
        l0 = steps.new_zeros(n).index_add(0, acts.rows, steps)
        return quadratic(l0, float(cfg.target_l0 or 1))
