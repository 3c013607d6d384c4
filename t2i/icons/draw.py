"""Pictures of a pipeline folder, for checks: prompt i under seed i, whatever stands beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...base.errors import UnknownName
from ...base.files import digest, read_json, sha256_file
from ..aliases import ALIASES
from ..diffusers import channels_last, diffusers_class
from .assemble import MANIFEST
from .recipe import SAMPLING

Draw = Callable[..., UInt8[Tensor, "n 3 h w"]]


def drawing(folder: Path, steps: int | None = None, guidance: float | None = None) -> tuple[Draw, Mapping[str, Any]]:
    """(a function of prompts and `seeds`, what drew: model, digest, sampler, steps, guidance).

    Steps and guidance that are not given are the folder's own, else the miniature's.

    Raises:
        UnknownName: No pipeline lies there.
        InputError: diffusers is not installed.
    """
    if not (folder / "model_index.json").is_file():
        raise UnknownName("model", str(folder), ALIASES, "Or name a folder with model_index.json; `efface icons train` makes one")
    manifest = folder / MANIFEST
    own = {**SAMPLING, **(read_json(manifest).get("sampling", {}) if manifest.is_file() else {})}
    steps, guidance = own["steps"] if steps is None else steps, own["guidance"] if guidance is None else guidance
    pipe = channels_last(diffusers_class("StableDiffusionPipeline").from_pretrained(folder, dtype=torch.float32))
    pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(prompts: Sequence[str], *, seeds: Sequence[int]) -> Tensor:
        noise = [torch.Generator().manual_seed(s) for s in seeds]
        found = pipe(list(prompts), num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="pt").images
        return (255 * found.float()).round().clamp(0, 255).to(torch.uint8).cpu()

    about = {
        "model": folder.name,
        "digest": folder_digest(folder),
        "sampler": type(pipe.scheduler).__name__,
        "steps": steps,
        "guidance": guidance,
    }
    return draw, about


def folder_digest(folder: Path) -> str:
    """sha256 over the files of a pipeline's manifest, or over its weights where it has none."""
    manifest = folder / MANIFEST
    files = (
        read_json(manifest)["files"]
        if manifest.is_file()
        else {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.safetensors"))}
    )
    return digest(files)
