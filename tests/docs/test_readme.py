"""The README's Python example, run as it stands on a tiny host; and the commands it names."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from planted import magic, planted_sae
from tiny import tiny_host

import efface.llm
from efface.cli.main import app
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
