"""Pictures side by side: contact sheets as PNG files, and before | after pairs as data for reports."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...base.files import write_bytes
from ...deactivate.evaluation.plots import Plot


def sheet(images: UInt8[Tensor, "n 3 h w"], columns: int, gap: int = 2) -> UInt8[Tensor, "3 height width"]:
    """Pictures row by row on a grey ground, what is missing in the last row left grey.

    Raises:
        MatchedNothing: No picture.
    """
    if not len(images) or columns < 1:
        raise MatchedNothing(f"contact sheet: {len(images)} pictures in {columns} columns")
    n, _, h, w = images.shape
    rows = -(-n // columns)
    out = torch.full((3, rows * (h + gap) + gap, columns * (w + gap) + gap), 128, dtype=torch.uint8)
    for i, picture in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        out[:, top : top + h, left : left + w] = picture
    return out


def png(image: UInt8[Tensor, "3 h w"], most: int | None = None) -> bytes:
    """The picture as a PNG file.

    Args:
        image: Pixels.
        most: For a page: at most so many pixels a side, and a palette of 256 colours, which is about half as many bytes.

    Raises:
        InputError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise InputError("pictures need Pillow: pip install 'efface[t2i]'") from None
    buffer = io.BytesIO()
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if most is not None:
        drawn.thumbnail((most, most))
        drawn = drawn.quantize(256, dither=Image.Dither.NONE)
    drawn.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_sheet(path: Path, images: UInt8[Tensor, "n 3 h w"], columns: int) -> Path:
    """A contact sheet as a PNG file."""
    write_bytes(path, png(sheet(images, columns)))
    return path


def picture(images: UInt8[Tensor, "n 3 h w"], columns: int, alt: str, caption: str) -> Plot:
    """A contact sheet for a report."""
    data = base64.b64encode(png(sheet(images, columns))).decode()
    return Plot(f"data:image/png;base64,{data}", alt, caption)


def labelled_alt(what: str, prompts: Sequence[str], limit: int = 8) -> str:
    """Words for those who don't see a sheet: what it is, and the first prompts."""
    more = f" and {len(prompts) - limit} more" if len(prompts) > limit else ""
    return f"{what}: {'; '.join(prompts[:limit])}{more}."
