"""The trained parts as a folder that `StableDiffusionPipeline.from_pretrained` reads, in half precision, with a manifest of digests."""

from pathlib import Path
from typing import Any

import torch

from ...base.files import load_tensors, new_folder, read_json, save_tensors, sha256_file, write_json

FORMAT = 1
MANIFEST = "efface-model.json"
PRIVATE = ("_name_or_path", "name_or_path", "local_files_only")
"""Where the parts were read from: on another machine it means nothing."""


def assemble(
    vae: Any, tokenizer: Any, text: Any, unet: Any, scheduler: Any, out: Path, about: dict[str, Any], *, overwrite: bool = False
) -> Path:
    """Writes a `StableDiffusionPipeline` in float16 safetensors.

    The text tower is saved with `text_model.` keys, which transformers 4 and 5 both load.
    """
    with new_folder(out, overwrite=overwrite) as work:
        for name, part in (("vae", vae), ("unet", unet), ("scheduler", scheduler), ("tokenizer", tokenizer), ("text_encoder", text)):
            part.save_pretrained(work / name)
        for config in work.rglob("*config.json"):
            write_json(config, {k: v for k, v in read_json(config).items() if k not in PRIVATE})
        _halve(work / "vae" / "diffusion_pytorch_model.safetensors")
        _halve(work / "unet" / "diffusion_pytorch_model.safetensors")
        _halve(work / "text_encoder" / "model.safetensors", prefix="text_model.")
        parts = {
            "vae": ("diffusers", "AutoencoderKL"), "unet": ("diffusers", "UNet2DConditionModel"), "scheduler": ("diffusers", type(scheduler).__name__),
            "tokenizer": ("transformers", "CLIPTokenizer"), "text_encoder": ("transformers", "CLIPTextModel"),
            "safety_checker": (None, None), "feature_extractor": (None, None),
        }  # fmt: skip
        index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0", "requires_safety_checker": False}
        write_json(work / "model_index.json", {**index, **{k: list(v) for k, v in parts.items()}})
        digests = {str(p.relative_to(work)): sha256_file(p) for p in sorted(work.rglob("*")) if p.is_file()}
        write_json(work / MANIFEST, {"format": FORMAT, **about, "files": digests})
    return out


def _halve(path: Path, prefix: str = "") -> None:
    """Float16, and `prefix` before each name that lacks it."""
    tensors = load_tensors(path)
    named = {k if k.startswith(prefix) else prefix + k: v.to(torch.float16) for k, v in tensors.items()}
    save_tensors(path, named, {"format": "pt"})
