"""Writes docs/llm_erasers.md and its figures from the figures of `efface bench benchmarks/llm_erasers.yaml` and `llm_erasers_gemma.yaml`.

python docs/make_tables.py DIR     # what a grid left in DIR, kept as benchmarks/results/llm_erasers.json (Gemma's: llm_erasers_gemma.json);
                                   # cells that DIR has not run stay there
python docs/make_tables.py         # from these files
"""

import sys
from pathlib import Path

from efface.base.files import write_bytes, write_json, write_text
from efface.deactivate.evaluation.plots import image_bytes
from efface.deactivate.evaluation.results import Kind, Metric
from efface.deactivate.evaluation.summary import Point, collect, drawn, markdown, read_points, summarise

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/llm_erasers.json", ROOT / "docs/llm_erasers.md"
GEMMA = "gemma3-270m"
CONTROLS: dict[str, Kind] = {
    "identity": "base", **dict.fromkeys(("string filter", "random features", "random directions", "gold"), "control"),
}  # fmt: skip
MB = 1e-6
QUALITY = {
    "efficacy": Metric("efficacy", "higher", 2, about="fall of the concept's margin over its base, clipped to [0, 1]"),
    "accuracy": Metric(
        "accuracy", "lower", 2, about="share of the questions whose right option still comes first; an edit may take the margin and leave the order",
    ),
    "specificity": Metric("specificity", "higher", 2, about="share of the neighbours' margin kept, clipped to [0, 1]"),
    "coherence": Metric("coherence", "higher", 3, about="base bits per byte over edited, neutral text"),
    "hm local": Metric("HM-local", "higher", 2, about="harmonic mean of the three; never to be set beside published HM figures"),
    "union-ASR": Metric("union-ASR", "lower", 2, about="of the questions that went wrong, the share that any attack brings back"),
    "union-ASR, asking": Metric("of which asking", "lower", 2, about="the same by attacks that only ask (L0 to L3)"),
    "union-ASR, decoys": Metric("of decoys", "neither", 2, about="wrong options brought up by the same attacks: what they reach without knowledge"),
    "answered under attack": Metric(
        "answered under attack", "lower", 2, about="of the questions that the base answers, those that never went wrong or came back",
    ),
    "relearning area": Metric("relearning AUC", "lower", 2, about="mean accuracy over the steps of the strongest fine-tuning"),
    "KS to gold": Metric("KS to gold", "lower", 2, about="distance of truth ratios to those of models that never saw the domain; of gold, among its seeds"),
}  # fmt: skip
COST = {
    "seconds to fit": Metric("seconds, all trials", "lower", 0, about="fits, gate and looks at validation"),
    "seconds of a fit": Metric("of the longest fit", "lower", 0),
    "peak bytes": Metric("peak memory", "lower", 0, MB, "MB", "largest resident memory of the process meanwhile, the model included"),
    "stored bytes": Metric("stored", "lower", 2, MB, "MB", "the edit's folder, gate included"),
    "seconds": Metric("seconds of a cell", "neither", 0, about="measuring and attacking included"),
}
GROUPS = {
    "smollm2": "Packaged concepts, SmolLM2-135M", GEMMA: "The winners again, Gemma 3 270M", "synthetic": "Domains of the synthetic world",
}  # fmt: skip
SHOWN = ("efficacy", "specificity", "hm local", "union-ASR", "relearning area")
HEAD = """# Erasers of language models, one table

Written by `python docs/make_tables.py` from `benchmarks/results/llm_erasers.json` and `llm_erasers_gemma.json`, which `efface bench benchmarks/llm_erasers.yaml --out DIR` and `llm_erasers_gemma.yaml` made.

Every method may look at `validation` four times and is measured on `test`; on SmolLM2 a training has about 90 s; settings and attacks stand in the grid. Means over concepts all of whose cells were run, of three or more with a t-interval over them; of two the means stand alone. Two or three concepts have a table each, with intervals over items, as a single one has. A t-interval over concepts is not cut at 0 and 1.
Rows of random controls and of gold are means of three draws, or seeds, with a t-interval over them in the table of a concept. Seconds are wall time, on a machine that may have had other work: [what was found](benchmarks.md) says what they are worth.
Attacks run at small budgets: their rates are lower bounds; a union of many tries at questions of four options brings some up by chance, which the column of decoys shows. A gate and a string filter stand in front of the model: whoever may train takes them away, so they have no figure for relearning, and a filter none for attacks.
"""


