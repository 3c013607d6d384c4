"""Gemma Scope's `params.npz`: JumpReLU without `b_dec` at the input, SAEs and transcoders."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...base.errors import ArtefactError
from ..config import SAEConfig
from ..sae import SAE
from .assemble import assemble, dims, dtype_name

NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read(path: Path) -> SAE:
    """Reads a file of Gemma Scope (Lieberum et al., 2024); a decoder of another width makes it a transcoder.

    Raises:
        ArtefactError: Missing, damaged, with pickled objects in it, or with other tensors.
    """
    tensors = _arrays(path)
    where = str(path)
    if unknown := sorted(tensors.keys() - set(NAMES)):
        raise ArtefactError(f"{where}: unknown tensors {', '.join(unknown)}; expected {', '.join(NAMES)}")
    d_in, d_sae = dims(tensors, "W_enc", where)
    d_out = dims(tensors, "W_dec", where)[1]
    cfg = SAEConfig(
        architecture="jumprelu",
        d_in=d_in,
        d_sae=d_sae,
        k=1,
        d_out=None if d_out == d_in else d_out,
        apply_b_dec_to_input=False,
        dtype=dtype_name(tensors["W_enc"]),
    )
    return assemble(cfg, tensors, where, {"source": {"format": "gemma-scope", "file": path.name}})


def _arrays(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtefactError(f"{path} is missing")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, AttributeError, TypeError) as e:
        raise ArtefactError(f"{path} is not a whole npz file of plain arrays ({e})") from None
    for name, a in arrays.items():
        if a.dtype.kind != "f":
            raise ArtefactError(f"{path}: {name} holds {a.dtype}, floating-point numbers expected")
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
