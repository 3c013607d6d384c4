"""`efface cache`: what is listed, what is removed, and what never is."""

import json
import os
import time
from pathlib import Path

import pytest
from cli._kit import status

from efface.base.cache import BUSY, entries, remove, select
from efface.base.errors import ArtefactError, InputError

OLD = time.time() - 40 * 86400
MADE = {
    "models/smollm2/model.safetensors": 4000,
    "models/smollm2/config.json": 10,
    "models/gemma3-270m/model.safetensors": 3000,
    "models/.half.gguf.x1/model.gguf": 500,
    "downloads/icons/pack.tgz": 200,
    "pictures/aa/pictures.safetensors": 100,
    "looks/0a.test": 5,
    "concept-scores.json": 50,
    "theirs/thesis.txt": 70,
}


@pytest.fixture
def filled(cache: Path) -> Path:
    """A cache with something of every kind; `models/gemma3-270m` and what was left unfinished were last used 40 days ago."""
    for name, n in MADE.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(b"x" * n)
    for folder in ("models/gemma3-270m", "models/.half.gguf.x1"):
        for p in (*(cache / folder).iterdir(), cache / folder):
            os.utime(p, (OLD, OLD))
    return cache


def left(cache: Path) -> set[str]:
    return {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()}


def test_everything_is_listed_by_kind(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = status("cache ls --json", capsys)
    assert code == 0
    found = json.loads(out)
    kinds = {e["name"]: e["kind"] for e in found["entries"]}
    assert kinds == {
        "models/smollm2": "models", "models/gemma3-270m": "models", "models/.half.gguf.x1": "unfinished", "downloads/icons": "downloads",
        "pictures/aa": "pictures", "looks": "looks", "concept-scores.json": "concepts", "theirs": "other",
    }  # fmt: skip
    assert found["bytes"] == sum(MADE.values()) == sum(found["kinds"].values())
    assert {e["name"]: e["bytes"] for e in found["entries"]}["models/smollm2"] == 4010
    code, out, _ = status("cache ls", capsys)
    assert "40 days ago" in out
    assert "today" in out
    assert "not efface's" in out


def test_a_name_a_kind_and_days_choose_what_goes(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = status("cache rm models --older-than 30 --yes --json", capsys)
    assert code == 0, err
    assert json.loads(out) == {"removed": ["models/gemma3-270m"], "freed": 3000, "kept": []}
    assert left(filled) == {n for n in MADE if not n.startswith("models/gemma")}
    code, out, _ = status("cache rm pictures/aa --yes", capsys)
    assert code == 0
    assert "freed 100 B" in out
    assert "pictures/aa/pictures.safetensors" not in left(filled)
    code, out, _ = status("cache rm --older-than 300 --yes", capsys)
    assert code == 0
    assert out.strip() == "nothing to remove"


def test_all_leaves_the_looks_and_what_is_not_ours(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = status("cache rm --all --yes", capsys)
    assert code == 0
    assert left(filled) == {"looks/0a.test", "theirs/thesis.txt"}
    assert "kept looks" in out
    assert status("cache rm looks --yes", capsys)[0] == 0
    assert left(filled) == {"theirs/thesis.txt"}
    code, _, err = status("cache rm theirs --yes", capsys)
    assert code == 2
    assert "not efface's" in err
    assert left(filled) == {"theirs/thesis.txt"}


def test_nothing_goes_unasked(filled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("cache rm models/smollm2", "cache rm --all", "cache rm models/smollm2 --json"):
        code, out, err = status(line, capsys)
        assert (code, out) == (2, "")
        assert "--yes" in err
    assert left(filled) == set(MADE)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for answer, code in ((False, 1), (True, 0)):
        asked: list[str] = []
        monkeypatch.setattr("typer.confirm", lambda text, answer=answer, asked=asked, **_: asked.append(text) or answer)
        assert status("cache rm models/smollm2", capsys)[0] == code
        assert asked == ["Remove 1 entry, 3.9 KiB?"]
        assert (filled / "models/smollm2").exists() == (not answer)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("cache rm models/smolm2 --yes", "nearest: models/smollm2"),
        ("cache rm ../.. --yes", "unknown cache entry"),
        ("cache rm / --yes", "unknown cache entry"),
        ("cache rm models/smollm2/config.json --yes", "unknown cache entry"),
        ("cache rm --yes", "name an entry"),
        ("cache rm models/smollm2 --all --yes", "give one of them"),
        ("cache rm --older-than -1 --yes", "at least 0"),
        ("cache rm --older-than nan --yes", "at least 0"),
    ],
)
def test_what_is_not_meant_is_refused(line: str, says: str, filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = status(line, capsys)
    assert (code, out) == (2, "")
    assert says in err
    assert left(filled) == set(MADE)


def test_links_are_not_followed(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * 999)
    (filled / "models" / "linked").symlink_to(outside)
    (filled / "models" / "smollm2" / "inner").symlink_to(outside)
    (filled / "icons").symlink_to(outside)
    found = {e.name: e for e in entries()}
    assert found["models/linked"].bytes == 0
    assert found["models/smollm2"].bytes == 4010
    assert found["icons"].kind == "other"
    for name in ("models/linked", "models/smollm2"):
        assert status(f"cache rm {name} --yes", capsys)[0] == 0
        assert not (filled / name).exists()
    assert status("cache rm icons --yes", capsys)[0] == 2
    assert (outside / "precious").stat().st_size == 999
    entry = found["models/gemma3-270m"]  # listed, and then its folder was exchanged for a link
    (filled / "models").rename(outside / "models")
    (filled / "models").symlink_to(outside / "models")
    with pytest.raises(ArtefactError, match="behind a link"):
        remove(entry)
    assert (outside / "models" / "gemma3-270m" / "model.safetensors").exists()


def test_the_cache_itself_may_be_a_link(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alias").symlink_to(filled)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "alias"))
    assert status("cache rm models/smollm2 --yes", capsys)[0] == 0
    assert not (filled / "models" / "smollm2").exists()
    assert (filled / "models" / "gemma3-270m").exists()


def test_what_may_still_be_written_is_left_to_its_name(filled: Path) -> None:
    half = filled / "models" / ".half.gguf.x1"
    now = time.time()
    assert half in {e.path for e in select(entries(), everything=True, now=now)}
    os.utime(half, (now, now - BUSY / 2))
    assert half not in {e.path for e in select(entries(), everything=True, now=now)}
    assert half in {e.path for e in select(entries(), ["models/.half.gguf.x1"], now=now)}
    with pytest.raises(InputError):
        select(entries(), now=now)


def test_an_empty_cache_is_none_to_stumble_over(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("cache ls", capsys)[:2] == (0, f"nothing\n{cache}: 0 B\n")
    assert json.loads(status("cache rm --all --json", capsys)[1]) == {"removed": [], "freed": 0, "kept": []}
    assert not cache.exists()
