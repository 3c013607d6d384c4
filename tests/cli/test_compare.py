"""`efface compare`: refuses unlike protocols, lets a named field differ and says so."""

import json

import pytest
from result_cards import result

from efface.cli.main import run


@pytest.fixture
def two(tmp_path):
    """Results of one protocol but for a library's version and the context length."""
    paths = [tmp_path / "a.json", tmp_path / "b" / "result.json"]
    paths[1].parent.mkdir()
    result("pisces").save(paths[0])
    result("other", margin=0.5, versions={"efface": "1"}, extra={"form": "question"}).save(paths[1])
    return [str(paths[0]), str(paths[1].parent)]


def test_what_differs_is_refused_until_it_is_named(two, capsys):
    for ignore, left in [([], "versions.efface"), (["--ignore", "versions"], "extra.form")]:
        assert run(["compare", *two, *ignore]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert left in err
        assert len(err.strip().splitlines()) <= 2
    assert run(["compare", *two, "--ignore", "versions", "--ignore", "extra.form"]) == 0
    out = capsys.readouterr().out
    assert "differs between the results: versions.efface: '0', '1'" in out
    assert "differs between the results: extra.form: 'cloze', 'question'" in out
    assert "other" in out


def test_json_tells_what_was_ignored(two, capsys):
    assert run(["compare", *two, "--ignore", "versions", "--ignore", "extra", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ignored"] == {"versions.efface": ["0", "1"], "extra.form": ["cloze", "question"]}


def test_an_unknown_field_names_the_nearest(two, capsys):
    assert run(["compare", *two, "--ignore", "version"]) == 2
    assert "versions" in capsys.readouterr().err
    assert run(["compare", two[0], "nowhere.json"]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_two_results_of_one_name_are_told_apart_by_where_they_lie(tmp_path, capsys):
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        result("baseball", margin=0.5 if place == "first" else 0.7).save(tmp_path / place / "result.json")
    assert run(["compare", str(tmp_path / "first"), str(tmp_path / "second" / "result.json")]) == 0
    out = capsys.readouterr().out
    assert f"baseball ({tmp_path / 'first'})" in out
    assert f"baseball ({tmp_path / 'second' / 'result'})" in out
    assert run(["compare", str(tmp_path / "first"), str(tmp_path / "first")]) == 2
    assert "differ" in capsys.readouterr().err


def test_a_grid_with_a_failed_cell_ends_with_status_1(tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    for erasers, status in (("[good, broken]", 1), ("[good]", 0)):
        grid.write_text(f"format: 1\ncell: grid_cells:score\naxes: {{eraser: {erasers}, seed: [1]}}\n")
        assert run(["bench", str(grid), "--out", str(tmp_path / "out")]) == status
        out = capsys.readouterr().out
        assert "good" in out
        assert ("no such layer" in out) is bool(status)


def test_a_grid_is_run_in_parts(tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text("format: 1\ncell: grid_cells:score\naxes: {eraser: [good, other, broken], seed: [1, 2]}\n")
    asked = ["bench", str(grid), "--out", str(tmp_path / "out")]
    assert run([*asked, "--only", "eraser=good", "--only", "eraser=other", "--only", "seed=2"]) == 0
    assert (tmp_path / "out/calls.txt").read_text().split("\n")[:-1] == ["good 2", "other 2"]
    assert capsys.readouterr().out.count("missing") == 4
    assert run([*asked, "--only", "erase=good"]) == 2
    assert "eraser" in capsys.readouterr().err
    assert run([*asked, "--only", "good"]) == 2
    assert "--only 'good'" in capsys.readouterr().err
