"""`efface icons`: the embedded miniature's own recipe."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o

icons_app = typer.Typer(no_args_is_help=True, help="The embedded image miniature's own recipe: its drawings and its training.")


@icons_app.command("build")
def build(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the drawings go; unset: the cache.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Draw again what lies there.")] = False,
    as_json: o.Json = False,
) -> None:
    """Fetches ten icon packs with npm and draws them (half a minute, 130 MB)."""
    from ..t2i.icons.data import build as build_
    from ..t2i.icons.data import load

    folder = build_(out, overwrite=overwrite)
    data = load(folder)
    found = {
        "folder": str(folder),
        "drawings": len(data.keys),
        "styles": list(data.styles),
        "flags": len(data.codes),
        "flag_classes": len(data.flag_classes),
    }
    o.emit(found, f"{folder}: {len(data.keys)} drawings in {len(data.styles)} styles, {len(data.flag_classes)} flags", as_json)


@icons_app.command("train")
def train(
    out: o.Out,
    recipe: Annotated[str, typer.Option("--recipe", help="icons or icons-xs.")] = "icons",
    without: Annotated[
        list[str] | None, typer.Option("--without", help="An object, style or flag that it never sees («gold»); may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that lies in --out.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="Threads to use; 0: as torch has them.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Trains autoencoder, text tower and denoiser from scratch; hours on two cores, resumable. The pipeline lies in OUT/pipeline."""
    import torch

    from ..t2i.icons.train import train as train_

    if threads > 0:
        torch.set_num_threads(threads)
    folder = train_(recipe, out, resume=resume, without=without or ())
    o.emit({"pipeline": str(folder)}, str(folder), as_json)
