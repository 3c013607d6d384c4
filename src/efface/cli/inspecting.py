"""`efface inspect | serve`: pages of features, concepts, edits, prompts and results, as one file or served on this machine."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..base.errors import InputError, near_paths
from . import options as o
from .workbench import Workbench, check_results, found_below, load_results

DOCUMENTS, LINES = 300, 2000
"""Documents that evidence is collected from where none is there: of texts, of prompts, which are shorter."""
PICTURED = 12
ManyConcepts = Annotated[list[str], typer.Option("--concept", "-c", help="A concept whose features are ranked; may be repeated.")]
Results = Annotated[list[Path], typer.Option("--result", help="A folder that `efface eval` or `attack` wrote; may be repeated.")]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Fit no gate for the concepts: quicker.")]
Title = Annotated[str, typer.Option("--title", help="Heading of the page; unset: the SAE's or the concept's name.")]
Documents = Annotated[
    int | None,
    typer.Option(
        "--documents", help=f"Where an SAE has no evidence: documents read for it; unset: {DOCUMENTS}, of a pipeline {LINES}.", min=10
    ),
]
Corpus = Annotated[str, typer.Option("--corpus", help="And which: embedded, a file, a folder, or hub:NAME.")]


def inspect(
    out: Annotated[Path, typer.Option("--out", "-o", help="FILE.html; must not exist.")],
    sae: o.Saes = [],  # noqa: B006
    concept: ManyConcepts = [],  # noqa: B006
    edit: o.Edits = [],  # noqa: B006
    result: Results = [],  # noqa: B006
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="A prompt to read; unset: some of the concept's.")] = [],  # noqa: B006
    features: Annotated[int, typer.Option("--features", help="Features of each SAE in the file, at most.", min=0)] = 500,
    pictures: Annotated[
        int | None,
        typer.Option("--pictures", help=f"Pipelines: so many features are drawn with and without; unset: {PICTURED}.", min=0),
    ] = None,
    documents: Documents = None,
    corpus: Corpus = "embedded",
    split: o.Shown = "validation",
    no_gate: NoGate = False,
    title: Title = "",
    model: o.OptionalModel = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """One HTML file: features with their evidence, concepts, edits, prompts, results. It opens from disk and asks for nothing from outside."""
    _check(out, sae, concept, edit, result, prompt)
    o.check_split(split)
    from ..deactivate.inspect.page import write_page
    from ..deactivate.inspect.site import Site

    results = load_results(result)
    bench = Workbench(o.sae_folders(sae), model, dtype, device, seed)
    bench.load_edits(edit)
    check_results(results, [e for e, _ in bench.edits])
    drawn = (PICTURED if pictures is None else pictures) if sae and bench.drawing else 0
    if pictures and not drawn:
        raise InputError("--pictures: no pipeline is inspected, and a language model draws none; leave it out")
    views = bench.views(documents or (LINES if sae and bench.drawing else DOCUMENTS), corpus)
    dossiers = bench.dossiers(concept, gated=not no_gate, split=split)
    asked = list(prompt) or bench.examples(concept)
    reader = bench.reader(views) if asked else None
    read = [reader.read(p) for p in asked] if reader is not None else []
    site = Site(
        title or _title(bench, concept), views, dossiers, bench.edits, results, read, moved=bench.moved(asked),
        pictures=bench.pictures(views) if drawn else None,
    )  # fmt: skip
    write_page(out, site, features=features, pictured=drawn)
    size = out.stat().st_size
    shown = sum(min(features, v.store.d_sae) for v in views if v.store is not None)
    report = {"out": str(out), "bytes": size, "saes": len(views), "features": shown, "edits": len(edit), "results": len(result)}
    o.emit(report, f"{out}: {shown} features, {size / 1e6:.1f} MB; open it in a browser", as_json)


def _check(out: Path, sae: list[Path], concept: list[str], edit: list[Path], result: list[Path], prompt: list[str]) -> None:
    """Refuses what cannot become a page, before anything is read."""
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {out}: a page is written; name it FILE.html")
    if not (sae or edit or result):
        raise InputError("inspect: nothing to show; give --sae DIR, --edit EDIT or --result DIR")
    if prompt and not sae:
        raise InputError("--prompt: it is read by an SAE; give --sae DIR too")
    if concept and not sae:
        raise InputError("--concept: its features are those of an SAE; give --sae DIR too")


def serve(
    folder: Annotated[str, typer.Argument(help="A folder with SAEs, edits and results in and below it, or the alias of a packaged model.")],
    concept: ManyConcepts = [],  # noqa: B006
    port: Annotated[int, typer.Option("--port", help="On this machine; 0: any free one.", min=0, max=65535)] = 8040,
    no_model: Annotated[bool, typer.Option("--no-model", help="Load no model: prompts are not read and nothing is drawn.")] = False,
    split: o.Shown = "validation",
    no_gate: NoGate = False,
    title: Title = "",
    model: o.OptionalModel = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """The same pages for SAEs of any size, answered on this machine alone (127.0.0.1) until it is interrupted; the model is loaded when needed."""
    o.check_split(split)
    from ..deactivate.inspect.server import Pages
    from ..deactivate.inspect.server import serve as answer
    from ..deactivate.inspect.site import Site
    from ..t2i.aliases import ALIASES

    place = Path(folder)
    if folder not in ALIASES and not place.is_dir():
        near = near_paths(place, Path.is_dir)
        raise InputError(f"serve: {folder} is no folder{near}; name one with SAEs, edits or results in or below it")
    edits, results = [p.parent for p in found_below(place, "edit.json")], found_below(place, "result.json")
    try:
        saes = o.sae_folders([place])
    except InputError as e:
        if not edits and not results:
            raise InputError(str(e).replace("--sae", "serve:", 1).replace("no SAE folder", "no SAE, edit or result")) from None
        saes = []
    bench = Workbench(saes, model, dtype, device, seed)
    bench.load_edits(edits)
    views = bench.views(verify=False)
    if no_model and concept:
        raise InputError("--concept: a model has to read its texts; leave out --no-model")
    dossiers = bench.dossiers(concept, gated=not no_gate, split=split)
    live = bool(saes) and not no_model
    site = Site(
        title or _title(bench, concept), views, dossiers, bench.edits, load_results(results),
        pictures=bench.pictures(views) if live else None,
    )  # fmt: skip
    pages = Pages(site, (lambda: bench.reader(views)) if live else None)
    counts = {"saes": len(views), "edits": len(edits), "results": len(results)}

    def ready(address: str) -> None:
        o.emit({"address": address, **counts}, f"{address}  (interrupt to stop)", as_json)
        sys.stdout.flush()

    with suppress(KeyboardInterrupt):  # how it ends
        answer(pages, port, ready)


def _title(bench: Workbench, concepts: list[str]) -> str:
    """What the page is called where nobody says."""
    words = [Path(c).stem if "/" in c and Path(c).is_file() else c for c in concepts] or [e.name for e, _ in bench.edits]
    points = [str(s.card.get("hook_point") or "SAE") for s in bench.saes]
    place = points[0] if len(points) == 1 else f"{len(points)} SAEs" if points else ""
    models = dict.fromkeys(str(s.card["model"]) for s in bench.saes if s.card.get("model"))
    return " · ".join([*words, *models, *([place] if place else [])]) or "Results"
