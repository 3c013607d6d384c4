"""First-order effects against small changes really made, and the strengths made of them."""

import dataclasses
import itertools

import pytest
import torch
from planted import magic, planted_sae, trained_host
from tiny import tiny_host

from efface.base.config import from_mapping
from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.concept import Concept
from efface.llm.attribution import Taps, question_taps, text_taps
from efface.llm.evaluation.scoring import score_questions
from efface.llm.evidence import FeatureEvidence
from efface.llm.host import Host
from efface.llm.methods.pisces import PiscesConfig, effect
from efface.llm.methods.pisces.config import EFFACE, FeatureRef
from efface.llm.methods.pisces.effect import candidates, gather
from efface.llm.methods.pisces.fit import fit, neuron_signs, plan, reference
from efface.llm.methods.pisces.least_damage import least_damage
from efface.llm.methods.pisces.strengths import RIDGE, Evidence, Layer, Strengths
from efface.llm.methods.pisces.surgery import layer_problem, saes_by_layer, trial
from efface.sae import SAE


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_effects_are_the_derivative_of_each_margin(family: str) -> None:
    host, concept = tiny_host(family), magic()
    host.model.double()
    items = concept.questions["validation"]
    taps = question_taps(host, [0, 2], items, concept.form)
    Q, D = torch.randn(host.d_mlp, 3, dtype=torch.float64), torch.randn(3, host.d_model, dtype=torch.float64)
    base = torch.tensor(score_questions(host, items, concept.form).margins, dtype=torch.float64)
    for layer, f in itertools.product((0, 2), range(3)):
        predicted = taps.effects(layer, Q, D)[:, f]
        moved = []
        for step in (1e-4, -1e-4):
            with trial(host, {layer: (step * Q[:, f : f + 1], D[f : f + 1])}):
                moved.append(torch.tensor(score_questions(host, items, concept.form).margins, dtype=torch.float64))
        measured = (moved[0] - moved[1]) / 2e-4
        torch.testing.assert_close(predicted, measured, atol=1e-2 * float(measured.abs().max()), rtol=0.02)  # logits are scored in float32
    torch.testing.assert_close(taps.value.double(), base, atol=1e-4, rtol=1e-4)
    assert len(base) == taps.n == len(items)


def test_taps_leave_no_trace() -> None:
    host, concept = tiny_host(), magic()
    host.model.lm_head.weight.requires_grad_(True)
    wanted = {n: p.requires_grad for n, p in host.model.named_parameters()}
    before = host.digest
    question_taps(host, [1], concept.questions["validation"], concept.form)
    assert host.digest == before
    assert {n: p.requires_grad for n, p in host.model.named_parameters()} == wanted
    assert all(p.grad is None for p in host.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.model.modules())


def test_text_effects_estimate_the_divergence() -> None:
    host = tiny_host()
    texts = [f"she saw the {a} by the {b} and the {c}" for a, b, c in itertools.permutations(("dog", "wand", "road", "river", "owl"), 3)]
    Q, D = torch.randn(host.d_mlp, 1), torch.randn(1, host.d_model)
    Q, D = Q / Q.norm(), D / D.norm()
    taps = [text_taps(host, [1], texts, seed) for seed in range(6)]
    estimate = sum(float((t.effects(1, Q, D) ** 2).sum()) for t in taps) / 6 / 2 / len(taps[0].item)
    ids, mask = host.encode_texts(texts)
    step = 0.05
    with torch.no_grad():
        base = host.logits(ids, mask).double().log_softmax(-1)
    with torch.no_grad(), trial(host, {1: (step * Q, D)}):
        moved = host.logits(ids, mask).double().log_softmax(-1)
    divergence = float((base.exp() * (base - moved)).sum(-1)[mask.bool()].mean()) / step**2
    assert estimate == pytest.approx(divergence, rel=0.25)


