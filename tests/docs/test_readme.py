"""The README: its Python example, run as it stands on a tiny host; the commands it names; its table and its figures."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from planted import magic, planted_sae
from scripts import script
from tiny import tiny_host

import efface.llm
from efface.cli.main import app
from efface.deactivate import methods
from efface.deactivate.concept import Concept
from efface.sae import SAE

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block
    host = tiny_host()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(efface.llm, "load_model", lambda name: host, raising=False)
    monkeypatch.setattr(SAE, "load", lambda folder: planted_sae(host))
    monkeypatch.setattr(Concept, "load", lambda source: source if isinstance(source, Concept) else magic())
    before = {n: p.clone() for n, p in host.model.named_parameters()}
    # A random model has no text that the filters could judge an edit by.
    code = block.group(1).replace("mu=7.0", "mu=7.0, filters=False")
    assert "filters=False" in code
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("[") >= 2
    assert (tmp_path / "baseball-edit" / "edit.json").is_file()
    assert all(p.equal(before[n]) for n, p in host.model.named_parameters())


def test_every_command_of_the_readme_exists() -> None:
    commands = set(re.findall(r"^efface (\w+)", README.read_text(), re.MULTILINE))
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert commands
    assert commands <= known
    assert "nonsense" not in known


def unknown_words(line: str) -> list[str]:
    """Commands and options of a line that there are not."""
    words = shlex.split(line, comments=True)[1:]
    command, unknown = typer.main.get_command(app), []
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        known = command.commands  # type: ignore[attr-defined]
        if words[0] not in known:
            return [words[0]]
        command, words = known[words[0]], words[1:]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    return unknown + [w for w in words if w.startswith("-") and w not in options]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/own.md", "docs/synthetic.md", "docs/attacks.md", "docs/icons.md", "docs/gpu.md", "docs/start.md"]
)
def test_every_option_of_a_command_on_a_page_exists(page: str) -> None:
    text = (README.parent / page).read_text(encoding="utf-8")
    lines = [part.strip() for line in re.findall(r"^(?:\$ )?(efface .*)$", text, re.MULTILINE) for part in line.split(" ; ")]
    assert lines
    assert not {line: bad for line in lines if (bad := unknown_words(line))}
    assert unknown_words("efface apply edit --modle M --out x") == ["--modle"]  # the control
    assert unknown_words("efface erase piscis --model M") == ["piscis"]


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/make_readme.py."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return script(README.parent / "docs" / "make_readme.py")


def test_the_table_of_erasers_is_the_registry(maker: ModuleType) -> None:
    text = README.read_text(encoding="utf-8")
    assert text == maker.written(text), "run: python docs/make_readme.py"
    for m in methods():
        assert text.count(f"| [`{m.name}`](") == 1
    row = next(line for line in text.splitlines() if line.startswith("| [`pisces`]"))
    assert maker.written(text.replace(row + "\n", "")) == text  # the control: a row that is missing is seen


def absent(row: str) -> list[str]:
    """Figures of a row of the README's table that do not stand on the page that the row names."""
    found = re.search(r"\((docs/\w+\.md)\)", row)
    assert found, row
    page = (README.parent / found.group(1)).read_text(encoding="utf-8")
    said = re.findall(r"(?<![\w.,-])\d*[.,]?\d+(?![\w-])", re.sub(r"`[^`]*`|\(docs/\S+\)|[A-Z][\w.]*-\S+|Gemma 3", "", row))
    return [n for n in said if not re.search(rf"(?<![\d.,]){re.escape(n)}(?![\d]|[.,]\d)", page)]


def test_every_figure_stands_on_the_page_it_comes_from() -> None:
    text = README.read_text(encoding="utf-8").partition("## What was measured")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and "docs/" in line]
    assert len(rows) >= 8
    assert not {row[:40]: bad for row in rows if (bad := absent(row))}
    assert absent("| it lost 51.7 to 77 % | | [figures](docs/benchmarks.md) |") == ["51.7"]  # the control


def test_the_picture_is_there_and_small() -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(pictures) == 1
    assert len(pictures[0][0]) > 40, "what is seen, for those who do not see it"
    assert 20_000 < (README.parent / pictures[0][1]).stat().st_size <= 200_000


def broken_links(text: str) -> list[str]:
    """Addresses of a page of the README's folder that lead to no file."""
    places = [p.partition("#")[0] for p in re.findall(r"\]\(([^)]+)\)", text) if not re.match(r"\w+:", p)]
    return [p for p in places if not (README.parent / p).exists()]


def test_links_lead_somewhere() -> None:
    assert not broken_links(README.read_text(encoding="utf-8"))
    assert broken_links("[a](docs/nowhere.md) [b](docs/start.md#x) [c](https://x.org)") == ["docs/nowhere.md"]
