"""`efface demo`: the whole job on a small real model."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The same job, smaller: under three minutes on two cores.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the result goes; default: runs/demo-N.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="An alias, a local folder or a hub id.")] = "smollm2",
    concept: Annotated[str, typer.Option("--concept", "-c", help="A packaged concept or a concept file.")] = "baseball",
    as_json: o.Json = False,
) -> None:
    """Trains SAEs, finds a concept's features, edits them out of the weights, measures with controls, writes report.html."""
    import dataclasses

    from ..llm.demo import QUICK, DemoConfig, run_demo

    base = QUICK if quick else DemoConfig()
    target = out or next(p for i in range(1, 10_000) if not (p := Path("runs") / f"demo-{i}").exists())
    report = run_demo(target, dataclasses.replace(base, model=model, concept=concept), say=lambda text: typer.echo(text, err=True))
    o.emit({"report": str(report)}, f"report: {report.resolve()}", as_json)
