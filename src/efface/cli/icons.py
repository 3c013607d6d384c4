"""`efface icons`: the embedded miniature's own recipe."""

from pathlib import Path
from typing import Annotated, Any

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


@icons_app.command("judges")
def judges(
    out: o.Out,
    only: Annotated[list[str] | None, typer.Option("--only", help="A or B: this copy alone; may be repeated.")] = None,
    styles: Annotated[bool, typer.Option("--styles/--no-styles", help="Also train short copies that never see a style, one a style.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that lies in --out.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="Threads to use; 0: as torch has them.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Trains the judges of objects, styles, flags and the mark, and says what they get right on augmentations never seen in training.

    OUT/<copy>/judge is the judge, OUT/<copy>/accuracy.json its figures. A quarter of an hour a copy on one core, and as much again
    for the styles; resumable.
    """
    import torch

    from ..t2i.icons.data import load
    from ..t2i.icons.judges.recipe import RECIPES, judge_recipe
    from ..t2i.icons.judges.train import train_and_measure
    from ..t2i.icons.table import packaged_table

    if threads > 0:
        torch.set_num_threads(threads)
    plans = [judge_recipe(name) for name in only or RECIPES]
    data, table = load(), packaged_table()
    found: dict[str, Any] = {}
    for plan in plans:
        command = f"efface icons judges --out OUT --only {plan.name}{'' if styles else ' --no-styles'} --threads {torch.get_num_threads()}"
        found[plan.name] = train_and_measure(data, table, plan, out / plan.name, resume=resume, styles=styles, command=command)
    rows = [
        [name, kind, head, f"{a['accuracy']:.4f} [{a['low']:.4f}, {a['high']:.4f}]", str(a["n"])]
        for name, figures in found.items()
        for kind, heads in figures.items()
        if isinstance(heads, dict)
        for head, a in heads.items()
        if isinstance(a, dict)
    ]
    o.emit(found, o.table(["judge", "measured on", "head", "accuracy", "n"], rows), as_json)
