"""eval, compare, features, gate, erase --gated, generate, export on a pipeline: end to end, and what they refuse."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from t2i._kit import changed, draw, edit_of, layer_part, weights_part
from t2i._pictures import (
    SMALL,
    STEPS,
    STYLES,
    dog_edit,
    dogs,
    host_of,
    judges,
    patch_judges,
    ungated,
    values,
    word_sae,
    write_concept,
    write_pipeline,
)

from efface.base.errors import InputError
from efface.base.files import digest
from efface.cli.editing import erase_app
from efface.cli.main import run
from efface.deactivate import registry
from efface.deactivate.edit import Edit
from efface.deactivate.gate import Gate
from efface.sae.evidence import FeatureStore
from efface.t2i.icons.draw import folder_digest

SETS = [word for s in SMALL for word in ("--set", s)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sd`, `sae`, `edit`, `hook`, `weights`, `dog.json`."""
    root = tmp_path_factory.mktemp("commands")
    host = host_of(write_pipeline(root / "sd"))
    sae = word_sae(host)
    sae.card |= {"model": str(root / "sd"), "model_digest": host.reader([sae.card["hook_point"]]).digest}
    sae.save(root / "sae")
    dog_edit(host).save(root / "edit")
    edit_of(host, layer_part(host)).save(root / "hook")
    edit_of(host, weights_part(host, "cross_attention", size=2.0)).save(root / "weights")
    write_concept(root)
    return root


@pytest.fixture(scope="module")
def copies(places: Path) -> list:
    return judges(host_of(places / "sd"))


