"""An edit in another tool's format: a LoRA adapter for peft or diffusers, or its factors in one safetensors file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError, MatchedNothing, UnknownName
from ..base.files import new_folder, save_tensors, write_json, write_text
from .edit_folder import card
from .parts import Dense, LowRank

if TYPE_CHECKING:
    from .edit import Edit

_MODULES = ("Linear", "Conv1D")
_DENOISERS = ("unet", "transformer")
_COMPONENTS = (*_DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
"""First parts of the names of a pipeline's parameters."""
_GPT2 = ("h", "wte", "wpe", "ln_f")
"""What stands behind `transformer.` in GPT-2, which is no denoiser."""


def export_edit(edit: "Edit", out: str | Path, *, format: str = "lora") -> Path:
    """Writes `edit` to the new folder `out`.

    Args:
        edit: One whose parts all change weights; without a gate.
        out: A new folder.
        format: `lora`: `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained`
            loads (language models); `diffusers`: `pytorch_lora_weights.safetensors`, which a pipeline's `load_lora_weights`
            takes (changes of its denoiser alone); `safetensors`: `edit.safetensors` with `<parameter>.B` and `.A` (the change is B A) or
            `<parameter>.delta`.

    Raises:
        UnknownName: Another format.
        InputError: A gated or hook part, or a tensor that the format cannot carry; names the alternative.
    """
    writers: dict[str, Callable[[Edit, Path], None]] = {"lora": _lora, "safetensors": _safetensors, "diffusers": _diffusers}
    if format not in writers:
        raise UnknownName("export format", format, writers)
    edit.require_permanent()
    parts = {part for p in edit.weights for name in p.deltas if (part := _component(name))}
    drawing = bool(parts)
    if format == "diffusers" and not drawing:
        raise InputError("export --format diffusers is for edits of pipelines; this edit is of a language model: use lora or safetensors")
    if format == "lora" and drawing:
        raise InputError(
            "export --format lora writes adapters of language models; this edit is of a pipeline: use diffusers (load_lora_weights), "
            "safetensors, or `efface apply`, which writes a whole checkpoint"
        )
    if format == "diffusers" and (rest := sorted(parts - {*_DENOISERS})):
        raise InputError(
            f"export --format diffusers: the edit changes {', '.join(rest)}, and such an adapter would hold the denoiser alone; "
            "use safetensors, or `efface apply`, which writes a whole checkpoint"
        )
    with new_folder(Path(out)) as work:
        writers[format](edit, work)
        write_text(work / "README.md", card(edit))
    return Path(out)


def _component(name: str) -> str | None:
    """The component of a pipeline that a parameter belongs to; None in a language model."""
    part, inner, *_ = name.split(".")
    return part if part in _COMPONENTS and not (part == "transformer" and inner in _GPT2) else None


def _safetensors(edit: "Edit", work: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, change in _merged(edit).items():
        tensors |= {f"{name}.{k}": t for k, t in change.tensors().items()}
    save_tensors(work / "edit.safetensors", tensors, {"eraser": edit.eraser, "digest": edit.digest})


def _lora(edit: "Edit", work: Path) -> None:
    """Scaling is 1 for each module: alpha equals the rank, module by module."""
    factors, kinds = _adapter(edit, "lora")
    ranks = {m: b.shape[1] for m, (b, _) in factors.items()}
    r = max(ranks.values())
    unlike = {m: n for m, n in ranks.items() if n != r}
    tensors = {}
    for m, (b, a) in factors.items():
        tensors[f"base_model.model.{m}.lora_A.weight"] = a.float()
        tensors[f"base_model.model.{m}.lora_B.weight"] = b.float()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": edit.host.get("name", ""),
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": kinds == {"Conv1D"},
        "target_modules": sorted(factors),
        "rank_pattern": unlike,
        "alpha_pattern": unlike,
    }
    save_tensors(work / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(work / "adapter_config.json", config)


def _diffusers(edit: "Edit", work: Path) -> None:
    """The denoiser's factors, the part first. Without an alpha diffusers takes the rank, so the scaling is 1 for each module."""
    tensors = {}
    for m, (b, a) in _adapter(edit, "diffusers")[0].items():
        tensors[f"{m}.lora_A.weight"], tensors[f"{m}.lora_B.weight"] = a.float(), b.float()
    save_tensors(work / "pytorch_lora_weights.safetensors", tensors, {"format": "pt"})


def _adapter(edit: "Edit", format: str) -> tuple[dict[str, tuple[Tensor, Tensor]], set[str]]:
    """Module -> (B, A), changes of rank 0 left out; and the classes of the modules."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    kinds = set()
    for name, change in _merged(edit).items():
        module, kind = _module_of(edit, name, format)
        kinds.add(kind)
        b, a = _factors(name, change, format)
        if not b.shape[1]:
            continue
        # Conv1D holds its weight as [in out]; peft transposes B A for it (fan_in_fan_out)
        factors[module] = (a.T, b.T) if kind == "Conv1D" else (b, a)
    if not factors:
        raise MatchedNothing("export: every change of this edit has rank 0")
    if len(kinds) > 1:
        raise InputError(f"export --format {format}: Linear and Conv1D weights cannot share an adapter; use --format safetensors")
    return factors, kinds


def _module_of(edit: "Edit", name: str, format: str) -> tuple[str, str]:
    """Module path and class of the module that holds a parameter."""
    kind = next((p.base[name].module for p in edit.weights if name in p.base), None)
    if kind is None:
        raise InputError(f"export --format {format}: the edit does not know what holds {name}; export edit.bound(host)")
    module, _, leaf = name.rpartition(".")
    if kind not in _MODULES or leaf != "weight":
        raise InputError(f"export --format {format}: {name} ({kind}) is not the weight of a linear layer; use --format safetensors")
    return module, kind


def _merged(edit: "Edit") -> dict[str, LowRank | Dense]:
    """Parameter -> the sum of its changes over all parts."""
    found: dict[str, list[LowRank | Dense]] = {}
    for part in edit.weights:
        for name, change in part.deltas.items():
            found.setdefault(name, []).append(change)
    return {n: _sum(changes) for n, changes in found.items()}


def _sum(changes: list[LowRank | Dense]) -> LowRank | Dense:
    if len(changes) == 1:
        return changes[0]
    low = [c for c in changes if isinstance(c, LowRank)]
    if len(low) == len(changes):
        return LowRank(torch.cat([c.B for c in low], 1), torch.cat([c.A for c in low], 0))
    return Dense(torch.stack([c.delta() for c in changes]).sum(0).float())


def _factors(name: str, change: LowRank | Dense, format: str) -> tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]:
    """(B, A); a dense change by its singular values above rounding."""
    if isinstance(change, LowRank):
        return change.B.detach(), change.A.detach()
    if len(change.shape) != 2:
        raise InputError(f"export --format {format}: {name} is no matrix; use --format safetensors")
    u, s, v = torch.linalg.svd(change.delta(), full_matrices=False)
    kept = max(1, int((s > s[0] * 1e-7).sum()))
    root = s[:kept].sqrt()
    return u[:, :kept] * root, root[:, None] * v[:kept]
