"""Gates of a concept on a language model: fitted weights against equal ones."""

import numpy as np
import pytest
from planted import magic, planted_sae
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate.gate import Gate
from efface.llm import gating
from efface.llm.gating import concept_gate, judge_gate


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted concept has ten sentences a split."""
    monkeypatch.setattr(gating, "FEWEST", 5)
    monkeypatch.setattr(gating, "LEAST_TEXTS", 2)


def auroc_of(gate: Gate, host, concept) -> float:
    return judge_gate(host, gate, concept)["AUROC target against neighbours"]["auroc"]


def test_fitted_weights_tell_the_concept_from_its_neighbours_and_survive_the_file(few: None, tmp_path) -> None:
    host, concept = tiny_host(hidden_size=64), magic()
    gate = concept_gate(host, concept, [planted_sae(host, n) for n in (0, 1)], fpr=0.1)
    weights = {(s.hook_point, f): w for s in gate.sources for f, w in zip(s.features, s.weights, strict=True)}
    assert max(weights, key=lambda at: weights[at])[1] == 0  # the planted feature
    assert weights[max(weights, key=lambda at: weights[at])] > 0
    assert auroc_of(gate, host, concept) >= 0.95
    gate.save(tmp_path / "gate")
    loaded = Gate.load(tmp_path / "gate")
    assert loaded.digest == gate.digest
    texts = [*concept.target["test"], *concept.neighbours["test"]]
    assert loaded.score(host, texts).tolist() == gate.score(host, texts).tolist()


def test_shuffled_labels_give_a_gate_that_tells_nothing(few: None) -> None:
    host, concept = tiny_host(hidden_size=64), magic()
    train = [*concept.target["train"], *concept.neighbours["train"]]
    mixed = {"train": train[0::2], **{s: list(concept.target[s]) for s in ("validation", "test")}}
    other = {"train": train[1::2], **{s: list(concept.neighbours[s]) for s in ("validation", "test")}}
    control = magic(target=mixed, neighbours=other, general=None)
    saes = [planted_sae(host, n) for n in (0, 1)]
    try:
        found = auroc_of(concept_gate(host, control, saes, fpr=0.1), host, concept)
    except MatchedNothing:  # no weight tells them apart
        return
    assert found < auroc_of(concept_gate(host, concept, saes, fpr=0.1), host, concept)


def test_few_texts_fall_back_to_equal_weights() -> None:
    host, concept = tiny_host(hidden_size=64), magic()
    saes = [planted_sae(host)]
    gate = concept_gate(host, concept, saes, fpr=0.1)
    assert {w for s in gate.sources for w in s.weights} == {1.0}
    assert gate.digest == concept_gate(host, concept, saes, fpr=0.1, weights="equal").digest


def test_the_scale_of_fitted_weights_is_kept(few: None) -> None:
    host, concept = tiny_host(hidden_size=64), magic()
    gate = concept_gate(host, concept, [planted_sae(host)], fpr=0.1)
    pool = concept.general["validation"]
    assert gate.calibrated(host, (), pool, fpr=0.2, standardise=False).scale == gate.scale
    assert gate.calibrated(host, concept.target["validation"], pool, fpr=0.2).scale != gate.scale


def test_pools_weigh_alike_however_many_texts_they_have() -> None:
    rng = np.random.default_rng(0)
    pools = {
        "target": rng.random((20, 3)) + np.array([1, 0, 0]),
        "neighbours": rng.random((20, 3)),
        "general": rng.random((20, 3)) + np.array([0, 1, 0]),
    }
    often = {**pools, "general": np.concatenate([pools["general"]] * 10)}
    n = [sum(map(len, p.values())) for p in (pools, often)]
    alike = [gating._logistic(p, np.ones(3), c) for p, c in ((pools, 1.0), (often, n[0] / n[1]))]
    np.testing.assert_allclose(alike[0], alike[1], atol=1e-3)
    assert np.abs(gating._logistic({**pools, "general": often["general"][:20] + 5}, np.ones(3), 1.0) - alike[0]).max() > 0.1  # the control


def test_bad_requests_are_named() -> None:
    host = tiny_host(hidden_size=64)
    with pytest.raises(UnknownName, match="fitted"):
        concept_gate(host, magic(), [planted_sae(host)], weights="fited")
    with pytest.raises(InputError, match="one concept"):
        concept_gate(host, [magic(), magic()], [planted_sae(host)])


def test_answered_questions_of_train_are_texts_of_train_and_of_no_other_split() -> None:
    concept = magic()
    read = gating._with_questions(concept, 0)
    for pool, questions in (("target", concept.questions), ("neighbours", concept.neighbour_questions)):
        told = [f"{q.q} {q.answer}" for q in questions["train"]]
        before, after = getattr(concept, pool), getattr(read, pool)
        assert told
        assert after["train"] == (*before["train"], *told)
        assert after["validation"] == before["validation"]
        assert not after.get("test")
