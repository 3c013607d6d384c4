"""`efface inspect` and `efface serve` from the command line."""

import json
import re
import threading
import urllib.request
from dataclasses import replace

import pytest
from cli._kit import make_places, status
from result_cards import result

from efface.base.files import cache_dir
from efface.cli import inspecting
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.cards import looks
from efface.deactivate.inspect import server as serving
from efface.llm import gating
from efface.sae import SAE


@pytest.fixture
def places(tmp_path, cache):
    return make_places(tmp_path)


def data(path):
    page = path.read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))


def corpus(folder):
    lines = [
        f"the {a} and the {b} are old" for a in ("wizard", "piano", "river", "castle") for b in ("witch", "guitar", "road", "bread", "wand")
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines * 3))
    return folder / "docs.jsonl"


def test_one_command_makes_a_page(places, capsys, monkeypatch) -> None:
    monkeypatch.setattr(gating, "FEWEST", 5)
    monkeypatch.setattr(gating, "LEAST_TEXTS", 2)
    line = (
        f"inspect --sae {places}/sae --model {places}/model --concept {places}/magic.json --edit {places}/edit --corpus {corpus(places.root)} "
        f"--documents 50 --features 10 --out {places.out}/page.html --json"
    )
    code, out, err = status(line, capsys)
    assert code == 0, err
    report = json.loads(out)
    assert report["features"] == 10
    assert report["bytes"] == (places.out / "page.html").stat().st_size
    values = data(places.out / "page.html")
    assert len(values["saes"][0]["rows"]) == 10
    assert values["concepts"][0]["name"] == "magic"
    assert values["concepts"][0]["report"]["features"]
    assert values["concepts"][0]["gate"]["calibration"]["roc"] or values["concepts"][0]["no_gate"]
    assert values["edits"][0]["changes"]
    assert len(values["prompts"]) > 3
    assert "reading 50 documents" in err
    # the second time nothing is read again for evidence and concept
    code, _, err = status(line.replace("page.html", "again.html"), capsys)
    assert code == 0
    assert "reading" not in err
    assert data(places.out / "again.html")["concepts"] == values["concepts"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("inspect --out {out}/p.html", "--sae DIR"),
        ("inspect --sae {root}/sae --out {out}/p.txt", "FILE.html"),
        ("inspect --sae {root}/sae --out {root}/magic.json", "exists already"),
        ("inspect --sae {root}/nothing --out {out}/p.html", "no SAE folder"),
        ("inspect --sae {root}/sea --out {out}/p.html", "nearest: {root}/sae"),
        ("inspect --sae icon --out {out}/p.html", "nearest: icons"),
        ("inspect --sae hub:nothing --out {out}/p.html", "hub:RELEASE/ID"),
        ("inspect --sae {root}/sae --split tets --out {out}/p.html", "nearest: test"),
        ("inspect --edit {root}/edit --concept {root}/magic.json --out {out}/p.html", "--sae DIR too"),
        ("inspect --edit {root}/edit --prompt hello --out {out}/p.html", "--sae DIR too"),
        ("inspect --result {root}/edit --out {out}/p.html", "result.json is missing"),
        ("inspect --sae {root}/sae --model {root}/model --pictures 3 --corpus {corpus} --out {out}/p.html", "draws none"),
        ("serve {root}/out", "serve: {root}/out: no SAE, edit or result (cfg.json) there or below"),
        ("serve {root}/magic.json", "magic.json is no folder; name one with SAEs, edits or results"),
        ("serve {root}/nowhere", "nowhere is no folder"),
        ("serve {root} --no-model --concept {root}/magic.json", "--no-model"),
    ],
)
def test_bad_input_is_one_line(places, capsys, line, words) -> None:
    code, out, err = status(line.format(root=places, out=places.out, corpus=corpus(places.root)), capsys)
    assert (code, out) == (2, "")
    assert words.format(root=places) in err
    assert not list(places.out.iterdir())


