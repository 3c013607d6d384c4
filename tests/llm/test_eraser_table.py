"""The table of erasers: its smoke tier, run on the synthetic model as `efface bench` runs it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts import script

from efface.base.errors import InputError
from efface.base.files import write_json
from efface.cli.main import run
from efface.deactivate.concept import Concept
from efface.deactivate.evaluation.grid import Grid
from efface.deactivate.evaluation.summary import Point, collect
from efface.llm.evaluation.cell_inputs import UNFITTED, fewer, parsed
from efface.llm.models import load_model
from efface.sae.config import SAEConfig, TrainConfig
from efface.sae.sources import HostSource
from efface.sae.trainer import train_many

ROOT = Path(__file__).parents[2]
TIERS = sorted(p for p in (ROOT / "benchmarks").glob("llm_erasers*.yaml"))
POINT = "layers.1.mlp_out"
UNFITTED_ROWS = {"identity", "string filter", "gold"}
QUICK = """
format: 1
extends: {smoke}
axes: {{eraser: [identity, string filter, random features, graddiff, pisces, gold]}}
common: {{decoys: false}}
where:
  - {{when: {{concept: synthetic/river}}, use: {{questions: 12}}}}
  - {{when: {{eraser: graddiff}}, use: {{set: {{steps: 12, lr: 5e-3}}, trials: [{{factor: 0.01}}, {{factor: 1.0}}]}}}}
