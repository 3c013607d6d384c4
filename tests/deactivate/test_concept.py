"""Concept files: what is read, what is refused, and that the error says where and how."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from efface.base.errors import ArtefactError, InputError, UnknownName
from efface.deactivate.concept import Concept, packaged_concepts


def content(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "format": 1,
        "name": "Harry Potter",
        "kind": "knowledge",
        "form": "cloze",
        "target": {
            "train": ["Harry went to school", {"text": "an owl", "labels": {"object": "owl"}}],
            "validation": ["Ron"],
            "test": ["Snape"],
        },
        "neighbours": {"train": ["Gandalf"], "test": ["Frodo"]},
        "synonyms": {"seen": ["the boy wizard"], "held_out": ["the chosen one"]},
        "tokens": [" Harry"],
        "questions": {"train": [{"q": "Harry flies on a", "options": ["broom", "boat"], "answer": "broom"}]},
        "relearn": ["A paragraph."],
    }
    return {**values, **changes}


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))
    return path


def test_reads_yaml_and_json_alike(tmp_path: Path) -> None:
    a, b = (Concept.load(write(tmp_path / f"c.{s}", content())) for s in ("yaml", "json"))
    assert a.target["train"] == ("Harry went to school", "an owl")
    assert a.records["train"][1].labels == {"object": "owl"}
    assert a.neighbours["validation"] == ()
    assert a.general["test"] == ()
    assert a.questions["train"][0].answer == "broom"
    assert a.tokens == (" Harry",)
    assert a.anchor is None
    assert a == b
    assert a.digest == b.digest
    assert Concept.from_mapping(content(tokens=[" Ron"])).digest != a.digest


def test_lines_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"t": "one"}\n\n{"t": "two"}\n')
    from_file = content(target={"train": {"file": "lines.jsonl", "field": "t"}})
    inline = content(target={"train": ["one", "two"]})
    loaded = Concept.load(write(tmp_path / "c.yaml", from_file))
    assert loaded.target["train"] == ("one", "two")
    assert loaded.digest == Concept.from_mapping(inline).digest
    bad = content(target={"train": {"file": "lines.jsonl", "field": "tt"}})
    with pytest.raises(UnknownName, match="nearest: t"):
        Concept.load(write(tmp_path / "c.yaml", bad))
    for name, error in (("../x.jsonl", "outside"), ("/etc/x.jsonl", "outside"), ("none.jsonl", "missing")):
        with pytest.raises(ArtefactError, match=error):
            Concept.load(write(tmp_path / "c.yaml", content(general={"test": {"file": name}})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2 is unknown"),
        ({"tokns": ["x"]}, "'tokns'; nearest: tokens"),
        ({"kind": "knowlege"}, "nearest: knowledge"),
        ({"form": "clozed"}, "nearest: cloze"),
        ({"target": {"trian": ["x"]}}, "nearest: train"),
        ({"target": {"train": [], "test": []}}, "the concept is empty"),
        ({"target": {}}, "the concept is empty"),
        ({"target": ["x"]}, "a mapping of train, validation, test"),
        ({"target": {"train": [1984]}}, r"target\.train\[0\]: text .* 1984 found"),
        ({"target": {"train": ["  "]}}, "not blank"),
        ({"target": {"train": [{"text": "x", "lables": {}}]}}, "nearest: labels"),
        ({"questions": {"test": [{"q": "a", "options": ["b", "c"], "answer": "d"}]}}, r"questions\.test\[0\]\.answer"),
        ({"questions": {"test": [{"q": "a", "options": ["b"], "answer": "b"}]}}, "at least two options"),
        ({"questions": {"test": [{"q": "a", "options": ["b", "b"], "answer": "b"}]}}, "different options"),
        ({"name": ""}, "name: text that is not blank"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Concept.from_mapping(content(**changes))


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"target": {"train": ["a line", "b"], "test": ["A  line"]}}, "target.train and target.test"),
        ({"target": {"train": ["a line"]}, "neighbours": {"test": ["a line"]}}, "target.train and neighbours.test"),
        ({"synonyms": {"seen": ["A Line"], "held_out": ["a line"]}}, "synonyms.seen and synonyms.held_out"),
    ],
)
def test_splits_are_disjoint(changes: dict[str, Any], places: str) -> None:
    with pytest.raises(InputError, match=places) as e:
        Concept.from_mapping(content(**changes))
    assert "a line" in " ".join(str(e.value).lower().split())


def test_shared_question_is_refused_and_another_answer_is_not() -> None:
    q = {"q": "Paris is in", "options": ["France", "Spain"], "answer": "France"}
    with pytest.raises(InputError, match=r"questions\.train and questions\.test share .*Paris"):
        Concept.from_mapping(content(questions={"train": [q], "test": [{**q, "options": ["France", "Italy"]}]}))
    Concept.from_mapping(content(questions={"train": [q], "test": [{**q, "q": "Madrid is in", "answer": "Spain"}]}))


def test_require_says_what_to_add() -> None:
    concept = Concept.from_mapping(content())
    assert concept.require("questions", "train") == concept.questions["train"]
    assert concept.require("target") == concept.target
    with pytest.raises(InputError, match=r"'Harry Potter' has no questions\.test.*questions: \{test: \[\{q: "):
        concept.require("questions", "test")
    with pytest.raises(InputError, match=r"has no general, .*general: \{train"):
        concept.require("general")
    with pytest.raises(InputError, match="has no anchor"):
        concept.require("anchor")
    assert Concept.from_mapping(content(anchor="")).require("anchor") == ""
    with pytest.raises(UnknownName, match="nearest: questions"):
        concept.require("question")


def test_packaged_and_unknown_names(tmp_path: Path) -> None:
    for name in packaged_concepts():
        assert Concept.load(name).name
        break
    with pytest.raises(UnknownName, match="unknown concept 'no such thing'"):
        Concept.load("no such thing")
    with pytest.raises(InputError, match=r"absent\.yaml is not there; .*--new FILE\.yaml"):
        Concept.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["a: [", "- a", "\x00"])
def test_broken_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        Concept.load(tmp_path / "c.yaml")
