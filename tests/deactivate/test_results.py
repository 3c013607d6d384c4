import json
from dataclasses import replace
from pathlib import Path

import pytest
from result_cards import card, result
from rich.console import Console

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.deactivate.evaluation.compare import WIDTH, compare
from efface.deactivate.evaluation.results import Metric, Result, Row
from efface.deactivate.evaluation.value import Value


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    one = result()
    file = one.save(tmp_path / "out")
    assert file.name == "result.json"
    assert Result.load(tmp_path / "out") == Result.load(file) == one
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.update(format=99), "format 99"),
        (lambda v: v.update(kind="other"), "not a result file"),
        (lambda v: v.pop("rows"), "damaged"),
        (lambda v: v["rows"][0].update(kind="best"), "kind of row"),
        (lambda v: v["rows"][0]["metrics"]["margin"].update(men=1), "mean"),
        (lambda v: v["rows"][0]["metrics"]["margin"].update(low=None), "low and high"),
        (lambda v: v["card"].update(n=600), "changed after it was written"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage, message: str) -> None:
    values = result().to_json()
    damage(values)
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(ArtefactError, match=message):
        Result.load(tmp_path / "r.json")


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="missing"):
        Result.load(tmp_path / "nothing.json")
    file = result().save(tmp_path)
    file.write_text(file.read_text()[:100])
    with pytest.raises(ArtefactError, match="not valid JSON"):
        Result.load(file)


def test_rows_and_metrics_are_checked() -> None:
    row = Row("a", "edited", {"m": Value(1.0)})
    with pytest.raises(InputError, match="two rows"):
        Result("r", card(), (row, row))
    with pytest.raises(MatchedNothing):
        Result("r", card(), ())
    with pytest.raises(UnknownName, match="no row has it"):
        Result("r", card(), (row,), {"n": Metric("n")})
    with pytest.raises(UnknownName, match="random features"):
        result().row("random feature")


def test_compare_refuses_unlike_cards_and_names_the_field() -> None:
    with pytest.raises(InputError, match="measured differently: n is 60 and 90"):
        compare([result("a"), result("b", n=90)])
    allowed = compare([result("a"), result("b", n=90)], ignore=["n"])
    assert "differs between the results: n: 60, 90" in allowed.plain()
    with pytest.raises(InputError, match="two results"):
        compare([result("a"), result("a")])
    with pytest.raises(MatchedNothing):
        compare([])


def test_shared_rows_stand_once_and_the_best_is_marked_only_when_apart() -> None:
    table = compare([result("a", 0.2), result("b", 0.5)])
    assert [(x.result, x.row.name) for x in table.lines] == [
        ("all", "base"), ("a", "a"), ("b", "b"), ("all", "random features"),
    ]  # fmt: skip
    assert [table.mark(x, "margin") for x in table.lines] == ["", "*", "", ""]
    tied = compare([result("a", 0.2), result("b", 0.25)])
    assert [tied.mark(x, "margin") for x in tied.lines] == ["", "=", "=", ""]
    assert "–" in table.plain()  # the control has no perplexity
    assert list(compare([result()], metrics=["perplexity"]).columns) == ["perplexity"]
    with pytest.raises(UnknownName, match="margin"):
        compare([result()], metrics=["margins"])


def test_names_are_text_and_not_markup_or_control_codes() -> None:
    table = compare([result("[red]x[/red]\x1b[2J")])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.rich())
    assert "[red]x[/red]" in console.export_text()
    assert "\x1b" not in table.plain()
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["rows"][0]["kind"] == "base"


def test_a_table_that_is_too_wide_has_a_metric_a_line() -> None:
    narrow = compare([result()]).plain().splitlines()
    assert narrow[0].split()[:3] == ["result", "row", "kind"]
    rows = tuple(replace(r, metrics={f"{k} {i}": v for i in range(9) for k, v in r.metrics.items()}) for r in result().rows)
    lines = compare([replace(result(), rows=rows, metrics={})]).plain().splitlines()
    assert lines[0].split("  ")[-1].strip() == "random features"
    assert max(map(len, lines)) <= WIDTH
    figures = {line.split("  ")[0]: line for line in lines}
    assert all(f"margin {i}" in figures and f"perplexity {i}" in figures for i in range(9))
    assert figures["margin 3"].count("[") == 3
    assert {"result", "kind"} <= set(figures)
