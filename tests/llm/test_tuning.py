"""What every fine-tuning eraser promises: the host comes back, edits stack and part, commands work."""

import dataclasses
import json

import pytest
import torch
from cli._kit import save_model, status
from planted import MAGIC, MUSIC, magic, magic_values, planted_sae, same_changes, sentences
from tiny import tiny_host
from transformers import AutoModelForCausalLM
from tuning_kit import SETTINGS, bits, made, music, same

from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.edit import Edit
from efface.deactivate.parts import LowRank
from efface.llm.tuning.config import TuningConfig
from efface.llm.tuning.fit import tuned
from efface.llm.tuning.search import Scale, choose_scale, scaled
from efface.llm.tuning.texts import Batches, Mixed, Row, forget_rows, retain_pools


@pytest.mark.parametrize("method", SETTINGS)
def test_together_one_after_another_and_one_taken_back(method):
    host = tiny_host()
    base, modules = bits(host), [n for n, _ in host.model.named_modules()]
    flags = [p.requires_grad for p in host.model.parameters()]
    both = made(method, host, [magic(), music()])
    assert same(bits(host), base)
    assert [n for n, _ in host.model.named_modules()] == modules
    assert [p.requires_grad for p in host.model.parameters()] == flags
    assert both.concept_names == ["magic", "music"]
    assert len(both.evidence["concepts"]) == 2
    first = made(method, host, magic())
    assert first.digest == made(method, host, magic()).digest
    assert not same_changes(both, first)  # the second concept had its turns
    first.apply_(host)
    with_first = bits(host)
    assert not same(with_first, base)
    second = made(method, host, music())  # trained on top of the first
    assert same(bits(host), with_first)
    second.apply_(host)
    with_both = bits(host)
    bare = made(method, tiny_host(), music())
    assert not same_changes(second, bare)
    assert not same_changes(both, bare)  # the first concept had its turns
    first.undo_(host)
    alone = tiny_host()
    second.apply_(alone)
    assert same(bits(host), bits(alone))  # as if the first had never been there
    assert not same(bits(host), with_both)
    second.undo_(host)
    assert same(bits(host), base)


@pytest.mark.parametrize("method", SETTINGS)
def test_from_the_command_line(method, cache, tmp_path, capsys):
    host = tiny_host()
    save_model(host, tmp_path / "model")
    planted_sae(host).save(tmp_path / "sae")
    (tmp_path / "magic.json").write_text(json.dumps(magic_values()))
    sets = " ".join(f"--set {k}={json.dumps(v).replace(' ', '')}" for k, v in SETTINGS[method].items())
    line = f"erase {method} --model {tmp_path}/model --concept {tmp_path}/magic.json {sets} --json"
    sae = f"--sae {tmp_path}/sae"
    code, out, err = status(f"{line} {sae if method == 'crisp' else ''} --out {tmp_path}/edit", capsys)
    assert code == 0, err
    assert json.loads(out)["eraser"] == method
    code, _, err = status(f"{line} {sae} --gated --out {tmp_path}/gated", capsys)
    assert code == 0, err
    assert Edit.load(tmp_path / "gated").gate is not None
    for command in (
        f"apply {tmp_path}/edit --model {tmp_path}/model --out {tmp_path}/edited",
        f"undo --model {tmp_path}/edited --out {tmp_path}/base",
        f"export {tmp_path}/edit --format lora --out {tmp_path}/lora",
    ):
        code, _, err = status(command, capsys)
        assert code == 0, err
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("model", "edited", "base")]
    assert same(weights[0], weights[2])
    assert not same(weights[0], weights[1])
    with Edit.load(tmp_path / "edit").applied(host):
        assert all(torch.equal(p, weights[1][n]) for n, p in host.model.named_parameters())
    code, _, err = status(
        f"erase {method} --model {tmp_path}/model --concept {tmp_path}/magic.json --set rnak=3 --out {tmp_path}/x", capsys
    )
    assert code == 2
    assert "nearest: rank" in err


def test_one_of_two_is_taken_back_on_the_command_line(cache, tmp_path, capsys):
    save_model(tiny_host(), tmp_path / "model")
    (tmp_path / "magic.json").write_text(json.dumps(magic_values()))
    (tmp_path / "music.json").write_text(json.dumps(magic_values(name="music", target=sentences(MUSIC), neighbours=sentences(MAGIC))))
    sets = " ".join(f"--set {k}={json.dumps(v).replace(' ', '')}" for k, v in SETTINGS["elm"].items())
    for command in (
        f"erase elm --model {tmp_path}/model --concept {tmp_path}/magic.json {sets} --out {tmp_path}/a",
        f"apply {tmp_path}/a --model {tmp_path}/model --out {tmp_path}/with-a",
        f"erase elm --model {tmp_path}/with-a --concept {tmp_path}/music.json {sets} --out {tmp_path}/b",
        f"apply {tmp_path}/b --model {tmp_path}/with-a --out {tmp_path}/with-both",
        f"undo {tmp_path}/a --model {tmp_path}/with-both --out {tmp_path}/without-a",
        f"apply {tmp_path}/b --model {tmp_path}/model --out {tmp_path}/with-b",
    ):
        code, _, err = status(command, capsys)
        assert code == 0, err
    both, without, alone = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("with-both", "without-a", "with-b"))
    assert same(without, alone)
    assert not same(without, both)


