import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate.evaluation.grid import Grid, run_grid

HERE = Path(__file__).parent.parent
CELL = "grid_cells:score"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_QUIET", "1")
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))


def grid(*erasers: str, **more: object) -> Grid:
    return Grid(CELL, {"eraser": erasers, "seed": (0, 1)}, **more)  # type: ignore[arg-type]


def calls(out: Path) -> list[str]:
    return sorted((out / "calls.txt").read_text().splitlines())


def test_done_cells_are_not_computed_again(tmp_path: Path) -> None:
    first = run_grid(grid("a"), tmp_path)
    assert [o.figures["margin"] for o in first.outcomes] == [0.0, 0.5]
    run_grid(grid("a", "b"), tmp_path)
    assert calls(tmp_path) == ["a 0", "a 1", "b 0", "b 1"]
    run_grid(grid("a", common={"shift": 1}), tmp_path)  # other inputs: other cells
    assert calls(tmp_path).count("a 0") == 2


def test_only_the_cells_that_were_asked_for_are_computed_and_all_stand_in_the_table(tmp_path: Path) -> None:
    table = run_grid(grid("a", "b", "c"), tmp_path, only={"eraser": ["a", "c"], "seed": [1]})
    assert calls(tmp_path) == ["a 1", "c 1"]
    assert [o.status for o in table.outcomes] == ["missing", "done", "missing", "missing", "missing", "done"]
    assert not table.failed
    with pytest.raises(UnknownName, match="only"):
        run_grid(grid("a"), tmp_path, only={"concept": ["a"]})
    with pytest.raises(MatchedNothing, match="only"):
        run_grid(grid("a"), tmp_path, only={"eraser": ["z"]})


def test_a_done_cell_is_computed_again_where_a_file_that_it_read_has_changed(tmp_path: Path) -> None:
    file, out = tmp_path / "file.txt", tmp_path / "out"
    asked = Grid("grid_cells:told", {"seed": (0,)}, {"file": str(file)})
    file.write_text("one")
    assert run_grid(asked, out).outcomes[0].figures["length"] == 3
    run_grid(asked, out)
    assert calls(out) == ["told 0"]
    file.write_text("three")
    assert run_grid(asked, out).outcomes[0].figures["length"] == 5
    assert calls(out) == ["told 0"] * 2
    (tmp_path / "more.txt").write_text("x")  # one file more is another state too
    run_grid(asked, out)
    assert calls(out) == ["told 0"] * 3
    (tmp_path / "more.txt").unlink()  # nothing to compare with: what was measured stays
    run_grid(asked, out)
    file.unlink()
    assert run_grid(asked, out).outcomes[0].figures["length"] == 5
    assert calls(out) == ["told 0"] * 3


def test_a_failed_rerun_does_not_take_the_place_of_figures(tmp_path: Path) -> None:
    file, out = tmp_path / "file.txt", tmp_path / "out"
    asked = Grid("grid_cells:told", {"seed": (0,)}, {"file": str(file), "eraser": "broken"})
    file.write_text("one")
    out.mkdir()
    (out / "mended").touch()
    assert [o.shown for o in run_grid(asked, out).outcomes] == ["done"]
    file.write_text("three")
    (out / "mended").unlink()
    for n in (2, 3):  # and it is tried again each time, for what it read is another still
        table = run_grid(asked, out)
        assert not table.failed
        assert [(o.shown, o.figures["length"]) for o in table.outcomes] == [("old", 3)]
        assert "no such layer" in table.outcomes[0].error
        assert calls(out) == ["broken 0"] * n
    line, error = table.plain().splitlines()[2:]
    assert " old " in line
    assert error.startswith("old figures, failed")
    (out / "mended").touch()
    (now,) = run_grid(asked, out).outcomes
    assert (now.shown, now.figures["length"], now.error) == ("done", 5, "")


