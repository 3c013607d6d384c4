"""First-order effects against small changes really made, and the greedy choice made of them."""

import dataclasses
import itertools

import pytest
import torch
from planted import magic, planted_sae, trained_host
from tiny import tiny_host

from efface.base.config import from_mapping
from efface.base.errors import InputError, MatchedNothing
from efface.llm.attribution import question_taps, text_taps
from efface.llm.evaluation.scoring import score_questions
from efface.llm.methods.pisces import PiscesConfig, effect
from efface.llm.methods.pisces.config import EFFACE
from efface.llm.methods.pisces.effect import Layer, gather, greedy
from efface.llm.methods.pisces.fit import fit
from efface.llm.methods.pisces.surgery import trial


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


def _layer(fall: list[float], damage: list[list[float]], spread: bool = False) -> Layer:
    p = len(fall)
    metric = torch.eye(2) if spread else torch.zeros(2, 2)
    Q = torch.ones(2, p) * torch.tensor([1.0, 0.0])[:, None]
    return Layer(torch.arange(p), -torch.ones(p), Q, torch.ones(p, 1), torch.tensor(fall), torch.zeros(p), torch.tensor(damage), metric)


def test_greedy_takes_what_adds_to_the_fall_without_adding_to_the_same_damage() -> None:
    alike = _layer([1.0, 0.9, 0.5], [[1.0, 1.0, 0.0], [0.0, 0.0, 0.8]])
    assert greedy({3: alike}, 2) == [(3, 0), (3, 2)]  # 1 harms where 0 does, 2 elsewhere
    assert greedy({3: _layer([1.0, -1.0], [[1.0, 0.1]])}, 5) == [(3, 0)]
    assert greedy({3: _layer([1.0, 1.0], [[0.1, 0.1], [0.0, 0.1]], spread=True)}, 1) == [(3, 0)]


@pytest.mark.parametrize("spread", [False, True])
def test_greedy_is_the_best_by_trial(spread: bool) -> None:
    gen = torch.Generator().manual_seed(0)
    layers = {}
    for n in (1, 4):
        Q, D = torch.randn(6, 5, generator=gen), torch.randn(5, 3, generator=gen)
        metric = torch.randn(6, 6, generator=gen)
        fall, rows = torch.rand(5, generator=gen), torch.randn(4, 5, generator=gen)
        layers[n] = Layer(torch.arange(5), -torch.ones(5), Q, D, fall, fall, rows, metric @ metric.T * spread)

    def ratio(chosen: list[tuple[int, int]]) -> float:
        lost = sum(float(layers[n].fall[c]) for n, c in chosen)
        damage = float((sum(layers[n].damage[:, c] for n, c in chosen) ** 2).sum())  # type: ignore[operator]
        for n in layers:
            change = sum((layers[n].Q[:, c : c + 1] * layers[n].D[c] for m, c in chosen if m == n), torch.zeros(6, 3))
            damage += float(torch.trace(change.T @ layers[n].metric @ change))
        return lost / damage**0.5

    every = [(n, c) for n in layers for c in range(5)]
    chosen: list[tuple[int, int]] = []
    for taken in greedy(layers, 4):
        best = max((x for x in every if x not in chosen), key=lambda x: ratio([*chosen, x]))
        assert taken == best
        chosen.append(taken)


def test_an_edit_by_effect_lowers_the_margin_as_predicted() -> None:
    host, concept = trained_host(), magic()
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, mu_effect=0.3, n_features=6)
    edit = fit(host, [concept], (), config, [planted_sae(host, n) for n in (0, 1)])
    found = edit.evidence["concepts"][0]["features"]  # type: ignore[index]
    assert {f["source"] for f in found} == {"effect"}
    read = [*concept.questions["train"], *concept.questions["validation"]]
    base = score_questions(host, read, concept.form).margin
    with edit.applied(host):
        fallen = 1 - score_questions(host, read, concept.form).margin / base
    assert fallen > 0
    assert fallen == pytest.approx(-sum(f["effects"]["margin"] for f in found), rel=0.35)


def test_rounds_go_on_where_the_last_one_ended() -> None:
    host, concept = trained_host(), magic()
    saes = [planted_sae(host, n) for n in (0, 1)]
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, mu_effect=0.3, n_features=6, effect_rounds=3)
    digest = host.digest
    found = fit(host, [concept], (), config, saes).evidence["concepts"][0]["features"]  # type: ignore[index]
    assert host.digest == digest
    assert len({(f["hook_point"], f["id"]) for f in found}) == len(found) == 6
    once = dataclasses.replace(config, effect_rounds=1)
    first = fit(host, [concept], (), once, saes).evidence["concepts"][0]["features"]  # type: ignore[index]
    assert [f["id"] for f in found[:2]] == [f["id"] for f in first[:2]]


def test_later_rounds_read_the_edited_host_in_shares_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    host, seen = trained_host(), []

    def spy(host, *rest):
        found = gather(host, *rest)
        seen.append((host.digest, found.own_margin, found.near_margin))
        return found

    monkeypatch.setattr(effect, "gather", spy)
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, mu_effect=0.3, n_features=6, effect_rounds=3)
    fit(host, [magic()], (), config, [planted_sae(host, n) for n in (0, 1)])
    assert len({d for d, *_ in seen}) == 3
    assert len({(own, near) for _, own, near in seen}) == 1


def test_candidates_can_be_held_to_detect_the_concept() -> None:
    host, concept = trained_host(), magic()
    saes = [planted_sae(host, n) for n in (0, 1)]
    config = PiscesConfig(preset="efface", tau=0.3, mu=0.3, n_features=4, effect_auroc=0.7)
    found = fit(host, [concept], (), config, saes).evidence["concepts"][0]["features"]  # type: ignore[index]
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
