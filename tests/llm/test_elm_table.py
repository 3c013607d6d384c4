"""The tables of ELM's goals: made of cells' figures, and of what was written, text by text."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import script

from efface.base.files import write_json

ROOT = Path(__file__).parents[2]


def elm_table() -> Any:
    return script(ROOT / "benchmarks/elm_table.py")


def value(mean: float, spread: float = 0.5) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def cell(folder: Path, concept: str, eraser: str, lost: float, written: dict[str, Any] | None = None, status: str = "done") -> None:
    """A cell of base margin 10; what is written, where anything is, of the eraser's state and of the base."""
    figures = {
        "margin lost": lost, "unseen margin lost": lost, "neighbours lost": 0.01, "perplexity": 0.02, "accuracy before": 1.0, "accuracy": 0.5,
    }  # fmt: skip
    if eraser == "elm":
        figures |= {"random directions: unseen margin lost": 0.002}
        figures |= {f"fall - 3 x random directions, unseen, {k}": v for k, v in (("mean", 0.6), ("low", 0.5), ("high", 0.7))}
    extra = {} if written is None else {"written": {"base": [written], eraser: [written]}}
    told = {} if written is None else {"ppl_written": value(30.0, 5), "distinct_written": value(0.9, 0)}
    rows = [
        {"name": "base", "metrics": {"margin": value(10.0)} | told},
        {"name": eraser, "metrics": {"margin": value(10 * (1 - lost))} | told},
    ]
    home = folder / "cells" / f"{concept}-{eraser}"
    write_json(home / "cell.json", {"status": status, "inputs": {"concept": concept, "eraser": eraser}, "figures": figures})
    write_json(home / "work/result.json", {"rows": rows, "extra": extra})


def printed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """What the program prints, and what it keeps."""
    monkeypatch.setattr("sys.argv", ["elm_table.py", str(folder), "--json", str(folder / "kept.json")])
    elm_table().main()
    return capsys.readouterr().out, json.loads((folder / "kept.json").read_text())


def test_texts_are_compared_in_pairs(tmp_path, capsys, monkeypatch) -> None:
    # of three beginnings ELM left the second empty, RMU the third: the first alone counts, 4 nats a token against 1
    cell(tmp_path, "dogs", "elm", 0.8, {"texts": ["a", " ", "c"], "nll": [8.0, 90.0], "tokens": [2, 1]})
    cell(tmp_path, "dogs", "rmu", 0.6, {"texts": ["a", "b", ""], "nll": [3.0, 50.0], "tokens": [3, 1]})
    cell(tmp_path, "music", "elm", 0.4, {"texts": ["a"], "nll": [1.0], "tokens": [1]})  # no RMU: in no pair
    out, kept = printed(tmp_path, capsys, monkeypatch)
    pair = kept["ELM less RMU, nats a token"]
    assert pair["difference"][0] == pytest.approx(3.0)
    assert pair["concepts"] == 1
    assert "| dogs | 80% [75%, 85%] | 80% | 1.0% | +2.0% | 1.000 → 0.500 | 0.2% | 0.60 [0.50, 0.70] |" in out
    assert "| dogs | 60% [55%, 65%] | 60% | 1.0% | +2.0% | 1.000 → 0.500 | – | – |" in out
    assert "mean of the margins lost 0.60, n 2" in out
    assert "| music | 30.0 [25.0, 35.0], 0.90 | 30.0 [25.0, 35.0], 0.90 | – |" in out
    assert [c["concept"] for c in kept["cells"]] == ["dogs", "dogs", "music"]


def test_where_nothing_was_written_goals_stand_alone(tmp_path, capsys, monkeypatch) -> None:
    cell(tmp_path, "dogs", "elm", 0.8)
    cell(tmp_path, "cats", "elm", 0.0, status="failed")
    out, kept = printed(tmp_path, capsys, monkeypatch)
    assert "80% [75%, 85%]" in out
    assert "perplexity of what is written" not in out
    assert kept["ELM less RMU, nats a token"] is None
    assert [c["concept"] for c in kept["cells"]] == ["dogs"]