def test_what_cannot_be_looked_at_keeps_its_figures(tmp_path: Path) -> None:
    file, out = tmp_path / "file.txt", tmp_path / "out"
    asked = Grid("grid_cells:told", {"seed": (0,)}, {"file": str(file)})
    file.write_text("one")
    run_grid(asked, out)
    file.write_bytes(b"\xff")
    assert [(o.shown, o.figures["length"]) for o in run_grid(asked, out).outcomes] == [("done", 3)]
    assert calls(out) == ["told 0"]


def test_a_failure_is_recorded_not_fatal_and_tried_again(tmp_path: Path) -> None:
    table = run_grid(grid("broken", "a"), tmp_path)
    assert [o.status for o in table.outcomes] == ["failed", "failed", "done", "done"]
    assert "no such layer" in (tmp_path / "table.txt").read_text()
    assert "Traceback" in table.failed[0].error
    kept = run_grid(grid("broken", "a"), tmp_path, retry_failed=False)
    assert len(kept.failed) == 2
    assert calls(tmp_path).count("broken 0") == 1
    (tmp_path / "mended").touch()
    assert not run_grid(grid("broken", "a"), tmp_path).failed
    assert calls(tmp_path).count("a 0") == 1


def test_nan_figures_are_failures(tmp_path: Path) -> None:
    table = run_grid(grid("nan"), tmp_path)
    assert [o.status for o in table.outcomes] == ["failed", "failed"]
    assert not table.failed[0].figures


def test_an_interrupt_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid("a", "interrupted", "b"), tmp_path)
    assert calls(tmp_path) == ["a 0", "a 1", "interrupted 0"]
    (tmp_path / "mended").touch()
    assert not run_grid(grid("a", "interrupted", "b"), tmp_path).failed
    assert calls(tmp_path).count("a 0") == 1


def test_a_half_written_cell_is_computed_again(tmp_path: Path) -> None:
    run_grid(grid("a"), tmp_path)
    (tmp_path / "cells" / grid("a").cells()[0].key / "cell.json").write_text('{"format": 1, "ke')
    assert not run_grid(grid("a"), tmp_path).failed
    assert calls(tmp_path) == ["a 0", "a 0", "a 1"]


def test_other_processes_and_other_executors_give_the_same(tmp_path: Path) -> None:
    pooled = run_grid(grid("a", "broken"), tmp_path / "p", workers=1)
    assert [o.status for o in pooled.outcomes] == ["done", "done", "failed", "failed"]
    assert pooled.outcomes[0].figures["pid"] != os.getpid()
    with ThreadPoolExecutor(2) as threads:
        table = run_grid(grid("a", "broken"), tmp_path / "t", executor=threads)
    assert [o.status for o in table.outcomes] == ["done", "done", "failed", "failed"]