"""


def tabled(home: Path, tier: Path) -> dict[str, Any]:
    """Runs a tier in `home`, with an SAE of few steps; its cells by eraser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("EFFACE_CACHE", str(home / "cache"))
        host = load_model("synthetic")
        source = HostSource(host, "embedded", [POINT], batch=512, seed=0, buffer=2048)
        saes = {POINT: SAEConfig("topk", d_in=host.d_model, d_sae=512, k=16)}
        train_many(saes, source, TrainConfig(steps=30, batch=512, lr=3e-3, warmup=5, seed=0), out=home / "SAES/synthetic/saes")
        status = run(["bench", str(tier), "--out", "out"])
    cells = json.loads((home / "out/table.json").read_text())["cells"]
    assert status == 0, [(c["eraser"], c["error"]) for c in cells if c["error"]]
    return {c["eraser"]: c for c in cells}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(the folder, cells by eraser) of some rows of the smoke tier."""
    home = tmp_path_factory.mktemp("table")
    (home / "quick.yaml").write_text(QUICK.format(smoke=ROOT / "benchmarks/llm_erasers_smoke.yaml"))
    return home, tabled(home, home / "quick.yaml")


@pytest.mark.slow
def test_the_smoke_tier(tmp_path: Path) -> None:
    cells = tabled(tmp_path, ROOT / "benchmarks/llm_erasers_smoke.yaml")
    assert set(cells) == set(Grid.load(ROOT / "benchmarks/llm_erasers.yaml").axes["eraser"])
    # five that train and PISCES, once for all rows that are made of them; four layers of linear erasers; one gate
    assert len(list((tmp_path / "FITS/llm_erasers_smoke").iterdir())) == 6 + 4 + 1
    found = {name: cell["figures"] for name, cell in cells.items()}
    assert found["gated elm"]["seconds of a fit"] == found["elm"]["seconds of a fit"]
    assert found["gated elm"]["stored bytes"] > found["elm"]["stored bytes"]
    for name in ("gated elm", "gated pisces"):
        assert found[name]["relearning area"] is None
        assert any("behind a gate" in a for a in found[name]["not attacked"])
    for name in ("leace", "rlace"):
        assert found[name]["relearning area"] > 0.5
    figures_are_sound(found)


def figures_are_sound(found: dict[str, Any]) -> None:
    for name, f in found.items():
        assert 0 <= f["efficacy"] <= 1, name
        low, high, _ = f["intervals"]["hm local"]
        assert low <= f["hm local"] <= high, name
        assert f["trials"] == (0 if name in UNFITTED_ROWS else 2), name
        assert (f["stored bytes"] > 1000) == (f["seconds to fit"] > 0) == (name not in UNFITTED_ROWS), name
        if name not in UNFITTED_ROWS:
            assert f["peak bytes"] is None or f["peak bytes"] > 10**8


@pytest.mark.slow
def test_figures_and_the_trial_that_was_best(table) -> None:
    home, cells = table
    found = {name: cell["figures"] for name, cell in cells.items()}
    figures_are_sound(found)
    fit = json.loads((home / "out/cells" / cells["graddiff"]["key"] / "work/fit.json").read_text())
    weak, strong = fit["tried"]
    assert weak["fall"] < strong["fall"]
    assert found["graddiff"]["chosen"] == max((0, 1), key=lambda i: fit["tried"][i]["objective"])
    assert fit["fits"] == 1


@pytest.mark.slow
def test_controls_are_what_they_must_be(table) -> None:
    found = {name: cell["figures"] for name, cell in table[1].items()}
    same, gold, filtered = found["identity"], found["gold"], found["string filter"]
    assert (same["efficacy"], same["specificity"], same["coherence"]) == (0, 1, 1)
    assert gold["efficacy"] > 0.8
    assert gold["KS to gold"] < 0.3 < 0.7 < same["KS to gold"]
    assert 0 < filtered["efficacy"] < 1  # some of the questions name a thing, others the domain
    assert filtered["coherence"] == 1
    assert found["random features"]["efficacy"] < found["pisces"]["efficacy"]


@pytest.mark.slow
def test_attacks_are_summed_up_and_what_cannot_be_attacked_says_so(table) -> None:
    found = {name: cell["figures"] for name, cell in table[1].items()}
    assert found["identity"]["union-ASR"] is None  # it answers all
    assert found["identity"]["answered under attack"] == 1
    assert found["identity"]["relearning area"] > 0.9 > 0.7 > found["gold"]["relearning area"]
    assert "union-ASR" not in found["string filter"]
    gold = found["gold"]
    assert set(gold["attacks"]) >= {"paraphrase", "prefix", "in-context", "translation", "quantisation", "relearning"}
    assert gold["union-ASR"] >= gold["union-ASR, asking"] > 0


@pytest.mark.slow
def test_fits_are_shared_and_nothing_is_run_twice(table, monkeypatch) -> None:
    home, cells = table
    assert len(list((home / "FITS/llm_erasers_smoke").iterdir())) == 2  # PISCES' also for its random features
    stamps = {p: p.stat().st_mtime_ns for p in (home / "out").rglob("cell.json")}
    assert len(stamps) == len(cells)
    monkeypatch.chdir(home)
    monkeypatch.setenv("EFFACE_CACHE", str(home / "cache"))
    assert run(["bench", "quick.yaml", "--out", "out"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (home / "out").rglob("cell.json")} == stamps


def make_tables() -> Any:
    return script(ROOT / "docs/make_tables.py")


@pytest.mark.slow
def test_the_page_is_made_of_the_folder(table, tmp_path, monkeypatch) -> None:
    made = make_tables()
    monkeypatch.setattr(made, "PAGE", tmp_path / "page.md")
    points = collect(table[0] / "out", ("model",))
    made.write(points)
    text = (tmp_path / "page.md").read_text()
    assert "## Packaged concepts, SmolLM2-135M\n\nNot run yet." in text
    rows = [line for line in text.splitlines() if line.startswith("| graddiff |")]
    assert len(rows) == 3
    assert all("1 of 1" in r for r in rows)
    assert (tmp_path / "page_synthetic.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "page_smollm2.png").exists()
    lost = [Point(p.at, p.inputs, "failed", {}, "ValueError: no") if p.at["eraser"] == "pisces" else p for p in points]
    assert "Failed: pisces on synthetic/river (ValueError: no)." in made.page(lost)


def test_cells_that_a_folder_has_not_run_stay_as_they_were() -> None:
    made = make_tables()
    at = [{"concept": c, "eraser": "elm"} for c in ("dogs", "baseball", "astronomy", "aviation")]
    kept = [Point(at[0], {}, "done", {"hm local": 0.1}), Point(at[1], {}, "done", {"hm local": 0.2}), Point(at[3], {}, "missing", {})]
    new = [
        Point(at[0], {}, "missing", {}),
        Point(at[1], {}, "done", {"hm local": 0.9}),
        Point(at[2], {}, "failed", {}, "no"),
        Point(at[3], {}, "missing", {}),
    ]
    assert made.laid_over(new, kept) == [kept[0], new[1], new[2], new[3]]


def test_gemma_s_cells_are_kept_apart_from_those_of_the_same_concepts(tmp_path, monkeypatch) -> None:
    made = make_tables()
    monkeypatch.setattr(made, "RESULTS", tmp_path / "all.json")
    monkeypatch.setattr(made, "PAGE", tmp_path / "page.md")
    for n, model in enumerate(("smollm2", made.GEMMA), 1):
        folder = tmp_path / model
        for eraser, status in (("rmu", "done"), ("pisces", "missing")):
            at = {"concept": "dogs", "eraser": eraser}
            cells = [*json.loads((folder / "table.json").read_text())["cells"]] if (folder / "table.json").is_file() else []
            figures = {"hm local": n / 10} if status == "done" else {}
            write_json(folder / "table.json", {"cells": [*cells, {**at, "key": eraser, "status": status, "figures": figures, "error": ""}]})
            if status == "done":
                write_json(folder / "cells" / eraser / "cell.json", {"inputs": {**at, "model": model}})
        made.main(folder)
    assert [(p.inputs.get("model"), p.at["eraser"], p.status) for p in made.stored()] == [
        ("smollm2", "rmu", "done"), (None, "pisces", "missing"), (made.GEMMA, "rmu", "done"), (made.GEMMA, "pisces", "missing"),
    ]  # fmt: skip
    page = made.PAGE.read_text(encoding="utf-8")
    own = dict(zip(made.GROUPS, page.split("\n## ")[1:], strict=True))
    assert "| rmu | 0.10 | 1 of 1 |" in own["smollm2"]
    assert "| rmu | 0.20 | 1 of 1 |" in own[made.GEMMA]
    assert all("dogs 1 of 2 (not pisces)" in own[model] for model in ("smollm2", made.GEMMA))
    assert "Not run yet." in own["synthetic"]


def test_means_are_of_concepts_that_every_eraser_was_run_on() -> None:
    made = make_tables()
    figures = {"elm": {"dogs": 0.2, "baseball": 0.4}, "rmu": {"dogs": 0.3, "baseball": 0.5, "astronomy": 0.9}}
    points = [
        Point({"concept": c, "eraser": e}, {"model": "smollm2"}, "done" if c in figures[e] else "missing", {"hm local": figures[e].get(c)})
        for c in ("dogs", "baseball", "astronomy")
        for e in figures
    ]
    page = made.page(points)
    assert re.findall(r"^\| rmu \| (\S+) \| 2 of 2", page, re.MULTILINE) == ["0.40"]
    assert "astronomy 1 of 2 (not elm)" in page
    assert re.findall(r"^\| rmu \| (\S+) \| 1 of 1", page, re.MULTILINE) == ["0.30", "0.50", "0.90"]
    assert made.whole([p for p in points if p.at["concept"] == "astronomy"])  # none is whole: all that there are


def test_the_page_in_the_documents_is_what_the_results_say() -> None:
    made = make_tables()
    assert made.RESULTS.is_file() == made.PAGE.is_file()  # the page is there as soon as the standard tier has been run
    if made.RESULTS.is_file():
        page = made.page(made.stored())
        assert made.PAGE.read_text(encoding="utf-8") == page, "run: python docs/make_tables.py"


@pytest.mark.parametrize("tier", TIERS, ids=lambda p: p.stem)
def test_every_tier_is_made_of_cells_at_equal_budgets(tier: Path) -> None:
    grid = Grid.load(tier)
    for cell in grid.cells():
        told, _, trials, attacks = parsed(cell.inputs)
        assert len(trials) == (0 if told.row in UNFITTED else told.budget), cell.axes
        assert attacks
        assert bool(told.gold) == told.concept.startswith("synthetic/"), cell.axes
        assert {g.rpartition("-")[0].removeprefix("synthetic-without-") for g in told.gold} <= {told.concept.removeprefix("synthetic/")}
    assert not [c for c in grid.cells() if c.axes["eraser"] == "gold" and not str(c.axes["concept"]).startswith("synthetic/")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trials": [{}, {}, {}]}, "3 trials of elm and a budget of 2"), ({"trials": {"factor": 1}}, "a list of mappings"),
        ({"attacks": ["gcg"]}, "map attacks"), ({"row": "gold"}, "needs gold"), ({"row": "base", "gated": True}, "is of no edit"),
        ({"row": "random features", "draws": 0}, "draws of at least 1"), ({"rwo": "base"}, "row"), ({"questions": -1}, "questions must be"),
    ],
)  # fmt: skip
def test_bad_inputs_are_named(change: dict[str, Any], says: str) -> None:
    fit = {"model": "synthetic", "concept": "synthetic/river", "eraser": "elm", "budget": 2, "trials": [{}, {}]}
    assert parsed(fit)[0].eraser == "elm"
    with pytest.raises(InputError, match=says):
        parsed({**fit, **change})


def test_fewer_questions_leave_train_alone() -> None:
    whole = Concept.load("synthetic/river")
    cut = fewer(whole, 10)
    assert {s: len(q) for s, q in cut.questions.items()} == {"train": len(whole.questions["train"]), "validation": 10, "test": 10}
    assert set(cut.questions["test"]) < set(whole.questions["test"])
    assert len(cut.neighbour_questions["validation"]) == 10
    assert fewer(whole, 0) is whole
