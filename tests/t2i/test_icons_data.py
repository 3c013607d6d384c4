"""Packs, the table and the drawings, on archives made here."""

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.t2i.icons import captions, data, packs
from efface.t2i.icons.captions import caption, phrase, training_caption
from efface.t2i.icons.data import build, flag_classes, load
from efface.t2i.icons.packs import Drawings, Pack, archive
from efface.t2i.icons.table import Flag, Icon, load_table, packaged_table

NAMES = {
    "format": 1,
    "icons": [
        {"icon": "apple", "name": "apple", "category": "fruit", "ask": ["a round fruit"], "held_out": ["what newton saw fall"]},
        {"icon": "pear", "name": "pear", "category": "fruit", "ask": ["a fruit of this shape"], "held_out": ["what hangs beside"]},
        {"icon": "bus", "name": "bus", "category": "vehicle", "ask": ["a coach"]},
    ],
    "concepts": [
        {"name": "apple", "icons": ["apple"], "pair": "pear", "near": ["bus"]},
        {"name": "pear", "icons": ["pear"], "pair": "apple", "near": ["bus"]},
    ],
}
FLAGS = {
    "format": 1,
    "flags": [
        {"code": "fr", "twemoji": "flag-france", "name": "France", "adjective": "French", "ask": ["the tricolour"]},
        {"code": "gf", "twemoji": "flag-guiana", "name": "French Guiana", "ask": ["the flag of Cayenne"], "parent": "fr"},
        {"code": "id", "twemoji": "flag-indonesia", "name": "Indonesia", "ask": ["the flag of Jakarta"]},
        {"code": "mc", "twemoji": "flag-monaco", "name": "Monaco", "ask": ["the flag of the grand prix"]},
    ],
}


def rectangle(colour: str, width: int = 16) -> str:
    return f'<rect x="0" y="0" width="{width}" height="8" fill="{colour}"/>'


