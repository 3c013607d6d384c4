"""The image story of the demonstration: skipped with a sentence, or whole on a tiny pipeline."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from t2i._pictures import ARTICLES, STYLES, THINGS, host_of, judges, patch_judges, word_sae, write_concept, write_pipeline

from efface.base.errors import InputError
from efface.cli.demo import picture_page
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.report import PAGES, render
from efface.t2i import demo

CONFIG = demo.StoryConfig(tokens=3000, d_sae=48, k=4, batch=128, target=5, ways=5, neighbours=5, general=6, draws=1, lines=80, pictured=1)


def test_without_weights_there_is_one_sentence_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.t2i.aliases.packaged", lambda alias: tmp_path / "none" / alias)
    said: list[str] = []
    page, told = picture_page(tmp_path, True, said.append)
    assert page == ()
    assert "no weights for icons or icons-xs" in told
    assert "efface icons train" in told
    assert not said
    assert not list(tmp_path.iterdir())


def test_the_story_with_a_packaged_sae(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(write_pipeline(tmp_path / "sd"))
    config = replace(CONFIG, model="icons-xs", concept=str(write_concept(tmp_path)))
    word_sae(host).save(tmp_path / "planted")
    patch_judges(monkeypatch, judges(host, ("test",), demo._suite(config)))
    monkeypatch.setattr("efface.t2i.models.load_pipeline", lambda model: host)
    monkeypatch.setattr(demo, "packaged_saes", lambda alias: [tmp_path / "planted"])
    monkeypatch.setattr("efface.t2i.aliases.packaged", lambda alias: tmp_path / "sd")  # which has no table of cells
    monkeypatch.setattr(
        demo, "prompts", lambda: [f"{a} {t}" for a in ARTICLES.values() for t in (*THINGS, "puppy")]
    )  # its encoder reads 12 tokens
    said: list[str] = []
    page, told = demo.image_story(tmp_path / "story", config, said.append)
    assert page is not None
    assert str(tmp_path / "story" / "evaluation") in told
    assert Edit.load(tmp_path / "story" / "edit").gate is not None
    rows = {r.name: r for r in page.result.rows}
    assert {"base", "itd", "blank output", "string filter"} <= set(rows)
    assert any(a.startswith("random directions: ") for a in page.result.extra["absent"])  # words are replaced, nothing is written
    assert page.result.card.split == "test"
    assert (rows["base"].metrics["UA"].mean, rows["itd"].metrics["UA"].mean, rows["itd"].metrics["kept"].mean) == (0, 1, 1)
    assert [i.about for i in page.images] == ["target", "ways", "neighbours", "general"]
    assert any("packaged one at planted" in n for n in page.notes)
    assert any("No table of admitted cells" in n for n in page.notes)
    written = (tmp_path / "story" / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert f'href="{PAGES}"' in written
    pages = (tmp_path / "story" / "evaluation" / PAGES).read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="data">(.*?)</script>', pages, re.S).group(1))
    assert shown["concepts"][0]["gate"]["calibration"]["roc"]
    assert sum("pictures" in d for d in shown["saes"][0]["details"].values()) == 1
    both = render(replace(page, title="Words", also=(page,)))
    assert both.count("<h1>") == 2
    assert "<h1>Words</h1>" in both
    assert f"<h1>Pictures: dog taken out of {host.name}</h1>" in both
    with pytest.raises(InputError, match="exists already"):
        demo.image_story(tmp_path / "story", config)


def test_without_a_packaged_sae_one_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(write_pipeline(tmp_path / "sd"))
    words = [f"{a} {s} {t}".replace("  ", " ") for a in ARTICLES.values() for s in ("", *STYLES) for t in (*THINGS, "puppy")]
    monkeypatch.setattr(demo, "prompts", lambda: words)
    sae, told = demo._sae(host, str(tmp_path / "sd"), tmp_path / "out", CONFIG, lambda text: None)
    assert sae.card["hook_point"] == "text_encoder.layers.2.resid_post"
    assert (sae.cfg.d_sae, sae.cfg.k) == (CONFIG.d_sae, CONFIG.k)
    assert sae.card["metrics"]["fvu"] < 1
    assert "trained here on 3,000 vectors" in told
    host.check_sae(sae)
    assert not list((tmp_path / "sd").rglob("cfg.json"))


def test_the_prompts_are_those_of_train_alone() -> None:
    found = demo.prompts()
    assert len(found) == len(set(found)) > 5000
    assert {"an icon of dog", "an icon of pooch", "an icon of the flag of France"} <= set(found)
    assert not {"dog icon", "a picture of dog", "an icon of man's best friend"} & set(found)
