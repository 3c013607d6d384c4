"""Interpret-then-Deactivate on a tiny real pipeline with planted features: one word, one feature."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from t2i._kit import Unmoved, changed, draw, tiny_image_host
from t2i._planted import CONTRAST, MIXED, POINT, concept, fitted, word_sae

import efface
from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate import ChangeGate, DeactivationPart, Edit, erase
from efface.deactivate.concepts_gate import ConceptsGate, Group
from efface.t2i.methods.itd.config import ItdConfig
from efface.t2i.methods.itd.expansion import placeholder, spoken
from efface.t2i.methods.itd.fit import choose
from efface.t2i.methods.itd.official import official_scores
from efface.t2i.methods.itd.search import mildest


def test_the_planted_feature_is_found_and_only_its_prompts_are_drawn_otherwise(tmp_path):
    host = tiny_image_host("sd")
    edit = fitted(host, "dog")
    assert edit.parts[0].features == (0,)
    assert edit.evidence["concepts"][0]["features"][0]["feature"] == 0
    base = draw(host, MIXED)
    with edit.applied(host):
        after = draw(host, MIXED)
    assert changed(after, base).tolist() == [False, True, False, True]
    edit.save(tmp_path / "edit")
    loaded = Edit.load(tmp_path / "edit")
    assert isinstance(loaded.gate, ConceptsGate)
    with loaded.applied(host):
        assert torch.equal(draw(host, MIXED), after)
    assert torch.equal(draw(host, MIXED), base)


def test_several_concepts_are_the_union_in_any_order():
    host = tiny_image_host("sd")
    sae, one, other = word_sae(host), concept("dog", "bus"), concept("cat", "apple")
    both, turned = (erase("itd", host, c, [sae], **CONTRAST) for c in ([one, other], [other, one]))
    assert both.parts[0].features == turned.parts[0].features == (0, 1)
    alone = [erase("itd", host, c, [sae], **CONTRAST) for c in (one, other)]
    assert {f for e in alone for f in e.parts[0].features} == {0, 1}
    base = draw(host, MIXED)
    with both.applied(host):
        together = draw(host, MIXED)
    with alone[0].applied(host), alone[1].applied(host):
        after = draw(host, MIXED)
    assert torch.equal(together, after)
    assert changed(together, base).tolist() == [False, True, False, True]
    with turned.applied(host):
        assert torch.equal(draw(host, MIXED), together)


def test_prompts_of_other_erased_concepts_take_no_features():
    host = tiny_image_host("sd")
    sae = word_sae(host)
    dog = concept("dog", "bus", general={"train": ["a big cat", "a red apple"], "validation": ["the sea"]})
    cat = concept("cat", "apple", general={"train": ["a big dog", "the blue bus"], "validation": ["the sea"]})
    mine = [c.found.features for c in choose(host, sae, [dog, cat], (), ItdConfig(preset="efface", rule="topk_minus_union"))]
    assert mine == [(0,), (1,)]
    both = "a dog and a cat"
    for field in ("general", "neighbours"):
        shy = concept("dog", "bus", **{field: {"train": [both, "the sea"], "validation": ["a sea"]}})
        pair = concept("cat", "apple", target={"train": [both, "cat"]})
        found = choose(host, sae, [shy, pair], (), ItdConfig(preset="efface", rule="topk_minus_union"))
        assert found[0].found.features == (0,)
        with pytest.raises(MatchedNothing, match="took all"):  # the control: cat is not erased with it
            choose(host, sae, [shy], (), ItdConfig(preset="efface", rule="topk_minus_union"))
    with pytest.raises(MatchedNothing, match=r"'a big dog'.*rule=frequency"):
        choose(host, sae, [dog], ["a big dog and a dog"[:9]], ItdConfig(rule="topk_minus_union"))


def test_gates_of_several_concepts_are_the_single_ones_and_know_no_batch(tmp_path):
    host = tiny_image_host("sd")
    layer = DeactivationPart(word_sae(host), (0, 1, 2), -8.0, "scale", spare_first=True)
    gate = ConceptsGate(layer, (Group("dog", (0,), 0.5), Group("cat", (1,), 0.25)))
    single = [ChangeGate(replace(layer, features=(f,))).score(host, MIXED) for f in (0, 1)]
    want = torch.stack([single[0] / 0.5, single[1] / 0.25]).amax(0)
    torch.testing.assert_close(gate.score(host, MIXED), want)
    assert torch.equal(gate.score(host, MIXED), torch.cat([gate.score(host, [p]) for p in MIXED]))
    assert float(want[0]) == 0 < float(want[1])
    made = gate.calibrated(host, [["the dog"], ["the cat"]], [["the sea", "a tree"]] * 2, [["the bus"]] * 2, fpr=0.0)
    assert made.fires(made.score(host, MIXED)).tolist() == [False, True, False, True]
    assert all(g.calibration["target"]["mean"] == 1 for g in made.groups)
    made.save(tmp_path / "gate")
    assert ConceptsGate.load(tmp_path / "gate").digest == made.digest != gate.digest
    for bad in (Group("dog", (9,)), Group("dog", ()), Group("dog", (0,), 0.0)):
        with pytest.raises(InputError):
            ConceptsGate(layer, (bad,))
    with pytest.raises(MatchedNothing, match="move none"):
        ConceptsGate(layer, (Group("apple", (2,)),)).calibrated(host, [["the dog"]], [["the cat"]])


def test_bos_alone_opens_no_gate():
    host = tiny_image_host("sd")
    sae, first = word_sae(host), host.activations(["a big dog"], [POINT])[POINT][0, 0].detach()
    with torch.no_grad():
        sae.W_enc[:, 0], sae.b_enc[0] = first / first.norm(), -0.9 * float(first.norm())
    layer = DeactivationPart(sae, (0,), -8.0, "scale")
    assert bool(layer.change(host.activations(["a big dog"], [POINT])[POINT])[1][:, 0].all())
    assert ConceptsGate(layer, (Group("dog", (0,)),)).score(host, ["a big dog"]).tolist() == [0]


def test_the_mildest_multiplier_that_is_enough_is_taken():
    host = tiny_image_host("sd")
    dog = concept(
        "dog",
        "cat",
        target={"train": ["a big dog"], "validation": [{"text": "the dog", "labels": {"object": "dog"}}]},
        judge="icons/object",
    )
    options = {"steps": 2, "size": (32, 32)}
    drawn = partial(host.generate, **options)
    base = drawn(["the dog"], seed=0)

    edit = Edit([DeactivationPart(word_sae(host), (0,), -8.0, "scale", spare_first=True)], "itd", {"value": -8.0}).bound(host)
    host.__dict__["generate"] = drawn
    try:
        found = mildest(host, edit, [dog], ItdConfig(search=True, grid_value=(1.0, 0.0, -8.0)), [Unmoved(base)])
        # of two that do nothing alike, the milder
        equal = mildest(host, edit, [dog], ItdConfig(search=True, grid_value=(1.0, 1.0 - 1e-12)), [Unmoved(base)])
    finally:
        del host.__dict__["generate"]
    assert (found.parts[0].value, found.config["value"]) == (0.0, 0.0)
    assert equal.config["value"] == 1.0
    assert found.evidence["search"] == [{"value": 1.0, "gone": 0.0}, {"value": 0.0, "gone": 1.0}]


def test_paper_preset_is_one_published_threshold_and_the_decoded_stream():
    host = tiny_image_host("sd")
    edit = erase("itd", host, concept("dog", "cat"), [word_sae(host)])
    part, gate = edit.parts[0], edit.gate
    assert (part.value, part.keep_error, part.spare_first) == (-8.0, False, True)
    assert isinstance(gate, ChangeGate)
    scores = gate.score(host, ["a big dog", "dog"])
    assert gate.require_threshold().threshold == pytest.approx(0.99 * float(scores.min()))
    x = host.activations(["a big dog"], [POINT])[POINT]
    torch.testing.assert_close(part.deactivate(x), part.sae(x) + part.change(x)[0])


def test_the_released_quirks_are_there_and_nowhere_else():
    host = tiny_image_host("sd")
    sae, dog = word_sae(host), concept("dog", "cat")
    plain = erase("itd", host, dog, [sae], k_sel=3)
    celebrity, style, nudity = (
        erase("itd", host, dog, [sae], k_sel=3, compat="official", task=t) for t in ("celebrity", "style", "nudity")
    )
    assert plain.parts[0].features == (0,)
    assert set(celebrity.parts[0].features) >= {0}
    assert nudity.gate is None
    layer, prompts = plain.parts[0], ["a big dog", "dog"]
    reader = host.reader([POINT])
    for task, edit in (("celebrity", celebrity), ("style", style)):
        scores = official_scores(host, edit.parts[0], prompts, ItdConfig(compat="official", task=task))
        assert edit.gate.require_threshold().threshold == pytest.approx(0.99 * float(scores.min()))
        row = torch.tensor([reader.token_ids(["dog"])[0]])
        x = reader.activations(row, torch.ones_like(row), [POINT])[POINT]
        moved = replace(edit.parts[0], value=-6.0 if task == "style" else -8.0)
        each = (moved.deactivate(x) - x).square().mean(-1)[0]
        torch.testing.assert_close(scores[1].float(), each.amax() if task == "celebrity" else each.mean(), rtol=1e-4, atol=1e-6)
    assert not celebrity.gate.fires(celebrity.gate.score(host, ["a big dog"])).item()  # the fault: calibrated by another statistic
    assert plain.gate.fires(plain.gate.score(host, ["a big dog"])).item()
    assert layer.value == style.parts[0].value == -8.0


def test_fitted_features_and_gate_find_the_planted_one():
    host = tiny_image_host("sd")
    words = [w for w in ("big", "red", "blue", "old", "green") for _ in range(7)]
    many = [f"a {w} dog{' and a cat' * (i % 2)}"[:30] for i, w in enumerate(words)]
    ways = list(
        dict.fromkeys(
            [*many, *(f"{a} {b} dog" for a in ("the", "my", "a", "an", "by") for b in ("big", "red", "blue", "old", "green", "sea"))]
        )
    )
    dog = concept("dog", "cat", target={"train": ways, "validation": ["the dog", "a red dog by the sea"]})
    edit = erase("itd", host, dog, [word_sae(host)], preset="efface", rule="fitted", gate="fitted", fpr=0.0)
    assert edit.parts[0].features == (0,)
    base = draw(host, MIXED)
    with edit.applied(host):
        assert changed(draw(host, MIXED), base).tolist() == [False, True, False, True]


def test_learned_words_are_heard_and_the_host_is_left_as_it_was():
    host = tiny_image_host("sd")
    word = placeholder(host, "text_encoder", ["a big dog"])
    reader = host.readers["text_encoder"]
    assert word.token not in reader.token_ids(["a big dog"])[0]
    embedding = reader.module.get_input_embeddings()
    base = host.encode([word.word]).embeds
    dog = embedding.weight[reader.token_ids(["dog"])[0][1]].detach()
    with spoken(embedding, word.token, dog):
        torch.testing.assert_close(host.encode([word.word]).embeds[:, :2], host.encode(["dog"]).embeds[:, :2])
    assert torch.equal(host.encode([word.word]).embeds, base)


def test_expansion_adds_what_learned_words_rouse_and_no_retain_prompt_does():
    host = tiny_image_host("sd")
    sae = word_sae(host)
    dog = concept("dog", "cat")
    texts = [*dog.target["train"], *dog.neighbours["train"], *dog.general["train"]]
    with torch.no_grad():  # 20 is active everywhere; 21 and 22 where a vector points along the direction that these texts use least
        x = host.activations(texts, [POINT])[POINT][:, 1:].flatten(0, 1)
        rare = torch.linalg.svd(x)[2][-1]
        sae.W_enc[:, 20], sae.b_enc[20] = 0, 0.1
        sae.W_enc[:, 21], sae.W_enc[:, 22] = rare, -rare
        sae.b_enc[21] = sae.b_enc[22] = -1.001 * float((x @ rare).abs().max())
    before = {n: p.clone() for n, p in host.model.named_parameters()}
    config = {"preset": "efface", "rule": "topk_minus_union", "fpr": 0.0, "expand_steps": 2, "expand_images": 2}
    plain, more = (erase("itd", host, dog, [sae], expand_rounds=n, **config) for n in (0, 4))
    assert set(plain.parts[0].features) == {0} < set(more.parts[0].features)
    assert {21, 22} & set(more.parts[0].features)
    assert 20 not in more.parts[0].features  # active everywhere, so in retain prompts
    assert all(torch.equal(p, before[n]) for n, p in host.model.named_parameters())
    assert all(p.requires_grad for p in host.model.parameters())


def test_bad_input_names_the_field():
    host = tiny_image_host("sd")
    sae, dog = word_sae(host), concept("dog", "cat")
    with pytest.raises(InputError, match="neighbours"):
        erase("itd", host, concept("dog", "cat", neighbours={}, general={}), [sae], preset="efface")
    with pytest.raises(InputError, match=r"general.*validation"):
        erase("itd", host, concept("dog", "cat", general={"train": ["a tree"]}), [sae], preset="efface")
    with pytest.raises(MatchedNothing, match="wider SAE"):
        silent = word_sae(host)
        with torch.no_grad():
            silent.b_enc.fill_(-1e3)
        erase("itd", host, dog, [silent], preset="efface")
    with pytest.raises(InputError, match="one an encoder"):
        erase("itd", host, dog, [sae, word_sae(host)])
    with pytest.raises(InputError, match="itd works on image pipelines"):
        from tiny import tiny_host

        erase("itd", tiny_host("llama"), dog, [sae])
    for bad in (
        {"value": float("nan")},
        {"k_sel": 0},
        {"fpr": 1.0},
        {"compat": "official", "preset": "efface"},
        {"search": True, "form": "clamp"},
    ):
        with pytest.raises(InputError):
            erase("itd", host, dog, [sae], **bad)
    with pytest.raises(UnknownName, match="replace"):
        erase("itd", host, dog, [sae], form="replaced")
    assert "itd" in {m.name for m in efface.deactivate.methods("t2i")}
