"""Packaged image models and how to tell a pipeline from a language model. Torch-free."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..base.errors import InputError

INDEX = "model_index.json"
"""What a diffusers folder has, and a language model's has not."""
MANIFEST = "efface-model.json"
"""Digests of every file of a packaged model."""
ALIASES = {"icons": "miniature on 1,031 drawings in eight styles and 229 flags", "icons-xs": "smaller miniature, on twenty concepts alone"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def packaged(alias: str) -> Path:
    """Where the package keeps the weights of an alias; the folder may be missing."""
    return Path(__file__).parent / "icons" / "weights" / alias


def list_models() -> list[dict[str, str | int | bool | None]]:
    """One row an alias: name, model, path (None where the package has no weights), where from, bytes, licence, cached."""
    rows: list[dict[str, str | int | bool | None]] = []
    for alias, what in ALIASES.items():
        folder = packaged(alias)
        there = (folder / MANIFEST).is_file()
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if there else 0
        origin = "in the package" if there else f"efface icons train --recipe {alias}"
        row = {"name": alias, "model": f"efface {alias} ({what})", "path": str(folder) if there else None, "from": origin}
        rows.append({**row, "size": size, "licence": "Apache-2.0", "cached": there})
    return rows


def is_pipeline(model: str) -> bool:
    """Whether `model` (alias, folder or hub id) is a text-to-image pipeline, as far as one can tell without loading it.

    A hub id is one where its `model_index.json` lies in the cache, or the hub has one.
    """
    if model in ALIASES:
        return True
    folder = Path(model).expanduser()
    if folder.exists():
        return (folder / INDEX).is_file()
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        return False
    return _on_hub(model)


def embedded_prompts(model: str) -> list[str]:
    """The packaged prompts of a pipeline: those of the miniature, for its aliases and for folders that `efface icons train` wrote.

    Raises:
        InputError: Any other pipeline has none.
    """
    manifest = Path(model).expanduser() / MANIFEST
    alias = model if model in ALIASES or not manifest.is_file() else json.loads(manifest.read_text(encoding="utf-8")).get("alias")
    if alias not in ALIASES:
        raise InputError("--corpus embedded: there are packaged prompts for the miniature alone; name a file with one prompt a line")
    from .icons.prompts import training_prompts

    return training_prompts(countries=alias != "icons-xs")  # which draws no flags


def _on_hub(repository: str) -> bool:
    from huggingface_hub import constants, file_exists, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(try_to_load_from_cache(repository, INDEX), str):
        return True
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(repository, "config.json"), str):
        return False
    try:
        return file_exists(repository, INDEX)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return False


def class_of(folder: Path) -> str:
    """The pipeline's class, as its index names it.

    Raises:
        InputError: No index, or one that names none.
    """
    try:
        name = json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"model folder {folder} has no {INDEX} that names its class; name a diffusers pipeline") from None
    return str(name)


def packaged_saes(alias: str) -> list[Path]:
    """Folders of the SAEs that the package keeps beside the weights of an alias; often none."""
    folder = packaged(alias)
    return sorted(p.parent for p in folder.rglob("cfg.json")) if folder.is_dir() else []


def drawable(aliases: Iterable[str] = tuple(ALIASES)) -> str | None:
    """The first alias that the package has weights for, where it has any."""
    return next((a for a in aliases if (packaged(a) / MANIFEST).is_file()), None)
