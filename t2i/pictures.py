"""Pictures as files."""

import io

from jaxtyping import UInt8
from torch import Tensor

from ..base.errors import InputError


def png(picture: UInt8[Tensor, "3 h w"]) -> bytes:
    """A PNG file of one picture.

    Raises:
        InputError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise InputError("pictures need Pillow: pip install 'efface[t2i]'") from None
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
