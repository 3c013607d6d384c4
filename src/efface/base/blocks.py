"""Large tensors a block at a time: their bytes, whether they are finite, and the safetensors file that holds them."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**25
"""Bytes of a block, about."""
COLUMNS = 1024
"""Of a matrix that lies transposed so many columns are turned at once: their rows stay in the processor's cache."""
DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""torch's name -> safetensors'. A file holds the last of these first, so that all are aligned."""


def blocks(t: "Tensor") -> "Iterator[Tensor]":
    """Contiguous tensors on the CPU that hold, one after the other, the numbers of `t` in row-major order; no copy where that lies so."""
    import torch

    t = t.detach()
    if t.is_contiguous():
        parts = iter(t.reshape(-1).split(BLOCK // t.element_size()))
    elif t.dim() == 2:
        rows = t.split(max(1, BLOCK // (t.shape[1] * t.element_size())))
        parts = (torch.cat(some.split(COLUMNS, 1), 1) for some in rows)
    else:
        parts = iter([t.contiguous()])
    for part in parts:
        yield part.cpu()


def raw_blocks(t: "Tensor") -> Iterator[memoryview]:
    """The bytes of `blocks`."""
    import torch

    for block in blocks(t):
        yield block.reshape(-1).view(torch.uint8).numpy().data


def finite(t: "Tensor") -> bool:
    """Whether `t`, of floating-point numbers, is without NaN and infinity."""
    lying = t.T if t.dim() == 2 and not t.is_contiguous() else t
    ends = (end for block in blocks(lying) if block.numel() for end in block.aminmax())  # NaN comes through
    return all(math.isfinite(end) for end in ends)


def safetensors_file(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> Iterator[bytearray | memoryview]:
    """The file that `safetensors.torch.save` makes of contiguous tensors, byte for byte, in pieces of about `BLOCK` bytes.

    Raises:
        InputError: A dtype that such files do not hold.
    """
    kinds = {n: str(t.dtype).removeprefix("torch.") for n, t in tensors.items()}
    if other := [n for n, kind in kinds.items() if kind not in DTYPES]:
        raise InputError(f"{other[0]} is of dtype {kinds[other[0]]}; a safetensors file takes {', '.join(DTYPES)}")
    place = {kind: -i for i, kind in enumerate(DTYPES)}
    names = sorted(tensors, key=lambda n: (place[kinds[n]], n))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": DTYPES[kinds[name]], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    piece = bytearray(len(text).to_bytes(8, "little") + text)
    for name in names:
        for block in raw_blocks(tensors[name]):
            large = len(block) > BLOCK // 2  # goes as it is; small ones are gathered
            if piece and (large or len(piece) + len(block) > BLOCK):
                yield piece
                piece = bytearray()
            if large:
                yield block
            else:
                piece += block
    yield piece
