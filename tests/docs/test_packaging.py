"""sdist -> wheel -> clean install holds every module and data file of the tree, to the byte; a broken checkout builds nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efface.base.files import sha256_file

ROOT = Path(__file__).parents[2]
LINKS = ("deactivate", "llm", "probes", "sae", "t2i")
TOP = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "src", *LINKS)
pytestmark = pytest.mark.skipif(not (ROOT / "src" / "efface" / "sae").is_symlink(), reason="needs a checkout with its links")


def copied(to: Path) -> Path:
    """What a build reads of the tree."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in TOP:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, to / name)
    return to


def build(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--no-isolation", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def held(package: Path) -> dict[str, str]:
    """Path -> digest of every file of a package, links followed."""
    names = [p for link in package.iterdir() for p in ([link] if link.is_file() else link.rglob("*"))]
    return {p.relative_to(package).as_posix(): sha256_file(p) for p in names if p.is_file() and "__pycache__" not in p.parts}


def test_an_installed_wheel_holds_what_the_tree_holds(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    built = build("--outdir", str(tmp_path / "dist"), str(copied(tmp_path / "tree")))  # the wheel is made from the sdist
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    installed, tree = held(target / "efface"), held(tmp_path / "tree" / "src" / "efface")
    assert installed == tree
    for kind in (".py", ".yaml", ".zst", ".md", ".txt", "py.typed"):
        assert any(name.endswith(kind) for name in tree), kind
    code = f"""
import sys; sys.path.insert(0, {str(target)!r})
import efface; assert efface.__file__.startswith({str(target)!r})
from efface.deactivate.concept import Concept, packaged_concepts
from efface.sae.corpora import read_corpus
assert len(packaged_concepts()) >= 8 and Concept.load("baseball").questions["test"]
assert len(next(iter(read_corpus("embedded")))) > 20
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path, timeout=120)


def test_links_that_became_plain_files_stop_the_build(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    (tree / "src" / "efface" / "llm").unlink()
    (tree / "src" / "efface" / "llm").write_text("../../llm")  # what git leaves where it may not make links
    built = build("--sdist", "--outdir", str(tmp_path / "dist"), str(tree))
    assert built.returncode != 0
    assert "symbolic links" in built.stdout + built.stderr
    assert not list(tmp_path.glob("dist/*"))
