"""`efface models | methods | concepts | doctor | cache`: what there is."""

import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Annotated, Any

import typer

from ..base.errors import UnknownName
from ..base.files import cache_dir
from . import options as o


def models(as_json: o.Json = False) -> None:
    """Model aliases: where they come from, size, licence, cached or not."""
    from ..llm.aliases import list_models
    from ..t2i.aliases import list_models as list_image_models

    rows = [*list_models(), *list_image_models()]
    cells = [[str(r["name"]), f"{float(r['size'] or 0) / 2**20:,.0f} MiB", "yes" if r["cached"] else "no", str(r["licence"])] for r in rows]
    o.emit({"models": rows}, o.table(["name", "size", "cached", "licence"], cells), as_json)


def methods(as_json: o.Json = False) -> None:
    """Erasers: domain, parts, needs, paper."""
    from ..deactivate.registry import methods as registered

    rows = [m.as_dict() for m in registered()]
    keys = ["name", "domain", "parts", "needs", "paper"]
    text = [[", ".join(v) if isinstance(v := r.get(k, ""), list | tuple) else str(v) for k in keys] for r in rows]
    o.emit({"methods": rows}, o.table(keys, text), as_json)


def concepts(as_json: o.Json = False) -> None:
    """Packaged concept files."""
    from ..deactivate.concept import generated_concepts, packaged_concepts

    names = [*sorted(packaged_concepts()), *generated_concepts()]
    o.emit({"concepts": names}, "\n".join(names), as_json)


def doctor(as_json: o.Json = False) -> None:
    """Versions, devices, cache, and what is missing with the command that mends it."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform(), "cores": os.cpu_count()}
    optional = {"sae-lens": "saelens", "wandb": "wandb", "diffusers": "t2i", "datasets": "hub"}
    needed = ["torch", "transformers", "safetensors", "peft", "accelerate", "numpy", "numba", "scikit-learn", "gguf"]
    mend: list[str] = []
    for name in [*needed, *optional]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
            mend.append(f"pip install 'efface[{optional[name]}]'" if name in optional else f"pip install {name}")
    import torch

    found["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found["cache"] = str(cache_dir())
    found["free_gib"] = round(shutil.disk_usage(cache_dir() if cache_dir().exists() else cache_dir().anchor).free / 2**30, 1)
    found["optional, to install"] = mend
    o.emit(found, "\n".join(f"{k:22}{v if v is not None else 'not there'}" for k, v in found.items()), as_json)


cache_app = typer.Typer(no_args_is_help=True, help="The cache of downloaded and converted models.")


@cache_app.command("ls")
def cache_ls(as_json: o.Json = False) -> None:
    """What lies in the cache, and how large it is."""
    root = cache_dir()
    folders = sorted(p for p in root.glob("*/*") if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []
    rows = [
        {"name": str(p.relative_to(root)), "mib": round(sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) / 2**20, 1)}
        for p in folders
    ]
    o.emit(
        {"cache": str(root), "entries": rows}, o.table(["name", "MiB"], [[r["name"], str(r["mib"])] for r in rows]) + f"\n({root})", as_json
    )


@cache_app.command("rm")
def cache_rm(name: Annotated[str, typer.Argument(help="A name as `efface cache ls` prints it.")], as_json: o.Json = False) -> None:
    """Removes one entry."""
    root = cache_dir()
    names = [str(p.relative_to(root)) for p in root.glob("*/*") if p.is_dir()] if root.is_dir() else []
    if name not in names:
        raise UnknownName("cache entry", name, names, "`efface cache ls` lists them")
    shutil.rmtree(root / name)
    o.emit({"removed": name}, f"removed {name}", as_json)
