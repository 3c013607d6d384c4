"""Stable Diffusion 3: two CLIP encoders with pooled vectors, an optional T5, and a transformer over text and picture together."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..states import States
from .family import Family
from .sdxl import call

JOINT_CROSS = r"^transformer_blocks\.\d+\.attn\.add_[kv]_proj\.(base_layer\.)?weight$"
T5_TOKENS = 256
"""The pipeline's own `max_sequence_length`."""


def inner_width(transformer: Any, block: Any) -> int:
    """Width of the streams between the transformer's blocks."""
    return int(transformer.inner_dim)


def _encode(pipeline: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompt=list(prompts), prompt_2=None, prompt_3=None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
    )
    return embeds, pooled


def _predict(pipeline: Any, latents: Tensor, steps: Tensor, states: States) -> Tensor:
    return pipeline.transformer(
        hidden_states=latents,
        timestep=steps,
        encoder_hidden_states=states.embeds,
        pooled_projections=states.pooled,
        return_dict=False,
    )[0]


SD3 = Family(
    name="sd3",
    pipelines=("StableDiffusion3Pipeline",),
    denoiser="transformer",
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    blocks=(r"transformer_blocks\.\d+",),
    width=inner_width,
    cross=JOINT_CROSS,
    encode=_encode,
    predict=_predict,
    call=call,
    optional=("text_encoder_3",),
    lengths={"text_encoder_3": T5_TOKENS},
    index=1,
    flow=True,
)