def test_a_dead_worker_is_a_recorded_failure(tmp_path: Path) -> None:
    table = run_grid(grid("killed"), tmp_path, workers=1)
    assert {o.status for o in table.outcomes} == {"failed"}
    assert "worker process died" in table.outcomes[0].error


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(
        f"format: 1\ncell: {CELL}\naxes: {{eraser: [a, {{name: a, set: {{k: 3}}}}], seed: [0, 1, 1], host: tiny}}\n"
        "common: {shift: 2}\nexclude: [{eraser: a, seed: 1}]\n"
    )
    cells = Grid.load(path).cells()
    assert [(c.axes["eraser"], c.axes["seed"]) for c in cells] == [
        ("a", 0), ({"name": "a", "set": {"k": 3}}, 0), ({"name": "a", "set": {"k": 3}}, 1),
    ]  # fmt: skip
    assert cells[0].inputs == {"shift": 2, "eraser": "a", "seed": 0, "host": "tiny"}
    assert len({c.key for c in cells}) == 3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nexlude: []", UnknownName, "exclude"),
        ("format: 2\ncell: m:f\naxes: {a: [1]}", InputError, "format 2"),
        ("format: 1\ncell: m.f\naxes: {a: [1]}", InputError, "package.module:function"),
        ("format: 1\ncell: m:f\naxes: {a: []}", MatchedNothing, "at least one value"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nexclude: [{a: 2}]", MatchedNothing, "no value 2"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nexclude: [{a: 1}]", MatchedNothing, "leaves no cell"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nexclude: [{b: 2}]", UnknownName, "axis"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\ncommon: {a: 2}", InputError, "axis too"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nwhere: [{when: {a: 2}, use: {x: 1}}]", MatchedNothing, "no value 2"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nwhere: [{when: {b: 1}, use: {x: 1}}]", UnknownName, "axis in where"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nwhere: [{when: {a: 1}, use: {a: 1}}]", InputError, "axis too"),
        ("format: 1\ncell: m:f\naxes: {a: [1]}\nwhere: [{if: {a: 1}, use: {x: 1}}]", InputError, "when .* and use"),
        ("format: 1\nextends: other.yaml", InputError, "other.yaml is missing"),
        ("a: [", InputError, "not YAML"),
        ("- 1", InputError, "mapping"),
    ],
)
def test_bad_grids(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(error, match=message):
        Grid.load(tmp_path / "g.yaml")


def test_an_unknown_function_is_named(tmp_path: Path) -> None:
    table = run_grid(Grid("grid_cells:scores", {"seed": (0,)}), tmp_path)
    assert "nearest: grid_cells:score" in table.outcomes[0].error


BASE = """
format: 1
cell: m:f
axes: {eraser: [a, b], host: [small, large]}
common: {set: {k: 1, n: 2}, seed: 0}
where:
  - {when: {eraser: a}, use: {set: {k: 3}}}
  - {when: {eraser: [a, b], host: large}, use: {set: {n: 4}, split: test}}
exclude: [{eraser: b, host: [small]}]
"""


def test_rules_reach_the_cells_that_they_fit_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    cells = {(c.axes["eraser"], c.axes["host"]): c for c in Grid.load(tmp_path / "base.yaml").cells()}
    assert set(cells) == {("a", "small"), ("a", "large"), ("b", "large")}
    assert cells["a", "small"].inputs == {"set": {"k": 3, "n": 2}, "seed": 0, "eraser": "a", "host": "small"}
    assert cells["a", "large"].inputs["set"] == {"k": 3, "n": 4}
    assert cells["b", "large"].inputs == {"set": {"k": 1, "n": 4}, "seed": 0, "split": "test", "eraser": "b", "host": "large"}
    (tmp_path / "other.yaml").write_text(BASE.replace("{k: 3}", "{k: 5}"))  # a's settings are no part of b's key
    others = {(c.axes["eraser"], c.axes["host"]): c for c in Grid.load(tmp_path / "other.yaml").cells()}
    assert others["b", "large"].key == cells["b", "large"].key
    assert others["a", "large"].key != cells["a", "large"].key


def test_a_grid_on_top_of_another_says_what_is_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "over.yaml").write_text(
        "format: 1\nextends: base.yaml\naxes: {host: [small]}\ncommon: {set: {n: 9}}\nwhere: [{when: {eraser: a}, use: {seed: 7}}]\n"
    )
    (cell,) = Grid.load(tmp_path / "over.yaml").cells()  # b on small is left out below, too
    assert cell.inputs == {"set": {"k": 3, "n": 9}, "seed": 7, "eraser": "a", "host": "small"}
    (tmp_path / "over.yaml").write_text(
        "format: 1\nextends: base.yaml\naxes: {host: [small]}\nwhere: [{when: {host: large}, use: {x: 1}}]\n"
    )
    with pytest.raises(MatchedNothing, match="no value 'large'"):  # what it says itself must match
        Grid.load(tmp_path / "over.yaml")
    (tmp_path / "over.yaml").write_text("format: 1\nextends: base.yaml\naxes: {erasers: [a]}\n")
    with pytest.raises(UnknownName, match="nearest: eraser"):
        Grid.load(tmp_path / "over.yaml")