def _problem(p: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    rows = torch.randn(40, p, generator=gen, dtype=torch.float64)
    return rows.T @ rows, torch.randn(p, generator=gen, dtype=torch.float64), torch.randn(p, generator=gen, dtype=torch.float64)


def test_least_damage_is_the_optimum() -> None:
    H, linear, fall = _problem()
    v = least_damage(H, linear, fall, 0.5)
    assert float(fall @ v) == pytest.approx(0.5, rel=0.01)
    assert (v >= 0).all()
    assert 0 < int((v > 0).sum()) < len(v)
    # the conditions of Karush, Kuhn and Tucker, with the multiplier read off what is above 0
    gradient, active = H @ v - linear, v > 0
    multiplier = float((gradient[active] @ fall[active]) / (fall[active] @ fall[active]))
    torch.testing.assert_close(gradient[active], multiplier * fall[active], atol=1e-3, rtol=1e-3)
    assert (gradient - multiplier * fall)[~active].min() >= -1e-3

    def damage(x: torch.Tensor) -> float:
        return float(x @ H @ x / 2 - linear @ x)

    gen = torch.Generator().manual_seed(1)
    for _ in range(300):  # the control: nothing else that takes as much is cheaper
        other = (v + 0.05 * torch.randn(len(v), generator=gen, dtype=torch.float64)).clamp_min(0)
        if float(fall @ other) > 0:
            other = other * float(fall @ v) / float(fall @ other)
            assert damage(other) >= damage(v) - 1e-6


def test_least_damage_where_nothing_can_fall_or_nothing_is_felt() -> None:
    H, linear, fall = _problem(seed=3)
    assert not least_damage(H, torch.zeros_like(linear), -fall.abs(), 0.3).any()
    H[2], H[:, 2] = 0, 0  # its damage is not known: it is left alone
    v = least_damage(H, linear, fall, 0.3)
    assert v[2] == 0
    assert float(fall @ v) == pytest.approx(0.3, rel=0.01)


def test_strengths_spare_what_neighbours_feel_and_do_not_count_items_that_fell_already() -> None:
    def layer(own: list[list[float]], near: list[list[float]]) -> Layer:
        p = len(own[0])
        return Layer(
            torch.arange(p), -torch.ones(p), torch.ones(2, p), torch.ones(p, 1), torch.tensor(own), torch.tensor(near),
            torch.zeros(1, p), 1e-3 * torch.eye(2),
        )  # fmt: skip

    def evidence(own: list[float], near: list[float]) -> Evidence:
        taps = [Taps({}, {}, torch.zeros(0, dtype=torch.int64), len(x), torch.tensor(x)) for x in (own, near, [0.0])]
        return Evidence(*taps, torch.ones(2), torch.ones(2))

    start = Strengths.none({1: torch.arange(3)})
    layers = {1: layer([[-1.0, -1.0, 0.0], [-1.0, -1.0, 0.0]], [[0.0, -0.5, 0.0], [0.0, -0.5, 0.0]])}
    after = start.next(layers, evidence([1.0, 1.0], [1.0, 1.0]), 0.2, 9)
    assert float(after.fall[1].sum()) == pytest.approx(0.2, rel=0.02)
    assert after.value[1][0] > 10 * after.value[1][1]
    assert after.value[1][2] == 0
    assert after.order()[0] == (1, 0)
    assert after.factors()[1][0].shape[1] == int((after.value[1] > 0).sum())
    only = start.next(layers, evidence([1.0, 1.0], [1.0, 1.0]), 0.2, 1)
    assert [column for _, column in only.order()] == [0]
    # an item below 0 has no more to lose: what lowers only that one is worth nothing
    layers = {1: layer([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]], [[0.0] * 3, [0.0] * 3])}
    spent = start.next(layers, evidence([-0.5, 1.0], [1.0, 1.0]), 0.2, 9)
    assert (spent.value[1] > 0).tolist() == [True, False, False]
    # harm done already is made good where that costs nothing of the fall
    layers = {1: layer([[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], [[0.0, 0.3, 0.0], [0.0, 0.3, 0.0]])}
    mended = start.next(layers, evidence([1.0, 1.0], [0.8, 0.8]), 0.2, 9)
    unhurt = start.next(layers, evidence([1.0, 1.0], [1.0, 1.0]), 0.2, 9)
    assert mended.value[1][1] > 0.3
    assert unhurt.value[1][1] == 0


def test_spread_is_the_form_it_says_and_weighs_against_large_changes() -> None:
    gen = torch.Generator().manual_seed(0)
    Q, D, root = torch.randn(6, 4, generator=gen), torch.randn(4, 3, generator=gen), torch.randn(6, 6, generator=gen)
    layer = Layer(torch.arange(4), -torch.ones(4), Q, D, -torch.ones(2, 4), torch.zeros(2, 4), torch.zeros(1, 4), root @ root.T)
    v = torch.rand(4, generator=gen)
    change = (Q * v) @ D
    torch.testing.assert_close(v @ layer.spread(torch.arange(4)) @ v, torch.trace(change.T @ layer.metric @ change))
    torch.testing.assert_close(layer.own_spread(), layer.spread(torch.arange(4)).diagonal())
    taps = [Taps({}, {}, torch.zeros(0, dtype=torch.int64), 2, torch.ones(2)) for _ in range(3)]
    evidence = Evidence(*taps, torch.ones(2), torch.ones(2))
    layers = {1: layer, 2: dataclasses.replace(layer, Q=10 * Q)}  # the same fall at a hundred times the spread
    after = Strengths.none({1: layer.ids, 2: layer.ids}).next(layers, evidence, 0.2, 9)
    assert after.value[1].sum() > 20 * after.value[2].sum()
    sure = dataclasses.replace(layer, own=torch.tensor([[-1.0, -2.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]), metric=1e-4 * torch.eye(6))
    sure = dataclasses.replace(sure, Q=torch.ones(6, 4), D=torch.ones(4, 3))
    steady = Strengths.none({1: layer.ids}).next({1: sure}, evidence, 0.2, 9).value[1]
    assert steady[0] > 2 * steady[1]  # the same mean fall, but one question alone bears it


def test_damage_that_cancels_is_trusted_less_than_wholly() -> None:
    layer = Layer(
        torch.arange(2), -torch.ones(2), torch.ones(2, 2), torch.ones(2, 1), torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]),
        torch.tensor([[-0.3, 0.3], [-0.3, 0.3]]), torch.zeros(1, 2), torch.zeros(2, 2),
    )  # fmt: skip
    taps = [Taps({}, {}, torch.zeros(0, dtype=torch.int64), 2, torch.ones(2)) for _ in range(3)]
    taken = Strengths.none({1: layer.ids}).next({1: layer}, Evidence(*taps, torch.ones(2), torch.ones(2)), 0.2, 9).value[1]
    assert float(taken[1] / taken[0]) == pytest.approx(1 / (1 + RIDGE), rel=0.01)  # without the ridge: 1, and no harm is seen at all


