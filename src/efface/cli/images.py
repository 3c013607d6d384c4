"""What `efface eval` does on an image pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..base.config import from_mapping
from ..base.files import new_folder
from . import options as o

if TYPE_CHECKING:
    from ..t2i.host import ImageHost


def evaluate_pictures(
    model: str, concept: str, out: Path, edit: list[Path], split: str, values: dict[str, Any], judge: str | None,
    sampling: tuple[int | None, float | None], cells: Path | None, gold: str | None, device: str, dtype: str, as_json: bool,
) -> None:  # fmt: skip
    """Draws, judges, writes `result.json`, `report.html` and sheets. Everything that can be refused is refused before anything is drawn."""
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation.compare import compare as compare_results
    from ..t2i.evaluation.drawn import load_copies
    from ..t2i.evaluation.reporting import write_evaluation
    from ..t2i.evaluation.suite import ImageSuiteConfig, evaluate
    from ..t2i.icons.cells import cells_of

    config = from_mapping(ImageSuiteConfig, values, where="--set")
    wanted, edits = Concept.load(concept), [Edit.load(e) for e in edit]
    asked = wanted.require("judge")
    copies = load_copies(judge or asked.partition("/")[0], asked=asked)
    host = _host(model, dtype, device, *sampling)
    never = _host(gold, dtype, device, host.steps, host.guidance) if gold else None
    admitted, note = cells_of(model, cells, host.sampling)
    found = evaluate(host, edits, wanted, split, config, copies=copies, cells=admitted, gold=never)
    with new_folder(out) as work:
        write_evaluation(work, found, notes=(note,))
    typer.echo(note, err=True)
    result = found.result
    o.emit({"out": str(out), **result.to_json()}, o.comparison(compare_results([result])) + f"\n{out / 'report.html'}", as_json)


def _host(model: str, dtype: str, device: str, steps: int | None, guidance: float | None) -> "ImageHost":
    """The pipeline, drawing as the command line says."""
    from ..t2i.drawing import checked
    from ..t2i.models import load_pipeline

    host = load_pipeline(model, dtype=dtype, device=o.resolve_device(device))
    host.steps, host.guidance = checked(host.steps if steps is None else steps, host.guidance if guidance is None else guidance)
    return host
