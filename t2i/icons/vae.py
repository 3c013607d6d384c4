"""The miniature's autoencoder: trained on crops; its latents are brought to mean 0 and variance 1 a channel; then its decoder learns to bear noise."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ...deactivate.training import fit_loop
from ..diffusers import diffusers_class
from .recipe import VaeRecipe
from .vae_start import carry_colours

OPPONENTS = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))
"""Light, red less green, yellow less blue: what errors of hue are seen in."""


def new_vae(recipe: VaeRecipe, size: int = 64) -> Any:
    """An untrained `AutoencoderKL`."""
    n = len(recipe.channels)
    return diffusers_class("AutoencoderKL")(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=recipe.latent,
        norm_num_groups=recipe.groups,
        sample_size=size,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def train_vae(drawings: UInt8[Tensor, "n 3 size size"], recipe: VaeRecipe, out: Path, *, flags: int = 0, resume: bool = False) -> Any:
    """Trains on crops of all drawings, normalises the latents, and trains the decoder on (`train_decoder`).

    Loss: `vae_loss`.

    Args:
        drawings: What it must draw; `recipe.flags_share` of a batch is taken from the last `flags` of them.
        recipe: Sizes and schedule.
        out: Checkpoints and logs.
        flags: How many of the drawings are flags.
        resume: Go on from the newest checkpoint.
    """
    torch.manual_seed(recipe.crops.seed)
    vae = new_vae(recipe, drawings.shape[-1])
    if recipe.carry:
        carry_colours(vae)

    def step(at: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        x = _crops(drawings[_some(len(drawings), flags, recipe.batch, recipe)], recipe.crop)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return vae_loss(error, divergence, recipe)

    fit_loop(step, dict(vae.named_parameters()), recipe.crops, out / "crops", resume, desc="vae, crops")
    normalise_latents(vae, encoded(vae, drawings))
    return train_decoder(vae, drawings, recipe, out / "decoder", flags=flags, resume=resume)


def train_decoder(
    vae: Any, drawings: UInt8[Tensor, "n 3 size size"], recipe: VaeRecipe, out: Path, *, flags: int = 0, resume: bool = False
) -> Any:
    """Trains the decoder alone, on whole drawings whose latents lie under noise, as a denoiser's do.

    The standard deviation of the noise is drawn for each drawing, even in [0, `recipe.noise`]. The latents stay what they are: a denoiser
    that was trained on them needs no other.

    Args:
        vae: With normalised latents (`normalise_latents`); changed in place.
        drawings: As in `train_vae`.
        recipe: Sizes and schedule.
        out: Checkpoints and log.
        flags: How many of the drawings are flags; the last ones.
        resume: Go on from the newest checkpoint.
    """
    torch.manual_seed(recipe.decoder.seed)
    latents = encoded(vae, drawings)
    learnt = {k: p for k, p in vae.named_parameters() if k.startswith(("decoder.", "post_quant_conv."))}

    def step(at: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        i = _some(len(drawings), flags, recipe.whole_batch, recipe)
        level = recipe.noise * torch.rand(len(i), 1, 1, 1)
        z = (latents[i] + level * torch.randn_like(latents[i])).contiguous(memory_format=torch.channels_last)
        return vae_loss(vae.decode(z).sample - _crops(drawings[i], drawings.shape[-1]), latents.new_zeros(()), recipe)

    fit_loop(step, learnt, recipe.decoder, out, resume, desc="vae, decoder")
    return vae.eval()


def _some(n: int, flags: int, batch: int, recipe: VaeRecipe) -> Int[Tensor, " batch"]:
    """Positions of a batch drawn by lot: the share of flags from the last `flags` of `n`, the others from those before."""
    k = round(recipe.flags_share * batch) if flags else 0
    return torch.cat([torch.randint(n - flags, (batch - k,)), n - flags + torch.randint(max(1, flags), (k,))])


def vae_loss(error: Float[Tensor, "n 3 h w"], divergence: Float[Tensor, ""], recipe: VaeRecipe) -> tuple[Tensor, dict[str, float]]:
    """(loss, its terms for the log).

    Mean absolute + mean squared + half the absolute error of neighbouring pixels' steps + `colour` x the absolute error of light, red less
    green and yellow less blue in 4 x 4 means + the absolute error of the latter two at each pixel + `kl` x divergence a latent.
    """
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    opponents = torch.einsum("oc,nchw->nohw", error.new_tensor(OPPONENTS), error)
    squared, colour = error.pow(2).mean(), torch.nn.functional.avg_pool2d(opponents, 4).abs().mean()
    loss = error.abs().mean() + squared + 0.5 * edges + recipe.colour * colour + opponents[:, 1:].abs().mean() + recipe.kl * divergence
    return loss, {"mse": squared.item(), "colour": colour.item(), "kl": divergence.item()}


def _crops(drawings: UInt8[Tensor, "n 3 size size"], side: int) -> Float[Tensor, "n 3 side side"]:
    """The same place of all drawings, in [-1, 1]."""
    top, left = torch.randint(drawings.shape[-1] - side + 1, (2,)).tolist()
    x = drawings[:, :, top : top + side, left : left + side].float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encoded(vae: Any, drawings: UInt8[Tensor, "n 3 size size"], batch: int = 64) -> Float[Tensor, "n c h w"]:
    """Means of the posteriors."""
    return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean for x in drawings.split(batch)])


@torch.no_grad()
def normalise_latents(vae: Any, latents: Float[Tensor, "n c h w"]) -> None:
    """Folds mean and scale of each latent channel into the two 1 x 1 convolutions, so that `scaling_factor` stays 1.

    What the autoencoder does to a picture stays the same to rounding.
    """
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inner, outer = vae.quant_conv, vae.post_quant_conv
    c = len(mean)
    inner.weight[:c] /= scale[:, None, None, None]
    inner.bias[:c] = (inner.bias[:c] - mean) / scale
    inner.bias[c:] -= 2 * scale.log()  # the log-variances
    outer.bias += outer.weight[:, :, 0, 0] @ mean
    outer.weight *= scale[None, :, None, None]