def test_serve_finds_what_lies_below_and_answers(places, capsys, monkeypatch) -> None:
    (places.root / "other").rename(places.root / ".other")
    asked = []

    def once(pages, port, ready):
        with serving.PageServer(pages, port) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            ready(server.address)
            asked.append(urllib.request.urlopen(server.address, timeout=10).read().decode())
            server.shutdown()
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "serve", once)
    code, out, err = status(f"serve {places} --model {places}/model --port 0 --json", capsys)
    assert code == 0, err
    assert "interrupted" not in err  # it is how serving ends
    said = json.loads(out)
    assert said["address"].startswith("http://127.0.0.1:")
    assert (said["saes"], said["edits"], said["results"]) == (1, 1, 0)
    values = json.loads(re.search(r'id="data">(.*?)</script>', asked[0], re.S).group(1))
    assert [s["store"] for s in values["saes"]] == [None]  # no evidence yet: the page says how to collect it
    assert [e["eraser"] for e in values["edits"]] == ["test"]
    assert values["live"] == {"prompts": True, "pictures": False}
    assert inspecting.DOCUMENTS >= 200


def test_test_is_shown_when_asked_and_each_look_is_counted_once(places, capsys, monkeypatch, cache) -> None:
    concept = Concept.load(str(places.root / "magic.json"))
    seen = lambda: looks(cache_dir() / "looks", concept.digest, "test")  # noqa: E731
    line = f"inspect --sae {places}/sae --model {places}/model --concept {places}/magic.json --no-gate --corpus {corpus(places.root)} --out {places.out}/"

    def auroc(name):
        return data(places.out / name)["concepts"][0]["report"]["features"][0]["auroc"]

    assert status(line + "a.html", capsys)[0] == 0
    assert auroc("a.html")["validation"] is not None
    assert auroc("a.html").get("test") is None
    assert seen() == 0
    assert status(line + "b.html --split test", capsys)[0] == 0
    assert auroc("b.html")["test"] is not None
    assert data(places.out / "b.html")["concepts"][0]["looks"] == seen() == 1
    assert status(line + "c.html --split test", capsys)[0] == 0  # kept from before: no new look
    assert seen() == 1
    code, out, _ = status(f"features --sae {places}/sae --model {places}/model --concept {places}/magic.json --json", capsys)
    assert (code, json.loads(out)["features"][0]["auroc"]["test"], seen()) == (0, None, 1)
    code, out, _ = status(f"features --sae {places}/sae --model {places}/model --concept {places}/magic.json --split test --json", capsys)
    assert (json.loads(out)["features"][0]["auroc"]["test"] is None, json.loads(out)["looks"], seen()) == (False, 2, 2)


def test_figures_of_another_edit_are_refused(places, capsys) -> None:
    edit = Edit.load(places.root / "edit")
    for name, digests in (("own", [edit.digest]), ("other", ["f" * 64])):
        found = result("attacked", suite="attacks, language", concept="magic", extra={})
        replace(found, extra={"edits": digests}).save(places.root / name / "result.json")
    line = f"inspect --edit {places}/edit --result {places}/%s --out {places.out}/p.html"
    code, _, err = status(line % "other", capsys)
    assert code == 2
    assert "attacks edit ffffffffffff" in err
    assert not list(places.out.iterdir())
    assert status(line % "own", capsys)[0] == 0
    assert data(places.out / "p.html")["results"][0]["edits"] == [edit.digest]
    # without an edit nothing is set beside it
    assert status(f"inspect --result {places}/other --out {places.out}/q.html", capsys)[0] == 0


def test_an_sae_of_sae_lens_opens_in_one_command(places, capsys, monkeypatch) -> None:
    lens = pytest.importorskip("sae_lens")
    theirs = lens.TopKSAE(lens.TopKSAEConfig(d_in=32, d_sae=24, k=4))
    theirs.cfg.metadata.hook_name, theirs.cfg.metadata.model_name = "blocks.1.hook_resid_post", str(places.root / "model")
    theirs.save_model(places.root / "theirs")
    line = f"inspect --sae %s --corpus {corpus(places.root)} --features 5 --out {places.out}/%s.html"
    code, _, err = status(line % (places.root / "theirs", "a"), capsys)
    assert code == 0, err
    about = data(places.out / "a.html")["saes"][0]
    assert (about["hook_point"], about["d_sae"], len(about["rows"])) == ("layers.1.resid_post", 24, 5)
    asked = []
    monkeypatch.setattr(SAE, "from_pretrained", lambda *a: asked.append(a) or SAE.load(places.root / "theirs"))
    for name in ("b", "c"):
        assert status(line % ("hub:release/layer_1/width_24", name), capsys)[0] == 0
    assert asked == [("release", "layer_1/width_24")]  # the second time it lies in the cache
