"""ReLU with L1 and Gated: their penalties reach every latent above 0, so training is dense; encoding is sparse."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..losses import Coefficients, Loss, l1, squared_error
from ..sparse import SparseActs, encode_threshold
from .base import Architecture

if TYPE_CHECKING:
    from ..sae import SAE


class Relu(Architecture):
    """`f = relu(a)`, loss `E |e|^2 + lambda E sum_i f_i |w_i|` (Anthropic, April 2024 update)."""

    def choose(self, sae: "SAE", sae_in: Tensor) -> SparseActs:
        """All above 0."""
        return encode_threshold(sae_in, sae.W_enc, sae.b_enc, 0.0)

    def alone(self, sae: "SAE", pre: Tensor, ids: Tensor) -> Tensor:
        """What is above 0."""
        return pre.relu()

    def training(self, sae: "SAE", x: Tensor, target: Tensor, dead_mask: Tensor | None, weights: Coefficients) -> Loss:
        """Dead latents have no term of their own here: `dead_mask` is only counted by the trainer."""
        acts = (sae.center(x) @ sae.W_enc + sae.b_enc).relu()
        mse = squared_error(target - sae.add_skip(acts @ sae.W_dec + sae.b_dec, x))
        sparsity = l1(acts, sae.W_dec)
        return Loss(mse + weights.sparsity * sparsity, mse.detach(), sparsity.detach(), mse.new_zeros(()), acts.detach())


class Gated(Architecture):
    """`f = 1[pi > 0] relu(m)`, `pi = h + b_gate`, `m = exp(r_mag) h + b_mag`, `h = (x - b_dec) W_enc`.

    Improving Dictionary Learning with Gated Sparse Autoencoders (Rajamanoharan et al., 2024), Eq. 8: `E |e|^2 + lambda
    E sum relu(pi)_i |w_i| + E |x - (relu(pi) W_dec + b_dec)|^2`, the last term with a **frozen** decoder (sae-lens 6.54
    lets it move).
    """

    scaled = ("b_gate", "b_mag")

    def extra_weights(self, sae: "SAE") -> None:
        """Two biases and the log-ratio of the two encoders' rows."""
        for name in ("b_gate", "b_mag", "r_mag"):
            sae.register_parameter(name, torch.nn.Parameter(torch.zeros(sae.cfg.d_sae, dtype=sae.dtype)))

    def bias(self, sae: "SAE") -> Tensor:
        """The gate's."""
        return sae.b_gate

    def choose(self, sae: "SAE", sae_in: Tensor) -> SparseActs:
        """All whose gate is open."""
        return encode_threshold(sae_in, sae.W_enc, sae.b_gate, 0.0)

    def values(self, sae: "SAE", acts: SparseActs, pre: Tensor) -> Tensor:
        """Magnitudes of the latents whose gate is open."""
        return self._magnitudes(sae, pre, acts.indices)

    def alone(self, sae: "SAE", pre: Tensor, ids: Tensor) -> Tensor:
        """Magnitudes where the gate is open."""
        return torch.where(pre > 0, self._magnitudes(sae, pre, ids), 0)

    def _magnitudes(self, sae: "SAE", pre: Tensor, at: Tensor) -> Tensor:
        h = pre - sae.b_gate.index_select(0, at)
        return (sae.r_mag.index_select(0, at).exp() * h + sae.b_mag.index_select(0, at)).relu()

    def training(self, sae: "SAE", x: Tensor, target: Tensor, dead_mask: Tensor | None, weights: Coefficients) -> Loss:
        """`auxk` of the result is the auxiliary reconstruction from the gates; dead latents have no own term."""
        h = sae.center(x) @ sae.W_enc
        gate = h + sae.b_gate
        acts = (gate > 0) * (sae.r_mag.exp() * h + sae.b_mag).relu()
        mse = squared_error(target - sae.add_skip(acts @ sae.W_dec + sae.b_dec, x))
        open_ = gate.relu()
        sparsity = l1(open_, sae.W_dec)
        skipped = sae.add_skip(open_ @ sae.W_dec.detach() + sae.b_dec.detach(), x, frozen=True)
        auxiliary = squared_error(target - skipped)
        total = mse + weights.sparsity * sparsity + auxiliary
        return Loss(total, mse.detach(), sparsity.detach(), auxiliary.detach(), acts.detach())
