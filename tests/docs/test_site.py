"""The site: its made pages say what the registry says, its commands parse, its pages load nothing from elsewhere."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scripts import script

from efface.base.config import from_mapping, parse_assignments
from efface.base.errors import UnknownName
from efface.deactivate import method, methods
from efface.sae import SAE, TrainConfig
from efface.t2i.drawing_config import DrawingConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site() -> Iterator[ModuleType]:
    """docs/make_site.py."""
    before = list(sys.path)
    sys.path.insert(0, str(DOCS))
    yield script(DOCS / "make_site.py")
    sys.path[:] = before


def test_each_eraser_has_a_page_with_all_of_its_settings(site: ModuleType) -> None:
    made = site.pages()
    for m in methods():
        page = made[f"erasers/{m.name}.md"]
        fields = [f for f in dataclasses.fields(m.load_config()) if f.init]
        assert fields
        for f in fields:
            assert f"\n| `{f.name}` | {site.default_of(f)} |" in page, (m.name, f.name)
        assert m.paper.split("(")[0].strip() in page
        assert len(re.findall(r"^# ", page, re.MULTILINE)) == 1
        assert "\n## Needs" in page or "\n## Cost" in page, m.name  # its card
        assert f"[`{m.name}`]" in made["erasers/index.md"]
    assert {n for n in made if n.startswith("erasers/")} == {"erasers/index.md", *(f"erasers/{m.name}.md" for m in methods())}
    assert "| `nonsense` |" not in made["erasers/pisces.md"]


def test_docstrings_become_markup_that_says_the_same(site: ModuleType) -> None:
    said = "`x` is `[*n d]`, |a| ** b of apply_ and `y`s\n* `one` item"
    assert site.plain(said) == "``x`` is ``[*n d]``, \\|a\\| \\*\\* b of apply\\_ and ``y``\\ s\n* ``one`` item"


def test_lines_break_between_words_of_code_and_not_within_figures(site: ModuleType) -> None:
    page = (
        "<pre><span></span>$ efface x --out no-dog --prompt &quot;a-b&quot; "
        + "y-" * 20
        + "</pre> a well-known <td><p>2 of 2, .5 [.4, 0.6]</p></td>"
    )
    found = site.unbroken(page)
    assert re.findall(r'<span class="whole">(.*?)</span>', found) == ["--out", "no-dog", "--prompt"]  # neither prose nor what is too long
    assert "<td><p>2&#160;of&#160;2, .5 [.4,&#160;0.6]</p></td>" in found
    assert re.sub(r"<[^>]+>", "", found).replace("&#160;", " ") == re.sub(r"<[^>]+>", "", page)


def commands(text: str) -> list[str]:
    """Lines of a page that run efface."""
    return re.findall(r"^(?:\$ |    )(efface .*)$", text, re.MULTILINE)


def test_every_setting_of_a_command_is_taken(site: ModuleType) -> None:
    pages = {p.name: p.read_text(encoding="utf-8") for p in DOCS.glob("*.md")} | site.pages()
    lines = [line for text in pages.values() for line in commands(text) if line.startswith("efface erase ")]
    assert len(lines) >= len(methods()) + 8
    for line in lines:
        settle(line)
    with pytest.raises(UnknownName, match="percentile"):
        settle("efface erase saeuron --set percentil=99")


def test_every_setting_of_training_is_one_of_the_trainer_or_of_drawing() -> None:
    known = {f.name for config in (TrainConfig, DrawingConfig) for f in dataclasses.fields(config)}
    lines = [line for p in DOCS.glob("*.md") for line in commands(p.read_text(encoding="utf-8")) if line.startswith("efface train ")]
    given = {word for line in lines for word in re.findall(r"--set (\w+)=", line)}
    assert {"denoise_steps", "guidance"} <= given <= known
    assert "denoise_step" not in known


def settle(line: str) -> None:
    """Builds the config of an erase command; raises where a setting is unknown or out of range."""
    words = shlex.split(line, comments=True)
    given = parse_assignments(after for word, after in pairwise(words) if word == "--set")
    from_mapping(method(line.split()[2]).load_config(), given, where=line)


def test_the_blocks_for_dictionaries_of_others_run_on_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "gpu.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (8, 16), "W_dec": (16, 8), "b_enc": (16,), "b_dec": (8,), "threshold": (16,)}
    np.savez(tmp_path / "params.npz", **{n: abs(rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()})
    monkeypatch.setattr(SAE, "from_pretrained", classmethod(lambda cls, release, name: SAE.load(tmp_path / "params.npz")))
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "gpu.md", "exec"), {})
    found = {p.parent.name: SAE.load(p.parent).card for p in tmp_path.rglob("efface.json")}
    assert {n: c["hook_point"] for n, c in found.items()} == {n: n for n in found}
    assert {c["model"] for c in found.values()} == {"google/gemma-2-2b", "meta-llama/Llama-3.1-8B"}
    assert len(found) == 6


class Loaded(HTMLParser):
    """What a page loads: addresses in link, script, img and their like; in style sheets url() and @import."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)
        self.found += in_style(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev", "index", "search", "genindex"):
            return
        names = {"link": ("href",), "script": ("src",), "iframe": ("src",), "img": ("src", "srcset"), "source": ("src", "srcset")}
        self.found += [values[n] for n in names.get(tag, ()) if n in values]


def in_style(text: str) -> list[str]:
    """Addresses in url() and @import."""
    return [a or b for a, b in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)]


def elsewhere(text: str) -> list[str]:
    """Addresses of other hosts that a page or style sheet loads."""
    return [a for a in Loaded(text).found if re.match(r"(?:[a-z]+:)?//", a)]


def test_what_loads_from_elsewhere_is_found() -> None:
    assert elsewhere(
        '<script src="https://cdn.example/a.js"></script><a href="https://fine.example">x</a><img src="//b.example/c.png">'
    ) == [
        "https://cdn.example/a.js",
        "//b.example/c.png",
    ]
    assert elsewhere("@font-face { src: url('http://fonts.example/f.woff2') }") == ["http://fonts.example/f.woff2"]
    assert not elsewhere('<link rel="stylesheet" href="_static/furo.css"><img src="data:image/png;base64,xx">')


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name in ("sphinx", "furo", "myst_nb", "sphinx_copybutton"):
        pytest.importorskip(name)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
        str(DOCS),
        str(tmp_path / "html"),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=1100, env={**os.environ, "EFFACE_DOCS_EXECUTE": "0"})
    assert built.returncode == 0, built.stderr[-3000:]
    files = [p for kind in ("*.html", "*.css") for p in (tmp_path / "html").rglob(kind)]
    assert len(files) > 40
    assert not {p.name: bad for p in files if (bad := elsewhere(p.read_text(encoding="utf-8")))}
    names = {p.relative_to(tmp_path / "html").as_posix() for p in files}
    assert {f"erasers/{m.name}.html" for m in methods()} | {"start.html", "notebooks/03_icons.html", "reference/efface.sae.html"} <= names
