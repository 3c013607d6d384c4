"""What a user waits for before anything runs, and what an error looks like."""

import subprocess
import sys

import pytest

from efface.cli.options import table

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
