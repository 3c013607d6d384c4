"""`load_model`: an alias, a local folder or a hub id becomes a `Host`."""

import re
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..base.errors import ArtefactError, InputError, UnknownName, near_paths
from ..base.running import quiet
from .adapters import family_of
from .aliases import ALIASES, known, list_models, packaged, packaged_models
from .fetch import ensure, is_complete
from .host import Host

__all__ = ["DTYPES", "list_models", "load_model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""What `dtype` may be, besides `auto` (the checkpoint's own)."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_model(name_or_path: str | Path, dtype: str = "float32", device: str = "cpu") -> Host:
    """A host by alias (`efface models`), local folder or hub id.

    Args:
        name_or_path: An alias wins over a folder of the same name; write `./name` for the folder.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto` for the checkpoint's own.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (`cuda` where there is one).

    Raises:
        UnknownName: No such alias, dtype or model family.
        InputError: No such folder, device, or hub repository.
        ArtefactError: A checkpoint that is damaged, incomplete, pickled, or holds NaN.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, [*DTYPES, "auto"])
    place = resolve_device(device)
    name, source = _locate(str(name_or_path))
    with quiet():
        model, tokenizer = _load(source, DTYPES.get(dtype, "auto"))
    cast(torch.nn.Module, model).to(place)
    return Host(model, tokenizer, name)


def resolve_device(device: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: There is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r} is unknown; use cpu, cuda, cuda:N or auto") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return place


def _locate(text: str) -> tuple[str, str]:
    """Name of the host, and what transformers is told to load."""
    if text in ALIASES:
        return text, str(ensure(ALIASES[text]))
    if text in packaged_models():
        if not is_complete(packaged(text)):
            raise InputError(
                f"model {text!r}: this installation has no weights for it; make them with efface synthetic train --out DIR and name DIR/model"
            )
        return text, str(packaged(text))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return text, str(_checked_folder(folder))
    if folder.exists() or text.startswith((".", "/", "~")):
        near = near_paths(folder, Path.is_dir)
        raise InputError(f"model {text!r} is not a folder{near}; name a folder with config.json and *.safetensors, an alias or a hub id")
    if _HUB_ID.fullmatch(text):
        return text, text
    raise UnknownName("model", text, known(), "Or name a local folder, or a hub id owner/name")


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder} has no config.json; name a transformers checkpoint")
    if not any(folder.glob("*.safetensors")):
        pickled = "its weights are pickled, which is refused: convert them to safetensors" if any(folder.glob("*.bin")) else "no weights"
        raise ArtefactError(f"model folder {folder} has no *.safetensors ({pickled})")
    return folder


def _load(source: str, dtype: torch.dtype | str) -> tuple[PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    from safetensors import SafetensorError

    try:
        family_of(AutoConfig.from_pretrained(source))
        tokenizer = AutoTokenizer.from_pretrained(source)
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
        model, info = cast(tuple[PreTrainedModel, dict[str, list[str]]], loaded)
    except InputError:
        raise
    except SafetensorError as e:
        raise ArtefactError(f"model {source}: a weight file is not a whole safetensors file ({e})") from None
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        first = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise InputError(f"model {source!r} cannot be loaded: {first}") from e
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise ArtefactError(f"model {source}: {kind.replace('_', ' ')} {', '.join(sorted(map(str, info[kind]))[:3])} …")
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise ArtefactError(f"model {source}: parameter {name!r} has NaN or infinity in it")
    return model, tokenizer
