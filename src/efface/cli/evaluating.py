"""`efface eval | compare | bench`: what an edit did, side by side with its controls."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.config import from_mapping, parse_assignments
from ..base.errors import InputError, UnknownName
from ..base.files import new_folder
from . import completion as complete
from . import options as o
from .editing import load_saes

SUITES = {"language": "language models", "images": "image pipelines"}
"""Suite -> hosts that it evaluates."""


def evaluate(
    model: o.Model,
    concept: o.OneConcept,
    out: o.Out,
    edit: o.Edits = [],  # noqa: B006
    sae: o.Saes = [],  # noqa: B006
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="language or images; unset: the one for the model.", autocompletion=complete.one_of("language", "images")
        ),
    ] = None,
    split: o.Split = "validation",
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="Pictures: icons, icons/object or one copy icons/object/A; unset: the concept's.",
            autocompletion=complete.judges,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Pictures: denoising steps; unset: the pipeline's own.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Pictures: guidance scale; unset: the pipeline's own.")] = None,
    cells: Annotated[
        Path | None, typer.Option("--cells", help="Pictures: what `efface icons check` wrote; unset: cells.json of the model, if there.")
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option(
            "--gold", help="Pictures: a pipeline trained without the concept, for its own row.", autocompletion=complete.pipelines
        ),
    ] = None,
    settings: o.Settings = [],  # noqa: B006
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """What the edits did, beside the base, random features, random directions, a string filter; with intervals, as result.json and report.html.

    Language models: margins, neighbours, text, relearning, HM-local. Pipelines: what judges see in pictures of the concept, of its
    neighbours and of all else, before | after with the same seeds.
    """
    from ..t2i.aliases import is_pipeline

    o.check_model(model)
    if split not in ("validation", "test"):
        raise InputError(f"--split {split!r}: write validation or test")
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    drawing = is_pipeline(model)
    _check_suite(suite, model, drawing)
    given = (
        {"--steps": steps, "--guidance": guidance, "--cells": cells, "--judge": judge, "--gold": gold}
        if not drawing
        else {"--sae": sae or None}
    )
    if foreign := [n for n, v in given.items() if v is not None]:
        what = "an edit of a pipeline carries its SAEs" if drawing else "for pictures, and --model makes texts"
        raise InputError(f"{', '.join(foreign)}: {what}; leave it out")
    values = {"seed": seed, **parse_assignments(settings)}
    if drawing:
        from .images import evaluate_pictures

        return evaluate_pictures(model, concept, out, edit, split, values, judge, (steps, guidance), cells, gold, device, dtype, as_json)
    return _evaluate_texts(model, concept, out, edit, sae, split, values, device, dtype, as_json)


def _check_suite(suite: str | None, model: str, drawing: bool) -> None:
    """Raises where there is no such suite, or it is for the other kind of host."""
    kind = "images" if drawing else "language"
    if suite is not None and suite not in SUITES:
        raise UnknownName("suite", suite, SUITES, f"There are {' and '.join(SUITES)}")
    if suite is not None and suite != kind:
        raise InputError(f"--suite {suite}: for {SUITES[suite]}, and --model {model} is none; leave it out, or use --suite {kind}")


def _evaluate_texts(
    model: str, concept: str, out: Path, edit: list[Path], sae: list[Path], split: str, values: dict[str, Any],
    device: str, dtype: str, as_json: bool,
) -> None:  # fmt: skip
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation.compare import compare as compare_results
    from ..llm.evaluation.suite import SuiteConfig
    from ..llm.evaluation.suite import evaluate as run_suite
    from ..llm.reporting import fitted_on, write_evaluation

    config = from_mapping(SuiteConfig, values, where="--set")
    wanted, edits = Concept.load(concept), [Edit.load(e) for e in edit]
    host = o.load_host(model, dtype, device)
    result = run_suite(host, edits, wanted, split, config, saes=load_saes(sae))
    with new_folder(out) as work:
        write_evaluation(work, host, wanted, edits, result)
    for note in fitted_on(edits, split):
        typer.echo(note, err=True)
    o.emit({"out": str(out), **result.to_json()}, o.comparison(compare_results([result])) + f"\n{out / 'report.html'}", as_json)


def compare(
    results: Annotated[list[Path], typer.Argument(help="Result files or evaluation folders.", autocompletion=complete.results)],
    ignore: Annotated[
        list[str],
        typer.Option("--ignore", help="A field of the protocol card allowed to differ, printed under the table; may be repeated."),
    ] = [],  # noqa: B006
    as_json: o.Json = False,
) -> None:
    """Results side by side; refuses protocol cards that differ, but for fields named with --ignore.

    Results of one name (two edits of one concept) are told apart by where they lie.
    """
    from collections import Counter

    from ..deactivate.evaluation.compare import compare as compare_results
    from ..deactivate.evaluation.results import Result

    loaded = [Result.load(p / "result.json" if p.is_dir() else p) for p in results]
    often = Counter(r.name for r in loaded)
    places = [p if p.is_dir() else p.with_suffix("") for p in results]
    named = [dataclasses.replace(r, name=f"{r.name} ({p})") if often[r.name] > 1 else r for r, p in zip(loaded, places, strict=True)]
    table = compare_results(named, ignore=ignore)
    o.emit(table.to_json(), o.comparison(table), as_json)


def bench(
    grid: Annotated[Path, typer.Argument(help="A grid file: cell, axes, common.")],
    out: o.Resumed,
    only: Annotated[
        list[str], typer.Option("--only", help="axis=value: the cells that have it; repeated: of one axis any, of several each.")
    ] = [],  # noqa: B006
    workers: Annotated[int, typer.Option("--workers", help="Processes; 0: this one.", min=0)] = 0,
    as_json: o.Json = False,
) -> None:
    """Runs the cells of a grid that are not there yet, and prints the table; exit status 1 where a cell failed."""
    from ..deactivate.evaluation.grid import Grid, run_grid

    chosen: dict[str, list[Any]] = {}
    for pair in only:
        for axis, value in parse_assignments([pair], option="--only").items():
            chosen.setdefault(axis, []).append(value)
    table = run_grid(Grid.load(grid), out, only=chosen, workers=workers)
    o.emit(table.to_json(), table.plain(), as_json)
    if table.failed:
        raise typer.Exit(1)
