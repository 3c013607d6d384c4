"""What a user waits for before anything runs, and what an error looks like."""

import subprocess
import sys
from pathlib import Path

import pytest

from efface.base.errors import InputError
from efface.cli.editing import _told
from efface.cli.features import _shown
from efface.cli.options import sae_folders, table
from efface.t2i.aliases import packaged

HEAVY = ("torch", "transformers", "numba", "matplotlib", "scipy", "sklearn")


def run(*args, code=None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "efface.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("line", [["--help"], ["methods"], ["erase", "pisces", "--help"], ["train", "--help"], ["eval", "--help"]])
def test_nothing_heavy_is_imported(line):
    code = (
        f"import sys; from efface.cli.main import run; status = run({line!r}); "
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]; assert not heavy, heavy; sys.exit(status)"
    )
    result = run(code=code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "efface", "methods", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == run("methods", "--json").stdout


def test_the_help_of_every_command_imports_nothing_heavy():
    code = f"""
import sys, typer
from efface.cli.main import app, run
def walk(command, words=()):
    for name, inner in getattr(command, "commands", {{}}).items():
        yield [*words, name]
        yield from walk(inner, [*words, name])
lines = list(walk(typer.main.get_command(app)))
assert ["cache", "ls"] in lines and ["erase", "pisces"] in lines
bad = [line for line in lines if run([*line, "--help"])]
heavy = [m for m in {HEAVY!r} if m in sys.modules]
assert not heavy and not bad, (heavy, bad)
"""
    result = run(code=code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["features", "--sae", "nowhere", "--concept", "baseball"], "efface train"),
        (["generate", "--model", "smolm2", "--prompt", "a", "--out", "{tmp}/x.txt"], "smollm2"),
        (["erase", "pisces", "--model", "smollm2", "--concept", "basebal", "--out", "{tmp}/e"], "baseball"),
        (["erase", "pisces", "--model", "smollm2", "--concept", "baseball", "--out", "{tmp}/e", "--set", "muu=3"], "mu"),
        (["train", "--model", "smollm2", "--at", ",", "--out", "{tmp}/s"], "--at"),
    ],
)
def test_bad_input_is_two_lines_and_status_2(line, says, tmp_path):
    result = run(*[a.format(tmp=tmp_path) for a in line])
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert says in result.stderr
    assert not list(tmp_path.iterdir())


def test_tables_keep_control_characters_off_the_terminal():
    assert table(["a"], [["\x1b[2Jx\n"]]).splitlines()[2] == "�[2Jx�"


def test_figures_and_parts_are_told_in_words():
    rate = {"rate": 0.25, "low": 0.1, "high": 0.5, "n": 8}
    assert _shown(rate) == "25 % [10, 50] of 8"
    assert _shown({"auroc": 0.9, "low": 0.8, "high": 0.95}) == "0.9 [0.8, 0.95]"
    assert (_shown("test"), _shown(1.23456)) == ("test", "1.235")
    assert (
        _told({"kind": "weights", "tensors": {"a.weight": 3, "b": None}, "norm": 1.23456}) == "  weights: a.weight (rank 3), b; norm 1.235"
    )
    assert _told({"kind": "projection", "rank": 2}) == "  projection: rank 2"


def test_an_alias_stands_for_its_packaged_saes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "icons").mkdir()  # a folder of that name without an SAE changes nothing
    found = sae_folders([Path("icons")])
    assert found
    assert all((f / "cfg.json").is_file() and f.is_relative_to(packaged("icons")) for f in found)
    (tmp_path / "icons" / "own").mkdir()
    (tmp_path / "icons" / "own" / "cfg.json").write_text("{}")
    assert sae_folders([Path("icons")]) == [Path("icons/own")]
    with pytest.raises(InputError, match="no SAE folder"):
        sae_folders([Path("icon")])
