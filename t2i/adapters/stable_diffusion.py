"""Stable Diffusion 1.x and 2.x, and the embedded miniature: one CLIP encoder, a U-Net with cross-attention."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..states import States
from .family import Family

UNET_BLOCKS = (
    r"(down|up)_blocks\.\d+\.(attentions|resnets)\.\d+",
    r"mid_block\.(attentions|resnets)\.\d+",
)
UNET_CROSS = r"attn2\.to_[kv]\.(base_layer\.)?weight$"


def unet_width(unet: Any, block: Any) -> int:
    """Channels of what an attention or residual block puts out."""
    channels = getattr(block, "out_channels", None)
    return int(channels if channels is not None else block.in_channels)


def _encode(pipeline: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    embeds, _ = pipeline.encode_prompt(list(prompts), pipeline._execution_device, 1, False)
    return embeds, None


def _predict(pipeline: Any, latents: Tensor, steps: Tensor, states: States) -> Tensor:
    return pipeline.unet(latents, steps, encoder_hidden_states=states.embeds, return_dict=False)[0]


def _call(states: States, negative: States | None) -> dict[str, Any]:
    return {"prompt_embeds": states.embeds, "negative_prompt_embeds": None if negative is None else negative.embeds}


STABLE_DIFFUSION = Family(
    name="stable-diffusion",
    pipelines=("StableDiffusionPipeline",),
    denoiser="unet",
    encoders=("text_encoder",),
    blocks=UNET_BLOCKS,
    width=unet_width,
    cross=UNET_CROSS,
    encode=_encode,
    predict=_predict,
    call=_call,
    spatial=True,
)