def test_a_sign_in_force_is_kept_where_the_other_would_lower_the_margin_more() -> None:
    host, concept, config = trained_host(), magic(), PiscesConfig(preset="efface", tau=0.3)
    sae, ids = planted_sae(host, 1), torch.arange(6)
    signs = neuron_signs(host, concept, [1], config)[1]
    problem = layer_problem(host, sae, [FeatureRef(1, int(f)) for f in ids], signs, config)
    evidence = gather(host, concept, [1], config)
    free = candidates(problem, ids, evidence, 1, config, torch.zeros(6))
    kept = candidates(problem, ids, evidence, 1, config, torch.cat([-free.sigma[:3], torch.zeros(3)]))
    assert kept.sigma.tolist() == [*(-free.sigma[:3]).tolist(), *free.sigma[3:].tolist()]
    assert (kept.own[:, :3].mean(0) > free.own[:, :3].mean(0)).all()
    torch.testing.assert_close(kept.own[:, 3:], free.own[:, 3:])


def test_an_edit_by_effect_lowers_the_margin_as_predicted() -> None:
    host, concept = trained_host(), magic()
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, mu_effect=0.3, n_features=6, effect_fall=0.03, effect_rounds=1)
    edit = fit(host, [concept], (), config, [planted_sae(host, n) for n in (0, 1)])
    found = edit.evidence["concepts"][0]["features"]  # type: ignore[index]
    assert {f["source"] for f in found} == {"effect"}
    read = [*concept.questions["train"], *concept.questions["validation"]]
    base = score_questions(host, read, concept.form).margin
    with edit.applied(host):
        fallen = 1 - score_questions(host, read, concept.form).margin / base
    assert fallen > 0
    assert fallen == pytest.approx(-sum(f["effects"]["margin"] for f in found), rel=0.35)