@pytest.fixture(autouse=True)
def _ground(cache: Path, copies: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is empty, and the icons' judges are those that know the tiny pipeline."""
    patch_judges(monkeypatch, copies)


@pytest.fixture
def efface(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_eval_writes_figures_report_and_sheets_and_results_compare(places: Path, tmp_path: Path, efface) -> None:
    line = ["eval", "--model", places / "sd", "--concept", places / "dog.json", *STEPS, *SETS]
    code, out, err = efface(*line, "--edit", places / "edit", "--out", tmp_path / "one", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told == {"out": str(tmp_path / "one"), **json.loads((tmp_path / "one" / "result.json").read_text())}
    rows = {r["name"]: r for r in told["rows"]}
    assert list(rows) == ["base", "itd", "blank output", "string filter", "random features", "random directions"]
    assert (rows["base"]["metrics"]["UA"]["mean"], rows["itd"]["metrics"]["UA"]["mean"]) == (0, 1)
    assert rows["itd"]["metrics"]["kept"]["mean"] == rows["itd"]["metrics"]["IRA_nb"]["mean"] == 1
    assert rows["itd"]["metrics"]["UA_seen"]["mean"] == 0  # the planted feature reads «dog», not «puppy»
    assert rows["random features"]["metrics"]["UA"]["mean"] == 0  # behind the same gate, and silent on these prompts
    assert rows["random directions"]["metrics"]["UA"]["mean"] == 1  # a judge that knows pictures by heart cannot tell harm from change
    assert told["card"]["extra"]["sampling"]["steps"] == 2
    assert told["card"]["extra"]["sampling"]["scheduler"] == "DDIMScheduler"
    assert "No table of admitted cells" in err
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert "No table of admitted cells" in page
    sheets = sorted(p.name for p in (tmp_path / "one" / "sheets").iterdir())
    assert sheets == [f"{g}-{r}.png" for g in ("general", "neighbours", "target", "ways") for r in ("base", "edited")]
    bytes_of = {p.name: p.read_bytes() for p in (tmp_path / "one" / "sheets").iterdir()}
    assert bytes_of["general-base.png"] == bytes_of["general-edited.png"]
    assert bytes_of["target-base.png"] != bytes_of["target-edited.png"]
    code, out, err = efface(*line, "--out", tmp_path / "base", "--suite", "images")
    assert code == 0, err
    assert not out.startswith("{")
    assert (tmp_path / "base" / "sheets" / "target-base.png").read_bytes() == bytes_of["target-base.png"]
    code, out, err = efface("compare", tmp_path / "one", tmp_path / "base", "--json")
    assert code == 0, err
    assert "itd" in out
    single = [*line, "--judge", "icons/object/A", "--out", tmp_path / "single", "--json"]
    code, out, err = efface(*single)
    assert code == 0, err
    assert json.loads(out)["card"]["judge"] == ", ".join(f"icons/{h}/A" for h in ("object", "style", "flag", "mark"))
    code, _, err = efface("compare", tmp_path / "one", tmp_path / "single")
    assert code == 2
    assert "judge" in err


def test_eval_refuses(places: Path, tmp_path: Path, efface, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.t2i.models.packaged", lambda alias: places / "none" / alias)
    start = ["eval", "--model", places / "sd", "--device", "cpu", "--out", tmp_path / "x"]
    line = [*start, "--concept", places / "dog.json"]
    unjudged = tmp_path / "unjudged.json"
    unjudged.write_text(json.dumps({k: v for k, v in values().items() if k != "judge"}))
    unlabelled = tmp_path / "unlabelled.json"
    unlabelled.write_text(json.dumps({**values(), "target": {"validation": ["the dog"]}}))
    before = sorted(tmp_path.iterdir())
    for words, says in (
        ([*line, "--suite", "imges"], "unknown suite 'imges'.*language and images"),
        ([*line, "--suite", "language"], "--suite language: for language models"),
        ([*line, "--judge", "icns"], "unknown judge 'icns'.*icons"),
        ([*line, "--judge", "icons/objct"], "unknown head of the judges icons 'objct'.*object"),
        ([*line, "--judge", "icons/style"], "judged by its object"),
        ([*line, "--sae", places / "sae"], "--sae: an edit of a pipeline carries its SAEs"),
        ([*line, "--steps", "0"], "steps must be at least 1"),
        ([*line, "--guidance", "nan"], "guidance must be a number"),
        ([*line, "--split", "tst"], "validation or test"),
        ([*line, "--set", "generl=3"], "'generl'.*general"),
        ([*line, "--set", "controls=[random feature]"], "random feature"),
        ([*line, "--set", "seeds=[1,1]"], "seeds"),
        ([*line, "--edit", places / "nowhere"], "nowhere is not an edit folder"),
        ([*line, "--cells", places / "dog.json"], "dog.json"),
        ([*start, "--concept", unjudged], "has no judge"),
        ([*start, "--concept", unlabelled], "has no label 'object'"),
        (["eval", "--model", "icons", "--concept", places / "dog.json", "--out", tmp_path / "x"], "efface icons train"),
        (["eval", "--model", "smollm2", "--concept", "baseball", "--out", tmp_path / "x", "--steps", "3"], "--steps: for pictures"),
        (["eval", "--model", "smollm2", "--concept", "nothing", "--out", tmp_path / "x", "--gold", "icons"], "--gold: for pictures"),
        (["eval", "--model", "smollm2", "--concept", "baseball", "--out", tmp_path / "x", "--suite", "images"], "image pipelines"),
    ):
        code, out, err = efface(*words)
        assert (code, out) == (2, ""), (words, err)
        assert re.search(says, err), (words, err)
        assert len(err.strip().splitlines()) <= 2
    assert sorted(tmp_path.iterdir()) == before


def test_only_admitted_cells_are_asked_for(places: Path, tmp_path: Path, efface) -> None:
    line = ["eval", "--model", places / "sd", "--concept", places / "dog.json", *STEPS, *SETS, "--json"]

    def table(about: dict) -> str:
        cells = [{"name": "dog", "style": s, "admitted": s == "red", "judges": {}} for s in STYLES]
        found = {"format": 1, "about": about, "cells": cells}
        return json.dumps({**found, "digest": digest(found)})

    (tmp_path / "cells.json").write_text(table({"steps": 20, "guidance": 3.0, "digest": folder_digest(places / "sd")}))
    code, out, err = efface(*line, "--cells", tmp_path, "--out", tmp_path / "some")
    assert code == 0, err
    assert "admitted with steps 20, guidance 3" in err
    code, whole, err = efface(*line, "--out", tmp_path / "all")
    assert code == 0, err
    n, all_of = (json.loads(x)["extra"]["prompts"]["target"] for x in (out, whole))
    assert (n, all_of) == (2 * 2, 2 * 5)
    assert json.loads(out)["card"]["extra"]["cells"] != json.loads(whole)["card"]["extra"]["cells"] == "all"
    (tmp_path / "cells.json").write_text(table({"digest": "0" * 64, "model": "another"}))
    code, _, err = efface(*line, "--cells", tmp_path / "cells.json", "--out", tmp_path / "no")
    assert code == 2
    assert "of another model (another)" in err


def test_features_of_a_concept(places: Path, efface) -> None:
    line = ["features", "--sae", places / "sae", "--concept", places / "dog.json", "--device", "cpu"]
    code, out, err = efface(*line, "--split", "test", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["looks"] >= 1
    first = found["features"][0]
    assert (first["id"], first["hook_point"], first["label"]) == (0, "text_encoder.layers.0.resid_pre", "dog")
    assert first["prompts"]
    assert all("dog" in p.split() for p in first["prompts"])
    assert first["shares"] == {"target": 0.5, "neighbours": 0.0, "general": 0.0}  # the other half says «puppy»
    assert first["peaks"]["target"] > 0 == first["peaks"]["general"]
    assert first["auroc"]["validation"] == 0.75
    assert first["auroc"]["test"] == pytest.approx(2 / 3)  # a third each: «dog», «puppy», «puppy by the sea»
    assert {f["id"] for f in found["features"]} == {0}
    assert found["set_auroc"]["validation"]["all"] == 0.75
    code, out, err = efface(*line)
    assert code == 0, err
    assert "looks at test" not in out
    assert "fires on target | neighbours | general" in out
    assert "50% | 0% | 0%" in out
    for words, says in (
        (["features", "--sae", places / "sae", "--all", "--device", "cpu"], "packaged prompts for the miniature alone"),
        ([*line[:3], "--concept", "baseball", "--device", "cpu"], "takes 12 at most"),
        ([*line, "--model", "icns"], "icons"),
        (["features", "--sae", places / "weights", "--concept", places / "dog.json"], "no SAE folder"),
    ):
        code, out, err = efface(*words)
        assert (code, out) == (2, ""), (words, err)
        assert says in err, (words, err)


def test_evidence_of_all_features_is_read_from_prompts(places: Path, tmp_path: Path, efface) -> None:
    prompts = [f"{a} {n}" for a in ("a big", "the", "a red", "my", "an old") for n in ("dog", "cat", "bus", "tree")]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    line = [
        "features",
        "--sae",
        places / "sae",
        "--all",
        "--corpus",
        tmp_path / "prompts.txt",
        "--out",
        tmp_path / "store",
        "--device",
        "cpu",
    ]
    code, out, err = efface(*line, "--json")
    assert code == 0, err
    (made,) = json.loads(out)["stores"].values()
    assert made["documents"] == len(prompts)
    store = FeatureStore.open(tmp_path / "store")
    assert {c.pieces[c.peak].strip() for c in store.contexts(0, "top")} == {"dog"}
    assert store.row(20).fired == 0


def test_a_gate_alone_and_before_an_edit(places: Path, tmp_path: Path, efface, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["gate", "--sae", places / "sae", "--concept", places / "dog.json", "--device", "cpu", "--fpr", "0", "--split", "test"]
    code, out, err = efface(*line, "--out", tmp_path / "gate", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["looks"] >= 1
    assert report["fires on general"]["rate"] == report["fires on neighbours"]["rate"] == 0
    assert report["fires on target"]["rate"] == pytest.approx(1 / 3)  # «dog»; neither «puppy» nor «puppy by the sea»
    assert report["fires on general"]["high"] > 0
    assert report["AUROC target against general"]["auroc"] > 0.6
    assert report["roc"][0] == [0, 0]
    assert report["roc"][-1] == [1, 1]
    host = host_of(places / "sd")
    gate = Gate.load(tmp_path / "gate")
    assert gate.fires(gate.score(host, ["my dog", "my puppy", "my cat"])).tolist() == [True, False, False]
    code, _, err = efface(*line, "--out", tmp_path / "token", "--per", "token")
    assert code == 2
    assert "decides per prompt" in err
    assert not (tmp_path / "token").exists()
    row = registry.Method(
        "ungated", "t2i", ("hook",), "t2i._pictures:UngatedConfig", "t2i._pictures:ungated", "A test (2026)", ("sae",), True
    )
    monkeypatch.setitem(registry._TABLE, "ungated", row)
    assert ungated(host, [dogs()], None, row.load_config()(), [word_sae(host)]).gate is None
    erase = ["ungated", "--model", places / "sd", "--concept", places / "dog.json", "--sae", places / "sae", "--device", "cpu"]

    def run_erase(*words: object) -> None:
        erase_app()(args=[str(w) for w in words], standalone_mode=False)

    run_erase(*erase, "--gated", "--out", tmp_path / "gated")
    run_erase(*erase, "--gate", tmp_path / "gate", "--out", tmp_path / "given")
    run_erase(*erase, "--out", tmp_path / "bare")
    prompts = ["my dog", "my puppy", "my cat"]
    base = draw(host, prompts)
    for name, gated in (("gated", True), ("given", True), ("bare", False)):
        edit = Edit.load(tmp_path / name)
        assert (edit.gate is not None) == gated
        with edit.applied(host):
            assert changed(draw(host, prompts), base).tolist() == [True, False, False]
    with pytest.raises(InputError, match="--gated calibrates a gate on features of an SAE"):
        run_erase(*erase[:5], "--device", "cpu", "--gated", "--out", tmp_path / "x")
    with pytest.raises(InputError, match="itd puts a gate of its own"):
        run_erase("itd", *erase[1:], "--gated", "--set", "preset=efface", "--set", "n_contrast=1", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_generate_with_an_edit(places: Path, tmp_path: Path, efface) -> None:
    line = ["generate", "--model", places / "sd", *STEPS, "--prompt", "my dog", "--prompt", "my cat", "--seed", "3"]
    for name, edits in (("base", []), ("edited", ["--edit", places / "edit"])):
        code, out, err = efface(*line, *edits, "--out", tmp_path / name, "--json")
        assert code == 0, err
        assert json.loads(out)["pictures"] == [str(tmp_path / name / f"00{i}.png") for i in range(2)]
    same = [_same(tmp_path / "base" / f"00{i}.png", tmp_path / "edited" / f"00{i}.png") for i in range(2)]
    assert same == [False, True]
    code, out, err = efface(*line, "--edit", places / "edit", "--edit", places / "edit", "--out", tmp_path / "twice")
    assert (code, out) == (2, "")
    assert "lies on this model already" in err
    assert not (tmp_path / "twice").exists()


def _same(a: Path, b: Path) -> bool:
    with Image.open(a) as one, Image.open(b) as other:
        return one.tobytes() == other.tobytes()


def test_export_says_what_loads(places: Path, tmp_path: Path, efface) -> None:
    code, out, err = efface("export", places / "weights", "--format", "diffusers", "--out", tmp_path / "adapter", "--json")
    assert code == 0, err
    assert json.loads(out)["format"] == "diffusers"
    assert (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    code, out, err = efface("export", places / "weights", "--format", "lora", "--out", tmp_path / "x")
    assert (code, out) == (2, "")
    assert "use diffusers" in err
    assert not (tmp_path / "x").exists()
