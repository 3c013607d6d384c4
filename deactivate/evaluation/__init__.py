"""How an edit is judged and shown: statistics, protocol cards, results, comparison, plots, report, grids of runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cards import ProtocolCard, count_look, require_comparable
    from .compare import Comparison
    from .grid import Grid, run_grid
    from .plots import Plot
    from .report import ReportData, render_report
    from .results import Metric, Result, Row
    from .value import Value

_WHERE = {
    "Comparison": "compare",
    "Grid": "grid",
    "Metric": "results",
    "Plot": "plots",
    "ProtocolCard": "cards",
    "ReportData": "report",
    "Result": "results",
    "Row": "results",
    "Value": "value",
    "count_look": "cards",
    "render_report": "report",
    "require_comparable": "cards",
    "run_grid": "grid",
}
__all__ = [
    "Comparison",
    "Grid",
    "Metric",
    "Plot",
    "ProtocolCard",
    "ReportData",
    "Result",
    "Row",
    "Value",
    "count_look",
    "render_report",
    "require_comparable",
    "run_grid",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
