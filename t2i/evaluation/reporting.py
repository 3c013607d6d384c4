"""From an evaluation of an image edit to files: `result.json`, and `report.html` with before | after sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ...deactivate.evaluation.plots import Bar, Plot, bars, before_after
from ...deactivate.evaluation.report import ImageSample, ReportData, render_report
from ...deactivate.evaluation.results import Result
from .sheets import labelled_alt, picture, write_sheet
from .suite import Evaluation

SHOWN = 16
"""Pictures of a sheet."""
GROUPS = {
    "target": "the concept by name",
    "ways": "the concept in other words",
    "neighbours": "its neighbours",
    "general": "everything else",
}


def write_evaluation(
    folder: Path, found: Evaluation, *, title: str = "", notes: Sequence[str] = (), undo: str = "", pages: str = ""
) -> Path:
    """Writes `result.json`, `report.html` and contact sheets into `folder`, with a link to `pages`; returns the report's path.

    `sheets/<group>-<row>.png` are the same prompts and seeds at the same places for the base and the edited host.
    """
    found.result.save(folder / "result.json")
    write_sheets(folder / "sheets", found)
    return render_report(folder / "report.html", report(found, title=title, notes=notes, undo=undo, pages=pages))


def report(found: Evaluation, *, title: str = "", notes: Sequence[str] = (), undo: str = "", pages: str = "") -> ReportData:
    """What a report shows of an evaluation."""
    result = found.result
    edited = edited_row(found)
    concept, host = result.card.concept, result.card.host
    return ReportData(
        title=title or (f"{concept} taken out of {host}" if edited else f"{concept} in {host}"),
        summary=summary(result, edited),
        result=result,
        verdicts=verdicts(result, edited),
        plots=plots(result, edited),
        images=samples(found, edited) if edited else (),
        notes=(*notes, *uncounted(result), *(f"Not measured: {a}" for a in result.extra.get("absent", ()))),
        undo=undo,
        pages=pages,
    )


def edited_row(found: Evaluation) -> str | None:
    """Name of the edited host's row, where there is one."""
    return next((r.name for r in found.result.rows if r.kind == "edited"), None)


def uncounted(result: Result) -> tuple[str, ...]:
    """A sentence on the ways to ask that the base does not draw."""
    ways = result.extra.get("ways", {})
    lost = [f"«{p}» ({f['drawn by the base']:.0%})" for found in ways.values() for p, f in found.items() if not f["counts"]]
    n = sum(map(len, ways.values()))
    share = result.card.extra.get("least_drawn", 0.8)
    return (f"{len(lost)} of {n} other ways to ask do not count, the base draws them in less than {share:.0%}: {', '.join(lost)}.",) * bool(
        lost
    )


def summary(result: Result, edited: str | None) -> str:
    """The two sentences a hurried reader needs."""
    if edited is None:
        return f"The base draws {result.card.concept} in {1 - result.row('base').metrics['UA'].mean:.0%} of its pictures."
    row, beside = result.row(edited).metrics, result.row("string filter").metrics
    parts = [f"Of the pictures that ask for {result.card.concept}, {row['UA'].mean:.0%} no longer show it to the judge"]
    told = (("UA_held_out", "{:.0%} where it is asked for in held-out words"), ("IRA_nb", "{:.0%} of the nearest neighbour is kept"),
            ("kept", "{:.0%} of everything else"))  # fmt: skip
    parts += [words.format(row[k].mean) for k, words in told if k in row]
    filtered = f" A string filter on its names reaches {beside['UA'].mean:.0%}"
    if "UA_held_out" in beside:
        filtered += f", and {beside['UA_held_out'].mean:.0%} on held-out words"
    return ", ".join(parts) + "." + filtered + "."


def verdicts(result: Result, edited: str | None) -> dict[str, bool]:
    """Claims of «no harm», each shown or not at the stated margin, by the first copy of the judges."""
    words = {
        "IRA_rel": "Other members of its domain",
        "IRA_nb": "The nearest neighbour",
        "IRA_near": "All neighbours",
        "CRA_rel": "The other domain",
    }
    harm = result.extra.get("no harm", {}).get(edited, {})
    return {f"{words[k]}: accuracy is within {h['margin']:.0%} of the base's": h["equivalent"] for k, h in harm.items() if k in words}


def plots(result: Result, edited: str | None) -> tuple[Plot, ...]:
    """Accuracies before and after, and the erasure beside its controls."""
    if edited is None:
        return ()
    base, row = result.row("base").metrics, result.row(edited).metrics
    there = [k for k in ("IRA", "CRA", "ALIGN", "UA") if k in row and k in base]
    figure = before_after(
        there, [base[k] for k in there], [row[k] for k in there], "share of pictures", "Before (hollow) and after (filled) the edit."
    )
    key = "UA_held_out" if "UA_held_out" in row else "UA"
    beside = [Bar(r.name, r.metrics[key], r.kind) for r in result.rows if key in r.metrics]
    return figure, bars(beside, key.replace("_", " "), "The edit beside its controls.")


def samples(found: Evaluation, edited: str) -> tuple[ImageSample, ...]:
    """A sheet before and one after for each group, the same prompts and seeds at the same places."""
    pictures, out = found.pictures, []
    for group, words in GROUPS.items():
        at = shown(found, group)
        if not len(at):
            continue
        prompts = [pictures.asks[i].text for i in at.tolist()]
        before, after = (
            picture(pictures.by_row[row][at], 4, labelled_alt(f"{row}, {words}", prompts), f"{row}: {words}") for row in ("base", edited)
        )
        out.append(ImageSample("; ".join(prompts), before, after, group))
    return tuple(out)


def shown(found: Evaluation, group: str) -> Int[Tensor, " n"]:
    """Places of the pictures of a group that stand on its sheets, spread over it."""
    places = np.flatnonzero([a.group == group for a in found.pictures.asks])
    chosen = np.linspace(0, len(places) - 1, min(SHOWN, len(places))).round().astype(int)
    return torch.from_numpy(places[chosen]) if len(places) else torch.zeros(0, dtype=torch.int64)


def write_sheets(folder: Path, found: Evaluation) -> list[Path]:
    """Contact sheets of every group, for the base and, where there is one, for the edited host."""
    rows = [r for r in ("base", edited_row(found)) if r]
    places = {group: at for group in GROUPS if len(at := shown(found, group))}
    return [
        write_sheet(folder / f"{group}-{'base' if row == 'base' else 'edited'}.png", found.pictures.by_row[row][at], 4)
        for group, at in places.items()
        for row in rows
    ]
