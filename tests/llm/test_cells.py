"""The cell that grids of erasers are made of, run as `efface bench` runs it."""

import json
from pathlib import Path

import pytest
import yaml
from planted import magic_values, planted_sae
from tiny import tiny_host
from tuning_kit import SETTINGS

from efface.base.errors import EffaceError
from efface.cli.main import run
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation import Result
from efface.llm.evaluation import cells, suite
from efface.llm.evaluation.cells import erasure, figures, reads


@pytest.fixture
def ground(tmp_path: Path) -> dict[str, object]:
    """Inputs of a cell on a tiny model."""
    host = tiny_host()
    host.model.save_pretrained(tmp_path / "model")
    host.tokenizer.save_pretrained(tmp_path / "model")
    for layer in (0, 1):
        planted_sae(host, layer).save(tmp_path / "saes" / f"layers.{layer}.mlp_out")
    (tmp_path / "magic.json").write_text(json.dumps(magic_values()))
    return {
        "model": str(tmp_path / "model"), "concept": str(tmp_path / "magic.json"), "eraser": "pisces", "sae": str(tmp_path / "saes"),
        "set": {"features": ["1:0:+"], "tau": 0.4, "mu": 4.0}, "draws": 2, "texts": 4, "max_tokens": 16,
    }  # fmt: skip


def test_a_grid_of_erasers_runs_and_is_not_run_again(cache, ground, tmp_path, capsys) -> None:
    axes = {"layers": [[0, 1], [1]]}
    grid = {"format": 1, "cell": "efface.llm.evaluation.cells:erasure", "axes": axes, "common": ground}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    line = ["bench", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), "--json"]
    assert run(line) == 0
    first = json.loads(capsys.readouterr().out)
    edits = sorted((tmp_path / "out").rglob("edit.json"))
    stamps = [p.stat().st_mtime_ns for p in edits]
    assert len(edits) == 2
    assert run(line) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == first["cells"]
    assert [p.stat().st_mtime_ns for p in edits] == stamps


def test_its_figures_are_those_of_the_result(cache, ground, tmp_path) -> None:
    found = erasure(ground, tmp_path / "work")
    result = Result.load(tmp_path / "work" / "result.json")
    base, edited, random = (result.row(n).metrics for n in ("base", "pisces", "random features"))
    assert found["unseen margin lost"] == pytest.approx(1 - edited["margin_unseen"].mean / base["margin_unseen"].mean)
    assert found["neighbours lost"] == pytest.approx(1 - edited["neighbours_margin"].mean / base["neighbours_margin"].mean)
    assert found["random features: unseen margin lost"] == pytest.approx(1 - random["margin_unseen"].mean / base["margin_unseen"].mean)
    low, high = (found[f"fall - 3 x random features, unseen, {k}"] for k in ("low", "high"))
    assert low < high
    assert figures(result)["perplexity"] == found["perplexity"]
    assert found["ppl written"] is None
    written = erasure({**ground, "draws": 0, "written": 3}, tmp_path / "written")
    other = Result.load(tmp_path / "written" / "result.json")
    read = other.row("pisces").metrics["ppl_written"]
    assert "ppl_written" in other.row("base").metrics  # the first cell's base was not asked for it
    assert (written["ppl written"], written["intervals"]["ppl written"]) == (read.mean, [read.low, read.high, read.n])
    assert Edit.load(tmp_path / "work" / "edit").eraser == "pisces"


def test_an_edit_that_was_fitted_before_an_interrupt_is_used(cache, ground, tmp_path, monkeypatch) -> None:
    erasure(ground, tmp_path / "work")
    (tmp_path / "work" / "result.json").unlink()
    monkeypatch.setattr("efface.deactivate.erasing.erase", lambda *a, **k: pytest.fail("fitted again"))
    assert "unseen margin lost" in erasure(ground, tmp_path / "work")


