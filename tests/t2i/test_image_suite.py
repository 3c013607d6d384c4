"""The image suite on a host that pastes drawings: an edit that works, one that does harm, and controls that must be seen through."""

from pathlib import Path

import pytest
import torch
from icon_kit import PastingEdit, PastingHost, PixelJudge, concept, copies, table

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate.concept import Concept
from efface.t2i.evaluation.cells import goals
from efface.t2i.evaluation.judging import Judge, load_judges, verdicts
from efface.t2i.evaluation.prompts import asks
from efface.t2i.evaluation.reporting import write_evaluation
from efface.t2i.evaluation.suite import ImageSuiteConfig, evaluate, named_in
from efface.t2i.icons import concepts

CONFIG = ImageSuiteConfig(seeds=(0, 1), grid=("ball",), general=40, ways=20, kid_size=10, draws=100)


@pytest.fixture(autouse=True)
def _own_cache(cache: Path) -> None:
    """Looks are counted elsewhere."""


def run(*edits: PastingEdit, split: str = "validation", config: ImageSuiteConfig = CONFIG, **more):
    return evaluate(PastingHost(), edits, concept(), split, config, copies=copies(), **more)


def test_a_clean_edit_beside_its_controls() -> None:
    found = run(PastingEdit(("apple",)))
    rows = {r.name: {k: v.mean for k, v in r.metrics.items()} for r in found.result.rows}
    base, edited, filtered, blank = (rows[n] for n in ("base", "forgetting", "string filter", "blank output"))
    assert base["UA"] == base["UA_rel"] == 0
    assert base["IRA"] == base["CRA"] == base["IRA_nb"] == base["kept"] == 1
    assert edited["UA"] == edited["UA_rel"] == edited["UA_seen"] == 1
    assert edited["IRA_rel"] == edited["IRA_nb"] == edited["CRA_rel"] == edited["ALIGN"] == 1
    assert blank["UA"] == 1
    assert blank["IRA"] == blank["CRA"] == blank["ALIGN"] == blank["kept"] == 0
    assert filtered["UA"] == filtered["IRA"] == 1
    assert filtered["ALIGN"] == 0  # it deletes the rest of the prompt
    assert edited["H_o"] > base["H_o"]
    drift = {r.name: r.metrics["KID"] for r in found.result.rows}
    assert drift["blank output"].low > 0
    assert drift["base"].low <= 0 <= drift["base"].high
    assert drift["forgetting"] == drift["base"]  # the pictures of all else are the same
    assert {k + " (B)" for k in edited if "(B)" not in k and k != "KID"} <= set(edited)
    harm = found.result.extra["no harm"]["forgetting"]
    assert harm["IRA_rel"]["equivalent"]
    assert found.result.columns()["UA (B)"].label == "UA, judge B"
    assert found.result.extra["identical"]["forgetting"] == {"target": 0, "ways": 0, "neighbours": 1, "general": 1}
    assert goals(found.result)["identical"] == goals(found.result)["identical neighbours"] == 1


def test_harm_to_neighbours_and_to_the_style_is_seen() -> None:
    broad = run(PastingEdit(("apple", "ball"))).result.row("forgetting").metrics
    assert broad["UA"].mean == 1
    assert broad["IRA_nb"].mean == 0
    assert broad["IRA_rel"].mean < 1
    found = run(PastingEdit(("apple",), style_lost=True)).result
    assert found.row("forgetting").metrics["ALIGN"].mean == 0
    assert found.row("forgetting").metrics["CRA_rel"].mean < 1
    idle = run(PastingEdit(("drum",))).result
    assert 0 < goals(idle)["identical"] < 1
    assert idle.row("forgetting").metrics["UA_rel"].mean == 0
    assert idle.row("forgetting").metrics["kept"].mean < 1


def test_held_out_ways_are_asked_on_test_alone_and_looks_are_counted() -> None:
    assert "UA_held_out" not in run(PastingEdit(("apple",))).result.row("forgetting").metrics
    first, second = (run(PastingEdit(("apple",)), split="test").result for _ in range(2))
    assert first.row("forgetting").metrics["UA_held_out"].mean == 1
    assert first.row("string filter").metrics["UA_held_out"].mean == 1  # these words hold the name here; the filter sees it
    assert (first.card.looks, second.card.looks) == (1, 2)
    assert first.card.digest == second.card.digest
    assert first.card.thresholds["icons/object/A"] == 0.5


def test_a_draw_is_the_same_whatever_stands_beside_it_and_the_host_is_left_alone() -> None:
    host = PastingHost()
    one = evaluate(host, [PastingEdit(("apple",))], concept(), config=CONFIG, copies=copies())
    assert host.erased == set()
    pictures = one.pictures
    kept = [i for i, a in enumerate(pictures.asks) if a.labels.get("object") == "ball"]
    assert kept
    assert torch.equal(pictures.by_row["base"][kept], pictures.by_row["forgetting"][kept])
    assert [a.text for a in pictures.asks[:2]] == [pictures.asks[0].text] * 2
    assert pictures.seeds[:2] == (0, 1)


