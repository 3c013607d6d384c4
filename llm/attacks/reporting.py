"""From a run of attacks to files: `result.json` and `report.html`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...deactivate.evaluation.plots import Bar, Plot, bars
from ...deactivate.evaluation.report import ReportData, render_report

if TYPE_CHECKING:
    from ...deactivate.evaluation import Result

DECOYS = ", decoys"
"""Behind the name of a state in the row of its decoys."""
LOWER_BOUND = "a search at a small budget: its rate is a lower bound of what the attack achieves (preset=paper is the published budget)"


def write_attacks(folder: Path, result: "Result", title: str) -> Path:
    """Writes `result.json` and `report.html` into `folder`; returns the report's path."""
    result.save(folder / "result.json")
    tried = [(n, one) for by_attack in result.extra["attacks"].values() for n, one in by_attack.items()]
    small = list(dict.fromkeys(n for n, one in tried if one["found"].get("lower bound")))
    notes = [f"Not measured: {a}" for a in result.extra["absent"]]
    notes += [f"{', '.join(small)}: {LOWER_BOUND}"] if small else []
    data = ReportData(title=title, summary=summary(result), result=result, plots=plots(result), notes=tuple(notes))
    return render_report(folder / "report.html", data)


def summary(result: "Result") -> str:
    """The sentences a hurried reader needs."""
    told = []
    for row in result.rows:
        if "union" in row.metrics and not row.name.endswith(DECOYS):
            u = row.metrics["union"]
            decoys = next((r.metrics.get("union") for r in result.rows if r.name == row.name + DECOYS), None)
            beside = f" (wrong options: {decoys.mean:.0%} of {decoys.n})" if decoys else ""
            told.append(f"{row.name}: {u.mean:.0%} of {u.n} questions brought back by any attack{beside}")
    return "; ".join(told) + "." if told else "No question was answered wrongly without an attack: there was nothing to bring back."


def plots(result: "Result") -> tuple[Plot, ...]:
    """Rates by attack, of the first row and of its decoys."""
    first = result.rows[0].name
    shown = [r for r in result.rows if r.name in (first, first + DECOYS)]
    drawn = []
    for name, metric in result.columns().items():
        if name == "union" or name.startswith("asr_"):
            drawn += [Bar(f"{metric.label}, {r.name}", r.metrics[name], r.kind) for r in shown if name in r.metrics]
    return (bars(drawn, "share of wrong questions brought back", "Each attack, and the same aimed at wrong options."),) if drawn else ()
