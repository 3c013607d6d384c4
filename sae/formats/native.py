"""Our folder: what sae-lens 6 reads (`cfg.json`, `sae_weights.safetensors`) and `efface.json`, written last."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...base.blocks import finite
from ...base.config import from_mapping
from ...base.errors import ArtefactError, InputError, NumericsError
from ...base.files import load_tensors, new_folder, read_json, save_tensors, sha256_file, write_json
from ..config import CALIBRATED, SAEConfig
from ..sae import SAE
from . import fingerprint
from .assemble import assemble, dtype_name
from .saelens import CONFIG, WEIGHTS, cfg_dict, tensors_of

FORMAT = 1
MANIFEST = "efface.json"
OWN = ("format", "efface", "config", "weights", "fingerprint")
"""Keys of the manifest that `save` fills; all others are the SAE's card."""


def save(sae: SAE, folder: Path, *, overwrite: bool = False) -> Path:
    """Writes the folder whole or not at all, and the manifest's keys into `sae.card`.

    Raises:
        InputError: The folder exists, or a threshold was never calibrated (the saved SAE could not encode).
        NumericsError: NaN or infinity among the weights.
    """
    if sae.cfg.architecture in CALIBRATED and float(sae.threshold) < 0:
        raise InputError(f"this {sae.cfg.architecture} SAE has no inference threshold; call calibrate_threshold(batches) before save")
    for name, t in sae.state_dict().items():
        if not finite(t):
            raise NumericsError(f"{name} has NaN or infinity in it; nothing was saved")
    with new_folder(folder, overwrite=overwrite) as work:
        write_json(work / CONFIG, cfg_dict(sae))
        save_tensors(work / WEIGHTS, tensors_of(sae))
        own = {
            "format": FORMAT,
            "efface": __version__,
            "config": replace(sae.cfg, dtype=dtype_name(sae.W_dec)).to_dict(),
            "weights": {"file": WEIGHTS, "sha256": sha256_file(work / WEIGHTS)},
            "fingerprint": fingerprint.take(sae),
        }
        card = {**{k: v for k, v in sae.card.items() if k not in OWN}, **own}
        write_json(work / MANIFEST, card)
    sae.card = card
    return folder


def load(folder: Path) -> SAE:
    """Reads and checks the folder: manifest, digest, names, shapes, finiteness, fingerprint.

    Raises:
        ArtefactError: Any of these fails.
    """
    card = read_json(folder / MANIFEST)
    cfg = _config(card, folder / MANIFEST)
    weights = folder / WEIGHTS
    tensors = load_tensors(weights)
    stated = card.get("weights") if isinstance(card.get("weights"), dict) else {}
    if sha256_file(weights) != stated.get("sha256"):
        raise ArtefactError(f"{weights} is not the file that {MANIFEST} describes (its sha256 differs); copy the folder again")
    if cfg.architecture in CALIBRATED:
        threshold = tensors.get("threshold")
        if threshold is None or threshold.shape != (cfg.d_sae,) or not bool((threshold == threshold[0]).all()):
            raise ArtefactError(f"{weights}: a {cfg.architecture} SAE is stored with one threshold, repeated {cfg.d_sae} times")
        tensors["threshold"] = threshold[0]
    sae = assemble(cfg, tensors, str(weights), card)
    stored = card.get("fingerprint")
    fingerprint.check(sae, stored if isinstance(stored, dict) else {}, str(folder))
    return sae


def update_card(folder: Path, **fields: Any) -> dict[str, Any]:
    """Adds or replaces card fields (`metrics=…`) in a saved folder, atomically; returns the card.

    Raises:
        InputError: A field that `save` computes.
    """
    if own := sorted(fields.keys() & set(OWN)):
        raise InputError(f"{', '.join(own)} is computed when an SAE is saved and cannot be set")
    card = {**read_json(folder / MANIFEST), **fields}
    write_json(folder / MANIFEST, card)
    return card


def _config(card: Any, where: Path) -> SAEConfig:
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        raise ArtefactError(f"{where} is not an SAE's manifest: it has no config")
    if card.get("format") != FORMAT:
        raise ArtefactError(
            f"{where}: format {card.get('format')!r}, this version reads {FORMAT}; it was written by efface {card.get('efface')}"
        )
    try:
        return from_mapping(SAEConfig, card["config"], where=f"{where}: config")
    except InputError as e:
        raise ArtefactError(str(e)) from None