def test_the_features_of_an_edit_by_effect_make_it_again_and_mu_scales_them() -> None:
    host, concept = trained_host(), magic()
    saes = [planted_sae(host, n) for n in (0, 1)]
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, mu_effect=0.3, n_features=6, effect_rounds=2)
    edit = fit(host, [concept], (), config, saes)
    refs = tuple(str(reference(e)) for e in plan_of(host, concept, saes, config))
    assert all(r.count(":") == 3 for r in refs)
    again = fit(host, [concept], (), dataclasses.replace(config, features=refs), saes)
    double = fit(host, [concept], (), dataclasses.replace(config, mu=0.6), saes)
    for name, delta in edit.parts[0].deltas.items():  # type: ignore[attr-defined]
        whole = delta.B @ delta.A
        torch.testing.assert_close(again.parts[0].deltas[name].B @ again.parts[0].deltas[name].A, whole, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
        torch.testing.assert_close(double.parts[0].deltas[name].B @ double.parts[0].deltas[name].A, 2 * whole, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]


def plan_of(host: Host, concept: Concept, saes: list[SAE], config: PiscesConfig) -> list[FeatureEvidence]:
    return plan(host, concept, saes_by_layer(saes), config).chosen


def test_later_rounds_read_the_edited_host_against_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    host, seen = trained_host(), []

    def spy(host, *rest):
        found = gather(host, *rest)
        seen.append((host.digest, found.own_base.tolist(), found.fallen))
        return found

    monkeypatch.setattr(effect, "gather", spy)
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, mu_effect=0.3, n_features=6, effect_rounds=3)
    digest = host.digest
    fit(host, [magic()], (), config, [planted_sae(host, n) for n in (0, 1)])
    assert host.digest == digest
    assert len({d for d, *_ in seen}) == 3
    assert len({str(base) for _, base, _ in seen}) == 1
    assert seen[0][2] == pytest.approx(0, abs=1e-6)
    assert seen[2][2] > seen[1][2] > 0


def test_candidates_can_be_held_to_detect_the_concept() -> None:
    host, concept = trained_host(), magic()
    saes = [planted_sae(host, n) for n in (0, 1)]
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, n_features=4, effect_auroc=0.7)
    found = fit(host, [concept], (), config, saes).evidence["concepts"][0]["features"]  # type: ignore[index]
    assert 0 < len(found) <= 4
    assert all(f["auroc"]["validation"] >= 0.7 for f in found)
    with pytest.raises(MatchedNothing, match="another SAE"):
        fit(host, [concept], (), dataclasses.replace(config, effect_auroc=1.1), saes)


def test_the_preset_sets_numbers_that_named_values_override() -> None:
    made = from_mapping(PiscesConfig, {"preset": "efface", "tau": 0.5})
    assert (made.tau, made.n_features, made.selection_or_default) == (0.5, EFFACE["n_features"], "effect")
    assert from_mapping(PiscesConfig, dataclasses.asdict(made)) == made
    assert from_mapping(PiscesConfig, {}) == PiscesConfig()


def test_questions_must_be_there() -> None:
    host = tiny_host()
    bare = magic(questions=None)
    with pytest.raises(InputError, match="selection=detect"):
        fit(host, [bare], (), PiscesConfig(preset="efface"), [planted_sae(host)])
    with pytest.raises(MatchedNothing, match="questions"):
        question_taps(host, [0], [], "cloze")
    with pytest.raises(MatchedNothing, match="texts"):
        text_taps(host, [0], [])
