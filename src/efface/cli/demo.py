"""`efface demo`: the whole job on a small real model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from ..deactivate.evaluation import ReportData


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The same job, smaller: under three minutes on two cores.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the result goes; default: runs/demo-N.")] = None,
    model: o.Model = "smollm2",
    concept: o.OneConcept = "baseball",
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Also take a dog out of the image miniature, where its weights are packaged; unset: unless --quick is given.",
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Trains SAEs, finds a concept's features, edits them out of the weights, measures with controls, writes report.html."""
    import dataclasses

    from ..llm.demo import QUICK, DemoConfig, run_demo

    def say(text: str) -> None:
        typer.echo(text, err=True)

    told = "No pictures: " + ("--quick leaves them out, --pictures brings them." if pictures is None else "--no-pictures.")

    def beside(folder: Path) -> "Sequence[ReportData]":
        nonlocal told
        if not (pictures or (pictures is None and not quick)):
            say(told)
            return ()
        page, told = picture_page(folder, quick, say)
        say(told)
        return page

    base = QUICK if quick else DemoConfig()
    target = out or next(p for i in range(1, 10_000) if not (p := Path("runs") / f"demo-{i}").exists())
    report = run_demo(target, dataclasses.replace(base, model=model, concept=concept), say=say, beside=beside)
    o.emit({"report": str(report), "pictures": told}, f"report: {report.resolve()}", as_json)


def picture_page(folder: Path, quick: bool, say: Callable[[str], None]) -> "tuple[Sequence[ReportData], str]":
    """(what the image story adds to the page, one sentence on it)."""
    import dataclasses

    from ..deactivate.evaluation.report import PAGES
    from ..t2i.demo import QUICK, StoryConfig, image_story

    page, told = image_story(folder / "pictures", QUICK if quick else StoryConfig(), say)
    return (() if page is None else (dataclasses.replace(page, pages=f"../pictures/evaluation/{PAGES}"),)), told
