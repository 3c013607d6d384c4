"""FLUX.1: a CLIP encoder's pooled vector, a T5, and a transformer that takes the guidance as a number instead of a negative prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..states import States
from .family import Family
from .sd3 import JOINT_CROSS, inner_width

T5_TOKENS = 512
"""The pipeline's own `max_sequence_length`."""
GUIDANCE = 3.5
"""The pipeline's own guidance, where the transformer takes one."""


def _encode(pipeline: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    embeds, pooled, _ = pipeline.encode_prompt(prompt=list(prompts), prompt_2=None, max_sequence_length=T5_TOKENS)
    return embeds, pooled


def _predict(pipeline: Any, latents: Tensor, steps: Tensor, states: States) -> Tensor:
    """Squares of 2 x 2 latents are one token each."""
    b, _, h, w = latents.shape
    packed = rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    like = {"device": latents.device, "dtype": states.embeds.dtype}
    guided = pipeline.transformer.config.guidance_embeds
    out = pipeline.transformer(
        hidden_states=packed,
        timestep=steps / 1000,
        guidance=torch.full((b,), GUIDANCE, device=latents.device) if guided else None,
        pooled_projections=states.pooled,
        encoder_hidden_states=states.embeds,
        txt_ids=torch.zeros(states.embeds.shape[1], 3, **like),
        img_ids=pipeline._prepare_latent_image_ids(b, h // 2, w // 2, **like),
        return_dict=False,
    )[0]
    return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=h // 2, p=2, q=2)


def _call(states: States, negative: States | None) -> dict[str, Any]:
    return {"prompt_embeds": states.embeds, "pooled_prompt_embeds": states.pooled}


FLUX = Family(
    name="flux",
    pipelines=("FluxPipeline",),
    denoiser="transformer",
    encoders=("text_encoder", "text_encoder_2"),
    blocks=(r"(single_)?transformer_blocks\.\d+",),
    width=inner_width,
    cross=JOINT_CROSS,
    encode=_encode,
    predict=_predict,
    call=_call,
    lengths={"text_encoder_2": T5_TOKENS},
    index=1,
    clock=1000.0,
    flow=True,
    negative=False,
)