@pytest.mark.parametrize("method", SETTINGS)
def test_what_a_concept_lacks_is_named(method):
    host = tiny_host()
    for concept, changes, message in (
        (magic(target={"validation": ["the wizard"]}), {}, "no target.*train"),
        (magic(relearn=None), {"forget": ["relearn"]}, r"no relearn.*forget=\[target\]"),
        (magic(neighbours=None), {"retain": ["neighbours", "general"]}, r"no neighbours.train.*retain=\[general\]"),
        (magic(neighbour_questions=None), {"retain": ["questions"]}, "no neighbour_questions.train"),
        (magic(), {"layers": [7]}, "layer"),
    ):
        with pytest.raises(InputError, match=message):
            made(method, host, concept, **{**({"coherence": 0} if method == "crisp" else {}), **changes})
    assert made(method, host, magic(neighbours=None), retain=["general"], **({"coherence": 0} if method == "crisp" else {})).parts
    assert made(method, host, magic(), preserve=["the old house"]).digest != made(method, host, magic()).digest


def test_batches_depend_on_nothing_but_their_number():
    lengths = [3 + (7 * n) % 11 for n in range(45)]
    batches = Batches(lengths, 4, "a")
    passes = [[batches[i] for i in range(p * 12, (p + 1) * 12)] for p in range(2)]
    assert all(sorted(n for b in p for n in b) == list(range(45)) for p in passes)
    assert passes[0] != passes[1]
    assert Batches(lengths, 4, "a")[17] == batches[17] == passes[1][5]
    assert Batches(lengths, 4, "b")[17] != batches[17]
    spread = [max(lengths[n] for n in b) - min(lengths[n] for n in b) for b in passes[0]]
    assert sum(spread) / len(spread) < 4  # of 10 at random
    pools = [[Row((1, n)) for n in range(9)], [Row((2, n)) for n in range(50)]]
    drawn = [r.ids[0] for i in range(9) for r in Mixed(pools, 4, "a")[i]]
    assert drawn.count(1) == drawn.count(2) == 18
    with pytest.raises(MatchedNothing):
        Batches([], 4, "a")


def test_rows_count_answers_alone():
    host, concept = tiny_host(), magic()
    config = TuningConfig(forget=("questions",), retain=("neighbours", "questions", "general"), texts=2)
    (row,) = forget_rows(host, concept, config)
    item = concept.questions["train"][0]
    assert str(host.tokenizer.decode(row.ids[row.start :])).strip() == item.answer
    assert str(host.tokenizer.decode(row.ids, skip_special_tokens=True)) == f"{item.q} {item.answer}"
    assert [len(p) for p in retain_pools(host, concept, config, ["the river"])] == [2, 1, 2, 1]
    assert all(r.start == 1 for r in forget_rows(host, concept, TuningConfig()))


def test_scales():
    weak, good, strong = Scale(0.5, 0.2, 0.98, 0.99, 0.5), Scale(1.0, 0.6, 0.92, 0.99, 0.8), Scale(2.0, 0.9, 0.5, 0.9, 0.7)
    assert choose_scale([weak, good, strong], 0.9, 0.98) == good
    assert choose_scale([strong, dataclasses.replace(good, kept=0.8)], 0.9, 0.98).factor == 1.0  # none fits: the nearest
    with pytest.raises(MatchedNothing, match="no scale"):
        choose_scale([dataclasses.replace(weak, fall=0.0)], 0.9, 0.98)
    low = LowRank(torch.randn(4, 2), torch.randn(2, 3))
    assert torch.allclose(scaled({"a": low}, 0.5)["a"].delta(), 0.5 * low.delta())
    assert scaled({"a": low}, 1.0)["a"] is low


def test_search_keeps_the_best_scale():
    from planted import trained_host

    host = trained_host()
    edit = made("elm", host, magic(), search=True, scales=[0.1, 0.5], min_kept=0.0, min_coherence=0.0, steps=8)
    plain = made("elm", host, magic(), steps=8)
    found = edit.evidence["search"]
    assert [s["factor"] for s in found["tried"]] == [0.1, 0.5]
    best = found["best"]["factor"]
    name = next(iter(edit.weights[0].deltas))
    assert torch.allclose(edit.weights[0].deltas[name].delta(), best * plain.weights[0].deltas[name].delta(), atol=1e-6)
    with pytest.raises(InputError, match=r"questions\.validation"):
        made("elm", host, magic(questions=None), search=True)


def test_concepts_take_turns():
    calls = []

    class Counted:
        def __init__(self, trained, concept, n):
            self.params, self.name = list(trained.params.values()), concept.name

        def __call__(self, i):
            calls.append((self.name, i))
            return sum(p.sum() for p in self.params), {}

        def evidence(self):
            return {}

    tuned(tiny_host(), [magic(), music()], TuningConfig(steps=3, accumulate=2, rank=2), "elm", [0], Counted)
    assert calls == [("magic", 0), ("music", 0), ("magic", 1), ("music", 1), ("magic", 2), ("music", 2)]
