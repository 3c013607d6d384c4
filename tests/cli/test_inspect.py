"""`efface inspect` and `efface serve` from the command line."""

import json
import re
import threading
import urllib.request

import pytest
from cli._kit import make_places, status

from efface.cli import inspecting
from efface.deactivate.inspect import server as serving
from efface.llm import gating


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
        ("inspect --edit {root}/edit --concept {root}/magic.json --out {out}/p.html", "--sae DIR too"),
        ("inspect --edit {root}/edit --prompt hello --out {out}/p.html", "--sae DIR too"),
        ("inspect --result {root}/edit --out {out}/p.html", "result.json is missing"),
        ("inspect --sae {root}/sae --model {root}/model --pictures 3 --corpus {corpus} --out {out}/p.html", "draws none"),
        ("serve {root}/out", "no SAE folder"),
        ("serve {root} --no-model --concept {root}/magic.json", "--no-model"),
    ],
)
def test_bad_input_is_one_line(places, capsys, line, words) -> None:
    code, out, err = status(line.format(root=places, out=places.out, corpus=corpus(places.root)), capsys)
    assert (code, out) == (2, "")
    assert words in err
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

    monkeypatch.setattr(serving, "serve", once)
    code, out, err = status(f"serve {places} --model {places}/model --port 0 --json", capsys)
    assert code == 0, err
    said = json.loads(out)
    assert said["address"].startswith("http://127.0.0.1:")
    assert (said["saes"], said["edits"], said["results"]) == (1, 1, 0)
    values = json.loads(re.search(r'id="data">(.*?)</script>', asked[0], re.S).group(1))
    assert [s["store"] for s in values["saes"]] == [None]  # no evidence yet: the page says how to collect it
    assert [e["eraser"] for e in values["edits"]] == ["test"]
    assert values["live"] == {"prompts": True, "pictures": False}
    assert inspecting.DOCUMENTS >= 200
