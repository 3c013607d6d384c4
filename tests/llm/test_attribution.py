"""First-order effects against small changes really made, and the coefficients solved from them."""

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
from efface.llm.methods.pisces import PiscesConfig, coefficients, effect
from efface.llm.methods.pisces.coefficients import ITEM, KL, NEIGHBOURS, NOISE, SHRINK, SPREAD, Evidence, Round
from efface.llm.methods.pisces.config import EFFACE
from efface.llm.methods.pisces.effect import gather, splits_read
from efface.llm.methods.pisces.fit import fit, plan, reference
from efface.llm.methods.pisces.least_damage import least_damage
from efface.llm.methods.pisces.surgery import saes_by_layer, trial
from efface.llm.reporting import fitted_on


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


def _items(n: int = 9, k: int = 7, seed: int = 0) -> tuple[torch.Tensor, ...]:
    gen = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, 20, generator=gen, dtype=torch.float64)
    return phi, torch.randn(n, generator=gen, dtype=torch.float64), torch.randn(k, n, generator=gen, dtype=torch.float64)


def test_least_damage_is_the_optimum() -> None:
    phi, fall, rows = _items()
    done = torch.linspace(-1, 1, len(rows), dtype=torch.float64)
    alpha = least_damage(phi @ phi.T, fall, rows, done, 0.5)
    best = phi.T @ alpha  # the change itself, in the space where size is damage

    def damage(change: torch.Tensor) -> float:
        return float(change @ change + ((rows @ phi @ change + done) ** 2).sum())

    assert float(fall @ phi @ best) == pytest.approx(0.5)
    along = phi.T @ fall
    gen = torch.Generator().manual_seed(1)
    for _ in range(300):  # the control: nothing else that takes as much is cheaper
        step = 0.05 * torch.randn(len(best), generator=gen, dtype=torch.float64)
        other = best + step - along * float(along @ step) / float(along @ along)
        assert float(fall @ phi @ other) == pytest.approx(0.5)
        assert damage(other) > damage(best)