def test_an_edit_of_another_state_of_the_concept_file_is_not_used(cache, ground, tmp_path) -> None:
    erasure(ground, tmp_path / "work")
    (tmp_path / "magic.json").write_text(json.dumps({**magic_values(), "tokens": [" wizard"]}))
    erasure(ground, tmp_path / "work")
    now = Concept.load(tmp_path / "magic.json")
    assert dict(Edit.load(tmp_path / "work" / "edit").concepts[0])["digest"] == now.digest


def test_the_unedited_host_is_measured_once_for_cells_that_ask_it_the_same(cache, ground, tmp_path, monkeypatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(cells, "_BASES", {})
    whole = suite._Ground.measure
    monkeypatch.setattr(suite._Ground, "measure", lambda self, host: measured.append(len(self.texts["neutral"])) or whole(self, host))
    bare = {**ground, "row": "base", "eraser": "identity"}
    found = [erasure({**bare, "texts": texts}, tmp_path / f"{n}") for n, texts in enumerate((3, 3, 2))]
    assert measured == [3, 2]  # other texts: another measurement
    assert {**found[0], "seconds": 0} == {**found[1], "seconds": 0}


def test_other_questions_are_measured_anew(cache, ground, tmp_path, monkeypatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(cells, "_BASES", {})
    whole = suite._Ground.measure
    monkeypatch.setattr(
        suite._Ground, "measure", lambda self, host: measured.append(len(self.concept.questions[self.split])) or whole(self, host)
    )
    for n, questions in enumerate((2, 2, 4)):
        erasure({**ground, "row": "base", "eraser": "identity", "questions": questions}, tmp_path / f"{n}")
    assert measured == [2, 4]


def test_without_saes_the_control_is_random_directions(cache, ground, tmp_path) -> None:
    erasure(ground, tmp_path / "work")
    bare = {**ground, "sae": ""}
    (tmp_path / "work" / "reads.json").write_text(json.dumps(reads(bare)))  # the edit is to be used as it is
    assert "random directions: unseen margin lost" in erasure(bare, tmp_path / "work")


def test_an_edit_of_other_saes_is_not_used(cache, ground, tmp_path) -> None:
    erasure(ground, tmp_path / "work")
    before = (tmp_path / "work" / "edit" / "edit.json").stat().st_mtime_ns
    erasure(ground, tmp_path / "work")
    assert (tmp_path / "work" / "edit" / "edit.json").stat().st_mtime_ns == before
    planted_sae(tiny_host(), 1, d_sae=30).save(tmp_path / "saes" / "layers.1.mlp_out", overwrite=True)
    erasure(ground, tmp_path / "work")
    assert (tmp_path / "work" / "edit" / "edit.json").stat().st_mtime_ns != before


@pytest.mark.parametrize(("change", "says"), [({"modle": "x"}, "model"), ({"eraser": "piscis"}, "pisces"), ({"concept": "owls"}, "owls")])
def test_bad_inputs_are_named(cache, ground, tmp_path, change, says) -> None:
    with pytest.raises(EffaceError, match=says):
        erasure({**ground, **change}, tmp_path / "work")


@pytest.mark.parametrize("eraser", ["crisp", "rmu"])
def test_erasers_that_train_stand_beside_random_directions(cache, ground, tmp_path, eraser) -> None:
    inputs = {**ground, "eraser": eraser, "set": SETTINGS[eraser]}
    found = erasure(inputs if eraser == "crisp" else {k: v for k, v in inputs.items() if k != "sae"}, tmp_path / "work")
    result = Result.load(tmp_path / "work" / "result.json")
    assert [r.name for r in result.rows] == ["base", eraser, "string filter", "random directions"]
    base, edited, random = (result.row(n).metrics["margin_unseen"].mean for n in ("base", eraser, "random directions"))
    assert found["unseen margin lost"] == pytest.approx(1 - edited / base)
    assert found["random directions: unseen margin lost"] == pytest.approx(1 - random / base)
    assert edited != random
