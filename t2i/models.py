"""`load_pipeline`: an alias, a local diffusers folder or a hub id becomes an `ImageHost`."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base.errors import ArtefactError, InputError, UnknownName, near_paths
from ..base.files import PICKLES, altered_files, first_line, read_json, reading
from ..base.running import bar_options, quiet
from ..llm.models import DTYPES, resolve_device
from .adapters import FAMILIES
from .aliases import ALIASES, HUB_ID, INDEX, MANIFEST, class_of, list_models, packaged
from .diffusers import channels_last, diffusers_class
from .host import ImageHost

__all__ = ["DTYPES", "list_models", "load_pipeline"]
FORMAT = 1
_OF_HEADER = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_pipeline(name_or_path: str | Path, dtype: str = "float32", device: str = "cpu", *, safety: bool = False) -> ImageHost:
    """A host by alias (`icons`, `icons-xs`), local folder or hub id.

    Args:
        name_or_path: An alias wins over a folder of the same name; write `./name` for the folder.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or, of an alias or a folder, `auto` for each part's own.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (`cuda` where there is one).
        safety: Load the safety checker too, so that a checkpoint saved from it is whole. `ImageHost.generate` never asks
            it: a picture that it blanks would count as an erased one.

    Raises:
        UnknownName: No such alias, dtype or kind of pipeline.
        InputError: No such folder, device or hub repository; an alias without weights; a pipeline without a text encoder.
        ArtefactError: A checkpoint that is damaged, incomplete, pickled, or holds NaN.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, [*DTYPES, "auto"])
    place = resolve_device(device)
    name, source = _locate(str(name_or_path))
    if dtype == "auto" and not isinstance(source, Path):
        raise InputError(f"dtype 'auto' is for aliases and folders; name the dtype of {source}")
    pipeline = _load(source, dtype, safety)
    pipeline.set_progress_bar_config(**bar_options("denoising", "step", inner=True))
    return ImageHost(channels_last(pipeline.to(place)), name, **_sampling(source))


def _locate(text: str) -> tuple[str, str | Path]:
    """Name of the host, and the folder or hub id to load."""
    if text in ALIASES:
        if not (packaged(text) / MANIFEST).is_file():
            raise InputError(
                f"model {text!r}: this installation has no weights for it; make them with efface icons train --recipe {text} --out DIR "
                "and name DIR/pipeline"
            )
        return text, _checked(packaged(text))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return text, _checked(folder)
    if folder.exists() or text.startswith((".", "/", "~")):
        near = near_paths(folder, Path.is_dir)
        raise InputError(f"model {text!r} is not a folder{near}; name a diffusers folder with {INDEX}, an alias or a hub id")
    if HUB_ID.fullmatch(text):
        return text, text
    raise UnknownName("model", text, ALIASES, "Or name a local folder, or a hub id owner/name")


def _checked(folder: Path) -> Path:
    """The folder, its class known, its manifest (where it has one) true, its weights no pickles."""
    name = class_of(folder)
    known = [c for family in FAMILIES for c in family.pipelines]
    if name not in known:
        raise UnknownName("kind of pipeline", name, known, f"Pipelines served: {', '.join(sorted(known))}")
    if (folder / MANIFEST).is_file():
        check_manifest(folder)
    for part in (p for p in folder.iterdir() if p.is_dir()):
        pickled = [p.name for p in part.iterdir() if p.suffix in PICKLES]
        if pickled and not any(part.glob("*.safetensors")):
            raise ArtefactError(
                f"model folder {part}: its weights are pickled ({pickled[0]}), which is refused: convert them to safetensors"
            )
    return folder


def check_manifest(folder: Path) -> None:
    """Raises unless every file that the manifest names is there and has its sha256.

    Raises:
        ArtefactError: A manifest of another format; a file that is missing or was altered.
    """
    values = read_json(folder / MANIFEST)
    with reading(folder / MANIFEST):
        if values["format"] != FORMAT:
            raise ArtefactError(f"{folder / MANIFEST}: not a model of format {FORMAT}")
    for name in altered_files(folder / MANIFEST):
        raise ArtefactError(
            f"{folder / name} is missing or was altered: its sha256 is not the manifest's; install or train the model again"
        )


def _sampling(source: str | Path) -> dict[str, Any]:
    """Steps and guidance that the manifest of a model names (`sampling`); empty where it names none."""
    if not isinstance(source, Path) or not (source / MANIFEST).is_file():
        return {}
    with reading(source / MANIFEST):
        values = read_json(source / MANIFEST).get("sampling", {})
        return {"steps": int(values["steps"]), "guidance": float(values["guidance"])} if values else {}


def _load(source: str | Path, dtype: str, safety: bool) -> Any:
    from safetensors import SafetensorError

    options: dict[str, Any] = {"use_safetensors": True, "dtype": DTYPES.get(dtype, torch.float32)}
    cls = diffusers_class("DiffusionPipeline")
    if isinstance(source, Path):
        cls = diffusers_class(class_of(source))
        options["local_files_only"] = True
        options["dtype"] = _own_dtypes(source) if dtype == "auto" else options["dtype"]
        if not safety and class_of(source) == "StableDiffusionPipeline":
            options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with quiet(), quiet("diffusers"):
            pipeline = cls.from_pretrained(source, **options)
    except SafetensorError as e:
        raise ArtefactError(f"model {source}: a weight file is not a whole safetensors file ({e})") from None
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as e:
        kind = ArtefactError if isinstance(source, Path) else InputError
        raise kind(f"model {str(source)!r} cannot be loaded: {first_line(e) or type(e).__name__}") from e
    _check_whole(source, pipeline)
    return pipeline


def _check_whole(source: str | Path, pipeline: Any) -> None:
    """Raises where a weight is missing, which both libraries make up at random, or is not finite."""
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        missing = [n for n, p in module.named_parameters() if p.is_meta]
        if isinstance(source, Path) and not missing:
            missing = _unwritten(source / part, module)
        if missing:
            raise ArtefactError(f"model {source}: {part} lacks {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}")
        for name, p in module.named_parameters():
            if not torch.isfinite(p).all():
                raise ArtefactError(f"model {source}: parameter {part}.{name!r} has NaN or infinity in it")


def _unwritten(folder: Path, module: nn.Module) -> list[str]:
    """Parameters of a text encoder that stand in none of its files, by any of their names.

    Old checkpoints have other names for what is in the denoiser and the autoencoder; diffusers leaves what is missing
    there on no device.
    """
    if not folder.name.startswith("text_encoder"):
        return []
    written = {k.removeprefix("text_model.") for k in _headers(folder)}
    names: dict[int, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return [n[0] for n in names.values() if not any(x.removeprefix("text_model.") in written for x in n)]


def _own_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Component -> dtype in which its weights are written."""
    found: dict[str, torch.dtype] = {"default": torch.float32}
    for part in (p for p in folder.iterdir() if p.is_dir()):
        kinds = [k for k in _headers(part).values() if k in _OF_HEADER]
        if kinds:
            found[part.name] = _OF_HEADER[max(set(kinds), key=kinds.count)]
    return found


def _headers(folder: Path) -> dict[str, str]:
    """Tensor -> dtype as safetensors writes it, over all files of a component."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as f:
                found |= {k: f.get_slice(k).get_dtype() for k in f.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError) as e:
            raise ArtefactError(f"{path} is not a whole safetensors file ({e})") from None
    return found
