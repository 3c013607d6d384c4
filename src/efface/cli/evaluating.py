"""`efface eval | compare | bench`: what an edit did, side by side with its controls."""

from pathlib import Path
from typing import Annotated

import typer

from ..base.errors import InputError
from ..base.files import new_folder
from . import options as o
from .editing import load_saes


def evaluate(
    model: o.Model,
    concept: o.OneConcept,
    out: o.Out,
    edit: o.Edits = [],  # noqa: B006
    sae: o.Saes = [],  # noqa: B006
    split: Annotated[str, typer.Option("--split", help="validation or test; every look at test is counted.")] = "validation",
    settings: o.Settings = [],  # noqa: B006
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Margins, neighbours, text, relearning and HM-local of the edits, beside identity, random features, random directions and the string filter."""
    if split not in ("validation", "test"):
        raise InputError(f"--split {split!r}: write validation or test")
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    from ..base.config import from_mapping, parse_assignments
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation.compare import compare as compare_results
    from ..llm.evaluation.suite import SuiteConfig
    from ..llm.evaluation.suite import evaluate as run_suite
    from ..llm.reporting import write_evaluation

    config = from_mapping(SuiteConfig, {"seed": seed, **parse_assignments(settings)}, where="--set")
    wanted, edits = Concept.load(concept), [Edit.load(e) for e in edit]
    host = o.load_host(model, dtype, device)
    result = run_suite(host, edits, wanted, split, config, saes=load_saes(sae))
    with new_folder(out) as work:
        write_evaluation(work, host, wanted, edits, result)
    o.emit({"out": str(out), **result.to_json()}, compare_results([result]).plain() + f"\n{out / 'report.html'}", as_json)


def compare(
    results: Annotated[list[Path], typer.Argument(help="Result files or evaluation folders.")],
    ignore: Annotated[
        list[str],
        typer.Option("--ignore", help="A field of the protocol card allowed to differ, printed under the table; may be repeated."),
    ] = [],  # noqa: B006
    as_json: o.Json = False,
) -> None:
    """Results side by side; refuses protocol cards that differ, but for fields named with --ignore.

    Results of one name (two edits of one concept) are told apart by where they lie.
    """
    import dataclasses
    from collections import Counter

    from ..deactivate.evaluation.compare import compare as compare_results
    from ..deactivate.evaluation.results import Result

    loaded = [Result.load(p / "result.json" if p.is_dir() else p) for p in results]
    often = Counter(r.name for r in loaded)
    places = [p if p.is_dir() else p.with_suffix("") for p in results]
    named = [dataclasses.replace(r, name=f"{r.name} ({p})") if often[r.name] > 1 else r for r, p in zip(loaded, places, strict=True)]
    table = compare_results(named, ignore=ignore)
    o.emit(table.to_json(), table.plain(), as_json)


def bench(
    grid: Annotated[Path, typer.Argument(help="A grid file: cell, axes, common.")],
    out: o.Resumed,
    workers: Annotated[int, typer.Option("--workers", help="Processes; 0: this one.", min=0)] = 0,
    as_json: o.Json = False,
) -> None:
    """Runs the cells of a grid that are not there yet, and prints the table; exit status 1 where a cell failed."""
    from ..deactivate.evaluation.grid import Grid, run_grid

    table = run_grid(Grid.load(grid), out, workers=workers)
    o.emit(table.to_json(), table.plain(), as_json)
    if table.failed:
        raise typer.Exit(1)
