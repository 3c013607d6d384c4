"""Tiny real diffusers pipelines with random weights and real CLIP and T5 tokenizers: `tiny_image_host("sd")`."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from efface.t2i.diffusers import diffusers_class
from efface.t2i.host import ImageHost

FAMILIES = ("sd", "sdxl", "sd3", "flux")
WIDTH, LAYERS, TOKENS = 16, 3, 12
"""Of the CLIP text encoders."""
PROMPTS = ("a red apple", "a big dog", "the blue bus", "a dog and a cat", "an old house by the sea", "a green tree")
T5_WIDTH = 32


@cache
def clip_tokenizer() -> Any:
    """Byte pairs that join the words of a few captions letter by letter, padded with its EOS as SD 1.x does."""
    from transformers import CLIPTokenizer

    words = sorted({w for p in (*PROMPTS, "my puppy") for w in p.split()})
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges: dict[str, None] = {}
    for word in words:
        done = word[:1]
        for i, letter in enumerate(word[1:], 1):
            end = "</w>" if i == len(word) - 1 else ""
            merges[f"{done} {letter}{end}"] = None
            done += letter
    pieces = [*letters, *(x + "</w>" for x in letters), *(m.replace(" ", "") for m in merges), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, joins = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({p: i for i, p in enumerate(dict.fromkeys(pieces))}))
        joins.write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        return CLIPTokenizer(str(vocabulary), str(joins), model_max_length=TOKENS)


@cache
def t5_tokenizer() -> Any:
    """Words and letters with T5's special tokens."""
    from transformers import T5Tokenizer

    words = sorted({"▁" + w for p in PROMPTS for w in p.split()})
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -1.0) for w in words), *((x, -9.0) for x in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def clip(projection: bool = False, seed: int = 0) -> Any:
    """A text tower of three layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPTextConfig(
        **ids, vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=WIDTH,
    )  # fmt: skip
    torch.manual_seed(seed)
    return _told_apart((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def t5(seed: int = 0) -> Any:
    """A T5 encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    return _told_apart(
        T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer()), d_model=T5_WIDTH, d_ff=48, d_kv=8, num_layers=2, num_heads=4))
    )


def _told_apart(model: Any) -> Any:
    """Embeddings large enough that a prompt's words show in the states."""
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.3)
    return model.eval()


def vae(latent: int = 4, shift: float | None = None) -> Any:
    """An autoencoder that halves the sides three times."""
    torch.manual_seed(5)
    extra = {} if shift is None else {"shift_factor": shift, "use_quant_conv": False, "use_post_quant_conv": False}
    n = 4
    return diffusers_class("AutoencoderKL")(
        block_out_channels=(8,) * n, down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n,
        layers_per_block=1, latent_channels=latent, norm_num_groups=4, scaling_factor=0.5, **extra,
    ).eval()  # fmt: skip


def unet(context: int, **extra: Any) -> Any:
    """Two levels with cross-attention."""
    torch.manual_seed(6)
    return diffusers_class("UNet2DConditionModel")(
        sample_size=4, block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=1, cross_attention_dim=context, attention_head_dim=4,
        norm_num_groups=4, **extra,
    ).eval()  # fmt: skip


def tiny_pipeline(family: str = "sd") -> Any:
    """A new pipeline each time (safe to edit)."""
    with torch.random.fork_rng(devices=[]):
        pipeline = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[family]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sd() -> Any:
    return diffusers_class("StableDiffusionPipeline")(
        vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(), unet=unet(WIDTH),
        scheduler=_ddim(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _ddim() -> Any:
    return diffusers_class("DDIMScheduler")(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _sdxl() -> Any:
    pooled = WIDTH + 6 * 8
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": pooled}
    return diffusers_class("StableDiffusionXLPipeline")(
        vae=vae(), text_encoder=clip(), text_encoder_2=clip(projection=True, seed=1), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet(2 * WIDTH, **added), scheduler=_ddim(), add_watermarker=False,
    )  # fmt: skip


def _sd3() -> Any:
    torch.manual_seed(6)
    transformer = diffusers_class("SD3Transformer2DModel")(
        sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=T5_WIDTH, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    return diffusers_class("StableDiffusion3Pipeline")(
        transformer=transformer, scheduler=diffusers_class("FlowMatchEulerDiscreteScheduler")(shift=3.0), vae=vae(shift=0.1),
        text_encoder=clip(projection=True), tokenizer=clip_tokenizer(), text_encoder_2=clip(projection=True, seed=1),
        tokenizer_2=clip_tokenizer(), text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def _flux() -> Any:
    torch.manual_seed(6)
    transformer = diffusers_class("FluxTransformer2DModel")(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=T5_WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    return diffusers_class("FluxPipeline")(
        transformer=transformer, scheduler=diffusers_class("FlowMatchEulerDiscreteScheduler")(), vae=vae(shift=0.1), text_encoder=clip(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def tiny_image_host(family: str = "sd") -> ImageHost:
    """A new host each time (safe to edit)."""
    return ImageHost(tiny_pipeline(family), f"tiny-{family}")
