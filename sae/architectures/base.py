"""The one interface behind which the architectures differ. It holds no state: weights live in the `SAE`."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...base.errors import NumericsError
from ..losses import Coefficients, Loss
from ..sparse import SparseActs, decode_on, encode_on

if TYPE_CHECKING:
    from ..sae import SAE


class Architecture:
    """How pre-activations become latents, and what is minimised."""

    scaled: tuple[str, ...] = ("b_enc",)
    """Weights `[d_sae]` in the units of a pre-activation: `fold_scale` divides them."""
    competes: bool = False
    """Whether a latent's value depends on the other latents' pre-activations."""

    def extra_weights(self, sae: "SAE") -> None:
        """Registers weights beside `W_enc`, `W_dec` and `b_dec`."""
        sae.b_enc = torch.nn.Parameter(torch.zeros(sae.cfg.d_sae, dtype=sae.dtype))

    def bias(self, sae: "SAE") -> Tensor:
        """Bias of the pre-activations by which latents are chosen."""
        return sae.b_enc

    def choose(self, sae: "SAE", sae_in: Tensor) -> SparseActs:
        """Active latents of `[n d_in]` with their pre-activations, without gradient."""
        raise NotImplementedError

    def values(self, sae: "SAE", acts: SparseActs, pre: Tensor) -> Tensor:
        """Latents' values `[nnz]` on the active set from their pre-activations, differentiable."""
        return pre

    def sparse(self, sae: "SAE", sae_in: Tensor) -> tuple[SparseActs, Tensor]:
        """Active set and values `[nnz]`, differentiable in the input and in the weights."""
        acts = self.choose(sae, sae_in)
        return acts, self.values(sae, acts, encode_on(acts, sae_in, sae.W_enc, self.bias(sae)))

    def alone(self, sae: "SAE", pre: Tensor, ids: Tensor) -> Tensor:
        """Values `[n m]` of the latents `ids` from their own pre-activations `[n m]`, where latents do not compete."""
        raise NotImplementedError

    def columns(self, sae: "SAE", sae_in: Tensor, ids: Tensor) -> Tensor:
        """Values `[n m]` of the latents `ids`: `m` encoder rows where latents do not compete, else the whole encoder product."""
        if self.competes:
            acts, values = self.sparse(sae, sae_in)
            return acts.with_values(values).select(ids)
        wide = torch.promote_types(sae_in.dtype, torch.float32)
        pre = sae_in.to(wide) @ sae.W_enc.T[ids].T.to(wide) + self.bias(sae)[ids].to(wide)
        if not torch.isfinite(pre).all():
            raise NumericsError("NaN or infinity in the pre-activations: look at the activations that are encoded")
        return self.alone(sae, pre, ids)

    def training(self, sae: "SAE", x: Tensor, target: Tensor, dead_mask: Tensor | None, weights: Coefficients) -> Loss:
        """Losses of a batch `x` `[n d_in]`, `target` `[n d_out]`."""
        raise NotImplementedError

    def active(self, sae: "SAE", acts: SparseActs, x: Tensor) -> Tensor:
        """Differentiable pre-activations on the set `acts` as training wants them: `b_dec`'s share through `b_pre`."""
        return encode_on(acts, sae.center(x).detach(), sae.W_enc, self.bias(sae), b_pre=sae.b_dec if sae.subtracts else None)

    def reconstruct(self, sae: "SAE", acts: SparseActs, values: Tensor, x: Tensor) -> Tensor:
        """`f W_dec + b_dec (+ W_skip x)`."""
        return sae.add_skip(decode_on(acts, values, sae.W_dec, sae.b_dec), x)


def stored(acts: SparseActs, values: Tensor) -> SparseActs:
    """The latents that are not zero, without gradient."""
    values = values.detach()
    kept = values > 0
    acts = acts.with_values(values)
    return acts if bool(kept.all()) else acts.keep(kept)
