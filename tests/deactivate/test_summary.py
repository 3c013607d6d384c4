"""A grid's outcomes as a table."""

import json
import os
import sys
from pathlib import Path

import pytest

from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.evaluation.grid import Grid, run_grid
from efface.deactivate.evaluation.plots import image_bytes
from efface.deactivate.evaluation.results import Metric
from efface.deactivate.evaluation.statistics import t_interval
from efface.deactivate.evaluation.summary import Point, collect, drawn, markdown, read_points, summarise

COLUMNS = {"margin": Metric("margin", "lower", 2), "area": Metric("area", "higher", 1, 100.0, "%")}


def point(eraser: str, concept: str, status: str = "done", **figures: object) -> Point:
    return Point({"eraser": eraser, "concept": concept}, {"model": "m"}, status, figures)


def test_means_over_concepts_and_what_is_missing() -> None:
    points = [
        point("b", "dogs", margin=0.2, area=None), point("b", "cats", margin=0.4), point("a", "dogs", margin=0.5, intervals={"margin": [0.4, 0.7, 9]}),
        point("a", "cats", "failed"), point("c", "dogs", "missing"),
    ]  # fmt: skip
    b, a, c = summarise(points, "eraser", list(COLUMNS))
    assert (b.values["margin"].mean, b.values["margin"].low, b.values["margin"].n) == (pytest.approx(0.3), None, 2)  # of two no interval
    (three,) = summarise([*points[:2], point("b", "owls", margin=0.6)], "eraser", ["margin"])
    assert three.values == {"margin": t_interval([0.2, 0.4, 0.6])}
    assert (a.values["margin"].low, a.values["margin"].high, a.values["margin"].n) == (0.4, 0.7, 9)  # one concept: its own interval
    assert (b.done, a.done, a.wanted, c.done) == (2, 1, 2, 0)
    head, rule, *rows = markdown([b, a, c], COLUMNS, "eraser").splitlines()
    assert head == "| eraser | margin ↓ | area (%) ↑ | cells |"
    assert set(rule) <= set("| -")
    assert rows[1:] == ["| a | 0.50 [0.40, 0.70] | – | 1 of 2 |", "| c | – | – | 0 of 1 |"]
    plot = drawn([b, a, c], {"margin": COLUMNS["margin"]}, "caption", lambda name: "edited" if name == "a" else "control")
    assert image_bytes(plot).startswith(b"\x89PNG")
    assert "margin: b 0.300" in plot.alt
    assert "c " not in plot.alt  # a row without a figure is not drawn
    with pytest.raises(MatchedNothing):
        summarise([], "eraser", [])
    with pytest.raises(InputError, match="no axis 'method'"):
        summarise(points, "method", [])


def test_from_a_grid_s_folder_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    run_grid(Grid("grid_cells:score", {"eraser": ("a", "broken"), "seed": (0, 1)}, {"shift": 1}), tmp_path)
    points = collect(tmp_path, ["shift"])
    assert [(p.at, p.inputs, p.status) for p in points[:2]] == [({"eraser": "a", "seed": s}, {"shift": 1}, "done") for s in (0, 1)]
    assert points[2].status == "failed"
    assert "no such layer" in points[2].error
    assert "Traceback" not in points[2].error
    (tmp_path / "points.json").write_text(json.dumps([p.to_json() for p in points]))
    assert read_points(tmp_path / "points.json") == points