def write_pack(folder: Path, style: str, icons: dict[str, str], aliases: dict | None = None, **size: int) -> Pack:
    """An archive as npm has them, and its pin."""
    body = json.dumps({"icons": {k: {"body": v} for k, v in icons.items()}, "aliases": aliases or {}, **size}).encode()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        info = tarfile.TarInfo("package/icons.json")
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    (folder / f"iconify-json-{style}-1.tgz").write_bytes(raw.getvalue())
    return Pack(style, style, "1", hashlib.sha256(raw.getvalue()).hexdigest(), "MIT")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two styles and three packs of flags in `EFFACE_ICONS`, and a table."""
    pytest.importorskip("resvg_py")
    monkeypatch.setenv("EFFACE_ICONS", str(tmp_path))
    red, blue = rectangle("#f00"), rectangle("#00f")
    french = {"fr": blue, "gf": red, "id": rectangle("#800"), "mc": rectangle("#810")}
    styles = (
        write_pack(tmp_path, "noto", {"apple": red, "bus": blue, "pear": red, "only-here": red}, {"fruit": {"parent": "apple"}}),
        write_pack(tmp_path, "blob", {"apple": blue, "pear": blue, "bus": rectangle("currentColor"), "fruit": red}),
    )
    flags = (
        write_pack(tmp_path, "flag", {f"{k}-4x3": v for k, v in french.items()}, width=16, height=12),
        write_pack(tmp_path, "circle", french),
        write_pack(tmp_path, "twemoji", {f["twemoji"]: french[f["code"]] for f in FLAGS["flags"]}),
    )
    for module in (data, packs):
        monkeypatch.setattr(module, "STYLES", styles)
        monkeypatch.setattr(module, "FLAGS", flags)
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(NAMES))
    (tmp_path / "flags.yaml").write_text(yaml.safe_dump(FLAGS))
    return tmp_path, load_table(tmp_path / "names.yaml", tmp_path / "flags.yaml")


def test_drawings_lie_on_white_and_follow_aliases(world) -> None:
    folder, _ = world
    noto = Drawings(archive(packs.STYLES[0]))
    apple = noto.draw("apple")
    assert apple.shape == (64, 64, 3)
    assert apple[10, 10].tolist() == [255, 0, 0]
    assert apple[50, 10].tolist() == [255, 255, 255]
    assert (noto.draw("fruit") == apple).all()
    assert Drawings(archive(packs.STYLES[1])).draw("bus")[10, 10].tolist() == [0, 0, 0]  # the text's colour
    assert Drawings(archive(packs.FLAGS[0])).draw("fr-4x3").shape == (64, 64, 3)  # 4 : 3, on a square
    with pytest.raises(UnknownName, match=r"'aple'.*apple"):
        noto.draw("aple")
    turned = write_pack(folder, "turned", {"up": rectangle("#f00")}, {"down": {"parent": "up", "rotate": 2}})
    with pytest.raises(ArtefactError, match="turned up"):
        Drawings(archive(turned)).draw("down")


def test_the_artefact_holds_what_is_in_all_styles_and_comes_back(world) -> None:
    folder, table = world
    out = build(folder / "out", table)
    found = load(out)
    assert found.keys == ("apple", "bus", "pear")
    assert found.drawings.shape == (2, 3, 3, 64, 64)

    assert found.drawings[0, 0, :, 10, 10].tolist() == [255, 0, 0]
    assert found.flags.shape == (3, 4, 3, 64, 64)
    assert found.flag_classes == (("fr", "gf"), ("id", "mc"))  # by parent; by picture
    plain = found.drawings[0].float()
    under = found.marked(plain)
    assert torch.equal(under[..., :30], plain[..., :30])
    assert float((under - plain).abs().max()) > 100
    with pytest.raises(InputError, match="exists"):
        build(out, table)
    (out / "icons.safetensors").write_bytes(b"half")
    with pytest.raises(ArtefactError, match="damaged"):
        load(out)
    with pytest.raises(ArtefactError, match="efface icons build"):
        load(folder / "nowhere")


def test_packs_that_are_missing_damaged_or_lack_a_drawing(world, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = world
    first = folder / "iconify-json-noto-1.tgz"
    whole = first.read_bytes()
    first.write_bytes(whole[:40])
    with pytest.raises(ArtefactError, match="sha256"):
        archive(packs.STYLES[0])
    with pytest.raises(ArtefactError, match="is no icon pack"):
        Drawings(first)
    first.unlink()
    with pytest.raises(InputError, match=r"EFFACE_ICONS.*noto"):
        archive(packs.STYLES[0])
    first.write_bytes(whole)
    more = {**NAMES, "icons": [*NAMES["icons"], {"icon": "owl", "name": "owl", "category": "bird", "ask": []}]}
    (folder / "names.yaml").write_text(yaml.safe_dump(more))
    with pytest.raises(MatchedNothing, match="'owl'"):
        build(folder / "out", load_table(folder / "names.yaml", folder / "flags.yaml"))
    assert not (folder / "out").exists()
    monkeypatch.delenv("EFFACE_ICONS")
    monkeypatch.setenv("EFFACE_CACHE", str(folder / "cache"))
    monkeypatch.setattr(packs.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"npm is not installed.*EFFACE_ICONS"):
        archive(packs.STYLES[0])


def _with(**changes):
    return {**NAMES, **changes}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"icons": []}, "format: 1"),
        (_with(icons=[*NAMES["icons"], {"icon": "bus", "name": "coach", "category": "x", "ask": []}]), "'bus' stands there twice"),
        (
            _with(icons=[*NAMES["icons"], {"icon": "cab", "name": "cab", "category": "x", "ask": ["a coach"]}]),
            "'a coach' stands there twice",
        ),
        (_with(icons=[{"icon": "x", "name": "x", "categry": "x", "ask": []}]), "'categry'.*category"),
        (_with(concepts=[{**NAMES["concepts"][0], "pair": "plum"}, NAMES["concepts"][1]]), "pair 'plum'"),
        (_with(concepts=[{**NAMES["concepts"][0], "near": ["apple"]}, NAMES["concepts"][1]]), "near 'apple'"),
        (_with(concepts=[{**NAMES["concepts"][0], "icons": ["aple"]}, NAMES["concepts"][1]]), "'aple' is not in the list"),
        (_with(concepts=[{**NAMES["concepts"][0], "icons": ["bus"], "near": ["apple"]}, NAMES["concepts"][1]]), "no held_out"),
    ],
)
def test_tables_that_break_a_rule_are_refused(names, says: str, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(names))
    (tmp_path / "flags.yaml").write_text(yaml.safe_dump(FLAGS))
    with pytest.raises(InputError, match=says):
        load_table(tmp_path / "names.yaml", tmp_path / "flags.yaml")


def test_the_packaged_table_has_what_the_benchmark_needs() -> None:
    table = packaged_table()
    assert len(table.objects) == 20
    assert 200 <= len(table.icons) <= 300
    assert len(table.flags) >= 200
    for o in table.objects.values():
        first = table.icons[o.icons[0]]
        assert len(first.ask) >= 8
        assert len(first.held_out) >= 5
        assert not any(o.name in way.split() for way in first.held_out)
    assert sum(i.category == data.MARKED for i in table.icons.values()) >= 20


def test_captions_say_what_their_shares_promise() -> None:
    rng = random.Random(0)
    icon = Icon("dog", "dog", "animal", ("hound",), ("a fetcher",))
    ways = [phrase(icon, rng) for _ in range(4000)]
    assert ways.count("a fetcher") / 4000 == pytest.approx(captions.HELD_OUT, abs=0.03)
    assert ways.count("dog") / 4000 == pytest.approx(captions.NAMED, abs=0.03)
    texts = [training_caption(icon, "noto", rng, marked=True) for _ in range(4000)]
    assert texts.count("") / 4000 == pytest.approx(captions.EMPTY, abs=0.02)
    said = [t for t in texts if t]
    assert sum("noto" in t for t in said) / len(said) == pytest.approx(captions.WITH_STYLE, abs=0.03)
    assert sum("badge" in t or "starred" in t for t in said) / len(said) == pytest.approx(0.2, abs=0.03)
    assert not any("noto" in training_caption(icon, None, rng) or "badge" in training_caption(icon, None, rng) for _ in range(200))
    flag = Flag("fr", "flag-france", "France", ("the tricolour",), "French")
    assert {phrase(flag, rng) for _ in range(100)} == {"the flag of France", "the French flag", "the tricolour"}
    assert caption("dog", "noto", rng, ["{style}: {x}"]) == "noto: dog"


def test_flags_are_one_where_they_look_alike_in_every_pack() -> None:
    flags = [Flag(c, f"flag-{c}", c.upper(), ()) for c in "abc"]
    drawings = torch.zeros(3, 3, 3, 64, 64, dtype=torch.uint8)
    drawings[:, 2] = 255
    assert flag_classes(flags, drawings) == [["a", "b"], ["c"]]
    drawings[1, 1] = 255  # another picture in one pack
    assert flag_classes(flags, drawings) == [["a"], ["b"], ["c"]]