def test_judges_that_disagree_stand_side_by_side() -> None:
    blind = evaluate(PastingHost(), [PastingEdit(("apple",))], concept(), config=CONFIG, copies=copies(never=("ball",))).result
    assert blind.row("base").metrics["IRA"].mean == 1
    assert blind.row("base").metrics["IRA (B)"].mean < 1
    assert "IRA_nb (B)" not in blind.row("base").metrics  # the base draws none of it, says B: there is nothing to keep
    assert "IRA_nb" in blind.row("base").metrics


def test_controls_given_from_outside_are_means_over_draws() -> None:
    found = run(PastingEdit(("apple",)), controls={"random features": [[PastingEdit(("drum",))], [PastingEdit(("apple",))]]}).result
    value = found.row("random features").metrics["UA_rel"]
    assert (value.mean, value.n, value.unit) == (0.5, 2, "draws")
    assert found.extra["absent"] == []
    assert run(PastingEdit(("apple",))).result.extra["absent"] == [f"random {x}: no draws were given" for x in ("features", "directions")]


def test_cells_that_the_base_does_not_draw_are_left_out() -> None:
    whole, part = asks(concept(), "test"), asks(concept(), "test", cells={"apple": ["noto"]})
    assert {a.labels.get("style") for a in part if a.group == "target"} == {None, "noto"}
    assert len({a.labels.get("style") for a in whole if a.group == "target"}) == 9
    assert sum(a.group == "neighbours" for a in part) == sum(a.group == "neighbours" for a in whole)
    assert [a.text for a in asks(concept(), "test", general=9)] == [a.text for a in asks(concept(), "test", general=9)]
    assert {a.text for a in asks(concept(), "test", general=9, seed=1)} != {a.text for a in asks(concept(), "test", general=9)}
    unlabelled = Concept.from_mapping({"format": 1, "name": "x", "judge": "icons/object", "target": {"test": ["a dog"]}})
    with pytest.raises(InputError, match="has no label 'object'"):
        asks(unlabelled, "test")
    values = concepts.mapping("apple", table())
    styled = {s: [r for r in rows if "style" in r["labels"]] for s, rows in values["target"].items()}
    with pytest.raises(MatchedNothing, match="does the base draw"):
        asks(Concept.from_mapping({**values, "target": styled}), "test", cells={"apple": []})


def test_the_filter_reads_whole_words() -> None:
    found = asks(concept(), "validation", general=400)
    hit = named_in(found, ("Apple",))
    assert hit.any()
    assert all("apple" in a.text for a, h in zip(found, hit, strict=True) if h)
    assert not named_in(found, ("appl",)).any()
    with pytest.raises(MatchedNothing):
        named_in(found, (" ",))


def test_gold_is_the_floor_and_distances_to_it_tell_erasers_apart() -> None:
    gold = PastingHost(erased={"apple"})
    found = run(PastingEdit(("apple",)), gold=gold)
    rows = {r.name: r.metrics for r in found.result.rows}
    assert rows["gold"]["UA"].mean == rows["gold"]["IRA_rel"].mean == 1
    assert "KID_gold" not in rows["gold"]
    near, far, white = (rows[n]["KID_gold"] for n in ("forgetting", "base", "blank output"))
    assert near.low <= 0 <= near.high  # it draws what gold draws
    assert near.mean < far.mean
    assert min(far.low, white.low) > 0
    assert found.result.extra["gold"]["name"] == "pasting"
    assert found.result.extra["KID_gold"]["subset"] <= CONFIG.kid_size
    assert goals(found.result)["KID_gold"] == pytest.approx(near.mean)
    assert "KID_gold" not in run(PastingEdit(("apple",))).result.columns()
    with pytest.raises(InputError, match="gold: draws with"):
        run(PastingEdit(("apple",)), gold=PastingHost(sampling={"steps": 2}))


def test_report_shows_before_and_after(tmp_path: Path) -> None:
    found = run(PastingEdit(("apple",)))
    page = write_evaluation(tmp_path / "out", found, title="Apples gone").read_text()
    assert page.count("data:image/png;base64,") >= 2 * 3
    assert "<script" not in page
    assert "Apples gone" in page
    assert (tmp_path / "out" / "result.json").is_file()


def test_verdicts_need_the_threshold_and_a_judge_must_exist() -> None:
    judge = PixelJudge("object", "A")
    assert isinstance(judge, Judge)
    scores = torch.tensor([[0.9, 0.1, 0, 0, 0, 0], [0.4, 0.3, 0.3, 0, 0, 0], [0.05, 0, 0, 0, 0, 0.95]])
    assert verdicts(judge, scores).tolist() == [0, -1, -1]
    judge.threshold = 0.35
    assert verdicts(judge, scores).tolist() == [0, 0, -1]
    with pytest.raises(UnknownName, match="icons"):
        load_judges("icon/object")
    with pytest.raises(UnknownName, match="object"):
        load_judges("icons/objet")
    with pytest.raises(InputError, match="seeds"):
        ImageSuiteConfig(seeds=(1, 1))
