"""Attacks that ask otherwise, round trips through grids, read-outs: each with its negative control, the host as before."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deactivate._kit import CONCEPT, bits, low_rank, same, weights_edit
from planted import MAGIC, PLAIN, magic, questions, trained_host
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate.concept import Concept, Question
from efface.deactivate.edit import Edit
from efface.deactivate.parts import WeightsPart
from efface.llm.attacks.answering import answers, outcome
from efface.llm.attacks.config import InContextConfig, ParaphraseConfig, ProbesConfig, QuantisationConfig, TranslationConfig
from efface.llm.attacks.probing import Probes, fit_probe
from efface.llm.attacks.prompts import InContext, Paraphrase, Prefix, Translation
from efface.llm.attacks.protocol import Attack, Cost
from efface.llm.attacks.quantisation import Quantisation, quantise, quantised
from efface.llm.attacks.readout import LogitLens, first_tokens, last_states, lens
from efface.llm.attacks.registry import attack, attacks
from efface.llm.evaluation.scoring import contains
from efface.llm.evaluation.suite import applied


def taught(**changes: object) -> Concept:
    """The concept with six train questions."""
    asked = questions(MAGIC, PLAIN)
    return magic(questions={**asked, "train": list(asked["test"]), "test": asked["validation"], "validation": []}, **changes)


@pytest.fixture(scope="module")
def known():
    return trained_host()


def test_registry_names_the_nearest_and_makes_every_attack():
    assert [r.name for r in attacks()][-1] == "relearning"
    for row in attacks():
        made = row.make({}, seed=3)
        assert isinstance(made, Attack)
        assert (made.name, made.level) == (row.name, row.level)
    assert attack("gcg").make({"preset": "paper"}).config.width == 512
    assert attack("gcg").make({}, seed=3).config.seed == 3
    assert attack("relearning").make({"training.epochs": 7}, seed=3).config.training.epochs == 7
    with pytest.raises(UnknownName, match="paraphrase"):
        attack("parafrase")
    with pytest.raises(UnknownName, match="width"):
        attack("gcg").make({"widht": 3})
    with pytest.raises(InputError, match="bits"):
        attack("quantisation").make({"bits": [1]})


def test_a_question_is_recovered_where_it_was_wrong_and_some_variant_is_right():
    hits = {"a": [True, True, False, None], "b": [False, False, False, None]}
    found = outcome("x", "L0", [True, False, False, False], hits, Cost())
    assert found.recovered == (False, True, False, None)
    assert found.before.mean == pytest.approx(1 / 3)
    assert found.success.mean == pytest.approx(2 / 3)
    with pytest.raises(MatchedNothing, match="could be tried"):
        outcome("x", "L0", [False], {"a": [None]}, Cost())


def test_prompts_ask_the_same_and_never_show_the_answer(known):
    concept = taught(synonyms={"seen": ["school"], "held_out": ["castle"]})
    asked = concept.questions["test"]
    for made in (Paraphrase(ParaphraseConfig(options=False)), Prefix(), InContext(InContextConfig((1, 99)))):
        variants = made.variants(concept, asked)
        assert len(variants) > 1
        for prompts in variants.values():
            for q, p in zip(asked, prompts, strict=True):
                assert p.options == q.options
                assert not contains(p.q.casefold(), q.answer.casefold())
    assert "called castle" in Paraphrase().variants(concept, asked)
    shots = InContext(InContextConfig((99,))).variants(concept, asked)
    assert list(shots) == [f"{len(concept.questions['train'])} shots"]
    train = concept.questions["train"]
    assert all(f"{t.q} {t.answer}" in shots[next(iter(shots))][0].q for t in train)
    assert InContext(InContextConfig((2,), seed=1)).variants(concept, asked) != InContext(InContextConfig((2,))).variants(concept, asked)


def test_attacks_on_questions_leave_the_host_and_bring_nothing_back_where_nothing_was_erased(known):
    concept = taught()
    before, edit = bits(known), weights_edit(known)
    recovered = 0
    for name in ("paraphrase", "prefix", "in-context", "quantisation", "logit-lens", "probes"):
        made = attack(name).make({"steps": 20} if name == "probes" else {})
        on_base, on_edit = made.run(known, [], concept), made.run(known, [edit], concept)
        assert same(bits(known), before)
        assert on_base.before.mean == 1
        assert not any(on_base.recovered)  # nothing was wrong
        assert len(on_edit.recovered) == len(concept.questions["test"])
        assert on_edit.before.mean < 1
        assert on_edit.to_dict()["recovered"] == made.run(known, [edit], concept).to_dict()["recovered"]
        recovered += sum(map(bool, on_edit.recovered))
    assert recovered


def test_translation_is_word_by_word_and_needs_a_map(tmp_path):
    concept, path = magic(), tmp_path / "words.yaml"
    path.write_text("school: castle\nwand: sword\nshe: he\n")
    (told,) = Translation(TranslationConfig(str(path))).variants(concept, concept.questions["test"]).values()
    assert all(" castle " in t.q and " he " in t.q and "school" not in t.q for t in told)
    held = {o for t in told for o in t.options}
    assert "wand" not in held
    with pytest.raises(InputError, match="words=FILE"):
        Translation().variants(concept, concept.questions["test"])
    path.write_text("school: castle\nwand: castle\n")
    with pytest.raises(InputError, match="two words"):
        Translation(TranslationConfig(str(path))).variants(concept, concept.questions["test"])
    path.write_text(f"{concept.questions['test'][0].options[0]}: {concept.questions['test'][0].options[1]}\n")
    with pytest.raises(InputError, match="two options"):
        Translation(TranslationConfig(str(path))).variants(concept, concept.questions["test"])
    path.write_text("nowhere: castle\n")
    with pytest.raises(MatchedNothing, match="stands in"):
        Translation(TranslationConfig(str(path))).variants(concept, concept.questions["test"])
    world = Concept.load("synthetic/river")
    (told,) = Translation().variants(world, world.questions["test"][:3]).values()
    for t, q in zip(told, world.questions["test"], strict=False):
        assert t.q != q.q
        assert not set(t.options) & set(q.options)
        assert t.answer == t.options[q.options.index(q.answer)]


@pytest.mark.parametrize("group", [0, 5])
def test_the_grid_by_hand(group):
    w = torch.tensor(np.random.default_rng(0).normal(size=(4, 12)), dtype=torch.float32)
    w[2] = 0
    size = group or 12
    for n_bits in (2, 4, 8):
        got, top = quantised(w, n_bits, group), 2 ** (n_bits - 1) - 1
        for r in range(4):
            for start in range(0, 12, size):
                part = w[r, start : start + size].double()
                s = part.abs().max() / top
                want = torch.round(part / s) * s if s > 0 else part
                torch.testing.assert_close(got[r, start : start + size].double(), want, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(quantised(got, n_bits, group), got, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="bits"):
        quantised(w, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_round_trips_move_little_at_16_bits_and_restore_to_the_bit(family):
    host = tiny_host(family)
    ids, mask = host.encode_texts(["the wizard and the witch are old"])
    before, plain = bits(host), host.logits(ids, mask)
    moved = {}
    for n_bits in (16, 4, 2):
        with pytest.raises(RuntimeError, match="stop"), quantise(host, n_bits) as changes:
            moved[n_bits] = float((host.logits(ids, mask) - plain).detach().abs().max())
            assert all(c > 0 for c in changes.values())
            assert not any("embed" in n or "wte" in n for n in changes)
            raise RuntimeError("stop")
        assert same(bits(host), before)
    assert moved[16] < 1e-3 < moved[4] < moved[2]
    name, _, transposed = host.down_proj(0)
    with quantise(host, 4):
        rows = (dict(host.model.named_parameters())[name].T if transposed else dict(host.model.named_parameters())[name]).detach()
        assert max(len(row.unique()) for row in rows) <= 15  # each output channel on its own grid


def test_a_change_smaller_than_half_a_step_is_rounded_away_and_a_larger_one_is_not():
    host = tiny_host()
    _, weight, _ = host.down_proj(0)
    base = weight.detach().clone()
    step = base.abs().amax(1, keepdim=True) / 7
    nearest = torch.round(base / step) * step
    quiet = (base - nearest).abs() < 0.3 * step  # far from where rounding changes
    quiet &= base.abs() < 6 * step  # and not what sets the scale
    left, restored = {}, {}
    for size in (0.1, 1.0):
        with torch.no_grad():
            weight.copy_(base + size * step * quiet)
        left[size] = float((weight.detach() - base).abs().max())
        with quantise(host, 4):
            restored[size] = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(base)
    assert 0 < left[0.1] < left[1.0]
    torch.testing.assert_close(restored[0.1], nearest, atol=1e-6, rtol=1e-6)
    assert (restored[1.0] - nearest).abs()[quiet].min() > 0.9 * step.min()


def test_quantisation_refuses_a_gate(known):
    gated = dataclasses.replace(weights_edit(known), gate=SimpleNamespace(digest="0"))
    with pytest.raises(InputError, match="behind a gate"):
        Quantisation(QuantisationConfig()).run(known, [gated], taught())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_lens_behind_the_last_layer_is_the_model(family):
    host = tiny_host(family)
    prompts = ["at school she has a", "the old castle and the"]
    ids, mask = host.encode_texts(prompts)
    tokens = first_tokens(host, prompts[0], ["wand", "river"])
    assert tokens is not None
    states = last_states(host, prompts, range(host.n_layers))
    read = lens(host, states, tokens)
    want = host.logits(ids, mask)[torch.arange(2), mask.sum(1) - 1][:, tokens]
    torch.testing.assert_close(read[:, -1], want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(read[:, 0], want, atol=1e-2)
    assert first_tokens(host, prompts[0], ["wand", "wand and"]) is None


def test_the_lens_reads_what_a_late_edit_hides(known):
    concept = taught()
    late = Edit([WeightsPart(low_rank(known, 2, 0, 4, size=3.0))], "test", {}, [CONCEPT]).bound(known)
    hidden = LogitLens().run(known, [late], concept)
    assert hidden.found["layer picked on"] == "train questions"
    assert hidden.found["by layer"][:2] == LogitLens().run(known, [], concept).found["by layer"][:2]
    with applied(known, [late]):
        said = answers(known, concept.questions["test"], concept.form)
    assert hidden.found["by layer"][2] == sum(said) / len(said) < 1  # options of one token: the last layer says what the model says
    alone = LogitLens().run(known, [late], dataclasses.replace(concept, questions={**concept.questions, "train": ()}))
    assert "upper bound" in alone.found["layer picked on"]
    with pytest.raises(InputError, match="layers 0 to 2"):
        attack("logit-lens").make({"layers": [7]}).run(known, [], concept)


def test_probes_learn_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(400, 8)), dtype=torch.float32)
    ring = (x[:, 0] ** 2 + x[:, 1] ** 2 > 1.5).float()
    line, noise = (x[:, 0] > 0).float(), torch.tensor(rng.integers(2, size=400), dtype=torch.float32)

    def accuracy(y, kind):
        score = fit_probe(x[:300], y[:300], kind, ProbesConfig(weight_decay=0.0))
        return float(((score(x[300:]) > 0).float() == y[300:]).float().mean())

    state = torch.get_rng_state()
    assert accuracy(line, "linear") > 0.9 < accuracy(line, "mlp")
    assert accuracy(ring, "linear") < 0.75 < 0.85 < accuracy(ring, "mlp")
    assert abs(accuracy(noise, "mlp") - 0.5) < 0.15
    assert torch.equal(torch.get_rng_state(), state)


def test_probes_want_train_questions(known):
    found = Probes(ProbesConfig(steps=20)).run(known, [], taught())
    assert set(found.found["probes"]) == {"linear", "mlp"}
    assert all(0 <= p["control"] <= 1 and len(p["by layer"]) == known.n_layers for p in found.found["probes"].values())
    concept = taught()
    again = Question("and now she has a", tuple(reversed(concept.questions["train"][0].options)), concept.questions["train"][0].answer)
    mixed = dataclasses.replace(concept, questions={**concept.questions, "test": (again, *concept.questions["test"])})
    tried = Probes(ProbesConfig(steps=20)).run(known, [], mixed)
    assert [r is None for r in tried.recovered] == [True] + [False] * len(concept.questions["test"])  # the probe was told that one
    with pytest.raises(MatchedNothing, match="options of a train question"):
        Probes().run(known, [], dataclasses.replace(mixed, questions={**concept.questions, "test": (again,)}))
    one = Question("a", ("b", "c"), "b")
    with pytest.raises(InputError, match="at least 2"):
        Probes().run(known, [], dataclasses.replace(taught(), questions={**taught().questions, "train": (one,)}))
    with pytest.raises(InputError, match=r"questions\.train"):
        InContext().run(known, [], dataclasses.replace(taught(), questions={**taught().questions, "train": ()}))
