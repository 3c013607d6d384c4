"""The base's pictures of an evaluation, kept in the cache: what this machine drew alike before is not drawn again."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...base.errors import ArtefactError
from ...base.files import cache_dir, digest, load_tensors, new_folder, save_tensors, write_json
from .ground import Ground, ImageHost

LARGEST = 64 * 2**20
"""Bytes of pictures of one evaluation that are kept, at most: 5,000 of the miniature's."""
PICTURES = "pictures.safetensors"


def base_pictures(host: ImageHost, ground: Ground) -> tuple[UInt8[Tensor, "n 3 h w"], int]:
    """(the base's pictures of all prompts and seeds, how many were drawn for them).

    They are taken from the cache where host, sampling, prompts, seeds, batches, libraries, device and machine are the same.
    """
    place = _place(host, ground)
    if place is not None and (kept := _read(place, len(ground.asks))) is not None:
        return kept, 0
    images, drawn = ground.draw(host, "base", ground.whole)
    if place is not None and images.numel() <= LARGEST:
        with new_folder(place, overwrite=True) as work:
            save_tensors(work / PICTURES, {"pictures": images})
            write_json(work / "about.json", {"host": host.name, "concept": ground.concept.name, "pictures": len(images)})
    return images, drawn


def _place(host: ImageHost, ground: Ground) -> Path | None:
    """The folder of these pictures; None where they must not be kept, since something that the host's digest does not see lies on it."""
    if not ground.config.reuse or not _bare(host):
        return None
    asked = [[a.text for a in ground.asks], list(ground.seeds), ground.config.batch]
    key = digest([host.digest, dict(host.sampling), asked, _machine(host)])
    return cache_dir() / "pictures" / key[:32]


def _bare(host: Any) -> bool:
    """Whether no edit lies on the host."""
    from ...deactivate.ledger import overlay_of

    return not hasattr(host, "model") or not overlay_of(host).entries


def _machine(host: Any) -> list[str]:
    """Whatever else the last bit of a picture depends on."""
    found = [platform.machine(), platform.node(), str(getattr(host, "device", "cpu")), str(torch.get_num_threads()), str(os.cpu_count())]
    for name in ("torch", "diffusers", "transformers", "efface"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            continue
    return found


def _read(place: Path, n: int) -> Tensor | None:
    """What lies there, if it is whole."""
    if not (place / PICTURES).is_file():
        return None
    try:
        images = load_tensors(place / PICTURES)["pictures"]
    except (ArtefactError, KeyError):
        return None
    fits = images.ndim == 4 and len(images) == n and images.dtype == torch.uint8
    return images if fits else None
