"""TopK, BatchTopK and Matryoshka BatchTopK: the sparse path forward and backward, AuxK for dead latents.

Scaling and evaluating sparse autoencoders (Gao et al., 2024); BatchTopK Sparse Autoencoders (Bussmann et al., 2024);
Learning Multi-Level Features with Matryoshka Sparse Autoencoders (Bussmann et al., 2025).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...base.errors import InputError
from .. import distributed
from ..losses import Coefficients, Loss, auxk, dead_latents, squared_error, variance
from ..sparse import BatchTopK, SparseActs, TopK, decode_on, decode_prefixes, encode_threshold, encode_topk, select
from ..sparse.select import Selector
from .base import Architecture, stored

if TYPE_CHECKING:
    from ..sae import SAE


class TopKFamily(Architecture):
    """TopK; the others differ in the selector and in the prefixes.

    Loss: `E |e|^2 + c V AuxK`, with `V = E |y - E y|^2` of the targets, so that both terms scale alike with the inputs:
    divided by `V` it is the sum of two normalised errors, as in the code of Gao et al. Matryoshka takes the mean of
    `|e|^2` over the prefixes.
    """

    competes = True

    def choose(self, sae: "SAE", sae_in: Tensor) -> SparseActs:
        """The `k` largest of each vector."""
        return encode_topk(sae_in, sae.W_enc, sae.b_enc, sae.cfg.k)

    def selector(self, sae: "SAE") -> Selector:
        """Chooses in training."""
        return TopK(sae.cfg.k)

    def training(self, sae: "SAE", x: Tensor, target: Tensor, dead_mask: Tensor | None, weights: Coefficients) -> Loss:
        """Only active latents are touched, forward and backward, but for the one encoder product that chooses them."""
        dead = dead_latents(dead_mask) if weights.auxk else None
        aux = [] if dead is None else [TopK(min(sae.cfg.aux_latents, len(dead)), among=dead)]
        acts, *revived = select(sae.center(x).detach(), sae.W_enc, sae.b_enc, self.selector(sae), *aux)
        values = self.active(sae, acts, x)
        prefixes = sae.cfg.groups or (sae.cfg.d_sae,)
        error = target - sae.add_skip(decode_prefixes(acts, values, sae.W_dec, sae.b_dec, prefixes), x)
        total, zero = squared_error(error), error.new_zeros(())
        mse = squared_error(error[-1].detach())
        extra = zero
        for again in revived:
            error_hat = decode_on(again, self.active(sae, again, x), sae.W_dec)
            extra = auxk(error[-1], error_hat)
            total = total + weights.auxk * variance(target) * extra
        return Loss(total, mse, zero, extra.detach(), stored(acts, values))


class BatchTopKFamily(TopKFamily):
    """BatchTopK and Matryoshka: `k` a vector on average over the global batch; one threshold at inference."""

    competes = False

    def extra_weights(self, sae: "SAE") -> None:
        """The threshold is -1 until `SAE.calibrate_threshold` has measured it."""
        super().extra_weights(sae)
        sae.register_buffer("threshold", torch.tensor(-1.0, dtype=torch.promote_types(sae.dtype, torch.float32)))

    def choose(self, sae: "SAE", sae_in: Tensor) -> SparseActs:
        """All above the threshold: what is active depends on no other vector of the batch."""
        return encode_threshold(sae_in, sae.W_enc, sae.b_enc, self._threshold(sae))

    def alone(self, sae: "SAE", pre: Tensor, ids: Tensor) -> Tensor:
        """What is above the threshold."""
        return torch.where(pre > self._threshold(sae), pre, 0)

    def _threshold(self, sae: "SAE") -> float:
        threshold = float(sae.threshold)
        if threshold < 0:
            raise InputError(
                f"this {sae.cfg.architecture} SAE has no inference threshold yet; "
                "call sae.calibrate_threshold(batches) with held-out vectors"
            )
        return threshold

    def selector(self, sae: "SAE") -> Selector:
        """Over the global batch."""
        return BatchTopK(sae.cfg.k, gather=distributed.gather_values if distributed.world() > 1 else None)
