"""From a config and named tensors to an SAE: names, shapes, dtypes and finiteness are checked first."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...base.blocks import finite
from ...base.errors import ArtefactError
from ..config import SAEConfig
from ..sae import SAE


def blank(cfg: SAEConfig, card: Mapping[str, Any] | None = None) -> SAE:
    """An SAE whose weights are still to be filled, thresholds too; leaves torch's generator alone."""
    with torch.device("meta"):
        sae = SAE(cfg, dict(card or {}))
    return sae.to_empty(device="cpu")


def assemble(cfg: SAEConfig, tensors: Mapping[str, Tensor], where: str, card: Mapping[str, Any] | None = None) -> SAE:
    """An SAE with these weights.

    Args:
        cfg: What it is.
        tensors: By the names of `SAE.state_dict()`, every one of them and no other.
        where: File or folder, for messages.
        card: The SAE's card.

    Raises:
        ArtefactError: A tensor is missing, unknown, of another shape, no floating-point numbers, or not finite.
    """
    encoder = tensors.get("W_enc")
    if encoder is not None and tuple(encoder.shape) != (cfg.d_in, cfg.d_sae):  # before room is made for what the config says
        raise ArtefactError(f"{where}: W_enc has shape {tuple(encoder.shape)}, {(cfg.d_in, cfg.d_sae)} expected from the config")
    sae = blank(cfg, card)
    state = sae.state_dict()
    if missing := sorted(state.keys() - tensors.keys()):
        raise ArtefactError(f"{where}: {', '.join(missing)} missing; a {cfg.architecture} SAE has {', '.join(sorted(state))}")
    if unknown := sorted(tensors.keys() - state.keys()):
        raise ArtefactError(f"{where}: unknown {', '.join(unknown)}; a {cfg.architecture} SAE has {', '.join(sorted(state))}")
    for name, target in state.items():
        t = tensors[name]
        if t.shape != target.shape:
            raise ArtefactError(f"{where}: {name} has shape {tuple(t.shape)}, {tuple(target.shape)} expected from the config")
        if not t.is_floating_point():
            raise ArtefactError(f"{where}: {name} holds {t.dtype}, floating-point numbers expected")
        if not finite(t):
            raise ArtefactError(f"{where}: {name} has NaN or infinity in it")
        target.copy_(t) if target.is_contiguous() else target.T.copy_(t.T)  # the latter goes along the rows of latents
    return sae.eval()


def dims(tensors: Mapping[str, Tensor], name: str, where: str) -> tuple[int, int]:
    """Shape of the matrix `name`.

    Raises:
        ArtefactError: It is missing or no matrix.
    """
    if name not in tensors:
        raise ArtefactError(f"{where}: {name} is missing; found {', '.join(sorted(tensors)) or 'no tensor'}")
    t = tensors[name]
    if t.dim() != 2 or 0 in t.shape:
        raise ArtefactError(f"{where}: {name} has shape {tuple(t.shape)}, a matrix expected")
    return t.shape[0], t.shape[1]


def dtype_name(tensor: Tensor) -> str:
    """`float32` of `torch.float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str], where: str, ignore: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Tensors under our names; a name that ends in `.T` on the left is transposed.

    Raises:
        ArtefactError: A tensor that `names` and `ignore` do not know, or one that is missing.
    """
    plain = {k.removesuffix(".T"): (v, k.endswith(".T")) for k, v in names.items()}
    if unknown := sorted(tensors.keys() - plain.keys() - set(ignore)):
        raise ArtefactError(f"{where}: unknown tensors {', '.join(unknown)}; expected {', '.join(sorted(plain))}")
    if missing := sorted(plain.keys() - tensors.keys()):
        raise ArtefactError(f"{where}: {', '.join(missing)} missing; found {', '.join(sorted(tensors)) or 'no tensor'}")
    for name, (_, turned) in plain.items():
        if turned:
            dims(tensors, name, where)
    return {ours: tensors[name].T if turned else tensors[name] for name, (ours, turned) in plain.items()}


def positive(value: Any, name: str, where: str) -> int:
    """A whole number of at least 1 from a file.

    Raises:
        ArtefactError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArtefactError(f"{where}: {name} must be a whole number of at least 1; found {value!r}")
    return value
