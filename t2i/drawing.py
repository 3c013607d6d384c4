"""Pictures from prompts: the pipeline's own call, one generator a picture."""

import inspect
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..base.errors import InputError, NumericsError
from ..base.files import digest
from ..base.running import progress

if TYPE_CHECKING:
    from .host import ImageHost


def seeds_of(prompts: Sequence[str], seed: int, seeds: Sequence[int] | None) -> list[int]:
    """One seed a prompt: `seeds`, or `seed + i`.

    Raises:
        InputError: No prompts, or another number of seeds.
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts must be a list of at least one string; found {prompts!r}")
    found = [seed + i for i in range(len(prompts))] if seeds is None else list(seeds)
    if len(found) != len(prompts):
        raise InputError(f"seeds: one a prompt; found {len(found)} for {len(prompts)} prompts")
    return found


def own(pipeline: Any, steps: int | None, guidance: float | None) -> tuple[int, float]:
    """(steps, guidance scale): as given, or the pipeline's own."""
    known = inspect.signature(type(pipeline).__call__).parameters
    return checked(
        known["num_inference_steps"].default if steps is None else steps, known["guidance_scale"].default if guidance is None else guidance
    )


def guidance_of(host: "ImageHost", guidance: float | None) -> float:
    """The guidance scale: as asked, or the host's own."""
    return host.guidance if guidance is None else float(guidance)


def checked(steps: int, guidance: float) -> tuple[int, float]:
    """The same, in range.

    Raises:
        InputError: They are not.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1; found {steps}")
    if not math.isfinite(guidance) or guidance < 0:
        raise InputError(f"guidance must be a number from 0 up; found {guidance}")
    return int(steps), float(guidance)


def sampling(host: "ImageHost") -> dict[str, Any]:
    """How a host draws, as plain values; see `ImageHost.sampling`."""
    scheduler = host.pipeline.scheduler
    settings = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    plain = json.loads(json.dumps(settings, default=str))
    return {"scheduler": type(scheduler).__name__, "settings": digest(plain)[:12], "steps": host.steps, "guidance": host.guidance}


@torch.no_grad()
def generate(
    host: "ImageHost",
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str | Sequence[str],
    batch: int,
    guidance: float,
    options: dict[str, Any],
) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures in the order of the prompts, on the CPU; see `ImageHost.generate`."""
    if batch < 1:
        raise InputError(f"batch must be at least 1; found {batch}")
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(negatives) != len(prompts):
        raise InputError(f"negative: one prompt, or one a prompt; found {len(negatives)} for {len(prompts)} prompts")
    if not host.family.negative and any(negatives):
        raise InputError(f"negative: a {host.family.name} pipeline takes no negative prompt; leave it out")
    drawn = []
    for start in progress(range(0, len(prompts), batch), desc="drawing", unit="batch", enabled=len(prompts) > batch, inner=True):
        part = slice(start, start + batch)
        images = denoise(host, prompts[part], seeds[part], negatives[part], guidance, options)
        drawn.append((images.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(drawn)


@torch.no_grad()
def denoise(
    host: "ImageHost",
    prompts: Sequence[str],
    seeds: Sequence[int],
    negatives: Sequence[str],
    guidance: float,
    options: dict[str, Any],
    output: str = "pt",
) -> Float[Tensor, "b *shape"]:
    """One call of the pipeline: pictures in [0, 1] (`pt`), or what the denoiser leaves (`latent`).

    Raises:
        NumericsError: NaN or infinity in them.
    """
    states = host.encode(prompts)
    guided = host.family.negative and guidance > 1 and getattr(host.denoiser.config, "time_cond_proj_dim", None) is None
    away = host.encode(negatives, negative=True) if guided else None
    rows = (*(away.prompts if away else ()), *states.prompts)
    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    with host.rows(rows), _unchecked(host.pipeline):
        images = host.pipeline(
            **host.family.call(states, away), guidance_scale=guidance, generator=generators, output_type=output, **options
        ).images
    if not torch.isfinite(images).all():
        raise NumericsError("generation: the pictures are not finite numbers")
    return images


@contextmanager
def _unchecked(pipeline: Any) -> Iterator[None]:
    """Keeps a safety checker from blanking pictures while the block runs."""
    if getattr(pipeline, "safety_checker", None) is None:
        yield
        return
    pipeline.__dict__["run_safety_checker"] = lambda image, device, dtype: (image, None)
    try:
        yield
    finally:
        del pipeline.__dict__["run_safety_checker"]
