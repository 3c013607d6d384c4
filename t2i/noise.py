"""The loss that the denoiser was trained with, on pictures or latents with captions."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..base.errors import InputError, UnknownName
from .states import Batch

if TYPE_CHECKING:
    from .host import ImageHost

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@torch.no_grad()
def latents_of(host: "ImageHost", images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c p q"]:
    """The latents of pictures as the denoiser sees them: (mean of the posterior − shift) · scale."""
    vae = host.pipeline.vae
    x = images.to(host.device, vae.dtype) / 127.5 - 1
    mean = vae.encode(x).latent_dist.mode()
    return (mean - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def noise_levels(host: "ImageHost", steps: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"], Tensor]:
    """(share of the picture, share of the noise, what the denoiser is told) at training steps 0 to N − 1.

    Diffusion: √ᾱ, √(1 − ᾱ) and the step (Ho et al., Denoising diffusion probabilistic models, 2020, Eq. 4). Flow
    matching: 1 − σ, σ = (step + 1) / N and N σ (Esser et al., Scaling rectified flow transformers, 2024, Eq. 13 with
    uniform σ, not its logit-normal draw).
    """
    scheduler = host.pipeline.scheduler
    if host.family.flow:
        n = scheduler.config.num_train_timesteps
        sigma = (steps.double() + 1) / n
        return 1 - sigma, sigma, (n * sigma).float()
    kept = scheduler.alphas_cumprod.cpu().double()[steps]
    return kept.sqrt(), (1 - kept).sqrt(), steps


def loss(host: "ImageHost", batch: Batch) -> Float[Tensor, ""]:
    """Mean squared error of the denoiser's prediction, float32; see `ImageHost.loss`."""
    x = (latents_of(host, batch.images) if batch.images is not None else batch.latents).to(host.device, host.dtype)  # type: ignore[union-attr]
    n = int(host.pipeline.scheduler.config.num_train_timesteps)
    draws = [torch.Generator("cpu").manual_seed(batch.seed + i) for i in range(len(x))]
    noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in draws]).to(x)
    drawn = [int(torch.randint(0, n, (1,), generator=g)) for g in draws]
    steps = torch.tensor(drawn if batch.steps is None else list(batch.steps))
    if not ((steps >= 0) & (steps < n)).all():
        raise InputError(f"batch: steps must lie in [0, {n}); found {steps.tolist()}")
    of_picture, of_noise, told = noise_levels(host, steps)
    a, b = (v.to(x)[:, None, None, None] for v in (of_picture, of_noise))
    predicted = host.predict(a * x + b * noise, told, host.encode(batch.captions))
    return (predicted.float() - _target(host, x, noise, a, b).float()).square().mean()


def _target(host: "ImageHost", x: Tensor, noise: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if host.family.flow:
        return noise - x
    kind = getattr(host.pipeline.scheduler.config, "prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UnknownName("prediction type of the scheduler", str(kind), PREDICTIONS)
    return {"epsilon": noise, "v_prediction": a * noise - b * x, "sample": x}[kind]
