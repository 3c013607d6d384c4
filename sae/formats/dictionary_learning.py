"""dictionary_learning's folder: `config.json` and `ae.pt`.

The one place that opens a torch pickle, as tensors only: convert once, then `save`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ...base.errors import ArtefactError, InputError, UnknownName
from ...base.files import read_json
from ..config import CALIBRATED, SAEConfig
from ..sae import SAE
from .assemble import assemble, dims, dtype_name, positive, renamed

_LINEAR = {"encoder.weight.T": "W_enc", "decoder.weight.T": "W_dec"}
_PLAIN = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}


@dataclass(frozen=True)
class _Kind:
    """How one of its classes maps to ours."""

    architecture: str
    names: Mapping[str, str]
    subtracts: bool = True
    ignore: tuple[str, ...] = ()


KINDS = {
    "AutoEncoder": _Kind("relu", {**_LINEAR, "encoder.bias": "b_enc", "bias": "b_dec"}),
    "AutoEncoderNew": _Kind("relu", {**_LINEAR, "encoder.bias": "b_enc", "decoder.bias": "b_dec"}, subtracts=False),
    "GatedAutoEncoder": _Kind("gated", {**_LINEAR, "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}),
    "AutoEncoderTopK": _Kind("topk", {**_LINEAR, "encoder.bias": "b_enc", "b_dec": "b_dec"}, ignore=("k", "threshold")),
    "BatchTopKSAE": _Kind("batchtopk", {**_LINEAR, "encoder.bias": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}, ignore=("k",)),
    "MatryoshkaBatchTopKSAE": _Kind("matryoshka", {**_PLAIN, "threshold": "threshold"}, ignore=("k", "group_sizes")),
    "JumpReluAutoEncoder": _Kind("jumprelu", {**_PLAIN, "threshold": "threshold"}, subtracts=False),
}
"""Its class names -> ours."""


def read(folder: str | Path) -> SAE:
    """Reads a trained dictionary; a threshold it never measured (-1: runs under 1,000 steps) has to be calibrated.

    Raises:
        ArtefactError: Files missing or damaged, a pickle with more than tensors in it, an unknown class, tensors that
            do not fit.
    """
    folder = Path(folder)
    where, values = str(folder), read_json(folder / "config.json")
    trainer = values.get("trainer") if isinstance(values, dict) else None
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or name not in KINDS:
        raise ArtefactError(str(UnknownName(f"dict_class in {folder / 'config.json'}", str(name), KINDS)))
    kind, raw = KINDS[name], _state_dict(folder / "ae.pt")
    tensors = renamed(raw, kind.names, where, kind.ignore)
    if kind.architecture in CALIBRATED and tensors["threshold"].numel() == 1:
        tensors["threshold"] = tensors["threshold"].reshape(())
    d_in, d_sae = dims(tensors, "W_enc", where)
    try:
        cfg = SAEConfig(
            architecture=kind.architecture,
            d_in=d_in,
            d_sae=d_sae,
            k=_k(raw, trainer, kind, where),
            groups=_prefixes(raw, where) if kind.architecture == "matryoshka" else (),
            apply_b_dec_to_input=kind.subtracts,
            dtype=dtype_name(tensors["W_enc"]),
        )
    except InputError as e:
        raise ArtefactError(f"{where}: {e}") from None
    card = {
        "model": trainer.get("lm_name"),
        "hook_point": trainer.get("submodule_name"),
        "source": {"format": "dictionary_learning", "class": name},
    }
    return assemble(cfg, tensors, where, {k: v for k, v in card.items() if v is not None})


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors only: `weights_only=True` runs none of the pickle's code."""
    if not path.is_file():
        raise ArtefactError(f"{path} is missing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as e:
        raise ArtefactError(
            f"{path} is damaged or holds more than tensors ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ArtefactError(f"{path} is not a state dict of tensors")
    return state


def _k(raw: Mapping[str, Tensor], trainer: Mapping[str, Any], kind: _Kind, where: str) -> int:
    if "k" not in kind.ignore:
        return 1
    return positive(int(raw["k"]) if "k" in raw and raw["k"].numel() == 1 else trainer.get("k"), "k", where)


def _prefixes(raw: Mapping[str, Tensor], where: str) -> tuple[int, ...]:
    if "group_sizes" not in raw:
        raise ArtefactError(f"{where}: group_sizes is missing; a Matryoshka dictionary has it")
    return tuple(int(n) for n in raw["group_sizes"].cumsum(0).tolist())
