"""Notebooks: paired with their scripts, without outputs, of public names alone; each runs at its small size and shows what it says."""

import ast
import contextlib
import importlib
import io
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import script

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
pytest.importorskip("jupytext")


@cache
def maker() -> ModuleType:
    """docs/make_notebooks.py."""
    return script(ROOT / "docs" / "make_notebooks.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_it_is_paired_and_has_no_outputs(script: Path, tmp_path: Path) -> None:
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == maker().paired(script), "run: make notebooks"
    notebook = json.loads(text)
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(code) >= 5
    assert len(notebook["cells"]) - len(code) >= 5
    assert not any(c["outputs"] or c["execution_count"] for c in code)
    other = tmp_path / script.name
    other.write_text(script.read_text(encoding="utf-8").replace("# %%\n", "# %%\npass\n", 1), encoding="utf-8")
    assert maker().paired(other) != text


def private(code: str) -> list[str]:
    """Names that are imported from the package and not exported where they are taken from."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "efface":
            public = getattr(importlib.import_module(str(node.module)), "__all__", ())
            found += [f"{node.module}.{a.name}" for a in node.names if a.name not in public]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("efface.")]
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_it_imports_public_names_and_has_the_one_knob(script: Path) -> None:
    code = script.read_text(encoding="utf-8")
    assert not private(code)
    assert private("from efface.llm.features import lens_directions\nimport efface.sae.sae") == [
        "efface.llm.features.lens_directions",
        "efface.sae.sae",
    ]
    assert code.count("EFFACE_NOTEBOOK_SIZE") >= 2, "explained, and read"
    assert 'get("EFFACE_NOTEBOOK_SIZE", "full") == "small"' in code


@pytest.fixture
def ran(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """number -> what is left in the notebook's namespace after it ran at the small size, to a heading or to its end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setenv("EFFACE_NOTEBOOK_SIZE", "small")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(number: str, until: str = "") -> dict[str, Any]:
        (script,) = (s for s in SCRIPTS if s.name.startswith(number))
        code, heading, _ = script.read_text(encoding="utf-8").partition(f"\n# ## {until}\n" if until else "\0")
        assert bool(heading) == bool(until), f"{script.name} has no heading {until!r}"
        names: dict[str, Any] = {"__name__": script.stem}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, str(script), "exec"), names)
        drawn = plt.get_fignums()
        plt.close("all")
        assert drawn or until, "it draws nothing"
        return names

    return run


def test_01_a_trained_dictionary_beats_an_untrained_one(ran: Any) -> None:
    rows = ran("01", "Read")["rows"]
    assert rows["trained"]["fvu"] < 0.5 * rows["untrained"]["fvu"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_01_labels_are_scored_and_the_best_feature_beats_the_lot(ran: Any) -> None:
    names = ran("01")
    assert names["scores"]["best feature"] > names["scores"]["feature by lot"]
    assert names["scores"]["best feature"] > 0.6
    assert sum(r.status == "labelled" for r in names["store"].ranked("auroc", limit=20)) > 0


def test_02_the_edit_takes_more_than_its_controls_and_is_undone(ran: Any) -> None:
    names = ran("02")
    lost = names["lost"]
    for control in ("random features", "random directions"):
        assert lost["pisces"]["margin"] > lost[control]["margin"] + 0.1
    assert lost["pisces"]["margin"] > 2 * lost["pisces"]["neighbours_margin"]
    assert names["edited"].digest != names["before"] == names["restored"].digest == names["host"].digest
    assert names["inside"] != names["before"]


def test_04_no_line_tells_what_leace_was_fitted_on(ran: Any) -> None:
    names = ran("04")
    before, after, lot = (names["fitted"][n] for n in ("as they are", "LEACE", "one direction by lot"))
    assert after == pytest.approx(names["majority"]["fitted"], abs=0.01)
    assert min(before, lot) > names["majority"]["fitted"] + 0.15
    assert names["gap"]["LEACE"] < 1e-3 * names["gap"]["as they are"] < names["gap"]["one direction by lot"]
    assert names["linear"]["LEACE"] < names["linear"]["one direction by lot"]
    assert names["edited"].margin != names["base"].margin


def test_05_an_own_file_and_folder_give_a_plain_checkpoint(ran: Any) -> None:
    names = ran("05")
    margins = names["margins"]
    assert margins["base"] - margins["npo"] > 2 * abs(margins["base"] - margins["random directions"])
    assert names["changed"]
    assert (names["OUT"] / "edited" / "config.json").is_file()
    assert max(s.excess for s in names["probes"].values()) > 0.1


def test_06_an_own_eraser_stands_in_the_table_like_ours(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.deactivate import registry

    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    names = ran("06")
    found = names["found"]
    assert not names["table"].failed
    assert found["my-pruning"]["efficacy"] > found["random directions"]["efficacy"] >= 0
    assert (found["identity"]["efficacy"], found["identity"]["specificity"]) == (0, 1)
    assert found["my-pruning"]["specificity"] > 0.5
    assert "my-pruning" in {m.name for m in registry.methods("llm")}
    assert names["inside"] != names["before"] == names["host"].digest


def test_03_features_of_the_dog_tell_it_from_its_neighbours(ran: Any) -> None:
    report = ran("03", "Deactivate")["report"]
    assert max(f.auroc["validation"] for f in report.features[:5]) > 0.65
    assert report.features[0].score > report.features[-1].score + 0.1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_03_the_dog_goes_and_all_else_stays_to_the_bit(ran: Any) -> None:
    names = ran("03")
    assert names["dogs"]["base"] >= 0.75
    assert names["dogs"]["edited"] <= 0.25 < names["dogs"]["features by lot"]
    assert names["dogs"]["anchor"] <= 0.25
    assert names["same"]["edited"] == names["same"]["anchor"] == 1.0 > names["same"]["features by lot"]
    assert names["seen"](names["anchored"][: names["n"]], "wolf") >= 0.5 > names["seen"](names["before"][: names["n"]], "wolf")
    assert names["report"].features[0].auroc["validation"] > 0.6
