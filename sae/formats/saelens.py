"""sae-lens 6's folder, both ways: its names for architectures and weights, in one place.

BatchTopK and Matryoshka are written as `jumprelu` with their one threshold repeated, as sae-lens itself does. sae-lens
has no TopK or Gated transcoder; those are written under `topk_transcoder`, `gated_transcoder` (`topk_skip_transcoder`,
…), which only we read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base.errors import ArtefactError, InputError, UnknownName
from ...base.files import load_tensors, read_json
from ..config import CALIBRATED, SAEConfig
from ..sae import SAE
from .assemble import assemble, dtype_name, positive

CONFIG = "cfg.json"
PLACES = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp_hidden",
    "ln2.hook_normalized": "mlp_in",
}
"""What TransformerLens calls a place in a block -> our name."""
_THEIRS = re.compile(
    rf"blocks\.(?P<block>\d+)\.(?P<place>{'|'.join(map(re.escape, PLACES))})|(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(?P<layer>\d+)"
)
WEIGHTS = "sae_weights.safetensors"
AUTOENCODERS = {
    "relu": "standard",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
_STEM = {"relu": "", "topk": "topk_", "gated": "gated_"}
READ = {
    **{name: (ours, False, False) for ours, name in AUTOENCODERS.items() if ours not in CALIBRATED},
    **{
        f"{stem}{'skip_' if skip else ''}transcoder": (ours, True, skip)
        for ours, stem in {**_STEM, "jumprelu": "jumprelu_"}.items()
        for skip in (False, True)
    },
}
"""sae-lens' name -> (our architecture, transcoder, skip)."""
DTYPES = {"float16", "bfloat16", "float32", "float64"}


def name_of(cfg: SAEConfig) -> str:
    """The `architecture` of `cfg.json`."""
    if not cfg.transcoder:
        return AUTOENCODERS[cfg.architecture]
    stem = _STEM.get(cfg.architecture, "jumprelu_")
    return f"{stem}{'skip_' if cfg.skip else ''}transcoder"


def cfg_dict(sae: SAE) -> dict[str, Any]:
    """`cfg.json` of an SAE."""
    cfg, card = sae.cfg, sae.card
    metadata = {
        "hook_name": card.get("hook_point"),
        "hook_name_out": card.get("hook_point_out"),
        "model_name": card.get("model"),
        "training_architecture": {"relu": "standard", "matryoshka": "matryoshka_batchtopk"}.get(cfg.architecture, cfg.architecture),
    }
    values: dict[str, Any] = {
        "architecture": name_of(cfg),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": dtype_name(sae.W_dec),
        "device": "cpu",
        "apply_b_dec_to_input": cfg.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {k: v for k, v in metadata.items() if v is not None},
    }
    if cfg.transcoder:
        values["d_out"] = cfg.d_out
    if cfg.architecture == "topk":
        values |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    return values


def tensors_of(sae: SAE) -> dict[str, Tensor]:
    """Weights under sae-lens' names, which are ours."""
    tensors = dict(sae.state_dict())
    if sae.cfg.architecture in CALIBRATED:
        tensors["threshold"] = sae.threshold.detach().expand(sae.cfg.d_sae).clone()
    return tensors


def read(folder: Path) -> SAE:
    """Reads a folder that sae-lens 6 wrote.

    Raises:
        ArtefactError: Files missing, damaged or at odds with each other.
    """
    return build(read_json(folder / CONFIG), load_tensors(folder / WEIGHTS), str(folder))


def build(values: Any, tensors: Mapping[str, Tensor], where: str) -> SAE:
    """An SAE from sae-lens' config and state dict.

    `rescale_acts_by_decoder_norm` is folded into the weights; thresholds go to float32.

    Raises:
        ArtefactError: An architecture, normalisation or shape that we do not have, or tensors that do not fit.
    """
    if not isinstance(values, dict) or "architecture" not in values:
        raise ArtefactError(f"{where}: cfg.json names no architecture; sae-lens 6 writes one")
    name = str(values["architecture"])
    if name not in READ:
        raise ArtefactError(str(UnknownName(f"architecture in {where}", name, READ)))
    _refuse_run_time_functions(values, where)
    ours, transcoder, skip = READ[name]
    dtype = str(values.get("dtype", "float32"))
    if dtype not in DTYPES:
        raise ArtefactError(f"{where}: dtype {dtype!r} in cfg.json; one of {', '.join(sorted(DTYPES))} expected")
    try:
        cfg = SAEConfig(
            architecture=ours,
            d_in=positive(values.get("d_in"), "d_in", where),
            d_sae=positive(values.get("d_sae"), "d_sae", where),
            d_out=positive(values.get("d_out"), "d_out", where) if transcoder else None,
            skip=skip,
            k=positive(values.get("k"), "k", where) if ours == "topk" else 1,
            apply_b_dec_to_input=False if transcoder else bool(values.get("apply_b_dec_to_input", True)),
            dtype=dtype,
        )
    except InputError as e:
        raise ArtefactError(f"{where}: {e}") from None
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ArtefactError(f"{where}: metadata in cfg.json must be an object; found {metadata!r}")
    card = {
        "model": metadata.get("model_name"),
        "hook_point": hook_point(metadata.get("hook_name"), str(metadata.get("model_name"))),
        "source": {"format": "sae-lens", "cfg": values},
    }
    sae = assemble(cfg, tensors, where, {k: v for k, v in card.items() if v is not None})
    if values.get("rescale_acts_by_decoder_norm"):
        fold_decoder_norm(sae)
    return sae


def hook_point(name: Any, model: str = "") -> Any:
    """A place as TransformerLens names it (`blocks.8.hook_resid_post`), or a layer as Hugging Face does, in our words; other names stay.

    `hook_mlp_out` of a model with a norm behind its MLP (Gemma 2 and 3) is what leaves that norm.
    """
    match = _THEIRS.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return name
    place = PLACES[match["place"]] if match["place"] else "resid_post"
    if place == "mlp_out" and re.search(r"gemma-[23]", model):
        place = "mlp_post"
    return f"layers.{match['block'] or match['layer']}.{place}"


def _refuse_run_time_functions(values: Mapping[str, Any], where: str) -> None:
    """Normalisations per vector and reshaped heads are part of sae-lens' forward pass, not of the weights."""
    normalize, reshape = values.get("normalize_activations", "none"), values.get("reshape_activations", "none")
    if normalize not in ("none", "expected_average_only_in", None):  # the latter does nothing at inference
        raise ArtefactError(f"{where}: normalize_activations={normalize!r} is not supported; fold it into the weights in sae-lens first")
    if reshape not in ("none", None):
        raise ArtefactError(f"{where}: reshape_activations={reshape!r} is not supported; give an SAE of flat activations")


@torch.no_grad()
def fold_decoder_norm(sae: SAE) -> None:
    """Scales decoder rows to norm 1 and the encoder by what they had: selecting by `a_i |w_i|` becomes plain."""
    norms = sae.W_dec.norm(dim=1).clamp_min(1e-8)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    for name in sae.arch.scaled:
        getattr(sae, name).mul_(norms)


def from_pretrained(release: str, sae_id: str) -> SAE:
    """A published SAE, fetched by sae-lens.

    Raises:
        InputError: sae-lens is not installed.
    """
    try:
        from sae_lens import SAE as Theirs
    except ImportError:
        raise InputError("SAE.from_pretrained loads through sae-lens, which is not installed: pip install 'efface[saelens]'") from None
    theirs = Theirs.from_pretrained(release, sae_id)
    return build(theirs.cfg.to_dict(), theirs.state_dict(), f"{release}/{sae_id}")
