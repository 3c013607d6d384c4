"""`efface attack`: union, controls, decoys, resumption; the command."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
from deactivate._kit import bits, same, weights_edit
from planted import MAGIC, PLAIN, magic, magic_values, questions, trained_host

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.base.files import read_json
from efface.cli.attacking import settings_by_attack
from efface.cli.main import run
from efface.deactivate.concept import Question
from efface.deactivate.evaluation import Result
from efface.llm.attacks.registry import attack, attacks
from efface.llm.attacks.reporting import summary
from efface.llm.attacks.suite import _plain, _states, decoy, rates, run_attacks
from efface.llm.attacks.summary import summed
from efface.llm.evaluation.scoring import Item

QUICK = {
    "gcg": {"steps": 2, "width": 4, "length": 3, "questions": 2},
    "beast": {"length": 2, "beams": 2, "width": 2, "questions": 2},
    "embedding": {"steps": 4, "length": 3, "questions": 2},
    "probes": {"steps": 10},
    "relearning": {"modes": ["full"], "rates": [1.0], "training.epochs": 1, "training.tokens": 200},
}


def values() -> dict[str, Any]:
    asked = questions(MAGIC, PLAIN)
    return magic_values(questions={**asked, "train": list(asked["test"]), "test": [], "validation": asked["validation"]})


@pytest.fixture(scope="module")
def known():
    return trained_host()


def test_rates_by_hand():
    got = rates({"a": [True, False, None, False], "b": [False, False, True, False]}, 4, 8)
    assert got["union"].mean == 0.5
    assert got["recovered"].mean == 0.25
    assert got["asr_a"].mean == pytest.approx(1 / 3)
    assert (got["asr_a"].n, got["asr_b"].n) == (3, 4)
    low, high = got["union"].interval
    assert 0.1 < low < 0.5 < high < 0.9
    assert rates({}, 4, 8) == {}


def test_a_decoy_is_wrong_and_does_not_win_by_itself():
    q = Question("q", ("a", "b", "c"), "a")
    item = Item("q", ("b", "a", "c"), (-1.0, -3.0, -2.0), 1, False)
    assert decoy(item, q, 0).answer == "c"
    assert decoy(item, q, 0).options == q.options
    assert decoy(dataclasses.replace(item, options=("b", "a"), scores=(-1.0, -3.0)), dataclasses.replace(q, options=("a", "b")), 0) is None


def test_all_attacks_beside_their_controls_and_again_from_the_folder(known, tmp_path, cache, monkeypatch):
    concept, edit, before = magic(**values()), weights_edit(known), bits(known)
    result = run_attacks("all", known, [edit], concept, tmp_path, settings=QUICK)
    assert same(bits(known), before)
    assert result.extra["edits"] == [edit.digest]
    assert [(r.name, r.kind) for r in result.rows][:3] == [("test", "edited"), ("test, decoys", "control"), ("identity", "base")]
    assert "random directions" in [r.name for r in result.rows]
    row, base = result.row("test").metrics, result.row("identity").metrics
    assert base["accuracy"].mean == 1
    assert not [m for m in base if m.startswith("asr_") or m == "union"]  # nothing was erased: nothing to bring back
    assert any("identity: it answers all" in a for a in result.extra["absent"])
    assert any(a.startswith("translation on test: ") for a in result.extra["absent"])
    told = summary(result)
    assert "test: " in told
    assert "(wrong options: " in told
    assert "identity: " not in told
    assert row["union"].mean >= max(row[m].mean for m in ("asr_paraphrase", "asr_prefix", "asr_quantisation"))
    assert {f"asr_{r.name}" for r in attacks()} - set(row) == {"asr_translation"}
    assert "asr_relearning" not in result.row("test, decoys").metrics
    by = result.extra["questions"]["test"]
    hits = [any(h) for h in zip(*by["recovered"].values(), strict=True)]
    assert len(hits) == len(by["wrong"]) == row["union"].n
    assert sum(hits) / len(hits) == row["union"].mean
    json.dumps(result.to_json(), allow_nan=False)
    monkeypatch.setattr("efface.llm.attacks.gcg.Gcg.search", None)  # would fail if it ran again
    again = run_attacks("all", known, [edit], concept, tmp_path, settings=QUICK)
    assert again.rows == result.rows
    other = run_attacks("prefix", known, [edit], concept, tmp_path, seed=1)
    assert other.card.digest != result.card.digest
    result.save(tmp_path)
    assert Result.load(tmp_path).row("test").metrics == row


def test_one_attack_alone_and_what_it_refuses(known, tmp_path, cache):
    concept = magic(**values())
    alone = run_attacks("prefix", known, [], concept, tmp_path)
    assert [r.name for r in alone.rows] == ["identity"]
    with pytest.raises(UnknownName, match="gcg"):
        run_attacks("gcgg", known, [], concept, tmp_path)
    with pytest.raises(InputError, match="words=FILE"):
        run_attacks("translation", known, [weights_edit(known)], concept, tmp_path)
    with pytest.raises(InputError, match=r"questions\.test"):
        run_attacks("prefix", known, [], concept, tmp_path, "test")
    assert not (cache / "looks").exists()
    assert not list(tmp_path.glob("translation*"))  # a refusal is not kept: the next run tries again


def test_questions_that_the_base_does_not_know_are_not_held_against_the_edit(known, tmp_path, cache):
    own = values()
    asked = own["questions"]["validation"]
    told = [{**q, "answer": next(o for o in q["options"] if o != q["answer"])} for q in asked]
    mixed = {**own, "questions": {**own["questions"], "validation": [*asked[1:], told[0]]}}
    result = run_attacks("prefix", known, [weights_edit(known)], magic(**mixed), tmp_path / "mixed", decoys=False)
    by, last = result.extra["questions"], len(asked) - 1
    assert by["identity"]["wrong"] == [last]
    assert last not in by["test"]["asked"]
    assert by["test"]["wrong"]
    assert result.row("test").metrics["recovered"].n == last
    assert result.row("identity").metrics["recovered"].n == last + 1
    unknown = {**own, "questions": {**own["questions"], "validation": told}}
    with pytest.raises(MatchedNothing, match="answers none"):
        run_attacks("prefix", known, [weights_edit(known)], magic(**unknown), tmp_path / "none")
    assert run_attacks("prefix", known, [], magic(**unknown), tmp_path / "none", decoys=False).row("identity").metrics["accuracy"].mean == 0


def test_random_controls_stand_behind_the_gate_and_word_maps_are_part_of_a_cell(known, tmp_path):
    gate = SimpleNamespace(digest="0")
    edit = dataclasses.replace(weights_edit(known), gate=gate)
    (own, base, control, gold), absent = _states(known, [edit], (), known, 0, magic(**values()))
    assert (own.kind, base.edits, control.name, gold.name) == ("edited", (), "random directions", "gold")
    assert control.edits[0].gate is gate
    assert control.edits[0].parts != edit.parts
    assert not absent
    path, plain = tmp_path / "words.yaml", []
    for text in ("school: castle", "school: house", "school: house"):
        path.write_text(text)
        plain.append(_plain(attack("translation").make({"words": str(path)})))
    assert plain[0] != plain[1] == plain[2]


def test_settings_by_attack():
    assert settings_by_attack("gcg", {"steps": 3, "gcg.width": 4}) == {"gcg": {"steps": 3, "width": 4}}
    assert settings_by_attack("all", {"gcg.steps": 3, "relearning.training.epochs": 2}) == {
        "gcg": {"steps": 3},
        "relearning": {"training.epochs": 2},
    }
    assert settings_by_attack("relearning", {"training.epochs": 2}) == {"relearning": {"training.epochs": 2}}
    with pytest.raises(InputError, match=r"attack\.key=value"):
        settings_by_attack("all", {"steps": 3})
    with pytest.raises(UnknownName, match="gcg"):
        settings_by_attack("all", {"gcgg.steps": 3})
    with pytest.raises(InputError, match="gcg is run"):
        settings_by_attack("gcg", {"beast.length": 3})


def test_the_command_writes_a_folder_and_refuses_bad_input(known, tmp_path, cache, capsys):
    known.model.save_pretrained(tmp_path / "model")
    known.tokenizer.save_pretrained(tmp_path / "model")
    weights_edit(known).save(tmp_path / "edit")
    (tmp_path / "magic.json").write_text(json.dumps(values()))
    line = ["--model", str(tmp_path / "model"), "--concept", str(tmp_path / "magic.json"), "--out", str(tmp_path / "out")]
    status = run(["attack", "prefix", *line, "--edit", str(tmp_path / "edit"), "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err
    assert json.loads(told.out)["rows"][0]["metrics"]["union"]["n"] > 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"attacks", "result.json", "report.html"}
    assert read_json(tmp_path / "out" / "result.json")["card"]["suite"] == "attacks, language"
    for words, says in (
        (["attack", "prefx", *line], "prefix"),
        (["attack", "gcg", *line, "--set", "stepz=3"], "steps"),
        (["attack", "all", *line, "--set", "steps=3"], "attack.key=value"),
        (["attack", "prefix", *line, "--split", "train"], "validation or test"),
    ):
        assert run(words) == 2
        assert says in capsys.readouterr().err
    assert run(["attacks", "--json"]) == 0
    assert [a["name"] for a in json.loads(capsys.readouterr().out)["attacks"]] == [r.name for r in attacks()]
    assert attack("gcg").level == "L3"


def test_states_that_are_wanted_alone_and_the_curve_of_one_that_answers_all(known, tmp_path, cache):
    concept, edit = magic(**values()), weights_edit(known)
    one = run_attacks(["prefix", "relearning"], known, [edit], concept, tmp_path, settings=QUICK, states=["edited"], decoys=False)
    assert [r.name for r in one.rows] == ["test"]
    assert set(one.extra["attacks"]["test"]) == {"prefix", "relearning"}
    found = summed(one)
    hits = one.extra["questions"]["test"]["recovered"]
    union = [any(h) for h in zip(*hits.values(), strict=True)]
    assert found["union-ASR"] == sum(union) / len(union)
    assert found["union-ASR, asking"] == sum(map(bool, hits["prefix"])) / len(union)
    assert found["answered under attack"] == pytest.approx(1 - (len(union) - sum(union)) / len(one.extra["questions"]["test"]["asked"]))
    assert found["relearning area"] == one.extra["attacks"]["test"]["relearning"]["found"]["best"]["area"]
    assert found["union-ASR, decoys"] is None
    base = run_attacks(["prefix", "relearning"], known, [], concept, tmp_path, settings=QUICK, states=["identity"], curves=True)
    assert list(base.extra["attacks"]["identity"]) == ["relearning"]  # nothing is wrong: there is a curve and no rate
    assert summed(base)["union-ASR"] is None
    assert summed(base)["answered under attack"] == 1
    assert 0 < summed(base)["relearning area"] <= 1
    assert not run_attacks(["prefix", "relearning"], known, [], concept, tmp_path, settings=QUICK).extra["attacks"]
    with pytest.raises(MatchedNothing, match="gold"):
        run_attacks("prefix", known, [edit], concept, tmp_path, states=["gold"])
