"""The image story of the demonstration: skipped with a sentence, or whole on a tiny pipeline."""

from dataclasses import replace
from pathlib import Path

import pytest
from t2i._pictures import ARTICLES, STYLES, THINGS, host_of, judges, patch_judges, write_concept, write_pipeline

from efface.base.errors import InputError
from efface.cli.demo import picture_page
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.report import render
from efface.t2i import demo

CONFIG = demo.StoryConfig(tokens=3000, d_sae=48, k=4, batch=128, target=5, ways=5, neighbours=5, general=6, draws=1)


def test_without_weights_there_is_one_sentence_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.t2i.aliases.packaged", lambda alias: tmp_path / "none" / alias)
    said: list[str] = []
    page, told = picture_page(tmp_path, True, said.append)
    assert page == ()
    assert "no weights for icons or icons-xs" in told
    assert "efface icons train" in told
    assert not said
    assert not list(tmp_path.iterdir())


def test_the_story_on_a_tiny_pipeline(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pipeline(tmp_path / "sd")
    config = replace(CONFIG, model=str(folder), concept=str(write_concept(tmp_path)))
    host = host_of(folder)
    patch_judges(monkeypatch, judges(host, ("test",), demo._suite(config)))
    monkeypatch.setattr("efface.t2i.models.load_pipeline", lambda model: host)
    words = [f"{a} {s} {t}".replace("  ", " ") for a in ARTICLES.values() for s in ("", *STYLES) for t in (*THINGS, "puppy")]
    monkeypatch.setattr(demo, "prompts", lambda: words)
    said: list[str] = []
    page, told = demo.image_story(tmp_path / "story", config, said.append)
    assert page is not None
    assert str(tmp_path / "story" / "evaluation") in told
    assert Edit.load(tmp_path / "story" / "edit").gate is not None
    rows = {r.name: r for r in page.result.rows}
    assert {"base", "itd", "blank output", "string filter", "random directions"} <= set(rows)
    assert page.result.card.split == "test"
    assert rows["itd"].metrics["UA"].mean > rows["base"].metrics["UA"].mean == 0
    assert [i.about for i in page.images] == ["target", "ways", "neighbours", "general"]
    assert any("was trained here on 3,000 vectors" in n for n in page.notes)
    assert (tmp_path / "story" / "evaluation" / "report.html").is_file()
    both = render(replace(page, title="Words", also=(page,)))
    assert both.count("<h1>") == 2
    assert "<h1>Words</h1>" in both
    assert f"<h1>Pictures: dog taken out of {host.name}</h1>" in both
    with pytest.raises(InputError, match="exists already"):
        demo.image_story(tmp_path / "story", config)