def page(points: list[Point]) -> str:
    """The page as it should be."""
    parts = [HEAD]
    for model, title in GROUPS.items():
        own = grouped(points, model)
        if not any(p.status == "done" for p in own):
            parts.append(f"## {title}\n\nNot run yet.\n")
            continue
        concepts = list(dict.fromkeys(str(p.at["concept"]) for p in own))
        picture = figure_of(model).name
        parts.append(f"## {title}\n\nCells that were run: {'; '.join(f'{c} {run_of(own, c)}' for c in concepts)}.\n")
        meant = whole(own)
        for columns in (QUALITY, COST):
            parts.append(markdown(summarise(meant, "eraser", list(columns)), used(meant, columns), "eraser"))
        parts.append(f"![means over concepts]({picture})\n")
        parts.append("HM-local by concept:\n\n" + by_concept(own, concepts))
        run = [c for c in concepts if any(p.status == "done" for p in own if p.at["concept"] == c)]
        for concept in run if 1 < len(run) < 4 else ():
            alone = [p for p in own if p.at["concept"] == concept]
            parts.append(f"### {concept}\n")
            parts.append(markdown(summarise(alone, "eraser", list(QUALITY)), used(alone, QUALITY), "eraser"))
        if failed := [p for p in own if p.status == "failed"]:
            parts.append("Failed: " + "; ".join(f"{p.at['eraser']} on {p.at['concept']} ({p.error})" for p in failed) + ".\n")
    legend = [f"* **{m.label}**: {m.about}." for m in {**QUALITY, **COST}.values() if m.about]
    return "\n".join([*parts, "\n".join(legend)]) + "\n"


def laid_over(new: list[Point], kept: list[Point]) -> list[Point]:
    """The new cells; where one was not run, what is kept of it."""
    before = {tuple(sorted(p.at.items())): p for p in kept if p.status in ("done", "old")}
    return [p if p.status in ("done", "old", "failed") else before.get(tuple(sorted(p.at.items())), p) for p in new]


def whole(points: list[Point]) -> list[Point]:
    """Those of concepts of which all cells were run: means over others would be of other concepts in every row. Where there is none, all."""
    lacking = {p.at["concept"] for p in points if p.status not in ("done", "old")}
    return [p for p in points if p.at["concept"] not in lacking] or points


def run_of(points: list[Point], concept: str) -> str:
    """How many of a concept's cells were run, and the erasers of those that were not."""
    own = [p for p in points if p.at["concept"] == concept]
    left = [str(p.at["eraser"]) for p in own if p.status not in ("done", "old")]
    if len(left) == len(own):
        return f"none of {len(own)}"
    return f"{len(own) - len(left)} of {len(own)}" + (f" (not {', '.join(left)})" if left else "")


def figure_of(model: str) -> Path:
    """Where a group's figure is."""
    return PAGE.with_name(f"{PAGE.stem}_{model}.png")


def grouped(points: list[Point], model: str) -> list[Point]:
    """The cells of a host."""
    return [p for p in points if p.inputs.get("model", model_of(p)) == model]


def kept_in(points: list[Point]) -> tuple[Path, list[Point]]:
    """Where the cells of a grid are kept, and they, each with its host's name where that is Gemma's: cells that were not run have none.

    Gemma's have the concepts and erasers of SmolLM2's, so they lie apart.
    """
    if not any(p.inputs.get("model") == GEMMA for p in points):
        return RESULTS, points
    named = [Point(p.at, {**p.inputs, "model": GEMMA}, p.status, p.figures, p.error) for p in points]
    return of_gemma(), named


def of_gemma() -> Path:
    """Where Gemma's cells are kept."""
    return RESULTS.with_name(f"{RESULTS.stem}_gemma.json")


def stored() -> list[Point]:
    """All cells that are kept."""
    return [p for path in (RESULTS, of_gemma()) if path.is_file() for p in read_points(path)]


def model_of(point: Point) -> str:
    """The host of a cell that was not run."""
    return "synthetic" if str(point.at["concept"]).startswith("synthetic/") else "smollm2"


def used(points: list[Point], columns: dict[str, Metric]) -> dict[str, Metric]:
    """The columns that some cell has."""
    return {c: m for c, m in columns.items() if any(p.figures.get(c) is not None for p in points)}


def by_concept(points: list[Point], concepts: list[str]) -> str:
    """HM-local, a column a concept."""
    told = [Point({"eraser": p.at["eraser"]}, {}, p.status, _renamed(p)) for p in points]
    return markdown(summarise(told, "eraser", concepts), {c: Metric(c, "higher", 2) for c in concepts}, "eraser")


def _renamed(point: Point) -> dict[str, object]:
    concept, intervals = str(point.at["concept"]), point.figures.get("intervals", {})
    own = {concept: intervals["hm local"]} if "hm local" in intervals else {}
    return {concept: point.figures.get("hm local"), "intervals": own}


def write(points: list[Point]) -> None:
    """The page and its figures."""
    write_text(PAGE, page(points))
    columns = {c: QUALITY[c] for c in SHOWN}
    for model, title in GROUPS.items():
        if own := [p for p in whole(grouped(points, model)) if p.status == "done"]:
            lines = summarise(own, "eraser", list(columns))
            plot = drawn(lines, used(own, columns), f"{title}: means over concepts.", lambda name: CONTROLS.get(name, "edited"))
            write_bytes(figure_of(model), image_bytes(plot))


def main(folder: Path | None) -> None:
    """Keeps what a grid left in the folder; writes the page."""
    if folder:
        path, points = kept_in(collect(folder, ("model", "split", "budget")))
        write_json(path, [p.to_json() for p in laid_over(points, read_points(path) if path.is_file() else [])])
    write(stored())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
