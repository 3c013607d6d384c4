"""`efface icons`: the embedded miniature's own recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.errors import InputError
from . import completion as complete
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
    recipe: Annotated[str, typer.Option("--recipe", help="icons or icons-xs.", autocompletion=complete.pipelines)] = "icons",
    without: Annotated[
        list[str] | None, typer.Option("--without", help="An object, style or flag that it never sees («gold»); may be repeated.")
    ] = None,
    frozen: Annotated[
        str,
        typer.Option(
            "--frozen", help="A miniature (alias or folder) whose autoencoder and text tower are taken; only the denoiser is trained."
        ),
    ] = "",
    warm: Annotated[bool, typer.Option("--warm", help="Begin with the denoiser of --frozen too.")] = False,
    steps: Annotated[int, typer.Option("--steps", help="Of the denoiser; 0: the recipe's.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that lies in --out.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="Threads to use; 0: as torch has them.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Trains autoencoder, text tower and denoiser from scratch; hours on two cores, resumable. The pipeline lies in OUT/pipeline."""
    import torch

    from ..t2i.icons.train import train as train_

    if threads > 0:
        torch.set_num_threads(threads)
    folder = train_(recipe, out, resume=resume, without=without or (), frozen=frozen, warm=warm, steps=steps)
    o.emit({"pipeline": str(folder)}, str(folder), as_json)


@icons_app.command("judges")
def judges(
    out: o.Out,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A or B: this copy alone; may be repeated.", autocompletion=complete.one_of("A", "B"))
    ] = None,
    styles: Annotated[
        bool, typer.Option("--styles/--no-styles", help="Also train short copies that never see a style, one a style.")
    ] = True,
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


@icons_app.command("check")
def check(
    model: Annotated[str, typer.Option("--model", "-m", help="An alias or a pipeline folder.", autocompletion=complete.pipelines)],
    out: o.Out,
    steps: Annotated[int | None, typer.Option("--steps", help="Sampling steps; the model's own unless given.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale; the model's own unless given.")] = None,
    images: Annotated[int, typer.Option("--images", help="Pictures a cell, at least 30.")] = 30,
    flags: Annotated[bool, typer.Option("--flags/--no-flags", help="Also the flags.")] = True,
    as_json: o.Json = False,
) -> None:
    """Which cells (object in a style) and flags the model draws well enough to be erased: 90 % by both judges, on seeds used for nothing else.

    Writes OUT/cells.json, and OUT/cells.png: a picture a cell, objects down, styles across.
    """
    from ..base.files import new_folder
    from ..t2i.aliases import ALIASES, packaged
    from ..t2i.icons.cells import AdmissionConfig
    from ..t2i.icons.cells import check as check_
    from ..t2i.icons.draw import drawing

    config = AdmissionConfig(images=images)
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: at least 1")
    generate, about = drawing(packaged(model) if model in ALIASES else Path(model), steps, guidance)
    with new_folder(out) as work:
        found = check_(generate, work, dict(about), config, with_flags=flags)
    n = {kind: f"{found['admitted'][kind]} of {len(found[kind])}" for kind in ("cells", "flags")}
    o.emit(found, f"{out}: {n['cells']} cells and {n['flags']} flags admitted", as_json)


@icons_app.command("concepts")
def concepts(
    out: o.Out,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="dog, style-noto, flag-france, …; none: every object and style.", autocompletion=complete.icons_concepts),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Writes concept files of the miniature, to be read or changed; commands take the same by name (`--concept icons/dog`)."""
    from ..base.files import new_folder, write_json
    from ..t2i.icons.concepts import mapping
    from ..t2i.icons.concepts import names as known

    wanted = names or [n for n in known() if not n.startswith("flag-")]
    made = {n: mapping(n.removeprefix("icons/")) for n in wanted}
    with new_folder(out) as work:
        for name, values in made.items():
            write_json(work / f"{name.removeprefix('icons/')}.json", values)
    o.emit({"concepts": sorted(made)}, f"{out}: {len(made)} concept files", as_json)
