import dataclasses
import json

import pytest
import torch
from planted import MAGIC, MUSIC, PLAIN, magic, planted_sae, questions, trained_host
from tiny import tiny_host

from efface.base.errors import InputError, UnknownName
from efface.deactivate.evaluation import Result, require_comparable
from efface.deactivate.parts import Dense, LowRank, WeightsPart
from efface.llm.evaluation.controls import RandomFeatures, random_directions, string_filter
from efface.llm.evaluation.metrics import Measured
from efface.llm.evaluation.relearn import RelearnConfig
from efface.llm.evaluation.scoring import score_questions
from efface.llm.evaluation.suite import SuiteConfig, evaluate
from efface.llm.gating import concept_gate
from efface.llm.methods.pisces import PiscesConfig
from efface.llm.methods.pisces.fit import fit

GIVEN = PiscesConfig(features=("1:0:+", "1:3:-", "0:0:+"), filters=False, tau=0.4, mu=4.0)
SMALL = SuiteConfig(texts=6, continuations=2, draws=2)


def norms(delta: LowRank | Dense, transposed: bool) -> torch.Tensor:
    """Frobenius norm of each feature's share of a change."""
    assert isinstance(delta, LowRank)
    return delta.B.norm(dim=0) * delta.A.norm(dim=1) if not transposed else delta.A.norm(dim=1) * delta.B.norm(dim=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_random_controls_have_the_edits_shape_and_norms(family):
    host, concept = tiny_host(family), magic()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    edit = fit(host, [concept], config=GIVEN, saes=saes)
    source = RandomFeatures(host, edit, saes, concept)
    drawn = [source.draw(0), source.draw(1), random_directions(host, edit, 0)]
    assert source.draw(0).digest == drawn[0].digest != drawn[1].digest
    for control in drawn:
        assert set(control.weights[0].deltas) == set(edit.weights[0].deltas)
        for name, delta in edit.weights[0].deltas.items():
            other = control.weights[0].deltas[name]
            assert torch.allclose(norms(other, host.family.transposed), norms(delta, host.family.transposed), rtol=1e-4)
            assert not torch.allclose(other.delta(), delta.delta())
    W = saes[1].W_dec.detach().double()
    for name, delta in drawn[0].weights[0].deltas.items():
        assert isinstance(delta, LowRank)
        rows = (delta.A if host.family.transposed else delta.B.T).double()
        own = W if name == host.down_proj(1)[0] else saes[0].W_dec.detach().double()
        assert torch.allclose(
            (rows @ own.T / rows.norm(dim=1, keepdim=True) / own.norm(dim=1)).amax(1),
            torch.ones(len(rows), dtype=torch.float64),
            atol=1e-5,
        )
    other = random_directions(host, edit, 0)
    with pytest.raises(InputError, match="edit by features"):
        RandomFeatures(host, other, saes, concept)


def test_string_filter_answers_nothing_where_the_name_stands():
    host = tiny_host()
    concept = magic(tokens=[" seven", " school"], neighbour_questions=None)
    scores = score_questions(host, concept.questions["test"], "cloze")
    blank = string_filter(concept, Measured(scores, None, {}))
    assert blank.target.margins == [0.0] * scores.n
    assert blank.target.accuracy == pytest.approx(scores.chance)
    other = string_filter(magic(tokens=[" seven"], neighbour_questions=None), Measured(scores, None, {}))
    assert other.target.margins == scores.margins


def test_suite_has_every_row_with_intervals_and_leaves_the_host_alone(cache, tmp_path):
    host, concept = tiny_host(), magic()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    edit = fit(host, [concept], config=GIVEN, saes=saes)
    digest = host.digest
    result = evaluate(host, [edit], concept, "test", saes=saes, config=SMALL)
    assert host.digest == digest
    assert [r.name for r in result.rows] == ["base", "pisces", "string filter", "random features", "random directions"]
    assert [r.kind for r in result.rows] == ["base", "edited", "control", "control", "control"]
    base, edited = result.row("base").metrics, result.row("pisces").metrics
    by_hand = score_questions(host, concept.questions["test"], "cloze")
    assert base["margin"].mean == pytest.approx(by_hand.margin)
    assert base["coherence"].mean == 1.0
    assert edited["margin"].mean != base["margin"].mean
    low, high = edited["margin"].interval
    assert low < high
    with edit.applied(host):
        assert edited["margin"].mean == pytest.approx(score_questions(host, concept.questions["test"], "cloze").margin)
    assert result.row("random features").metrics["margin"].unit == "draws"
    assert {"margin_unseen", "margin_suppressed", "ppl_neutral", "bpb_concept", "bpb_continuation"} <= set(edited)
    assert len(result.extra["items"]["random features"]["margin"]) == 2
    assert result.card.looks == 1
    assert evaluate(host, [], concept, "test", config=SMALL).card.looks == 2
    result.save(tmp_path)
    assert Result.load(tmp_path).row("pisces").metrics == edited
    json.dumps(result.to_json(), allow_nan=False)


def test_cards_of_one_protocol_agree_and_of_another_split_do_not(cache):
    host, concept = tiny_host(), magic()
    edit = fit(host, [concept], config=GIVEN, saes=[planted_sae(host, 0), planted_sae(host, 1)])
    one, two = evaluate(host, [], concept, config=SMALL), evaluate(host, [edit], concept, config=SMALL)
    require_comparable([one.card, two.card])
    assert one.row("base").metrics == two.row("base").metrics
    assert [r.name for r in one.rows] == ["base", "string filter"]
    assert one.row("string filter").metrics == two.row("string filter").metrics
    assert any("SAEs were not given" in a for a in two.extra["absent"])
    assert "random directions" in [r.name for r in two.rows]
    with pytest.raises(InputError, match="split"):
        require_comparable([one.card, evaluate(host, [], concept, "test", config=SMALL).card])


def test_gold_is_a_row_and_random_controls_stand_behind_the_gate_of_their_edit(cache):
    host, other, concept = tiny_host(), tiny_host(seed=1), magic()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    edit = fit(host, [concept], config=GIVEN, saes=saes)
    gate = concept_gate(host, concept, saes, fpr=0.1)
    shut = dataclasses.replace(gate, calibration=dataclasses.replace(gate.require_threshold(), threshold=1e9))
    config = dataclasses.replace(SMALL, continuations=0)
    never = evaluate(host, [edit.gated(shut)], concept, config=config, saes=saes, gold=[other])
    bare = evaluate(host, [edit], concept, config=config, saes=saes)
    base = never.row("base").metrics["margin"].mean
    for name in ("pisces", "random features", "random directions"):
        assert never.row(name).metrics["margin"].mean == pytest.approx(base, abs=1e-12)
        assert bare.row(name).metrics["margin"].mean != base
    by_hand = score_questions(other, concept.questions["validation"], "cloze", concept=concept)
    assert never.row("gold").metrics["margin"].mean == pytest.approx(by_hand.margin)
    assert "gold" not in [r.name for r in bare.rows]


def test_relearning_is_measured_on_base_and_edit(cache):
    host, concept = tiny_host(), magic()
    edit = fit(host, [concept], config=GIVEN, saes=[planted_sae(host, 0), planted_sae(host, 1)])
    config = SuiteConfig(texts=4, continuations=0, draws=0, relearn=("full", "lora"))
    result = evaluate(host, [edit], concept, config=config, relearn_config=RelearnConfig(epochs=2))
    for row in ("base", "pisces"):
        assert {"relearn_full", "relearn_lora"} <= set(result.row(row).metrics)
        assert [c["mode"] for c in result.extra["relearn"][row]] == ["full", "lora"]
        assert len(result.extra["relearn"][row][0]["accuracy"]) == 3
    assert "bpb_continuation" not in result.row("base").metrics


def test_bad_input_is_refused_before_anything_is_counted(cache):
    host = tiny_host()
    with pytest.raises(UnknownName, match="split"):
        evaluate(host, [], magic(), "final")
    with pytest.raises(InputError, match="questions"):
        evaluate(host, [], magic(questions=None), "test")
    assert not (cache / "looks").exists()
    with pytest.raises(InputError, match="texts"):
        SuiteConfig(texts=0)


def test_only_the_controls_asked_for_are_drawn(cache):
    host, concept = tiny_host(), magic()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    edit = fit(host, [concept], config=GIVEN, saes=saes)
    for controls in (("random features",), ("random directions",), ()):
        config = dataclasses.replace(SMALL, continuations=0, draws=1, controls=controls)
        rows = [r.name for r in evaluate(host, [edit], concept, "validation", saes=saes, config=config).rows]
        assert rows == ["base", "pisces", "string filter", *controls]


def test_random_features_take_over_coefficients_that_were_solved_for():
    host = trained_host()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    other = magic(name="music", questions=questions(MUSIC, PLAIN), neighbour_questions=questions(MAGIC, PLAIN))  # another edit
    one = magic()
    edit = fit(host, [one, other], config=PiscesConfig(preset="efface", n_features=3, effect_rounds=1), saes=saes)
    drawn = RandomFeatures(host, edit, saes, one).draw(1)
    for name, delta in edit.parts[0].deltas.items():
        control = drawn.parts[0].deltas[name]
        torch.testing.assert_close(norms(control, False), norms(delta, False), rtol=1e-3, atol=1e-6)
        # the same neurons write, and what they write is another feature
        torch.testing.assert_close(
            torch.nn.functional.normalize(control.A, dim=1), torch.nn.functional.normalize(delta.A, dim=1), rtol=1e-4, atol=1e-6
        )
        assert not torch.isclose(control.B, delta.B).all(0).any()
    assert RandomFeatures(host, edit, saes, one).draw(1).digest == drawn.digest
    (part,) = edit.parts
    (delta,) = part.deltas.values()
    elsewhere = WeightsPart({host.down_proj(2)[0]: LowRank(B=torch.zeros_like(delta.B), A=torch.zeros_like(delta.A))})
    in_two = dataclasses.replace(edit, parts=[elsewhere, part])
    assert RandomFeatures(host, in_two, saes, one).draw(1).digest == drawn.digest
    with pytest.raises(InputError, match="one low-rank change of each tensor"):
        RandomFeatures(host, dataclasses.replace(edit, parts=[part, part]), saes, one)
