"""Concepts made from the table: whole, disjoint, and no held-out way to ask where something is chosen."""

import json
from pathlib import Path

import pytest

from efface.base.errors import InputError, UnknownName
from efface.cli.main import run
from efface.deactivate.concept import Concept, generated_concepts
from efface.t2i.icons import captions, concepts
from efface.t2i.icons.data import MANIFEST, default_folder, load
from efface.t2i.icons.packs import STYLES
from efface.t2i.icons.prompts import training_prompts
from efface.t2i.icons.table import packaged_table


def test_every_name_is_there_once() -> None:
    names = generated_concepts()
    assert len(names) == len(set(names))
    assert {"icons/dog", "icons/high-heel", "icons/style-noto", "icons/flag-france"} <= set(names)
    assert sum(n.startswith("icons/") for n in names) == 20 + 8 + len(concepts.flag_groups()["classes"])
    with pytest.raises(UnknownName, match=r"'icons/dgo'.*icons/dog"):
        Concept.load("icons/dgo")
    with pytest.raises(UnknownName, match="icons/dog"):
        Concept.load("icon/dog")


@pytest.mark.parametrize("name", ["dog", "bus", "high-heel", "pear"])
def test_objects(name: str) -> None:
    c, table = Concept.load(f"icons/{name}"), packaged_table()
    thing = table.objects[c.name]
    assert (c.kind, c.judge) == ("object", "icons/object")
    for split in ("train", "validation", "test"):
        assert {r.labels.get("style") for r in c.records[split]} == {None, *(p.style for p in STYLES)}
        assert {r.labels["object"] for r in c.records[split]} == {c.name}
        assert {c.labels[t]["object"] for t in c.neighbours[split]} == {thing.pair, *_classes(thing.near)}
        assert len(c.general[split]) >= 3000
        assert c.name not in {c.labels[t].get("object") for t in (*c.general[split], *c.neighbours[split])}
    ways = {s: {r.subject for r in c.records[s]} for s in c.records}
    held = set(table.icons[thing.icons[0]].held_out)
    assert held
    assert not held & (ways["train"] | ways["validation"] | set(c.synonyms["seen"]))
    assert held <= ways["test"]
    assert set(c.synonyms["held_out"]) == held
    assert {r.subject for r in c.records["test"] if r.labels["way"] == "held_out"} == held
    assert ways["train"] == ways["validation"] == {table.icons[thing.icons[0]].name, *c.synonyms["seen"]}


def _classes(near: tuple[str, ...]) -> set[str]:
    """Names as the judges have them: «cat» may be near something and is a class of two drawings."""
    table = packaged_table()
    own = {k: o.name for o in table.objects.values() for k in o.icons}
    return {own.get(i.icon, i.name) for i in table.icons.values() if i.name in near}


def test_styles_and_flags() -> None:
    style = Concept.load("icons/style-contrast")
    assert style.judge == "icons/style"
    assert all(r.labels["style"] == "contrast" for r in style.records["test"])
    assert {style.labels[t]["style"] for t in style.neighbours["test"]} == {"monotone"}
    assert not any(style.labels[t].get("style") == "contrast" for t in style.general["validation"])
    assert len(style.general["test"]) >= 3000
    flag = Concept.load("icons/flag-france")
    assert flag.judge == "icons/flag"
    assert {r.labels["flag"] for r in flag.records["test"]} == {"France"}
    assert "an icon of the French flag" in flag.target["train"]
    assert len({flag.labels[t]["flag"] for t in flag.neighbours["test"]}) == concepts.FLAGS_NEAR
    assert not any(flag.labels[t].get("flag") == "France" for s in flag.general for t in flag.general[s])


def test_templates_are_the_models_own_and_dealt_out_once() -> None:
    plain = [t for without, _ in concepts.SPLITS.values() for t in without]
    styled = [t for _, with_style in concepts.SPLITS.values() for t in with_style]
    assert sorted(plain) == sorted(captions.PLAIN)
    assert sorted(styled) == sorted(captions.STYLED)
    values = concepts.mapping("wolf")
    values["target"]["test"].append(values["general"]["train"][0])
    with pytest.raises(InputError, match="splits must be disjoint"):
        Concept.from_mapping(values)


def test_a_concept_written_to_a_file_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "taco.json").write_text(json.dumps(concepts.mapping("taco")))
    made, read = Concept.load("icons/taco"), Concept.load(tmp_path / "taco.json")
    assert made == read
    assert made.digest == read.digest != Concept.load("icons/pear").digest


def test_flags_share_the_records_that_they_have_in_common() -> None:
    france, china = (concepts.records(n) for n in ("flag-france", "flag-china"))
    ours, theirs = ({id(r) for rows in x["general"].values() for r in rows} for x in (france, china))
    assert len(ours & theirs) > 0.95 * len(ours)
    assert not {id(r) for rows in france["target"].values() for r in rows} & ours  # the control: France is not general there
    before = Concept.load("icons/flag-france").digest
    concepts.mapping("flag-france")["general"]["train"][0]["labels"]["flag"] = "Atlantis"  # a file's content is one's own
    assert Concept.load("icons/flag-france").digest == before


def test_the_command_writes_files_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["icons", "concepts", "pear", "icons/style-noto", "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pear.json", "style-noto.json"]
    assert Concept.load(tmp_path / "out" / "pear.json") == Concept.load("icons/pear")
    capsys.readouterr()
    assert run(["icons", "concepts", "pare", "--out", str(tmp_path / "more")]) == 2
    assert "pear" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()
    assert run(["icons", "check", "--model", str(tmp_path), "--out", str(tmp_path / "more")]) == 2
    assert "model_index.json" in capsys.readouterr().err
    assert run(["icons", "check", "--model", str(tmp_path), "--out", str(tmp_path / "more"), "--images", "5"]) == 2
    assert run(["icons", "judges", "--out", str(tmp_path / "more"), "--only", "C"]) == 2
    assert not (tmp_path / "more").exists()


@pytest.mark.skipif(not (default_folder() / MANIFEST).is_file(), reason="drawings are not built (efface icons build)")
def test_the_packaged_groups_of_flags_are_those_of_the_drawings() -> None:
    found = concepts.group_flags(load())
    assert found["classes"] == concepts.flag_groups()["classes"]
    assert found["near"] == concepts.flag_groups()["near"]


def test_an_sae_is_trained_on_no_prompt_that_is_evaluated() -> None:
    found = set(training_prompts())
    assert len(found) > 20_000
    held_out = {w for icon in packaged_table().icons.values() for w in icon.held_out}
    for name in ("icons/dog", "icons/style-noto", "icons/flag-france"):
        concept = Concept.load(name)
        assert set(concept.target["train"]) & found
        for split in ("validation", "test"):
            assert not found & {*concept.target[split], *concept.neighbours[split], *concept.general[split]}
    assert not [p for p in found if any(w in p for w in held_out)]
