"""Stable Diffusion XL: two CLIP encoders read at their second-to-last state, the second one's pooled vector, sizes as conditions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..states import States
from .family import Family
from .stable_diffusion import UNET_BLOCKS, UNET_CROSS, unet_width


def _encode(pipeline: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    embeds, _, pooled, _ = pipeline.encode_prompt(prompt=list(prompts), num_images_per_prompt=1, do_classifier_free_guidance=False)
    return embeds, pooled


def _predict(pipeline: Any, latents: Tensor, steps: Tensor, states: States) -> Tensor:
    size = tuple(side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    projection = pipeline.text_encoder_2.config.projection_dim
    times = pipeline._get_add_time_ids(size, (0, 0), size, states.embeds.dtype, text_encoder_projection_dim=projection)
    added = {"text_embeds": states.pooled, "time_ids": times.to(latents.device).expand(len(latents), -1)}
    return pipeline.unet(latents, steps, encoder_hidden_states=states.embeds, added_cond_kwargs=added, return_dict=False)[0]


def call(states: States, negative: States | None) -> dict[str, Any]:
    """Arguments of pipelines with pooled vectors."""
    of_negative = (None, None) if negative is None else (negative.embeds, negative.pooled)
    names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
    return {
        "prompt_embeds": states.embeds,
        "pooled_prompt_embeds": states.pooled,
        **dict(zip(names, of_negative, strict=True)),
    }


SDXL = Family(
    name="sdxl",
    pipelines=("StableDiffusionXLPipeline",),
    denoiser="unet",
    encoders=("text_encoder", "text_encoder_2"),
    blocks=UNET_BLOCKS,
    width=unet_width,
    cross=UNET_CROSS,
    encode=_encode,
    predict=_predict,
    call=call,
    unread=("text_encoder",),
    spatial=True,
    zero_negative=True,
)
