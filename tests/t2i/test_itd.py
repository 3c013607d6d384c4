"""Interpret-then-Deactivate on a tiny real pipeline with planted features: one word, one feature."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from t2i._kit import Unmoved, changed, draw, sae_at, tiny_image_host

import efface
from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate import ChangeGate, Concept, DeactivationPart, Edit, erase
from efface.deactivate.concepts_gate import ConceptsGate, Group
from efface.deactivate.replacement import Heard, ReplacementPart, Rewriting, Word
from efface.sae import SAE
from efface.t2i.host import ImageHost
from efface.t2i.methods.itd.config import ItdConfig
from efface.t2i.methods.itd.expansion import placeholder, spoken
from efface.t2i.methods.itd.fit import choose
from efface.t2i.methods.itd.official import official_scores
from efface.t2i.methods.itd.search import mildest

POINT = "text_encoder.layers.0.resid_pre"
WORDS = ("dog", "cat", "apple", "bus", "house", "tree")
CONTRAST = {"preset": "efface", "rule": "contrast", "gate": "energy", "n_contrast": 2, "fpr": 0.0}
MIXED = ["a red apple", "a big dog", "the blue bus", "a dog and a cat"]


def word_sae(host: ImageHost) -> SAE:
    """Feature i reads and writes the word i; the others never fire."""
    sae, reader = sae_at(host, POINT), host.reader([POINT])
    table = reader.module.get_input_embeddings().weight.detach()
    with torch.no_grad():
        for p in (sae.b_dec, sae.W_enc, sae.b_enc):
            p.zero_()
        for i, word in enumerate(WORDS):
            v = table[reader.token_ids([word])[0][1]]
            sae.W_enc[:, i], sae.W_dec[i], sae.b_enc[i] = v / v.norm(), v / v.norm(), -0.6 * float(v.norm())
    return sae


def concept(word: str, near: str, **more) -> Concept:
    pool = ["the blue bus", "an old house by the sea", "a green tree", "a red apple"]
    general = [p for p in pool if word not in p and near not in p]
    values = {
        "format": 1, "name": word, "kind": "object", "anchor": "tree",
        "target": {"train": [f"a big {word}", word], "validation": [f"the {word}", f"a red {word}"], "test": [f"my {word}"]},
        "neighbours": {"train": [f"a big {near}"], "validation": [f"the {near}", f"a red {near}"]},
        "general": {"train": general, "validation": [p.replace("a ", "the ") + " by the sea" for p in general]},
    }  # fmt: skip
    return Concept.from_mapping(values | more)


def fitted(host: ImageHost, *words: str, **config) -> Edit:
    concepts = [concept(w, "cat" if w != "cat" else "apple") for w in words]
    return erase("itd", host, concepts, [word_sae(host)], **CONTRAST, **config)


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


def test_a_replaced_word_is_the_prompt_with_the_anchor(tmp_path):
    host = tiny_image_host("sd")
    edit = fitted(host, "dog", form="replace")
    assert isinstance(edit.parts[0], ReplacementPart)
    assert edit.parts[0].substituted(host, MIXED) == ["a red apple", "a big tree", "the blue bus", "a tree and a cat"]
    two = ReplacementPart(replace(edit.parts[0].layer, features=(0, 1)), "tree")
    assert two.substituted(host, ["a dog cat", "a dog and a cat"]) == ["a tree", "a tree and a tree"]
    assert two.substituted(host, ["dog, red  dog  cat", "the dog"]) == ["tree, red tree", "the tree"]
    base, want = draw(host, MIXED), draw(host, ["a red apple", "a big tree", "the blue bus", "a tree and a cat"])
    edit.save(tmp_path / "edit")
    with Edit.load(tmp_path / "edit").applied(host) as fired:
        assert torch.equal(draw(host, MIXED), want)
        assert fired[POINT] > 0
        states = host.encode(MIXED)
        assert states.prompts == tuple(MIXED)
    assert changed(want, base).tolist() == [False, True, False, True]
    with pytest.raises(InputError, match="no permanent form"):
        edit.apply_(host)


def test_words_with_a_little_of_the_features_stay():
    host = tiny_image_host("sd")
    own = word_sae(host)
    with torch.no_grad():  # «cat» rouses its feature two fifths as much as «dog» its own
        own.W_enc[:, 1] *= 0.4
        own.b_enc[1] *= 0.4
    layer = DeactivationPart(own, (0, 1), 0.0, "scale", spare_first=True)
    prompts = ["a dog and a cat", "the cat"]
    assert ReplacementPart(layer, "tree", 0.2).substituted(host, prompts) == ["a tree and a tree", "the tree"]
    assert ReplacementPart(layer, "tree", 0.8).substituted(host, prompts) == ["a tree and a cat", "the tree"]
    assert ReplacementPart(layer, "", 0.2).substituted(host, prompts) == ["a and a", "the"]
    several = Rewriting("the mutt, dog x", "tree", 1.0)
    words = [Word(0, 3, (1,)), Word(4, 8, (2, 3)), Word(10, 13, (4,)), Word(14, 15, (5,))]  # «mutt» is two tokens, of which one carries it
    assert several.replace_next(Heard(words, [0.2, 5.0, 4.0, 0.0], 5.0))
    assert several.text == "the tree, dog x"
    assert several.replace_next(Heard(words, [0.2, 5.0, 4.0, 0.0], 5.0))
    assert several.text == "the tree, tree x"
    assert not several.replace_next(Heard(words, [0.2, 5.0, 4.0, 0.0], 5.0))
    assert not several.drop_next(Heard(words, [0.0] * 4, 1.0))
    assert several.drop_next(Heard(words, [0.0] * 4, 1.1))
    assert several.text == "tree, tree x"  # what stands before the anchor goes first


@pytest.mark.parametrize(
    ("prompt", "carries", "anchor", "want"),
    [
        ("a dog, noto style", ["noto"], "twemoji style", "a dog, twemoji style"),
        ("a dog, noto Style", ["noto"], "twemoji style", "a dog, twemoji style"),
        ("noto noto style of dogs", ["noto"], "twemoji style", "twemoji style of dogs"),  # the second went without an anchor
        ("a dog", ["dog"], "a wolf", "a wolf"),
        ("my big dog runs", ["dog"], "my big cat", "my big cat runs"),
        ("a wolf dog", ["dog"], "wolf", "a wolf"),
        ("noto styles, style", ["noto"], "twemoji style", "twemoji style styles, style"),  # other words, and words apart, stay
        ("very very old dog", ["dog"], "wolf", "very very old wolf"),  # what the prompt says twice is the prompt's
    ],
)
def test_no_word_is_doubled_by_an_anchor(prompt, carries, anchor, want):
    rewriting = Rewriting(prompt, anchor, 1.0)

    def heard():
        words = [Word(m.start(), m.end(), (1,)) for m in re.finditer(r"\w+", rewriting.text)]
        return Heard(words, [float(rewriting.text[w.start : w.end] in carries) for w in words], 1.0)

    while rewriting.replace_next(heard()):
        pass
    assert rewriting.text == want
    assert all(rewriting.text[a:b] == anchor for a, b in rewriting.placed)
    assert len(rewriting.placed) == want.count(anchor)


def test_anchors_that_meet_when_words_between_them_go_become_one():
    rewriting = Rewriting("dog of dog", "tree", 1.0)
    for text in ("tree of dog", "tree of tree"):
        words = [Word(m.start(), m.end(), (1,)) for m in re.finditer(r"\w+", rewriting.text)]
        assert rewriting.replace_next(Heard(words, [float(rewriting.text[w.start : w.end] == "dog") for w in words], 2.0))
        assert rewriting.text == text
    words = [Word(m.start(), m.end(), (1,)) for m in re.finditer(r"\w+", rewriting.text)]
    assert rewriting.drop_next(Heard(words, [0.0] * 3, 2.0))
    assert (rewriting.text, rewriting.placed) == ("tree", [(0, 4)])


def test_an_anchor_that_has_features_of_its_own_costs_the_prompt_no_words():
    class Told(ReplacementPart):
        def _heard(self, host, prompts):
            found = [[(m, {"dog": 1.0, "cat": 0.5}.get(m.group(), 0.0)) for m in re.finditer(r"\S+", p)] for p in prompts]
            spans = [[Word(m.start(), m.end(), (i + 1,)) for i, (m, _) in enumerate(row)] for row in found]
            return [Heard(s, [a for _, a in row], max(a for _, a in row)) for s, row in zip(spans, found, strict=True)]

    host = tiny_image_host("sd")
    part = Told(DeactivationPart(word_sae(host), (0,), 0.0, "scale", spare_first=True), "cat", 0.2)
    assert part.substituted(host, ["a big dog", "a tree"]) == ["a big cat", "a tree"]


def test_a_replaced_prompt_does_not_outgrow_the_encoder():
    host = tiny_image_host("sd")
    layer = DeactivationPart(word_sae(host), (0,), 0.0, "scale", spare_first=True)
    reader = host.reader([POINT])
    full = "dog and dog"
    while len(reader.tokenizer(f"{full} tree")["input_ids"]) <= reader.fixed_length:
        full += " tree"
    assert ReplacementPart(layer, "bus").substituted(host, [full]) == [full.replace("dog", "bus")]
    wordy = ReplacementPart(layer, " ".join(["big"] * 3))
    (found,) = wordy.substituted(host, [full])
    assert len(reader.token_ids([found])[0]) <= reader.fixed_length
    assert "dog" not in found
    assert found.startswith("and big")  # the first went without an anchor, for which there was no room yet


def test_a_word_that_has_the_features_of_the_one_before_it_stays():
    """As read first, both words carry the features; with the first one replaced, the second does not."""

    class Causal(ReplacementPart):
        def _heard(self, host, prompts):
            tokens = [p.split() for p in prompts]
            carries = [[float("red" in t[: i + 1]) for i in range(len(t))] for t in tokens]
            spans = [[Word(m.start(), m.end(), (i + 1,)) for i, m in enumerate(re.finditer(r"\S+", p))] for p in prompts]
            return [Heard(s, c, max(c)) for s, c in zip(spans, carries, strict=True)]

    host = tiny_image_host("sd")
    layer = DeactivationPart(word_sae(host), (0,), 0.0, "scale", spare_first=True)
    asked = ["red dog", "a dog and red tree", "a dog"]
    assert Causal(layer, "blue").substituted(host, asked) == ["blue dog", "a dog and blue tree", "a dog"]


def test_where_only_eos_is_active_the_anchor_alone_is_read():
    host = tiny_image_host("sd")
    sae, point = word_sae(host), "text_encoder.layers.2.resid_post"
    reader = host.reader([point])
    eos = host.activations(["a big dog"], [point])[point][0, len(reader.token_ids(["a big dog"])[0]) - 1].detach()
    own = SAE(sae.cfg, {"hook_point": point})
    with torch.no_grad():
        for p in (own.b_dec, own.W_enc, own.b_enc):
            p.zero_()
        own.W_enc[:, 0], own.b_enc[0] = eos / eos.norm(), -0.999 * float(eos.norm())
    part = ReplacementPart(DeactivationPart(own, (0,), 0.0, "scale", spare_first=True), "tree")
    assert part.substituted(host, ["a big dog", "the blue bus"]) == ["tree", "the blue bus"]


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
