"""`form=replace` of ItD: where a concept's features are active in a prompt, the anchor is read in the place of the words that carry them."""

import re
from dataclasses import replace

import pytest
import torch
from t2i._kit import changed, draw, tiny_image_host
from t2i._planted import MIXED, POINT, fitted, word_sae

from efface.base.errors import InputError
from efface.deactivate import DeactivationPart, Edit
from efface.deactivate.replacement import Heard, ReplacementPart, Rewriting, Word
from efface.sae import SAE


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