def test_least_damage_makes_good_what_was_done_and_says_where_nothing_can_fall() -> None:
    phi = torch.eye(2, dtype=torch.float64)
    fall, rows = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([[0.0, 10.0]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert least_damage(phi, fall, rows, zero, 0.3).tolist() == pytest.approx([0.3, 0.0])
    mended = phi @ least_damage(phi, fall, rows, torch.tensor([2.0], dtype=torch.float64), 0.3)
    assert mended.tolist() == pytest.approx([0.3, -0.2], rel=0.02)
    with pytest.raises(ValueError, match="no change"):
        least_damage(torch.zeros(2, 2, dtype=torch.float64), fall, rows, zero, 0.3)


def _evidence(layers: tuple[int, ...] = (0, 1), m: int = 6, d: int = 4, seed: int = 0) -> Evidence:
    """Random taps of 5, 4 and 3 items, of several tokens each, that lie in no order."""
    gen = torch.Generator().manual_seed(seed)

    def taps(n: int, t: int, value: torch.Tensor) -> Taps:
        read = [{x: torch.randn(t, width, generator=gen) for x in layers} for width in (m, d)]
        return Taps(read[0], read[1], torch.randperm(t, generator=gen) % n, n, value)

    own, near = torch.tensor([1.0, 2.0, 1.5, -0.5, 1.0]), torch.tensor([1.0, 0.5, 2.0, 1.0])
    return Evidence(taps(5, 23, own), taps(4, 17, near), taps(3, 19, torch.zeros(3)), own + 0.5, near + 0.25)


def _effects(evidence: Evidence, change: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """Of `Delta W_out = change[layer]` on every item of the three pools."""
    return [
        sum(
            (torch.zeros(p.n).index_add_(0, p.item, ((p.hidden[x] @ a) * p.gradient[x]).sum(1)) for x, a in change.items()),
            start=torch.zeros(p.n),
        )
        for p in evidence.pools
    ]


def _total(evidence: Evidence, D: dict[int, torch.Tensor], Q: dict[int, torch.Tensor]) -> float:
    """Damage written out from the definitions in `coefficients`, without kernels."""
    own, near, text = _effects(evidence, {x: Q[x] @ D[x] for x in D})
    share = own / evidence.own_base.clamp_min(0).mean()
    off = (share + evidence.fall @ own) * evidence.open
    lost = near / evidence.near_base.mean() + evidence.moved
    damage = float((off**2).sum()) / len(own) ** 2 / NOISE**2
    damage += float(lost.mean() ** 2) / NEIGHBOURS**2 + float((lost**2).mean()) / ITEM**2
    damage += float((text**2).sum()) / 2 / len(evidence.text.item) / KL
    for x in D:
        moment = evidence.text.second_moment(x) + evidence.near.second_moment(x)
        moment = moment + SHRINK * moment.diagonal().mean() * torch.eye(len(moment))
        curvature = float((evidence.text.gradient[x] ** 2).sum(1).mean()) / D[x].shape[1]
        damage += SPREAD * curvature / 2 / KL * float(((moment @ Q[x]) * Q[x]).sum())
    return damage


def test_coefficients_take_what_is_wanted_with_the_least_damage_of_all_in_the_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coefficients, "BLOCK", 8)
    evidence, gen = _evidence(), torch.Generator().manual_seed(5)
    D = {0: torch.randn(3, 4, generator=gen), 1: torch.randn(6, 4, generator=gen)}  # fewer and more features than dimensions
    Q = Round(evidence).solved(D, 0.2)
    assert {x: tuple(q.shape) for x, q in Q.items()} == {0: (6, 3), 1: (6, 6)}

    def fallen(Q: dict[int, torch.Tensor]) -> float:
        return float(evidence.fall @ _effects(evidence, {x: Q[x] @ D[x] for x in D})[0])

    assert fallen(Q) == pytest.approx(0.2, rel=1e-3)
    best = _total(evidence, D, Q)
    for _ in range(50):
        other = {x: q + 0.3 * q.abs().mean() * torch.randn(q.shape, generator=gen) for x, q in Q.items()}
        unit = {x: o * 0.2 / fallen(other) for x, o in other.items()}
        assert _total(evidence, D, unit) > best
    assert _total(evidence, D, {x: 1.05 * q for x, q in Q.items()}) != pytest.approx(best, rel=1e-3)


def test_layers_are_weighed_by_the_damage_of_the_best_change_in_them() -> None:
    evidence, free = _evidence(), torch.eye(4)
    round_ = Round(evidence)
    for layers in ([0], [1], [0, 1]):
        D = dict.fromkeys(layers, free)
        assert round_.least(layers, 0.2) == pytest.approx(_total(evidence, D, round_.solved(D, 0.2)), rel=1e-3)
    assert round_.least([0, 1], 0.2) < min(round_.least([0], 0.2), round_.least([1], 0.2))


def test_what_few_questions_cannot_show_is_spread_over_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, D = _evidence(), {x: torch.eye(4) for x in (0, 1)}

    def unevenness(noise: float) -> float:
        monkeypatch.setattr(coefficients, "NOISE", noise)
        Q = Round(evidence).solved(D, 0.2)
        fallen = _effects(evidence, {x: Q[x] @ D[x] for x in D})[0][evidence.open > 0]
        assert float(evidence.fall[evidence.open > 0] @ fallen) == pytest.approx(0.2, rel=1e-3)
        return float(fallen.std())

    assert unevenness(0.01) < 0.3 * unevenness(100.0)


def test_an_item_that_fell_already_counts_no_more_and_a_silent_layer_is_left_alone() -> None:
    evidence = _evidence()
    assert evidence.open.tolist() == [1, 1, 1, 0, 1]
    assert evidence.fall[3] == 0
    gradient = {0: torch.zeros_like(evidence.own.gradient[0]), 1: evidence.own.gradient[1]}
    deaf = dataclasses.replace(evidence, own=dataclasses.replace(evidence.own, gradient=gradient), near_base=evidence.near.value)
    D = {x: torch.eye(4) for x in (0, 1)}
    Q = Round(deaf).solved(D, 0.2)
    assert float(Q[0].abs().max()) < 0.3 * float(Q[1].abs().max())  # it only makes good what the other does to the rest
    nothing = {x: torch.zeros_like(g) for x, g in evidence.own.gradient.items()}
    with pytest.raises(ValueError, match="no change"):
        Round(dataclasses.replace(deaf, own=dataclasses.replace(deaf.own, gradient=nothing))).solved(D, 0.2)


def test_an_edit_by_effect_lowers_the_margin_as_predicted(caplog: pytest.LogCaptureFixture) -> None:
    host, concept = trained_host(), magic()
    config = PiscesConfig(preset="efface", n_features=6, effect_fall=0.03, effect_rounds=1)
    edit = fit(host, [concept], (), config, [planted_sae(host, n) for n in (0, 1)])
    assert "fits them alone, and those of validation are among them" in caplog.text
    assert "add some, or set selection=detect" in caplog.text
    assert edit.evidence["read"] == ["train", "validation"]
    assert [splits_read(c) for c in (concept, Concept.load("baseball"))] == [("train", "validation"), ("train",)]
    assert "Fitted on questions of validation" in fitted_on([edit], "validation")[0]
    assert not fitted_on([edit], "test")
    assert not fitted_on([edit], "train")
    assert (edit.evidence["concepts"][0]["tau"], edit.evidence["concepts"][0]["rows"]) == (None, None)
    found = edit.evidence["concepts"][0]["features"]  # type: ignore[index]
    assert {f["source"] for f in found} == {"effect"}
    assert len(found) == 6
    read = [*concept.questions["train"], *concept.questions["validation"]]
    base = score_questions(host, read, concept.form).margin
    with edit.applied(host):
        fallen = 1 - score_questions(host, read, concept.form).margin / base
    assert -sum(f["effects"]["margin"] for f in found) == pytest.approx(0.03, rel=0.01)
    assert fallen == pytest.approx(0.03, rel=0.35)


def test_who_leaves_questions_out_is_not_told_to_write_more(caplog: pytest.LogCaptureFixture) -> None:
    host = trained_host()
    few = dataclasses.replace(magic(), questions={"train": magic().questions["train"] * 30})
    fit(host, [few], (), PiscesConfig(preset="efface", n_features=2, effect_rounds=1, n_effect=5), [planted_sae(host, 0)])
    assert "there are more, and n_effect=5 leaves them out" in caplog.text
    assert "add some" not in caplog.text


def test_given_features_are_solved_for_and_mu_scales_them() -> None:
    host, concept = trained_host(), magic()
    saes = [planted_sae(host, n) for n in (0, 1)]
    config = PiscesConfig(preset="efface", n_features=6, effect_rounds=1)
    first = plan(host, concept, saes_by_layer(saes), config).chosen
    given = dataclasses.replace(config, features=tuple(str(reference(e)) for e in first))
    whole, again, double = (fit(host, [concept], (), c, saes) for c in (config, given, dataclasses.replace(config, mu=2.0)))
    for name, delta in whole.weights[0].deltas.items():
        torch.testing.assert_close(again.weights[0].deltas[name].delta(), delta.delta(), atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(double.weights[0].deltas[name].delta(), 2 * delta.delta(), atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match=r"layers \[0, 1\]"):
        fit(host, [concept], (), dataclasses.replace(config, features=("7:1:+",)), saes)
    with pytest.raises(InputError, match="beyond"):
        fit(host, [concept], (), dataclasses.replace(config, features=("1:999:+",)), saes)


def test_the_end_of_a_feature_is_the_one_that_is_pushed_away_from() -> None:
    host, concept = trained_host(), magic()
    saes = saes_by_layer([planted_sae(host, n) for n in (0, 1)])
    out = plan(host, concept, saes, PiscesConfig(preset="efface", n_features=6, effect_rounds=1))
    taps = question_taps(host, [0, 1], concept.questions["train"] + concept.questions["validation"], concept.form)
    assert out.solved is not None
    for e, (Q, _) in zip(out.chosen, out.solved, strict=True):
        pushed = float((taps.hidden[e.layer] @ Q).mean())
        assert e.direction == ("suppress_positive" if pushed < 0 else "suppress_negative")


def test_later_rounds_read_the_edited_host_against_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    host, seen = trained_host(), []

    def spy(host, *rest):
        found = gather(host, *rest)
        seen.append((host.digest, found.own_base.tolist(), found.fallen))
        return found

    monkeypatch.setattr(effect, "gather", spy)
    config = PiscesConfig(preset="efface", n_features=18, effect_rounds=3, effect_fall=0.2)
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
    config = PiscesConfig(preset="efface", n_features=4, effect_auroc=0.7)
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
    assert [PiscesConfig(**k).mu_or_default for k in ({}, {"selection": "effect"}, {"preset": "efface"}, {"mu": 3.0})] == [10, 1, 1, 3]
    with pytest.raises(InputError, match="mu must be"):
        PiscesConfig(mu=-1.0)


def test_questions_must_be_there() -> None:
    host = tiny_host()
    bare = magic(questions=None)
    with pytest.raises(InputError, match="selection=detect"):
        fit(host, [bare], (), PiscesConfig(preset="efface"), [planted_sae(host)])
    with pytest.raises(MatchedNothing, match="questions"):
        question_taps(host, [0], [], "cloze")
    with pytest.raises(MatchedNothing, match="texts"):
        text_taps(host, [0], [])
